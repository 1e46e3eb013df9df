"""The launch loop on a simulated cluster, under random faults: every task ends, none runs twice at once, gangs start whole,
capacity is never exceeded, hung gangs are killed, large gangs and several sweeps on one cluster never starve."""

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.backends import TrainJob
from sweeps.backends.simulated import Faults, SimulatedBackend, VirtualClock
from sweeps.lease import Holder
from sweeps.lookout import first_waiting
from sweeps.loop import TICK_SECONDS, Outlook, run_loop
from sweeps.schedule import ACTIVE, DONE, HELD, LOST, Capacity, Status, Task, apply, decide, start
from sweeps.share import PATIENCE_SECONDS, allowance

HANG_SECONDS = 100.0
ATTEMPTS = 3

faults = st.builds(
    Faults,
    crash=st.floats(0, 0.3),
    preemption=st.floats(0, 0.3),
    hang=st.floats(0, 0.2),
    configuration=st.floats(0, 0.1),
)
gangs = st.lists(st.tuples(st.integers(1, 8), st.floats(0, 5), st.booleans()), min_size=1, max_size=12)


def ladder(gangs: list[tuple[int, float, bool]]) -> list[Task]:
    """A data task, trainings, and an evaluation after some of them."""
    tasks = [Task(key="text", kind="data")]
    for i, (workers, cost, scored) in enumerate(gangs):
        tasks.append(Task(key=f"t{i}", kind="train", needs=("text",), workers=workers, cost=cost))
        if scored:
            tasks.append(Task(key=f"e{i}", kind="eval", needs=(f"t{i}",), workers=1, cost=0.0))
    return tasks


class Watcher:
    """Looks on as the driver does, and checks the cluster at every tick."""

    def __init__(self, backend: SimulatedBackend, capacity: Capacity, hold_after: float = float("inf")) -> None:
        self.backend, self.capacity, self.hold_after = backend, capacity, hold_after

    def __call__(self, statuses: Mapping[str, Status]) -> Outlook:
        running, now = self.backend.running.values(), self.backend.clock.now()
        assert sum(a.task.cpus for a in running) <= self.capacity.cpus
        assert {a.task.key for a in running} == {k for k, s in statuses.items() if s.phase == ACTIVE}
        if self.capacity.max_parallel is not None:
            assert sum(a.task.kind == "train" for a in running) <= self.capacity.max_parallel
        hung = {a.task.key: "hangs" for a in running if a.outcome == "hang" and now - a.began > HANG_SECONDS}
        hold = "the cap is reached" if now > self.hold_after else None
        return Outlook(capacity=self.capacity, hung=hung, hold=hold)


def simulate(
    tasks: list[Task], capacity: Capacity, faults: Faults, seed: int, hold_after: float = float("inf")
) -> tuple[dict[str, Status], SimulatedBackend]:
    clock = VirtualClock()
    backend = SimulatedBackend(capacity, clock, seed, faults)
    watcher = Watcher(backend, capacity, hold_after)
    jobs = {t.key: TrainJob(folder=f"/{t.key}") for t in tasks}  # type: ignore[arg-type]
    return run_loop(tasks, jobs, backend, watcher, max_attempts=ATTEMPTS, clock=clock), backend


@settings(max_examples=60, deadline=None)
@given(gangs, faults, st.integers(0, 2**20), st.sampled_from([None, 1, 3]))
def test_every_task_ends_under_any_faults(gangs, faults, seed, places) -> None:  # type: ignore[no-untyped-def]
    tasks = ladder(gangs)
    statuses, backend = simulate(tasks, Capacity(cpus=8, gpus=0, max_parallel=places), faults, seed)
    assert {s.phase for s in statuses.values()} <= {DONE, LOST} and not backend.running
    for task in tasks:
        mine = [a for a in backend.history if a.task.key == task.key]
        assert all(a.ends <= b.began for a, b in zip(mine, mine[1:], strict=False))  # never twice at once
        outcomes = [a.outcome for a in mine]
        assert outcomes.count("crash") <= ATTEMPTS and outcomes.count("final") <= 1 and outcomes.count("ok") <= 1
        assert (statuses[task.key].phase == DONE) == (outcomes[-1:] == ["ok"])
        if statuses[task.key].phase == LOST and mine:
            assert outcomes[-1] == "final" or outcomes.count("crash") == ATTEMPTS  # a preemption is never final
        began = {n: max(a.ends for a in backend.history if a.task.key == n) for n in task.needs if mine}
        assert all(mine[0].began >= t for t in began.values())


