"""`gopher eval`: task scores of a sweep's checkpoints, or of one, from answers that are kept and never computed twice."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gopher.errors import UsageError
from gopher.record import RunFolder
from sweeps.screen import Table, console
from sweeps.settings import Settings, settings_of
from sweeps.study import ComposeFn
from sweeps.track import opened_tracker, version_of
from sweeps.verbs.compress import sweep_folders

PATIENCE_SECONDS = 60.0
IN_PROCESS_SECONDS = 40.0  # of scoring, about: less is done before Ray and its actors have started


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    from gopher.evals.checkpoints import at_home, checkpoints_of
    from gopher.evals.metrics import over_seeds
    from gopher.evals.scores import compile_exam, log_scores, scored_seeds, store_of

    tree = compose(overrides).tree
    settings = settings_of(tree)
    say = console(stderr=True).print
    if not settings.tasks:
        raise UsageError("gopher eval needs tasks; write tasks=[a,b], with tasks_path=DIR for YAML files of your own")
    one = tree["checkpoint"]
    folders, left_out = ([Path(one)], []) if one else sweep_folders(compose, overrides, settings)
    exam = settings.exam
    checkpoints = [c for f in folders for c in checkpoints_of(f, settings.evals.steps, exam.floor)]
    root = settings.root
    if one:  # its answers lie where it was trained, unless another place is named
        checkpoints = [at_home(c, root) for c in checkpoints]
        named = any(word.startswith("output_root=") for word in overrides)
        root = root if named else checkpoints[0].output_root
    compiled = compile_exam(exam, root, say)
    store = store_of(exam, root)
    count = answer(settings, checkpoints, compiled, store, root / "evals" / "bundles")
    lines: list[dict[str, Any]] = []
    scored = {}
    skipped = [{"task": s.task, "reason": s.reason} for s in compiled[0].skipped]
    for checkpoint in checkpoints:
        seeds = scored_seeds(compiled, store, checkpoint.sha256)
        who = f"run {checkpoint.spec.key} at step {checkpoint.step}"
        skipped += [{"task": s.task, "reason": f"{who}: {s.reason}"} for s in seeds[0].skipped]
        scored[checkpoint] = seeds[0]
        found = over_seeds([s.scores for s in seeds])
        kept = log_scores(RunFolder(checkpoint.run_folder), checkpoint.step, found, fewer=not one)
        for task, n in kept.items():
            say(f"{who} keeps its scores of {task} over {n} items; those over fewer are shown here alone", markup=False)
        lines += [line_of(checkpoint, s) for s in found]
    told: dict[str, Any] = {
        "results": lines,
        "skipped": skipped,
        "paired": comparisons(checkpoints, scored),
    }
    told |= {"left_out": left_out, "requests_scored": count}
    into_mlflow(settings, checkpoints, lines, compiled, say, required=not one)
    if settings.format == "json":
        print(json.dumps(told, indent=2))
    else:
        show(told)
    return 0


def answer(settings: Settings, checkpoints: Sequence[Any], compiled: Sequence[Any], store: Any, bundles: Path) -> int:
    """Requests that had to be scored; less than about 40 seconds' in this process, more on Ray."""
    from gopher.evals.scores import answer_all, bundles_of, lacking
    from gopher.evals.units import units_of

    count, units = 0, lacking(checkpoints, compiled, store)
    if units and (sum(u.seconds for u in units) > IN_PROCESS_SECONDS or settings.cluster.address != "local"):
        asked = bundles_of(compiled)
        count = on_ray(settings, lambda device: units_of(checkpoints, asked, store, on=device), bundles, store)
        units = units_of(checkpoints, asked, store)  # what another process was at
    return count + answer_all(units, compiled, store)


def on_ray(settings: Settings, units_on: Callable[[str], Sequence[Any]], bundles: Path, store: Any) -> int:
    """Requests scored; the pieces are as large as the cluster's device wants them, whatever this machine has."""
    from sweeps.backends.ray import RayBackend
    from sweeps.backends.ray_evals import score_on_ray

    say = console(stderr=True).print
    backend = RayBackend(settings.cluster, settings.root / "ray")
    try:
        room = backend.capacity
        units, actors = units_on("cuda" if room.gpus else "cpu"), room.gpus or room.cpus
        say(f"scoring {len(units)} pieces of requests on {min(actors, len(units))} actors")
        return score_on_ray(
            backend.ray,
            units,
            bundles,
            store,
            actors,
            room.gpus,
            lambda left: say(f"{left} pieces left") if left % 10 == 0 else None,
        )
    finally:
        backend.close()


def line_of(checkpoint: Any, score: Any) -> dict[str, Any]:
    who = {"run": checkpoint.spec.key, "rung": checkpoint.spec.rung, "seed": checkpoint.spec.seed}
    return {**who, "step": checkpoint.step, **vars(score)}


def comparisons(checkpoints: Sequence[Any], scored: dict[Any, Any]) -> list[dict[str, Any]]:
    """Differences on the same items, of the pairs of checkpoints that are worth comparing."""
    from gopher.evals.metrics import paired
    from gopher.evals.pairs import pairs

    out = []
    for before, after in pairs(checkpoints):
        pair = {"run": after.spec.key, "step": after.step, "than_run": before.spec.key, "than_step": before.step}
        for d in paired(scored[before], scored[after]):
            out.append(
                {**pair, "task": d.task, "metric": d.metric, "difference": d.value, "stderr": d.stderr, "n": d.n}
            )
    return out


def into_mlflow(
    settings: Settings,
    checkpoints: Sequence[Any],
    lines: Sequence[dict[str, Any]],
    compiled: Sequence[Any],
    say: Any,
    *,
    required: bool,
) -> None:
    """Scores onto the training runs at their checkpoints' steps, with a table each; a lone checkpoint may be from anywhere."""
    rungs = list(dict.fromkeys(c.spec.rung for c in checkpoints))
    folders = {c.spec.key: RunFolder(c.run_folder) for c in checkpoints}
    if not required:
        folder = checkpoints[0].run_folder
        say(f"the scores are in {folder / 'metrics.jsonl'}; gopher eval sweep=... sends them to MLflow", markup=False)
        return
    version = version_of(b.key for one in compiled for b in one.bundles.values())
    tracker = opened_tracker(settings, rungs)
    if undelivered := tracker.flush(list(folders.values()), PATIENCE_SECONDS):
        say(undelivered, markup=False)
        return
    for key, folder in folders.items():
        own = [line for line in lines if line["run"] == key]
        tracker.log_scores(folder, {"version": version, "results": own})


def show(told: dict[str, Any]) -> None:
    rows = [
        [r["rung"], str(r["seed"]), str(r["step"]), r["task"], r["metric"], number(r["value"]), number(r["stderr"]), str(r["n"])]
        for r in told["results"]
    ]  # fmt: skip
    console().print(Table("task scores", ["rung", "seed", "step", "task", "metric", "value", "±", "items"], rows))
    for one in told["skipped"]:
        console(stderr=True).print(f"skipped: {one['task']} ({one['reason']})", markup=False)
    for one in told["left_out"]:
        console(stderr=True).print(f"left out: {one['run']} ({one['reason']})", markup=False)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
