"""`gopher launch`: train what a sweep is missing, mirror it to MLflow, and say what to do next."""

import importlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import yaml

from gopher.errors import GopherError, SetupError
from gopher.record import ASKED, PREEMPTED, RunFolder
from sweeps import launched, lease
from sweeps.backends import Backend, BackendLost, DataJob
from sweeps.backends.ray import RayBackend, import_ray
from sweeps.background import back_off, detach, start_again
from sweeps.drive import (
    Work,
    check_space,
    check_steps,
    first_trainings,
    jobs_of,
    ladder,
    raise_if_all_alike,
    raise_if_failed,
    run_tasks,
    stop_runs,
    unfinished,
    without_scores,
)
from sweeps.folders import make_folders
from sweeps.interrupts import Interrupts
from sweeps.lookout import TAKEN_OVER, room_at_start, stop_asked
from sweeps.mirror import Mirror
from sweeps.provenance import check_clean, code_state
from sweeps.redact import hide_secrets, redacted
from sweeps.schedule import Status
from sweeps.screen import Screen, console
from sweeps.settings import Settings, settings_of
from sweeps.status import run_rows
from sweeps.study import ComposeFn, Study, load_study
from sweeps.track import Tracker, tracker_of
from sweeps.verbs.status import as_json


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    """Exit code 0 when all runs are finished, 130 when a person stopped it; other ends raise."""
    settings = settings_of(compose(overrides).tree)
    say = partial(console(stderr=True).print, markup=False)
    if settings.detach:
        checked_study(compose, overrides, settings)  # mistakes are told here, not in a log
        return detach(overrides, settings, say)
    try:
        code = launch(compose, overrides)
        return code or follow(settings.launch.then, compose, overrides)
    except Detach:
        return detach(overrides, settings, say)
    except BackendLost:
        start_again(overrides, settings)
        raise


def follow(verbs: Sequence[str], compose: ComposeFn, overrides: Sequence[str]) -> int:
    """The exit code of the verbs that come after a finished sweep, up to the first that fails."""
    codes = (importlib.import_module(f"sweeps.verbs.{verb}").run(compose, overrides) for verb in verbs)
    return next((code for code in codes if code), 0)


def checked_study(compose: ComposeFn, overrides: Sequence[str], settings: Settings) -> Study:
    """The sweep, once nothing in its words or its code is against launching it."""
    study = load_study(compose, overrides)
    if settings.code.require_clean:
        check_clean(code_state())
    if settings.tasks and not isinstance(settings.evals.steps, str):
        check_steps(unfinished(study, settings), settings)
    return study


def launch(compose: ComposeFn, overrides: Sequence[str]) -> int:
    """Train what is missing, holding the sweep."""
    tree = compose(overrides).tree
    settings = settings_of(tree)
    study = checked_study(compose, overrides, settings)
    with (
        lease.held(settings.sweep_dir, study.name) as own,
        ThreadPoolExecutor(max_workers=1) as background,
        Interrupts() as interrupts,
    ):
        tracker = tracker_of(settings, study.rungs)
        folders = [RunFolder(settings.run_dir(r.spec.key)) for r in study.runs]
        missing, unscored = unfinished(study, settings), without_scores(study, settings)
        if not missing and not unscored and tracker.delivered(folders):
            console(stderr=True).print(
                f"nothing to start: all {len(study.runs)} runs of {study.name} are finished and in MLflow"
            )
            return report_end(study, settings, overrides)
        settings.root.mkdir(parents=True, exist_ok=True)
        check_space(missing, settings)
        make_folders(missing, settings)
        launched.keep(study, overrides, settings)
        # A new sqlite file takes MLflow seconds, starting Ray takes others: both at once. A server may be down: that is learnt first.
        if missing or unscored:
            import_ray()  # before MLflow's imports take turns with it: text waits for Ray alone
        config = yaml.safe_dump(redacted(tree), sort_keys=False)
        begin = partial(open_tracking, tracker, config, subset_names(study))
        opened = background.submit(begin)
        away = None if tracker.uri.startswith("sqlite:") else opened.exception()
        if away and (settings.tracking.required or not isinstance(away, SetupError)):
            raise away
        gates = ladder(study, missing) if settings.gate == "ladder" else {}
        work = Work(runs=missing, scored=unscored, gates=gates)
        asked, say = partial(stop_asked, settings, own), partial(console(stderr=True).print, markup=False)
        try:
            train(study, work, settings, tracker, opened, begin if away else None, own, interrupts)
        except BackendLost as lost:
            say(f"{lost}; starting again")
            interrupts.let_through()
            back_off(asked)  # holding the sweep: `gopher stop` asks whoever holds it
            if not asked():
                raise
        if asked():
            say(f"stopped; `{hide_secrets(launched.command_line('resume', overrides))}` goes on")
            if settings.format == "json":
                print(as_json(study.name, run_rows(study.specs, settings)))
            return 130
        if own.lost and unfinished(study, settings):
            raise GopherError(f"{TAKEN_OVER}; `gopher status watch=true` with the words of this command follows it")
    return report_end(study, settings, overrides)


