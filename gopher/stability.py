"""When a loss cannot be trusted, and what a run does then: a pure policy over the events of its record.

A non-finite loss or gradient norm, or a spike, sends the run back to a checkpoint from before it. The same batches are
tried once more, because a fault of the hardware does not repeat and then nothing is lost. What does repeat is in the
data or the state: the batches between the checkpoint and the trouble are passed over, as large runs do (PaLM, Chowdhery
et al. 2022, section 5.1: restart about 100 steps earlier, skip 200 to 500 batches). Everything is bounded.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WINDOW_STEPS = 100  # losses that say what is usual; no spike is called before there are so many
SPIKE_NATS = 1.0  # above their median, and ...
SPIKE_DEVIATIONS = 10.0  # ... so many robust deviations (1.4826 * median absolute deviation) above it, ...
SPIKE_STEPS = 5  # ... for so many steps in a row: one odd batch is no spike
SPIKE_MARGIN_STEPS = 20  # a checkpoint younger than this before a spike may already hold its cause
MAX_REWINDS, MAX_SKIPS = 20, 5


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why a step cannot be trusted: `sentence` fits behind "step 7 has"."""

    sentence: str
    spike: bool = False  # finite, and many steps old already


class Watch:
    """Says of every step whether its loss and gradient norm can be trusted.

    What is usual belongs to a checkpoint: a run that goes back or starts again then calls the same step as before.
    """

    def __init__(self, usual: Sequence[float] = (), high: int = 0) -> None:
        self._usual, self._high = deque(usual, maxlen=WINDOW_STEPS), high

    def state(self) -> dict[str, Any]:
        """The arguments that make this watch again."""
        return {"usual": list(self._usual), "high": self._high}

    def trouble(self, loss: float, norm: float) -> Trouble | None:
        """What is wrong with a step of this loss (nats per token) and global gradient norm, or None."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return Trouble(sentence=f"loss {loss} and gradient norm {norm}")
        if len(self._usual) < WINDOW_STEPS:
            self._usual.append(loss)
            return None
        median = statistics.median(self._usual)
        deviation = 1.4826 * statistics.median(abs(v - median) for v in self._usual)
        self._high = self._high + 1 if loss > median + max(SPIKE_NATS, SPIKE_DEVIATIONS * deviation) else 0
        if self._high >= SPIKE_STEPS:
            said = f"loss {loss:.4g}, the last of {SPIKE_STEPS} steps far above the usual {median:.4g}"
            return Trouble(sentence=said, spike=True)
        if not self._high:
            self._usual.append(loss)
        return None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to do about a step that cannot be trusted."""

    latest: int  # newest checkpoint step that may be gone back to
    skip: bool  # pass over the batches from there to the trouble
    hopeless: str | None = None  # why the run must be given up instead


def plan(events: Sequence[Mapping[str, Any]], step: int, spike: bool) -> Plan:
    """The plan for trouble at the batch of `step` (0-based), given what happened before."""
    skips = [i for i, e in enumerate(events) if e["kind"] == "skip"]
    since = [e for e in events[skips[-1] + 1 if skips else 0 :] if e["kind"] == "rewind"]
    again = any(e["step"] == step for e in since)
    # trouble in the very step after a checkpoint, twice: parameters can be spoiled by an update whose own loss was a number
    spoiled = again and since[-1].get("to") == step
    hopeless = None
    if again and len(skips) >= MAX_SKIPS:
        hopeless = f"batches were skipped {len(skips)} times already"
    elif sum(e["kind"] == "rewind" for e in events) >= MAX_REWINDS:
        hopeless = f"the run went back {MAX_REWINDS} times already"
    latest = step - SPIKE_MARGIN_STEPS if spike else step - 1 if spoiled else step
    return Plan(latest=max(0, latest), skip=again, hopeless=hopeless)


def skips_of(events: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, int], ...]:
    """(step, sequences) of every skip: from that step on, so many sequences of the order are passed over.

    One that begins at an earlier step than those before it has passed over what they had.
    """
    skips: list[tuple[int, int]] = []
    for event in events:
        if event["kind"] == "skip":
            skips = [s for s in skips if s[0] <= event["step"]] + [(event["step"], event["sequences"])]
    return tuple(skips)


def skipped_before(skips: Sequence[tuple[int, int]], step: int) -> int:
    """Sequences passed over before the batch of `step`: with it, batches stay a function of (seed, step, skips)."""
    return sum(sequences for at, sequences in skips if at <= step)
