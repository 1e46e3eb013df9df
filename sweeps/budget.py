"""The crashes that count against each task of a launch, kept across the clusters that it loses.

A launch whose Ray was lost is replaced by a new process, which must not grant every run its attempts anew. A lost Ray is
nobody's crash, except that of a run which was under way at the same step as when Ray was lost before: it may be what
takes Ray down.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from sweeps.schedule import LOST, Status

CRASHES = "GOPHER_CRASHES"  # environment: what the process before knew, as JSON


@dataclass
class Budget:
    crashes: dict[str, int] = field(default_factory=dict)  # task -> crashes so far
    lost_at: dict[str, int] = field(default_factory=dict)  # task -> step that it had reached when Ray was lost

    def status(self, key: str, max_attempts: int) -> Status:
        """Where a task stands before anything has happened to it here."""
        crashes = self.crashes.get(key, 0)
        if crashes < max_attempts:
            return Status(crashes=crashes)
        at = f", the last time at step {self.lost_at[key]}" if key in self.lost_at else ""
        reason = f"crashed {crashes} times or took Ray with it{at}; look into its logs before launching it again"
        return Status(phase=LOST, crashes=crashes, reason=reason)

    def note(self, key: str, status: Status) -> None:
        if status.crashes:
            self.crashes[key] = status.crashes

    def ray_lost(self, steps: Mapping[str, int]) -> None:
        """Ray is gone with these tasks under way, at these steps."""
        for key, step in steps.items():
            if step <= self.lost_at.get(key, -1):
                self.crashes[key] = self.crashes.get(key, 0) + 1
            self.lost_at[key] = max(step, self.lost_at.get(key, -1))

    def hand_on(self) -> None:
        """Leave it to the process that goes on after this one."""
        os.environ[CRASHES] = json.dumps([self.crashes, self.lost_at])


def handed_on() -> Budget:
    """What the process before left, or an empty budget."""
    return Budget(*json.loads(os.environ.get(CRASHES, "[{}, {}]")))
