"""`gopher launch`: train what a sweep is missing, mirror it to MLflow, and say what to do next."""

import sys
from collections.abc import Sequence

import yaml

from gopher.errors import SetupError
from gopher.record import RunFolder
from sweeps.drive import (
    Mirror,
    check_space,
    make_folders,
    raise_if_all_alike,
    raise_if_failed,
    run_tasks,
    sole_driver,
    stop_runs,
    unfinished,
)
from sweeps.provenance import check_clean, code_state
from sweeps.redact import redacted
from sweeps.screen import Screen, console
from sweeps.settings import Settings, settings_of
from sweeps.status import run_rows
from sweeps.study import ComposeFn, PlannedRun, Study, load_study
from sweeps.track import Tracker


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    tree = compose(overrides).tree
    settings = settings_of(tree)
    if settings.code.require_clean:
        check_clean(code_state())
    study = load_study(compose, overrides)
    with sole_driver(settings):
        tracker = Tracker(settings.tracking_uri, study.name, settings.root / "mlartifacts", study.rungs)
        folders = [RunFolder(settings.run_dir(r.spec.key)) for r in study.runs]
        missing = unfinished(study, settings)
        if not missing and tracker.delivered(folders):
            console(stderr=True).print(
                f"nothing to start: all {len(study.runs)} runs of {study.name} are finished and in MLflow"
            )
            return report_end(study, settings)
        settings.root.mkdir(parents=True, exist_ok=True)
        check_space(missing, settings)
        make_folders(missing, settings)
        tracker.open_sweep(yaml.safe_dump(redacted(tree), sort_keys=False))
        tracker.write_views(subset_names(study))
        train(study, missing, settings, Mirror(tracker, folders))
    return report_end(study, settings)


def train(study: Study, missing: list[PlannedRun], settings: Settings, mirror: Mirror) -> None:
    """Run the tasks with the screen on; whatever happens, what was logged is delivered and Ray is closed."""
    screen = Screen(study.name, live=settings.watch is not False and console(stderr=True).is_terminal)
    try:
        if missing:
            run_on_ray(study, missing, settings, screen)
    finally:
        screen.close()
        undelivered = mirror.finish(settings.launch.patience_seconds)
        if undelivered and sys.exc_info()[0] is None:
            raise SetupError(undelivered)


def run_on_ray(study: Study, missing: list[PlannedRun], settings: Settings, screen: Screen) -> None:
    from sweeps.backends.ray import RayBackend

    screen.say(
        f"{study.name}: {len(missing)} of {len(study.runs)} runs to train; starting Ray ({settings.cluster.address})"
    )
    backend = RayBackend(settings.cluster, settings.root / "ray")
    try:
        statuses = run_tasks(study, missing, settings, backend, screen)
    except KeyboardInterrupt:
        screen.say("stopping: runs write a checkpoint first; Ctrl-C again to leave at once")
        stop_runs(backend, missing, settings)
        raise
    finally:
        backend.close()
    raise_if_all_alike(statuses)


def report_end(study: Study, settings: Settings) -> int:
    raise_if_failed(study, settings)
    rows = run_rows(study, settings)
    best = min((r.val_loss, r.rung) for r in rows if r.val_loss is not None)
    output = "" if settings.output_root == "outputs" else f" output_root={settings.output_root}"
    say = console(stderr=True).print
    say(f"{len(rows)} runs finished; lowest validation loss {best[0]:.4f} nats/token at {best[1]}")
    say(
        f"next: gopher fit sweep={study.name}{output}   gopher report sweep={study.name}{output}   gopher ui sweep={study.name}{output}"
    )
    return 0


def subset_names(study: Study) -> list[str]:
    """Subsets of all runs, in the order of the mixtures."""
    return list(dict.fromkeys(name for r in study.runs for name in r.spec.data.weights))
