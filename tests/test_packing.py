"""The last runs of a sweep: cores end together, lengths come from measured speeds, an unknown length changes nothing."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps.backends import TrainJob
from sweeps.backends.simulated import SimulatedBackend, VirtualClock
from sweeps.loop import Outlook, run_loop
from sweeps.packing import LAST_RUNS, best_packing, expected_seconds
from sweeps.schedule import ACTIVE, Capacity, Status, Task, decide

SECONDS = {"a": 143.0, "b": 110.0, "c": 74.0, "d": 66.0, "e": 60.0, "f": 51.0, "g": 47.0}
COSTS = {"a": 35.0, "b": 18.0, "c": 10.0, "d": 8.0, "e": 8.0, "f": 6.0, "g": 6.0}
TWO_CORES = Capacity(cpus=2, gpus=0)


def shortest(lengths: list[float], ends: list[float]) -> float:
    """By trying everything."""
    places = itertools.product(range(len(ends)), repeat=len(lengths))
    return min(
        max(end + sum(x for x, i in zip(lengths, place, strict=True) if i == seat) for seat, end in enumerate(ends))
        for place in places
    )


@given(st.lists(st.floats(1, 100), min_size=1, max_size=7), st.lists(st.floats(0, 100), min_size=2, max_size=3))
def test_no_packing_of_a_few_runs_ends_earlier(lengths: list[float], ends: list[float]) -> None:
    runs = {f"r{i}": x for i, x in enumerate(lengths)}
    packed = best_packing(runs, ends)
    assert sorted(itertools.chain(*packed)) == sorted(runs)
    assert all(keys == sorted(keys, key=lambda k: -runs[k]) for keys in packed)
    last = max(end + sum(runs[k] for k in keys) for end, keys in zip(ends, packed, strict=True))
    assert last == pytest.approx(shortest(lengths, ends))


def test_lengths_are_measured_or_read_off_between_the_measured() -> None:
    assert expected_seconds({"a": 1.0, "b": 4.0}, {"b": 10.0}) == {}  # one cost says nothing about another
    costs = {"a": 1.0, "b": 16.0, "c": 4.0, "d": 64.0, "e": 1.0}
    found = expected_seconds(costs, {"a": 9.0, "e": 11.0, "b": 40.0})
    assert found == pytest.approx({"a": 9.0, "b": 40.0, "c": 20.0, "d": 80.0, "e": 11.0})
    assert expected_seconds(costs, {"a": 9.0, "b": 4.0})["c"] == pytest.approx(9.0)  # noise: dearer is never faster
    assert expected_seconds(costs, {"a": 1.0, "b": 400.0})["d"] == pytest.approx(
        1600.0
    )  # nor more than its cost slower


def ends_at(known: bool) -> float:
    """When a ladder ends on two cores, with and without knowing how long its runs take."""
    tasks = [Task(key=k, kind="train", workers=1, cost=COSTS[k]) for k in SECONDS]
    clock = VirtualClock()
    backend = Timed(TWO_CORES, clock)

    def look(statuses: object) -> Outlook:
        running = {k: a.ends - clock.now() for k, a in backend.running.items()}
        return Outlook(capacity=TWO_CORES, seconds=SECONDS | running if known else {})

    jobs = dict.fromkeys(SECONDS, TrainJob(folder="unused"))  # type: ignore[arg-type]
    run_loop(tasks, jobs, backend, look, max_attempts=1, clock=clock)
    return clock.now()


class Timed(SimulatedBackend):
    """Every run takes its own seconds."""

    def submit(self, task: Task, job: object) -> None:
        super().submit(task, job)  # type: ignore[arg-type]
        attempt = self.running[task.key]
        self.running[task.key] = type(attempt)(
            task=task, began=attempt.began, ends=attempt.began + SECONDS[task.key], outcome="ok"
        )


def test_the_last_runs_of_a_ladder_end_together() -> None:
    limit = shortest(list(SECONDS.values()), [0.0, 0.0])
    assert limit <= ends_at(known=True) < limit + 3
    assert ends_at(known=False) > limit + 10  # longest first


def test_runs_of_unknown_length_or_of_another_shape_start_longest_first() -> None:
    tasks = [Task(key=k, kind="train", workers=1, cost=COSTS[k]) for k in SECONDS]
    statuses = {k: Status(phase=ACTIVE if k == "a" else "done" if k == "b" else "waiting") for k in SECONDS}
    left = SECONDS | {"a": 33.0}
    assert [t.key for t in decide(tasks, statuses, TWO_CORES, left)] != ["c"]
    assert [t.key for t in decide(tasks, statuses, TWO_CORES, {k: v for k, v in left.items() if k != "g"})] == ["c"]
    wide = [*tasks, Task(key="h", kind="train", workers=2, cost=0.0)]
    assert [t.key for t in decide(wide, statuses | {"h": Status()}, TWO_CORES, left | {"h": 1.0})] == ["c"]
    many = [Task(key=f"r{i}", kind="train", workers=1, cost=float(i)) for i in range(LAST_RUNS + 1)]
    some = decide(many, {t.key: Status() for t in many}, TWO_CORES, {t.key: 1.0 for t in many})
    assert [t.key for t in some] == [f"r{LAST_RUNS}", f"r{LAST_RUNS - 1}"]