def open_tracking(tracker: Tracker, config: str, subsets: list[str]) -> None:
    tracker.open_sweep(config)
    tracker.write_views(subsets)


def train(
    study: Study,
    work: Work,
    settings: Settings,
    tracker: Tracker,
    opened: "Future[None]",
    reopen: Callable[[], None] | None,
    own: lease.Lease,
    interrupts: Interrupts,
) -> None:
    """Run the tasks with the screen on; whatever happens, what was logged is delivered and Ray is closed."""
    screen = Screen(study.name, live=settings.watch is not False and console(stderr=True).is_terminal)
    mirror: Mirror | None = None
    undelivered: str | None = None
    try:
        backend = start_ray(study, work, settings, screen, own) if work.runs or work.scored else None
        interrupts.listen()
        try:
            if backend is None:
                interrupts.let_through()
            if reopen:
                screen.say(f"{opened.exception()}; tracking.required is false, so the runs go on and are sent later")
            else:
                opened.result()
            mirror = Mirror(tracker, [RunFolder(settings.run_dir(r.spec.key)) for r in study.runs], reopen)
            statuses = run_on(backend, study, work, settings, screen, own, interrupts) if backend else {}
        finally:
            if mirror:
                mirror.hurry()
            if backend:
                backend.close()
    finally:
        try:
            if mirror:
                undelivered = mirror.finish(settings.launch.patience_seconds)
                for run in work.scored if not undelivered else ():
                    tracker.log_recorded(RunFolder(settings.run_dir(run.spec.key)), settings.tasks)
        finally:
            screen.close()
    raise_if_all_alike(statuses)
    if undelivered:
        raise SetupError(undelivered)


def start_ray(study: Study, work: Work, settings: Settings, screen: Screen, own: lease.Lease) -> Backend:
    """Ray, with text and the gangs of the first runs on their way while tracking opens."""
    scores = f", {len(work.scored)} to score" if work.scored else ""
    screen.say(
        f"{study.name}: {len(work.runs)} of {len(study.runs)} runs to train{scores}; starting Ray ({settings.cluster.address})"
    )
    backend = RayBackend(settings.cluster, settings.root / "ray")
    texts = {key: job for key, job in jobs_of(work, settings).items() if isinstance(job, DataJob)}
    first = first_trainings(work, settings, backend.capacity, room_at_start(backend.capacity, settings, own))
    own.tell(cpus=sum(t.cpus for t in first), gpus=sum(t.gpus for t in first))
    backend.warm(first, texts)
    return backend


def run_on(
    backend: Backend,
    study: Study,
    work: Work,
    settings: Settings,
    screen: Screen,
    own: lease.Lease,
    interrupts: Interrupts,
) -> dict[str, Status]:
    try:
        interrupts.let_through()
        return run_tasks(study, work, settings, backend, screen, own)
    except KeyboardInterrupt as interrupt:
        screen.close()
        answer = "stop" if interrupt.args else ask(screen.say)
        screen.say("stopping: runs write a checkpoint first; Ctrl-C again to leave at once")
        stop_runs(backend.running, settings, PREEMPTED if interrupt.args else ASKED)
        if answer == "detach":
            raise Detach from None
        raise


class Detach(Exception):
    """The person wants the launch to go on without the terminal."""


def ask(say: Callable[[str], None]) -> str:
    """`stop` or `detach`: the answer of whoever sits at the terminal; `stop` where nobody does."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "stop"
    say(
        "Ctrl-C: [d]etach, training goes on in the background, or [s]top with checkpoints? (Ctrl-C again leaves at once)"
    )
    return "detach" if sys.stdin.readline().strip().lower().startswith("d") else "stop"


def report_end(study: Study, settings: Settings, overrides: Sequence[str]) -> int:
    rows = run_rows(study.specs, settings)
    if settings.format == "json":
        print(as_json(study.name, rows))
    raise_if_failed(study, settings)
    best = min((r.val_loss, r.rung) for r in rows if r.val_loss is not None)
    say = console(stderr=True).print
    say(f"{len(rows)} runs finished; lowest validation loss {best[0]:.4f} nats/token at {best[1]}")
    following = "   ".join(launched.command_line(verb, overrides) for verb in ("fit", "report", "ui"))
    say(f"next: {hide_secrets(following)}", markup=False)
    return 0


def subset_names(study: Study) -> list[str]:
    """Subsets of all runs, in the order of the mixtures."""
    return list(dict.fromkeys(name for r in study.runs for name in r.spec.data.weights))
