"""What the driver sees between two ticks: hangs by progress alone, spent GPU-hours and money over all attempts, stop requests."""

import errno
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from studies import demo_spec

from gopher.errors import UsageError
from gopher.record import ASKED, QUEUED, RUNNING, STOPPED, RunFolder, RunState, write_atomic
from gopher.spec import Placement
from sweeps import lease
from sweeps.backends.simulated import VirtualClock
from sweeps.caps import reached, spent, usd
from sweeps.drive import Work, failed_runs, note_losses, tasks_of
from sweeps.folders import make_folders
from sweeps.hang import STARTING_SECONDS, STEPS_OF_GRACE, HangWatch, progress_of
from sweeps.lookout import TAKEN_OVER, Lookout, pulse_file, room_at_start, stop_mark
from sweeps.schedule import ACTIVE, DONE, HELD, WAITING, Capacity, Status
from sweeps.settings import ClusterSettings, LaunchSettings, Settings
from sweeps.study import PlannedRun, Study


@pytest.fixture
def runs(tmp_path: Path) -> list[PlannedRun]:
    """Two GPU runs of two workers, of which the first has trained for two hours in all."""
    place = Placement(data_dir=str(tmp_path), workers=2, device="cuda")
    planned = [PlannedRun(spec=demo_spec(seed), placement=place, config={}) for seed in (0, 1)]
    for run, seconds in zip(planned, (7200.0, 0.0), strict=True):
        folder = RunFolder(tmp_path / "runs" / run.spec.key)
        folder.create(run.spec, run.placement, {})
        folder.write_state(RunState(state=RUNNING, train_seconds=seconds, attempt=2))
    return planned


def settings_with(root: Path, usd: float | None = None, **launch: object) -> Settings:
    return Settings(
        output_root=str(root),
        name="demo",
        cluster=ClusterSettings(usd_per_gpu_hour=usd),
        launch=LaunchSettings(**launch),  # type: ignore[arg-type]
    )


def test_hours_and_money_count_every_attempt(runs: list[PlannedRun], tmp_path: Path) -> None:
    used = spent(runs, settings_with(tmp_path, usd=2.5))
    assert (used.gpu_hours, used.cpu_hours, used.usd) == (4.0, 4.0, 10.0)
    assert spent(runs, settings_with(tmp_path)).usd is None  # no price, no figure
    assert (usd(0.0, 4.0, None, 2.0), usd(1.0, 4.0, None, 2.0), usd(1.0, 4.0, 3.0, None)) == (8.0, None, 3.0)


def test_a_reached_cap_is_a_sentence(runs: list[PlannedRun], tmp_path: Path) -> None:
    below, hours = settings_with(tmp_path, max_gpu_hours=4.1), settings_with(tmp_path, max_gpu_hours=4)
    money = settings_with(tmp_path, usd=2.5, max_usd=10)
    assert reached(spent(runs, below), below) is None
    assert "4 GPU-hours are spent and launch.max_gpu_hours is 4; raise it" in str(reached(spent(runs, hours), hours))
    assert "$10.00 are spent and launch.max_usd is 10" in str(reached(spent(runs, money), money))
    with pytest.raises(UsageError, match="launch.max_usd is set without a price"):
        settings_with(tmp_path, max_usd=1)


def test_a_run_hangs_by_its_steps_not_by_its_process(runs: list[PlannedRun], tmp_path: Path) -> None:
    clock, folder = VirtualClock(), RunFolder(tmp_path / "runs" / runs[0].spec.key)
    watch, key = HangWatch(100.0, clock.now), runs[0].spec.key
    assert watch.hung(key, progress_of(folder)) is None
    clock.sleep(STARTING_SECONDS - 1)
    assert watch.hung(key, progress_of(folder)) is None  # starting takes its time
    folder.write_state(RunState(state=RUNNING, step=1))
    assert watch.hung(key, progress_of(folder)) is None
    clock.sleep(99)
    assert watch.hung(key, progress_of(folder)) is None
    clock.sleep(2)
    assert "no progress for 101 s" in str(watch.hung(key, progress_of(folder)))
    assert watch.hung(key, progress_of(folder), 2 * 100 / STEPS_OF_GRACE) is None  # its steps are slow
    watch.forget(key)
    assert watch.hung(key, progress_of(folder)) is None