@given(gangs, st.integers(0, 2**20))
@settings(max_examples=40, deadline=None)
def test_the_dearest_waiting_training_is_never_overtaken(gangs, seed) -> None:  # type: ignore[no-untyped-def]
    """Without faults, trainings start in the order of their cost: no small one delays a large gang."""
    tasks = ladder(gangs)
    _, backend = simulate(tasks, Capacity(cpus=8, gpus=0), Faults(), seed)
    starts = {a.task.key: a.began for a in backend.history}
    order = sorted((t for t in tasks if t.kind == "train"), key=lambda t: (-t.cost, t.key))
    assert [starts[t.key] for t in order] == sorted(starts[t.key] for t in order)


def test_a_cap_lets_running_tasks_finish_and_holds_the_rest() -> None:
    tasks = ladder([(8, 1.0, False)] * 5)
    statuses, backend = simulate(tasks, Capacity(cpus=8, gpus=0), Faults(), 0, hold_after=25.0)
    held = [s for s in statuses.values() if s.phase == HELD]
    assert held and all(s.reason == "the cap is reached" for s in held)
    assert all(a.outcome == "ok" for a in backend.history) and not backend.running


def test_a_lost_node_costs_an_attempt_of_the_gangs_on_it_alone() -> None:
    clock = VirtualClock()
    backend = SimulatedBackend(Capacity(cpus=4, gpus=0), clock)
    for key in ("a", "b"):
        backend.submit(Task(key=key, kind="train", workers=2), TrainJob(folder=key))  # type: ignore[arg-type]
    backend.lose_node(["a"])
    events = backend.poll()
    assert [(e.key, e.ok, e.reason) for e in events] == [("a", False, "a node was lost")] and "b" in backend.running


# ---- several drivers on one cluster


def holder(name: str, **use: object) -> Holder:
    return Holder(id=name, host="h", pid=1, since=0.0, **use)  # type: ignore[arg-type]


def test_alone_a_sweep_has_everything_and_beside_a_hungry_one_its_share() -> None:
    whole, own = Capacity(cpus=9, gpus=4), holder("a", cpus=3, head_since=90.0)
    assert allowance(whole, own, [], 100.0) == whole
    hungry = holder("b", head_since=95.0)
    assert allowance(whole, own, [hungry], 100.0) == Capacity(cpus=5, gpus=2)
    sated = holder("b", cpus=2)
    assert allowance(whole, own, [sated], 100.0) == Capacity(cpus=7, gpus=4)


def test_whoever_waited_too_long_is_served_alone() -> None:
    whole, late = Capacity(cpus=8, gpus=0), PATIENCE_SECONDS + 1
    big, small = holder("big", head_since=0.0), holder("small", cpus=3, head_since=50.0)
    assert allowance(whole, small, [big], late).cpus == 3  # keeps what runs, starts nothing
    assert allowance(whole, big, [replace(small, cpus=0)], late).cpus == 8


@settings(max_examples=30, deadline=None)
@given(st.lists(gangs, min_size=2, max_size=3), st.integers(0, 2**20))
def test_sweeps_on_one_cluster_share_it_and_all_end(sweeps, seed) -> None:  # type: ignore[no-untyped-def]
    """Drivers that see each other's leases: together within the cluster, none starved, gangs of any size get their turn."""
    whole, clock = Capacity(cpus=8, gpus=0), VirtualClock()
    tasks = [ladder(g) for g in sweeps]
    backends = [SimulatedBackend(whole, clock, seed + i) for i in range(len(sweeps))]
    statuses = [{t.key: Status() for t in own} for own in tasks]
    told = [holder(str(i)) for i in range(len(sweeps))]
    while any(s.phase not in (DONE, LOST) for own in statuses for s in own.values()):
        assert clock.now() < 50_000, "somebody starves"
        for i, own in enumerate(tasks):
            for event in backends[i].poll():
                statuses[i] = apply(statuses[i], event, ATTEMPTS)
            told[i] = tell(told[i], own, statuses[i], clock.now())
            others = [h for h in told if h.id != told[i].id]
            for task in decide(own, statuses[i], allowance(whole, told[i], others, clock.now())):
                statuses[i] = start(statuses[i], task.key)
                backends[i].submit(task, TrainJob(folder=task.key))  # type: ignore[arg-type]
            told[i] = tell(told[i], own, statuses[i], clock.now())
            assert sum(h.cpus for h in told) <= whole.cpus
        clock.sleep(8 * TICK_SECONDS)


def tell(before: Holder, tasks: list[Task], statuses: Mapping[str, Status], now: float) -> Holder:
    head = first_waiting(tasks, statuses)
    same = head is not None and before.cluster == head.key  # the unused name of the cluster remembers the head
    since = None if head is None else before.head_since if same else now
    cpus = sum(t.cpus for t in tasks if statuses[t.key].phase == ACTIVE)
    return replace(before, cpus=cpus, head_since=since, cluster=head.key if head else "")
