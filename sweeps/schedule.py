"""Which task starts next: a pure function of what is wanted, what has happened and what is free.

Order: text first, then trainings, most expensive first (a ladder's one large rung would otherwise run alone at the end),
the last few so that all cores end together, see `sweeps.packing`; then evaluations. A gang starts whole or not at all. A task that does not fit keeps what it needs:
what stands behind it may pass only with cores, GPUs and places that are left after everything ahead is served, so nobody
can delay or starve a large gang, and CPU evaluations fill the gaps of a GPU cluster.

Failures have three classes: a preemption is free, a crash has a budget, an error in the configuration is final.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sweeps.packing import LAST_RUNS, SEATS, best_packing

WAITING, ACTIVE, DONE, LOST, HELD = "waiting", "active", "done", "lost", "held"
CRASH, PREEMPTED, FINAL, STOPPED = "crash", "preempted", "final", "asked"
MAX_PREEMPTIONS = 1000  # of one task: more is a machine that takes every run down
ORDER = {"data": 0, "train": 1, "eval": 2}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A unit of work: `data` prepares tokenizer and shards, `train` is one run on a gang of `workers`, `eval` scores checkpoints."""

    key: str
    kind: str  # data | train | eval
    needs: tuple[str, ...] = ()
    workers: int = 0
    cpus_per_worker: int = 1
    gpus_per_worker: int = 0
    cost: float = 0.0  # expected FLOPs

    @property
    def cpus(self) -> int:
        return self.workers * self.cpus_per_worker

    @property
    def gpus(self) -> int:
        return self.workers * self.gpus_per_worker


@dataclass(frozen=True, kw_only=True)
class Event:
    """What became of a started task, and which class of failure it was."""

    key: str
    ok: bool
    reason: str | None = None
    cause: str = FINAL  # of a failure: crash | preempted | final | stopped (a person asked for it)
    exit_code: int = 1  # of the command if this is what ends it: 2 configuration, 3 machine


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a task stands. `held` is a task that was not started on purpose, or was stopped by a person."""

    phase: str = WAITING
    crashes: int = 0
    preemptions: int = 0
    reason: str | None = None
    exit_code: int = 1


@dataclass(frozen=True, kw_only=True)
class Capacity:
    cpus: int
    gpus: int
    max_parallel: int | None = None


def apply(statuses: Mapping[str, Status], event: Event, max_attempts: int) -> dict[str, Status]:
    """The statuses after one event: done, to be tried again, held, or lost."""
    before = statuses[event.key]
    crashes = before.crashes + (not event.ok and event.cause == CRASH)
    preemptions = before.preemptions + (not event.ok and event.cause == PREEMPTED)
    again = (event.cause == CRASH and crashes < max_attempts) or (
        event.cause == PREEMPTED and preemptions < MAX_PREEMPTIONS
    )
    phase = DONE if event.ok else HELD if event.cause == STOPPED else WAITING if again else LOST
    after = Status(
        phase=phase,
        crashes=crashes,
        preemptions=preemptions,
        reason=None if event.ok else event.reason,
        exit_code=event.exit_code,
    )
    return {**statuses, event.key: after}


def start(statuses: Mapping[str, Status], key: str) -> dict[str, Status]:
    return {**statuses, key: replace(statuses[key], phase=ACTIVE)}


def hold(statuses: Mapping[str, Status], reason: str) -> dict[str, Status]:
    """Statuses with everything that waits held back for `reason`; what runs goes on."""
    return {k: replace(s, phase=HELD, reason=reason) if s.phase == WAITING else s for k, s in statuses.items()}


def needs_of(task: Task) -> tuple[int, int, int]:
    """Cores, GPUs and places among `max_parallel` that a task takes."""
    return task.cpus, task.gpus, int(task.kind == "train")


def free(tasks: Sequence[Task], statuses: Mapping[str, Status], capacity: Capacity) -> tuple[int, ...]:
    """Cores, GPUs and places that no running task has."""
    taken = [needs_of(t) for t in tasks if statuses[t.key].phase == ACTIVE]
    places = len(tasks) if capacity.max_parallel is None else capacity.max_parallel
    whole = (capacity.cpus, capacity.gpus, places)
    return tuple(total - sum(t[i] for t in taken) for i, total in enumerate(whole))


def decide(
    tasks: Sequence[Task],
    statuses: Mapping[str, Status],
    capacity: Capacity,
    seconds: Mapping[str, float] | None = None,
) -> list[Task]:
    """The tasks to start now, in order. `seconds`: how long trainings will take from now on, where that is known."""
    left = free(tasks, statuses, capacity)
    waiting = sorted(ready(tasks, statuses), key=lambda t: (ORDER[t.kind], -t.cost, t.key))
    active = [t for t in tasks if t.kind == "train" and statuses[t.key].phase == ACTIVE]
    first = packed_first([t for t in waiting if t.kind == "train"], active, capacity, seconds or {})
    chosen = []
    for task in sorted(waiting, key=lambda t: (ORDER[t.kind], t.key not in first)):
        need = needs_of(task)
        if all(n == 0 or n <= room for n, room in zip(need, left, strict=True)):
            chosen.append(task)
        left = tuple(room - n for room, n in zip(left, need, strict=True))  # taken, or kept for it
    return chosen


def packed_first(
    waiting: Sequence[Task], active: Sequence[Task], capacity: Capacity, seconds: Mapping[str, float]
) -> set[str]:
    """Trainings to start before longer ones, so that the last few, alike in what they need, end as early as they can."""
    known = all(t.key in seconds for t in (*waiting, *active))
    if not known or not 1 < len(waiting) <= LAST_RUNS or len({needs_of(t) for t in (*waiting, *active)}) > 1:
        return set()
    whole = (capacity.cpus, capacity.gpus, SEATS + 1 if capacity.max_parallel is None else capacity.max_parallel)
    seats = min(total // need for total, need in zip(whole, needs_of(waiting[0]), strict=True) if need)
    if not len(active) < seats <= SEATS:
        return set()
    ends = [seconds[t.key] for t in active] + [0.0] * (seats - len(active))
    packed = best_packing({t.key: seconds[t.key] for t in waiting}, ends)
    return {keys[0] for keys in packed[len(active) :] if keys}


def ready(tasks: Sequence[Task], statuses: Mapping[str, Status]) -> list[Task]:
    return [t for t in tasks if statuses[t.key].phase == WAITING and all(statuses[n].phase == DONE for n in t.needs)]


def doom(tasks: Sequence[Task], statuses: Mapping[str, Status]) -> dict[str, Status]:
    """Statuses with every waiting task lost, or held, that needs a lost or held one."""
    out = dict(statuses)
    for task in tasks:
        causes = [out[n] for n in task.needs if out[n].phase in (LOST, HELD)]
        if out[task.key].phase == WAITING and causes:
            cause = causes[0]
            out[task.key] = replace(out[task.key], phase=cause.phase, reason=cause.reason, exit_code=cause.exit_code)
    return out


def settled(statuses: Mapping[str, Status]) -> bool:
    return all(s.phase in (DONE, LOST, HELD) for s in statuses.values())


def impossible(tasks: Sequence[Task], capacity: Capacity) -> list[Task]:
    """Tasks that would not fit even on the empty cluster."""
    return [t for t in tasks if t.cpus > capacity.cpus or t.gpus > capacity.gpus]