def test_a_stop_request_asks_the_running_and_holds_the_waiting(runs: list[PlannedRun], tmp_path: Path) -> None:
    settings, tasks = settings_with(tmp_path), tasks_of(Work(runs=runs))
    statuses = {t.key: Status(phase=DONE) for t in tasks} | {r.spec.key: Status(phase=ACTIVE) for r in runs}
    folders = [RunFolder(tmp_path / "runs" / r.spec.key) for r in runs]
    with lease.held(settings.sweep_dir, "demo") as own, folders[0].held():
        lookout = Lookout(tasks, runs, settings, Capacity(cpus=8, gpus=8), own, VirtualClock())
        assert lookout(statuses).hold is None
        write_atomic(stop_mark(settings), "another launch")
        lookout.clock.sleep(2)
        assert lookout(statuses).hold is None
        write_atomic(stop_mark(settings), own.holder.id)
        lookout.clock.sleep(2)
        assert "stopped by `gopher stop`" in str(lookout(statuses).hold)
        assert [f.stop_requested() for f in folders] == [ASKED, None]  # the second has not begun


def test_a_run_that_another_sweep_trains_is_waited_for_and_then_queued(runs: list[PlannedRun], tmp_path: Path) -> None:
    """Nothing of its folder is touched until then, and the other run starts meanwhile."""
    settings, tasks = settings_with(tmp_path), tasks_of(Work(runs=runs))
    lookout = Lookout(tasks, runs, settings, Capacity(cpus=8, gpus=8), None, VirtualClock())
    statuses = {t.key: Status(phase=DONE if t.kind == "data" else WAITING) for t in tasks}
    key, folder = runs[0].spec.key, RunFolder(tmp_path / "runs" / runs[0].spec.key)
    assert lookout(statuses).elsewhere == frozenset()
    theirs = replace(runs[0].placement, log_every_steps=7)
    with folder.held():
        folder.create(runs[0].spec, theirs, {})
        folder.request_stop()
        make_folders(runs, settings)
        assert lookout(statuses).elsewhere == {key} and folder.placement() == theirs and folder.stop_requested()
        assert RunFolder(tmp_path / "runs" / runs[1].spec.key).state().state == QUEUED  # type: ignore[union-attr]
    assert lookout(statuses).elsewhere == frozenset()
    assert folder.placement() == runs[0].placement and folder.stop_requested() is None
    state = folder.state()
    assert state is not None and (state.state, state.train_seconds) == (QUEUED, 7200.0)


def test_a_driver_whose_sweep_was_taken_over_kills_its_own_and_marks_nothing(
    runs: list[PlannedRun], tmp_path: Path
) -> None:
    settings, tasks = settings_with(tmp_path), tasks_of(Work(runs=runs))
    with lease.held(settings.sweep_dir, "demo") as own:
        lookout = Lookout(tasks, runs, settings, Capacity(cpus=8, gpus=8), own, VirtualClock())
        statuses = {t.key: Status(phase=DONE) for t in tasks} | {runs[0].spec.key: Status(phase=ACTIVE)}
        waiting = {t.key: Status(phase=DONE if t.kind == "data" else WAITING) for t in tasks}
        with RunFolder(tmp_path / "runs" / runs[1].spec.key).held():
            assert lookout(waiting).elsewhere == {runs[1].spec.key}
        lookout.clock.sleep(2)
        (settings.sweep_dir / "lease.json").unlink()
        lease.create(settings.sweep_dir, replace(own.holder, id="successor"))
        own.tell(cpus=99)
        lookout(waiting)
        assert RunFolder(tmp_path / "runs" / runs[1].spec.key).state().state == RUNNING  # type: ignore[union-attr]
        lookout.clock.sleep(2)
        outlook = lookout(statuses)
    assert outlook.hold == TAKEN_OVER and outlook.hung == {runs[0].spec.key: TAKEN_OVER}
    assert RunFolder(tmp_path / "runs" / runs[0].spec.key).stop_requested() is None


def test_what_a_cap_held_back_is_stopped_with_the_reason(runs: list[PlannedRun], tmp_path: Path) -> None:
    settings = settings_with(tmp_path)
    held = {r.spec.key: Status(phase=HELD, reason="the cap is reached") for r in runs}
    note_losses(runs, held, settings)
    states = [RunFolder(tmp_path / "runs" / r.spec.key).state() for r in runs]
    assert [(s.state, s.reason) for s in states if s] == [(STOPPED, "the cap is reached")] * 2
    assert states[0] is not None and states[0].train_seconds == 7200.0
    study = Study(name="demo", runs=tuple(runs), rungs=("tiny",))
    lost = failed_runs(study, settings)
    assert len(lost) == 1 and lost[0].endswith(": the cap is reached") and lost[0].count("tiny seed") == 2


