"""The driver's loop on a back end in this process: real training, no Ray. Dependencies, retries, locks, space, reasons."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from studies import TINY, write_text

from gopher.data import prepare
from gopher.errors import GopherError, SetupError, UsageError
from gopher.marker import MARKER
from gopher.record import ASKED, FAILED, FINISHED, PREEMPTED, QUEUED, RunFolder, RunState, write_atomic
from gopher.train import train
from sweeps import lease
from sweeps.backends import BackendLost, DataJob, Job, ray_gang
from sweeps.budget import CRASHES
from sweeps.compose import compose, hydra_session
from sweeps.drive import (
    Work,
    check_space,
    check_steps,
    failed_runs,
    ladder,
    new_checkpoints,
    raise_if_all_alike,
    run_tasks,
    tasks_of,
    unfinished,
    without_scores,
)
from sweeps.folders import make_folders
from sweeps.mirror import Mirror
from sweeps.schedule import CRASH, DONE, HELD, LOST, WAITING, Capacity, Event, Status, Task, doom, ready
from sweeps.screen import Screen
from sweeps.settings import EvalSettings, Settings, settings_of
from sweeps.status import run_rows
from sweeps.study import Study, load_study


class InProcess:
    """A back end that does each task at once; `crashes` of the first trainings are reported as killed workers."""

    def __init__(self, crashes: int = 0, cpus: int = 1) -> None:
        self.capacity, self.crashes = Capacity(cpus=cpus, gpus=0), crashes
        self.events: list[Event] = []
        self.submitted: list[str] = []
        self.released = False  # since the last look at what ended

    @property
    def running(self) -> list[str]:
        return []

    @property
    def idle(self) -> tuple[int, int]:
        return 0, 0

    def release(self) -> None:
        self.released = True

    def submit(self, task: Task, job: Job) -> None:
        self.submitted.append(task.key)
        try:
            if isinstance(job, DataJob):
                prepare(job.data, job.tokenizer, job.output_root)
            elif self.crashes:
                self.crashes -= 1
                self.events.append(Event(key=task.key, ok=False, reason="a worker died", cause=CRASH))
                return
            else:
                train(RunFolder(job.folder))
            self.events.append(Event(key=task.key, ok=True))
        except GopherError as error:
            self.events.append(Event(key=task.key, ok=False, reason=str(error), exit_code=error.exit_code))

    def poll(self) -> list[Event]:
        events, self.events, self.released = self.events, [], False
        return events

    def cancel(self, key: str, reason: str) -> None: ...

    def logs(self, key: str) -> str:
        return ""

    def close(self) -> None: ...


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Study, Settings]:
    words = [
        "sweep=demo",
        "rungs=[54k]",
        "extra_seeds={54k: []}",
        "data=local",
        *TINY,
        "tokens=8192",
        "placement.keep_checkpoints=1",
    ]
    words += [f"data.path={write_text(tmp_path / 'text')}", f"output_root={tmp_path / 'out'}"]
    with hydra_session():
        settings = settings_of(compose(words).tree)
        settings.root.mkdir()
        return load_study(compose, words), settings


def drive(study: Study, settings: Settings, backend: InProcess) -> None:
    make_folders(list(study.runs), settings)
    run_tasks(study, Work(runs=list(study.runs)), settings, backend, Screen("test", live=False))


def test_text_first_then_training_then_nothing_left(tiny: tuple[Study, Settings]) -> None:
    study, settings = tiny
    backend = InProcess()
    drive(study, settings, backend)
    assert [k.split("-")[0] for k in backend.submitted] == ["data", study.runs[0].spec.key]
    assert unfinished(study, settings) == [] and failed_runs(study, settings) == []
    row = run_rows(study.specs, settings)[0]
    assert (row.state, row.step) == (FINISHED, row.steps) and row.val_loss is not None


def test_once_nothing_is_left_workers_are_let_go_and_the_log_is_delivered_meanwhile(
    tiny: tuple[Study, Settings], tmp_path: Path
) -> None:
    backend = InProcess()
    drive(*tiny, backend)
    assert backend.released

    class Deliveries:
        def __init__(self) -> None:
            self.folders: list[RunFolder] = []

        def mirror(self, folder: RunFolder) -> bool:
            self.folders.append(folder)
            return True

        def flush(self, folders: list[RunFolder], patience_seconds: float) -> str | None:
            return None

    deliveries, folder = Deliveries(), RunFolder(tmp_path)
    mirror = Mirror(deliveries, [folder])  # type: ignore[arg-type]
    mirror.hurry()
    deadline = time.monotonic() + 2.0  # less than the pause between two deliveries
    while not deliveries.folders and time.monotonic() < deadline:
        time.sleep(0.01)
    assert deliveries.folders == [folder] and mirror.finish(1.0) is None


def test_a_crashed_worker_is_started_again_within_its_budget(tiny: tuple[Study, Settings]) -> None:
    study, settings = tiny
    backend = InProcess(crashes=2)
    drive(study, settings, backend)
    assert len(backend.submitted) == 4 and failed_runs(study, settings) == []


def test_a_run_that_always_crashes_is_failed_with_its_reason(tiny: tuple[Study, Settings]) -> None:
    study, settings = tiny
    drive(study, settings, InProcess(crashes=99))
    row = run_rows(study.specs, settings)[0]
    assert row.state == FAILED and row.reason == "a worker died"
    assert "a worker died" in failed_runs(study, settings)[0]


def test_one_cause_in_the_configuration_is_the_commands_own_error(tiny: tuple[Study, Settings]) -> None:
    study, settings = tiny
    run = study.runs[0]
    wide = replace(
        run.spec,
        tokenizer=replace(run.spec.tokenizer, vocab_size=60_000, algorithm="unigram"),
        model=replace(run.spec.model, vocab_size=60_000),
    )
    make_folders([replace(run, spec=wide)], settings)
    statuses = run_tasks(study, Work(runs=[replace(run, spec=wide)]), settings, InProcess(), Screen("test", live=False))
    with pytest.raises(
        UsageError, match="tokenizer.vocab_size is 60000, more than the training text can give; set .* to at most"
    ):
        raise_if_all_alike(statuses)


def test_a_gang_larger_than_the_cluster_is_refused_before_anything_starts(tiny: tuple[Study, Settings]) -> None:
    study, settings = tiny
    with pytest.raises(SetupError, match="needs 1 cores but the cluster has 0 GPUs and 0 cores"):
        drive(study, settings, InProcess(cpus=0))


def test_tasks_share_their_data(tiny: tuple[Study, Settings]) -> None:
    study, _ = tiny
    tasks = tasks_of(Work(runs=[*study.runs, *study.runs]))
    assert [t.kind for t in tasks] == ["data", "train", "train"] and tasks[1].needs == (tasks[0].key,)


def test_a_ladder_climbs_rung_by_rung_and_stops_where_one_is_lost(tiny: tuple[Study, Settings]) -> None:
    study, _ = tiny
    small = study.runs[0]
    runs = [replace(small, spec=replace(small.spec, rung=rung, seed=seed)) for seed, rung in enumerate("aabbcc")]
    gates = ladder(replace(study, rungs=("a", "b", "c")), runs)
    a0, a1, b0, b1, c0, _ = (r.spec.key for r in runs)
    assert a0 not in gates and gates[b0] == gates[b1] == (a0, a1) and gates[c0] == (b0, b1)
    tasks = tasks_of(Work(runs=runs, gates=gates))
    waiting = {t.key: Status(phase=DONE if t.kind == "data" else WAITING) for t in tasks}
    assert [t.key for t in ready(tasks, waiting)] == [a0, a1]
    lost = doom(tasks, waiting | {a1: Status(phase=LOST, reason="nan")})
    assert [lost[k].phase for k in (a0, b0, b1, c0)] == [WAITING, LOST, LOST, LOST]
    assert ladder(study, []) == {} and set(ladder(replace(study, rungs=("a", "b", "c")), runs[4:])) == set()


def test_evaluations_come_behind_their_run_or_at_once(tiny: tuple[Study, Settings]) -> None:
    study, settings = tiny
    run = study.runs[0]
    behind = tasks_of(Work(runs=[run], scored=[run]))[-1]
    assert (behind.kind, behind.needs, behind.cpus) == ("eval", (run.spec.key,), 1)
    assert tasks_of(Work(runs=[], scored=[run]))[-1].needs == ()
    assert without_scores(study, settings) == []  # no tasks are named
    assert without_scores(study, replace(settings, tasks=("colours",))) == [run]


def test_checkpoints_to_be_scored_must_be_kept(tiny: tuple[Study, Settings]) -> None:
    study, settings = tiny
    runs, early = list(study.runs), replace(settings, tasks=("colours",), evals=EvalSettings(steps=[4]))
    with pytest.raises(
        UsageError, match="evals.steps names step 4, whose checkpoint 54k will not keep; it keeps the last"
    ):
        check_steps(runs, early)
    named = [replace(r, placement=replace(r.placement, named_checkpoints="log")) for r in runs]
    check_steps(named, early)
    need = new_checkpoints(named[0], settings)
    kept = settings.run_dir(runs[0].spec.key) / "checkpoints" / "0000000004" / MARKER
    write_atomic(kept, '{"run": "x", "step": 4, "files": {}, "named": true}')
    check_steps(runs, early)
    assert new_checkpoints(named[0], settings) == need - 1


def test_a_run_that_is_lost_with_ray_again_and_again_has_a_budget(
    tiny: tuple[Study, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time a new process goes on, with what the one before left in its environment."""
    study, settings = tiny
    monkeypatch.setenv(CRASHES, "[{}, {}]")
    make_folders(list(study.runs), settings)
    key = study.runs[0].spec.key

    class Doomed(InProcess):
        running = [key]

        def submit(self, task: Task, job: Job) -> None:
            if task.kind == "train":
                raise BackendLost("Ray's raylet is gone")
            super().submit(task, job)

    work, screen = Work(runs=list(study.runs)), Screen("test", live=False)
    for _ in range(1 + settings.launch.max_attempts):  # the first time it may be anybody's doing
        with pytest.raises(BackendLost):
            run_tasks(study, work, settings, Doomed(), screen)
    last = run_tasks(study, work, settings, Doomed(), screen)[key]
    assert last.phase == LOST and "crashed 3 times or took Ray with it, the last time at step 0" in str(last.reason)


