"""A cluster that exists only as arithmetic: any size, a virtual clock, seeded durations and faults.

It stands behind the same interface as Ray, so that the loop and the schedule can be tried on thousands of gangs and
failures in seconds.
"""

import random
from dataclasses import dataclass

from sweeps.backends import Job
from sweeps.schedule import CRASH, FINAL, PREEMPTED, Capacity, Event, Task


class VirtualClock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Chance of each end of one attempt; the rest finishes. A hang ends only when it is cancelled."""

    crash: float = 0.0
    preemption: float = 0.0
    hang: float = 0.0
    configuration: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A task under way: when and how it will end."""

    task: Task
    began: float
    ends: float
    outcome: str  # ok | crash | preempted | final | hang
    reason: str = "simulated"


class SimulatedBackend:
    """Runs tasks on a virtual clock. `history` keeps every attempt with its true end, for whoever checks the schedule."""

    def __init__(self, capacity: Capacity, clock: VirtualClock, seed: int = 0, faults: Faults | None = None) -> None:
        self.capacity, self.clock = capacity, clock
        self._random, self._faults = random.Random(seed), faults or Faults()
        self.running: dict[str, Attempt] = {}
        self.history: list[Attempt] = []

    @property
    def idle(self) -> tuple[int, int]:
        return 0, 0

    def release(self) -> None: ...

    def submit(self, task: Task, job: Job) -> None:
        now = self.clock.now()
        seconds = self._random.uniform(0.1, 10.0) * (1.0 + task.cost)
        self.running[task.key] = Attempt(task=task, began=now, ends=now + seconds, outcome=self._outcome())

    def _outcome(self) -> str:
        f, draw = self._faults, self._random.random()
        for outcome, chance in (
            (CRASH, f.crash),
            (PREEMPTED, f.preemption),
            ("hang", f.hang),
            (FINAL, f.configuration),
        ):
            if draw < chance:
                return outcome
            draw -= chance
        return "ok"

    def lose_node(self, keys: list[str]) -> None:
        """A node dies: the gangs of `keys` that had a member on it end now, all of them whole."""
        for key in keys:
            if key in self.running:
                self.cancel(key, "a node was lost")

    def poll(self) -> list[Event]:
        now = self.clock.now()
        ended = [a for a in self.running.values() if a.ends <= now and a.outcome != "hang"]
        for attempt in ended:
            self.history.append(self.running.pop(attempt.task.key))
        return [
            Event(key=a.task.key, ok=True)
            if a.outcome == "ok"
            else Event(key=a.task.key, ok=False, reason=a.reason, cause=a.outcome)
            for a in ended
        ]

    def cancel(self, key: str, reason: str) -> None:
        attempt, now = self.running[key], self.clock.now()
        self.running[key] = Attempt(task=attempt.task, began=attempt.began, ends=now, outcome=CRASH, reason=reason)

    def logs(self, key: str) -> str:
        return "".join(f"{a.began:.1f} {a.outcome} {a.reason}\n" for a in self.history if a.task.key == key)

    def close(self) -> None:
        self.running.clear()
