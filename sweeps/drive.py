"""The driver of a launch: the small loop around `sweeps.schedule`, with all effects at its edge.

    prepare folders -> connect MLflow and Ray -> loop: events -> statuses -> start what fits -> mirror -> show -> end

Everything that matters is in the run folders, so a driver that dies loses nothing: the next launch reads them and goes on.
"""

import contextlib
import itertools
import math
import shutil
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from gopher.errors import GopherError, SetupError, UsageError
from gopher.marker import once_named
from gopher.record import FAILED, FINISHED, PREEMPTED, STOPPED, RunFolder
from gopher.size import params_total, train_flops
from gopher.spec import named_steps
from sweeps import schedule
from sweeps.backends import Backend, BackendLost, DataJob, EvalJob, Job, TrainJob
from sweeps.budget import handed_on
from sweeps.caps import spent
from sweeps.lease import Lease
from sweeps.lookout import Lookout, pulse_file
from sweeps.loop import TICK_SECONDS, Outlook, RealClock, run_loop
from sweeps.schedule import Capacity, Status, Task
from sweeps.screen import Screen
from sweeps.settings import Settings
from sweeps.status import run_rows
from sweeps.study import PlannedRun, Study

SHOW_SECONDS = 1.0
NOTICE_SECONDS = 90.0  # how long a launch whose machine goes waits for checkpoints; deploy/ gives it 120 s in all
SPARE_BYTES = 500 * 2**20
OUTCOMES = {schedule.LOST: FAILED, schedule.HELD: STOPPED}  # of a task that never ended by itself, to its run's state


def unfinished(study: Study, settings: Settings) -> list[PlannedRun]:
    states = {run.spec.key: RunFolder(settings.run_dir(run.spec.key)).state() for run in study.runs}
    return [run for run in study.runs if (s := states[run.spec.key]) is None or s.state != FINISHED]