def test_a_text_or_evaluation_task_hangs_by_its_pulse(runs: list[PlannedRun], tmp_path: Path) -> None:
    settings, tasks = settings_with(tmp_path, hang_seconds=100.0), tasks_of(Work(runs=runs))
    lookout = Lookout(tasks, runs, settings, Capacity(cpus=8, gpus=8), None, VirtualClock())
    key = tasks[0].key
    statuses = {t.key: Status(phase=ACTIVE if t.key == key else WAITING) for t in tasks}
    for _ in range(2):  # it waits for a place
        assert lookout(statuses).hung == {}
        lookout.clock.sleep(10 * STARTING_SECONDS)
    for count in ("0", "1", "1"):
        assert lookout(statuses).hung == {}
        write_atomic(pulse_file(settings, key), count)
        lookout.clock.sleep(99)
    assert lookout(statuses).hung == {}
    lookout.clock.sleep(2)
    assert "no progress for 101 s (launch.hang_seconds is 100): the task hangs" in lookout(statuses).hung[key]


def test_a_disk_that_cannot_be_read_starts_nothing_and_kills_nothing(
    runs: list[PlannedRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, tasks = settings_with(tmp_path), tasks_of(Work(runs=runs))
    lookout = Lookout(tasks, runs, settings, Capacity(cpus=8, gpus=8), None, VirtualClock())
    statuses = {t.key: Status(phase=DONE) for t in tasks} | {runs[0].spec.key: Status(phase=ACTIVE)}

    def fail(_: RunFolder) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/mnt/runs")

    with monkeypatch.context() as broken:
        broken.setattr(RunFolder, "state", fail)
        outlook = lookout(statuses)
    assert outlook.capacity.cpus == 0 and (outlook.hold, outlook.hung) == (None, {})
    assert "/mnt/runs (Input/output error) cannot be read" in str(outlook.trouble)
    lookout.clock.sleep(2)
    assert lookout(statuses).capacity.cpus == 8 and lookout(statuses).trouble is None


def test_idle_gangs_are_told_to_other_sweeps_and_not_counted_as_used(runs: list[PlannedRun], tmp_path: Path) -> None:
    """A hungry neighbour gets its share although this sweep's gangs, idle until the text is there, hold everything."""
    settings, tasks = settings_with(tmp_path), tasks_of(Work(runs=runs))
    statuses = {t.key: Status(phase=DONE if t.kind == "data" else WAITING) for t in tasks}
    whole = Capacity(cpus=8, gpus=8)
    other = replace(settings, name="other")
    with lease.held(settings.sweep_dir, "demo") as own, lease.held(other.sweep_dir, "other") as theirs:
        lookout = Lookout(tasks, runs, settings, whole, own, VirtualClock(), idle=lambda: (4, 4))
        assert lookout(statuses).capacity.gpus == 8
        told = lease.read(settings.sweep_dir)
        assert told is not None and (told.holder.cpus, told.holder.gpus) == (4, 4)
        assert room_at_start(whole, other, theirs).gpus == 4
        theirs.tell(head_since=time.time())
        lookout.clock.sleep(2)
        assert lookout(statuses).capacity.gpus == 4


def test_what_the_last_runs_will_take_is_told_by_the_speed_of_others(tmp_path: Path) -> None:
    tokens = {"small": 20_480, "waits": 2 * 20_480, "large": 4 * 20_480}
    place = Placement(data_dir=str(tmp_path))
    runs = [PlannedRun(spec=demo_spec(tokens=n), placement=place, config={}) for n in tokens.values()]
    key = {name: run.spec.key for name, run in zip(tokens, runs, strict=True)}
    settings, tasks = settings_with(tmp_path), tasks_of(Work(runs=runs))
    statuses = {t.key: Status(phase=ACTIVE) for t in tasks} | {key["waits"]: Status()}
    lookout = Lookout(tasks, runs, settings, Capacity(cpus=2, gpus=0), None, VirtualClock())

    def trained(name: str, step: int, seconds: float) -> None:
        folder = RunFolder(settings.run_dir(key[name]))
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.write_state(RunState(state=RUNNING, step=step, train_seconds=seconds))

    trained("small", 10, 50.0)
    trained("large", 1, 2.0)
    assert lookout(statuses).seconds == {}  # one step of the large run says nothing yet
    trained("large", 20, 50.0)
    lookout.clock.sleep(2)
    expected = {key["small"]: 50.0, key["large"]: 150.0, key["waits"]: 200 / 2**0.5}
    assert lookout(statuses).seconds == pytest.approx(expected, rel=0.02)
    lookout.clock.sleep(0.1)
    assert lookout(statuses).seconds == pytest.approx(expected, rel=0.02)  # between two looks as well
