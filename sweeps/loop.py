"""The loop that carries tasks to their ends on any back end: events -> statuses -> start what fits, until nothing is left.

It knows no Ray, no folders and no real time; the simulated back end runs it on a virtual clock.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sweeps import schedule
from sweeps.backends import Backend, Job
from sweeps.budget import Budget
from sweeps.schedule import Capacity, Status, Task

TICK_SECONDS = 0.25


class Clock(Protocol):
    """Real time, or the virtual time of a simulated cluster."""

    def now(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class RealClock:
    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What the world around the tasks looks like at one tick."""

    capacity: Capacity  # of which this sweep may use all
    hold: str | None = None  # why nothing more is started, one sentence
    hung: Mapping[str, str] = field(default_factory=dict)  # running task -> why it is to be killed
    elsewhere: frozenset[str] = frozenset()  # waiting tasks that another process has in hand
    trouble: str | None = None  # why the look could not be taken, one sentence
    seconds: Mapping[str, float] = field(
        default_factory=dict
    )  # training -> how long it will take from now on, where known


def run_loop(
    tasks: Sequence[Task],
    jobs: Mapping[str, Job],
    backend: Backend,
    look: Callable[[Mapping[str, Status]], Outlook],
    *,
    max_attempts: int,
    clock: Clock,
    say: Callable[[str], None] = lambda message: None,
    budget: Budget | None = None,
) -> dict[str, Status]:
    """The final status of every task: done, lost or held. `budget` knows the crashes of before and notes those of now."""
    budget = budget or Budget()
    statuses = {t.key: budget.status(t.key, max_attempts) for t in tasks}
    while True:
        for event in backend.poll():
            statuses = schedule.apply(statuses, event, max_attempts)
            budget.note(event.key, statuses[event.key])
            if not event.ok:
                again = "; starting it again" if statuses[event.key].phase == schedule.WAITING else ""
                say(f"{event.key}: {event.reason}{again}")
        outlook = look(statuses)
        for key, why in outlook.hung.items():
            backend.cancel(key, why)
        if outlook.hold:
            statuses = schedule.hold(statuses, outlook.hold)
        statuses = schedule.doom(tasks, statuses)
        if schedule.settled(statuses):
            backend.release()  # workers leave while the last logs are delivered
            return statuses
        here = [t for t in tasks if t.key not in outlook.elsewhere]
        for task in schedule.decide(here, statuses, outlook.capacity, outlook.seconds):
            statuses = schedule.start(statuses, task.key)
            backend.submit(task, jobs[task.key])
        if all(statuses[t.key].phase not in (schedule.WAITING, schedule.ACTIVE) for t in tasks if t.kind == "data"):
            backend.release()  # what is idle now serves nobody here; other sweeps may wait for its cores
        clock.sleep(TICK_SECONDS)