def without_scores(study: Study, settings: Settings) -> list[PlannedRun]:
    """Runs of which some evaluation task was not scored yet."""
    return [
        r for r in study.runs if RunFolder(settings.run_dir(r.spec.key)).unscored(settings.tasks, settings.exam.key)
    ]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a launch has to do: runs to train, and runs (those among them, or finished before) to score on the tasks."""

    runs: list[PlannedRun]
    scored: list[PlannedRun] = field(default_factory=list)
    gates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # run key -> runs that must have finished before


def ladder(study: Study, runs: list[PlannedRun]) -> dict[str, tuple[str, ...]]:
    """The gates of `gate=ladder`: every run waits for those of `runs` that are on the nearest rung below."""
    keys = {rung: tuple(r.spec.key for r in runs if r.spec.rung == rung) for rung in study.rungs}
    steps = [rung for rung in study.rungs if keys[rung]]
    return {key: keys[below] for below, rung in itertools.pairwise(steps) for key in keys[rung]}


def check_space(runs: list[PlannedRun], settings: Settings) -> None:
    """Checkpoints hold parameters and two moments; refuse to start what the disk cannot hold."""
    need = SPARE_BYTES + sum(new_checkpoints(r, settings) * 12 * params_total(r.spec.model) for r in runs)
    free = shutil.disk_usage(settings.root).free
    if free < need:
        raise SetupError(
            f"{settings.root} has {free / 2**30:.2f} GB free but the sweep's checkpoints need about {need / 2**30:.2f} GB; "
            "free some space or set output_root=DIR"
        )


def check_steps(runs: list[PlannedRun], settings: Settings) -> None:
    """Refuse to train towards an evaluation of checkpoints that will not be kept."""
    steps = settings.evals.steps
    for run in runs:
        kept = named_steps(run.placement, run.spec.steps) | once_named(checkpoints(run, settings)) | {run.spec.steps}
        if gone := [s for s in steps if s not in kept]:
            raise UsageError(
                f"evals.steps names step {gone[0]}, whose checkpoint {run.spec.rung} will not keep; it keeps the last "
                f"({run.spec.steps}), and with placement.named_checkpoints=log steps 0, 1, 2, 4, .. 512, 1000, 2000, .."
            )


def new_checkpoints(run: PlannedRun, settings: Settings) -> int:
    """Checkpoints that a run may add: the newest, the named that are not there yet, one behind a spike, one being written."""
    named = named_steps(run.placement, run.spec.steps) - once_named(checkpoints(run, settings))
    return run.placement.keep_checkpoints + len(named) + 2


def checkpoints(run: PlannedRun, settings: Settings) -> Path:
    return RunFolder(settings.run_dir(run.spec.key)).checkpoints


def tasks_of(work: Work) -> list[Task]:
    """The graph: one data task per distinct set of shards, a training per run that needs it, an evaluation behind each."""
    runs = work.runs
    data = {r.spec.data_key: Task(key=f"data-{r.spec.data_key}", kind="data") for r in runs}
    trains = [
        Task(
            key=r.spec.key,
            kind="train",
            needs=(data[r.spec.data_key].key, *work.gates.get(r.spec.key, ())),
            workers=r.placement.workers,
            cpus_per_worker=r.placement.threads_per_worker,
            gpus_per_worker=1 if r.placement.device == "cuda" else 0,
            cost=train_flops(r.spec),
        )
        for r in runs
    ]
    trained = {t.key for t in trains}
    evals = [
        Task(
            key=f"eval-{r.spec.key}",
            kind="eval",
            needs=(r.spec.key,) if r.spec.key in trained else (),
            workers=1,
            gpus_per_worker=1 if r.placement.device == "cuda" else 0,
        )
        for r in work.scored
    ]
    return [*data.values(), *trains, *evals]


def jobs_of(work: Work, settings: Settings) -> dict[str, Job]:
    jobs: dict[str, Job] = {}
    for r in work.scored:
        folder = settings.run_dir(r.spec.key)
        key = f"eval-{r.spec.key}"
        jobs[key] = EvalJob(folder=folder, exam=settings.exam, pulse=pulse_file(settings, key))
    for r in work.runs:
        key = f"data-{r.spec.data_key}"
        jobs[key] = DataJob(
            data=r.spec.data, tokenizer=r.spec.tokenizer, output_root=settings.root, pulse=pulse_file(settings, key)
        )
        jobs[r.spec.key] = TrainJob(folder=settings.run_dir(r.spec.key))
    return jobs


def run_tasks(
    study: Study,
    work: Work,
    settings: Settings,
    backend: Backend,
    screen: Screen,
    own: Lease | None = None,
) -> dict[str, Status]:
    """The loop over this sweep's tasks, with the screen on: the final status of each."""
    tasks, clock = tasks_of(work), RealClock()
    whole = check_capacity(tasks, backend.capacity, settings)
    ours = {r.spec.key for r in work.runs}
    earlier = spent([r for r in study.runs if r.spec.key not in ours], settings)
    lookout = Lookout(tasks, work.runs, settings, whole, own, clock, earlier=earlier, idle=lambda: backend.idle)
    shown, told, budget = float("-inf"), set[str](), handed_on()

    def look(statuses: Mapping[str, Status]) -> Outlook:
        nonlocal shown
        if clock.now() - shown > SHOW_SECONDS:
            shown = clock.now()
            with contextlib.suppress(OSError):
                screen.update(run_rows(study.specs, settings))
        outlook = lookout(statuses)
        for key in outlook.elsewhere - told:
            screen.say(f"run {key} is being trained by another process; waiting for it")
            told.add(key)
        if outlook.trouble and outlook.trouble not in told:
            screen.say(outlook.trouble)
            told.add(outlook.trouble)
        return outlook

    attempts, jobs = settings.launch.max_attempts, jobs_of(work, settings)
    try:
        statuses = run_loop(
            tasks, jobs, backend, look, max_attempts=attempts, clock=clock, say=screen.say, budget=budget
        )
    except BackendLost:
        states = {key: RunFolder(settings.run_dir(key)).state() for key in backend.running}
        budget.ray_lost({key: state.step for key, state in states.items() if state})
        budget.hand_on()
        raise
    if own is None or not own.lost:  # else the folders are another launch's
        note_losses(work.runs, statuses, settings)
    screen.update(run_rows(study.specs, settings))
    return statuses


