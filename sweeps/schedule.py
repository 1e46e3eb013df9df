"""Which task starts next: a pure function of what is wanted, what has happened and what is free.

Order: most expensive first, which packs a ladder best (its one large rung would otherwise run alone at the end).
A gang starts whole or not at all, and the first task in order that does not fit holds back those behind it, so a large
gang can never starve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WAITING, ACTIVE, DONE, LOST = "waiting", "active", "done", "lost"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A unit of work: `data` prepares tokenizer and shards, `train` is one run on a gang of `workers`."""

    key: str
    kind: str  # data | train
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
    """What became of a started task. `retry` is set for a crash, never for an error in the configuration."""

    key: str
    ok: bool
    reason: str | None = None
    retry: bool = False
    exit_code: int = 1  # of the command if this is what ends it: 2 configuration, 3 machine


@dataclass(frozen=True, kw_only=True)
class Status:
    phase: str = WAITING
    attempts: int = 0
    reason: str | None = None
    exit_code: int = 1


@dataclass(frozen=True, kw_only=True)
class Capacity:
    cpus: int
    gpus: int
    max_parallel: int | None = None


def apply(statuses: Mapping[str, Status], event: Event, max_attempts: int) -> dict[str, Status]:
    """The statuses after one event: done, to be tried again, or lost."""
    before = statuses[event.key]
    if event.ok:
        after = Status(phase=DONE, attempts=before.attempts)
    elif event.retry and before.attempts < max_attempts:
        after = Status(phase=WAITING, attempts=before.attempts, reason=event.reason)
    else:
        after = Status(phase=LOST, attempts=before.attempts, reason=event.reason, exit_code=event.exit_code)
    return {**statuses, event.key: after}


def start(statuses: Mapping[str, Status], key: str) -> dict[str, Status]:
    before = statuses[key]
    return {**statuses, key: Status(phase=ACTIVE, attempts=before.attempts + 1, reason=before.reason)}


def decide(tasks: Sequence[Task], statuses: Mapping[str, Status], capacity: Capacity) -> list[Task]:
    """The tasks to start now, in order."""
    active = [t for t in tasks if statuses[t.key].phase == ACTIVE]
    cpus = capacity.cpus - sum(t.cpus for t in active)
    gpus = capacity.gpus - sum(t.gpus for t in active)
    places = (capacity.max_parallel or len(tasks)) - sum(t.kind == "train" for t in active)
    chosen = []
    for task in sorted(ready(tasks, statuses), key=lambda t: (t.kind != "data", -t.cost, t.key)):
        if task.kind == "train" and (places < 1 or task.cpus > cpus or task.gpus > gpus):
            break
        chosen.append(task)
        cpus, gpus, places = cpus - task.cpus, gpus - task.gpus, places - (task.kind == "train")
    return chosen


def ready(tasks: Sequence[Task], statuses: Mapping[str, Status]) -> list[Task]:
    return [t for t in tasks if statuses[t.key].phase == WAITING and all(statuses[n].phase == DONE for n in t.needs)]


def doom(tasks: Sequence[Task], statuses: Mapping[str, Status]) -> dict[str, Status]:
    """Statuses with every waiting task lost that needs a lost one."""
    out = dict(statuses)
    for task in tasks:
        lost = [n for n in task.needs if out[n].phase == LOST]
        if out[task.key].phase == WAITING and lost:
            cause = out[lost[0]]
            attempts = out[task.key].attempts
            out[task.key] = Status(phase=LOST, attempts=attempts, reason=cause.reason, exit_code=cause.exit_code)
    return out


def settled(statuses: Mapping[str, Status]) -> bool:
    return all(s.phase in (DONE, LOST) for s in statuses.values())


def impossible(tasks: Sequence[Task], capacity: Capacity) -> list[Task]:
    """Tasks that would not fit even on the empty cluster."""
    return [t for t in tasks if t.cpus > capacity.cpus or t.gpus > capacity.gpus]