def test_a_driver_whose_sweep_was_taken_over_writes_no_state(tiny: tuple[Study, Settings]) -> None:
    study, settings = tiny
    make_folders(list(study.runs), settings)
    with lease.held(settings.sweep_dir, "demo") as own:
        own.lost = True
        work, screen = Work(runs=list(study.runs)), Screen("test", live=False)
        statuses = run_tasks(study, work, settings, InProcess(), screen, own)
    key = study.runs[0].spec.key
    assert statuses[key].phase == HELD and RunFolder(settings.run_dir(key)).state().state == QUEUED  # type: ignore[union-attr]


def test_a_wish_that_comes_while_another_is_obeyed_is_kept(
    tiny: tuple[Study, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, settings = tiny
    drive(study, settings, InProcess(crashes=99))  # the text is there
    make_folders(list(study.runs), settings)
    folder = RunFolder(settings.run_dir(study.runs[0].spec.key))

    def leaving() -> bool:
        folder.request_stop(ASKED)
        return True

    monkeypatch.setattr(ray_gang, "leaving", leaving)
    assert ray_gang.train_one(folder, 0, 1)["cause"] == PREEMPTED and folder.stop_requested() == ASKED
    assert ray_gang.train_one(folder, 0, 1)["cause"] == ASKED and folder.stop_requested() is None


def test_caps_count_what_finished_runs_have_used(tiny: tuple[Study, Settings]) -> None:
    study, settings = tiny
    done = replace(study.runs[0], spec=replace(study.runs[0].spec, seed=7))
    folder = RunFolder(settings.run_dir(done.spec.key))
    folder.create(done.spec, done.placement, {})
    folder.write_state(RunState(state=FINISHED, train_seconds=7200.0))
    priced = replace(
        settings,
        cluster=replace(settings.cluster, usd_per_cpu_hour=10.0),
        launch=replace(settings.launch, max_usd=15.0),
    )
    both, backend = replace(study, runs=(done, *study.runs)), InProcess()
    make_folders(list(study.runs), priced)
    statuses = run_tasks(both, Work(runs=list(study.runs)), priced, backend, Screen("test", live=False))
    assert backend.submitted == [] and "$20.00 are spent" in str(statuses[study.runs[0].spec.key].reason)
    with pytest.raises(UsageError, match="launch.max_usd is -1.0; give 0 or more"):
        replace(priced, launch=replace(settings.launch, max_usd=-1.0))


def test_a_disk_that_cannot_hold_the_checkpoints_is_refused(tiny: tuple[Study, Settings]) -> None:
    study, settings = tiny
    run = study.runs[0]
    with pytest.raises(SetupError, match="set output_root=DIR"):
        check_space([replace(run, placement=replace(run.placement, keep_checkpoints=10**10))], settings)