def first_trainings(work: Work, settings: Settings, cluster: Capacity, room: Capacity) -> list[Task]:
    """The training tasks that start as soon as their data is there, in the `room` that this sweep has in the cluster."""
    tasks = tasks_of(Work(runs=work.runs, gates=work.gates))
    capacity = replace(room, max_parallel=check_capacity(tasks, cluster, settings).max_parallel)
    ready = {t.key: Status(phase=schedule.DONE if t.kind == "data" else schedule.WAITING) for t in tasks}
    return schedule.decide(tasks, ready, capacity)


def check_capacity(tasks: list[Task], capacity: Capacity, settings: Settings) -> Capacity:
    too_large = schedule.impossible(tasks, capacity)
    if too_large:
        task = too_large[0]
        what = f"{task.gpus} GPUs and {task.cpus} cores" if task.gpus else f"{task.cpus} cores"
        raise SetupError(
            f"run {task.key} needs {what} but the cluster has {capacity.gpus} GPUs and {capacity.cpus} cores; "
            "lower placement.workers or use a larger cluster"
        )
    return Capacity(cpus=capacity.cpus, gpus=capacity.gpus, max_parallel=settings.launch.max_parallel_runs)


def note_losses(runs: list[PlannedRun], statuses: dict[str, Status], settings: Settings) -> None:
    """A run lost outside its own worker (killed too often, data failed, held by a cap) gets its reason into its folder."""
    for run in runs:
        folder, status = RunFolder(settings.run_dir(run.spec.key)), statuses[run.spec.key]
        state = folder.state()
        if state is not None and status.phase in OUTCOMES and state.state not in (FINISHED, FAILED, STOPPED):
            folder.write_state(replace(state, state=OUTCOMES[status.phase], reason=status.reason))


def stop_runs(keys: Collection[str], settings: Settings, cause: str) -> None:
    """Ask runs for checkpoints and wait for them: as long as it takes, or as long as a machine that goes may be thought to stay."""
    folders = [RunFolder(settings.run_dir(key)) for key in keys]
    for folder in folders:
        folder.request_stop(cause)
    deadline = time.monotonic() + (NOTICE_SECONDS if cause == PREEMPTED else math.inf)
    while any(f.is_held() for f in folders) and time.monotonic() < deadline:
        time.sleep(TICK_SECONDS)


def failed_runs(study: Study, settings: Settings) -> list[str]:
    rows = run_rows(study.specs, settings)
    by_reason: dict[str, list[str]] = {}
    for r in rows:
        if r.state != FINISHED:
            by_reason.setdefault(r.reason or r.state, []).append(f"{r.rung} seed {r.seed} ({r.key})")
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def raise_if_all_alike(statuses: dict[str, Status]) -> None:
    """When everything that was lost had one cause in the configuration or on the machine, that sentence is the command's own."""
    lost = [s for s in statuses.values() if s.phase == schedule.LOST]
    kinds = {UsageError.exit_code: UsageError, SetupError.exit_code: SetupError}
    if lost and len({(s.exit_code, s.reason) for s in lost}) == 1 and lost[0].exit_code in kinds:
        raise kinds[lost[0].exit_code](str(lost[0].reason))


def raise_if_failed(study: Study, settings: Settings) -> None:
    lost = failed_runs(study, settings)
    if lost:
        count = len(unfinished(study, settings))
        raise GopherError(
            f"{count} of {len(study.runs)} runs did not finish: {'; '.join(lost)}; mend the cause, and the same command tries them again"
        )
