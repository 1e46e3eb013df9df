"""The schedule: dependencies hold, gangs start whole, capacity is never exceeded, crashes have a budget, nothing waits for ever."""

from hypothesis import given
from hypothesis import strategies as st

from sweeps.schedule import (
    ACTIVE,
    CRASH,
    DONE,
    FINAL,
    HELD,
    LOST,
    MAX_PREEMPTIONS,
    PREEMPTED,
    WAITING,
    Capacity,
    Event,
    Status,
    Task,
    apply,
    decide,
    doom,
    hold,
    impossible,
    settled,
    start,
)


def ladder(*workers: int) -> list[Task]:
    runs = [Task(key=f"r{i}", kind="train", needs=("d",), workers=w, cost=float(i)) for i, w in enumerate(workers)]
    return [Task(key="d", kind="data"), *runs]


def test_training_waits_for_its_data() -> None:
    tasks = ladder(1, 1)
    statuses = {t.key: Status() for t in tasks}
    assert [t.key for t in decide(tasks, statuses, Capacity(cpus=2, gpus=0))] == ["d"]
    statuses = apply(start(statuses, "d"), Event(key="d", ok=True), 3)
    assert [t.key for t in decide(tasks, statuses, Capacity(cpus=2, gpus=0))] == ["r1", "r0"]


def test_a_gang_that_does_not_fit_holds_back_smaller_ones() -> None:
    tasks = ladder(1, 1, 2)
    statuses = {**{t.key: Status() for t in tasks}, "d": Status(phase=DONE), "r1": Status(phase=ACTIVE)}
    assert decide(tasks, statuses, Capacity(cpus=2, gpus=0)) == []


def test_a_crash_is_retried_within_its_budget_and_a_configuration_error_never() -> None:
    statuses = start({"r": Status()}, "r")
    crashed = apply(statuses, Event(key="r", ok=False, reason="killed", cause=CRASH), 2)
    assert crashed["r"].phase == WAITING
    again = apply(start(crashed, "r"), Event(key="r", ok=False, reason="killed", cause=CRASH), 2)
    assert again["r"].phase == LOST and again["r"].reason == "killed"
    assert apply(statuses, Event(key="r", ok=False, reason="bad", cause=FINAL), 9)["r"].phase == LOST


def test_what_needs_a_lost_task_is_lost_with_its_reason() -> None:
    tasks = ladder(1)
    statuses = doom(tasks, {"d": Status(phase=LOST, reason="no text", exit_code=2), "r0": Status()})
    assert statuses["r0"] == Status(phase=LOST, reason="no text", exit_code=2) and settled(statuses)


def test_impossible_gangs_are_named() -> None:
    assert [t.key for t in impossible(ladder(1, 4), Capacity(cpus=2, gpus=0))] == ["r1"]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(4, 8), st.randoms(use_true_random=False))
def test_every_sweep_ends_without_exceeding_the_cluster(workers: list[int], cpus: int, random) -> None:  # type: ignore[no-untyped-def]
    """Random completions and crashes: the loop always settles, with capacity respected at every step."""
    tasks, capacity = ladder(*workers), Capacity(cpus=cpus, gpus=0)
    statuses = {t.key: Status() for t in tasks}
    for _ in range(1000):
        for task in decide(tasks, statuses, capacity):
            statuses = start(statuses, task.key)
        active = [t for t in tasks if statuses[t.key].phase == ACTIVE]
        assert sum(t.cpus for t in active) <= cpus
        if settled(statuses):
            break
        chosen = random.choice(active)
        ok = random.random() < 0.7
        statuses = doom(
            tasks, apply(statuses, Event(key=chosen.key, ok=ok, reason=None if ok else "x", cause=CRASH), 3)
        )
    assert settled(statuses)


def test_preemptions_cost_no_attempt_and_are_bounded() -> None:
    statuses = {"r": Status(crashes=2)}
    preempted = Event(key="r", ok=False, reason="the machine goes", cause=PREEMPTED)
    for _ in range(MAX_PREEMPTIONS - 1):
        statuses = apply(start(statuses, "r"), preempted, 3)
    assert statuses["r"].phase == WAITING and statuses["r"].crashes == 2
    assert apply(start(statuses, "r"), preempted, 3)["r"].phase == LOST


def test_an_evaluation_passes_a_waiting_gang_only_with_what_the_gang_leaves() -> None:
    big = Task(key="big", kind="train", workers=4, gpus_per_worker=1, cost=9.0)
    running = Task(key="running", kind="train", workers=2, gpus_per_worker=1, cost=10.0)
    score = Task(key="score", kind="eval", workers=1)
    statuses = {"big": Status(), "running": Status(phase=ACTIVE), "score": Status()}
    tasks = [big, running, score]
    assert [t.key for t in decide(tasks, statuses, Capacity(cpus=7, gpus=4))] == ["score"]
    assert decide(tasks, statuses, Capacity(cpus=6, gpus=4)) == []  # its core is one that the gang will need


def test_what_is_held_stays_held_with_its_needs() -> None:
    tasks = ladder(1)
    statuses = doom(tasks, hold({"d": Status(phase=ACTIVE), "r0": Status()}, "the cap is reached"))
    assert statuses["d"].phase == ACTIVE and statuses["r0"] == Status(phase=HELD, reason="the cap is reached")
