"""`gopher forecast freeze|score|list`: predictions written down before their run, scored after it, with a calibration record."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from gopher.errors import UsageError, did_you_mean
from gopher.identity import content_hash
from gopher.size import params_non_embedding, params_total, train_flops
from sweeps.provenance import code_state, versions
from sweeps.settings import Settings, settings_of
from sweeps.study import ComposeFn, check_rungs, load_study
from sweeps.track import Tracker
from sweeps.verbs.fit import fit_request

ACTIONS = ("freeze", "score", "list")
SIZES = ("params_total", "params_non_embedding", "tokens", "flops")


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    words = [w for w in overrides if "=" not in w and not w.startswith("~")]
    if len(words) != 1 or words[0] not in ACTIONS:
        given = " ".join(words) or "nothing"
        raise UsageError(
            f"gopher forecast was told '{given}'{did_you_mean(given, ACTIONS)}; say one of {', '.join(ACTIONS)}"
        )
    rest = [w for w in overrides if w != words[0]]
    tree = compose(rest).tree
    settings = settings_of(tree)
    {"freeze": freeze, "score": score, "list": show}[words[0]](compose, rest, tree, settings)
    return 0


def freeze(compose: ComposeFn, overrides: Sequence[str], tree: dict[str, Any], settings: Settings) -> None:
    """Write the prediction for the target from all other runs, once; the same prediction again keeps its first date."""
    from analysis import forecast as forecasts
    from analysis.command import read_points
    from analysis.forecast_files import save

    target = target_of(compose, overrides, tree)
    request = fit_request(tree, settings)
    code = {"commit": str(code_state().commit), "dirty": str(code_state().dirty), **versions()}
    frozen = forecasts.freeze(
        read_points(request),
        target,
        request.settings,
        study=settings.name,
        code=code,
        config_hash=content_hash({k: v for k, v in tree.items() if k not in ("output_root", "format", "watch")}),
    )
    save(frozen, settings.sweep_dir / "forecasts")
    to_mlflow(tree, settings)
    show(compose, overrides, tree, settings)


def target_of(compose: ComposeFn, overrides: Sequence[str], tree: dict[str, Any]) -> Any:
    """The target as given; a planned rung brings its size, tokens, FLOPs and the keys of its runs."""
    from analysis.target import Target

    given = dict(tree["target"])
    known = ("rung", *SIZES)
    for key in given:
        if key not in known:
            raise UsageError(f"target.{key} is no setting{did_you_mean(key, known)} (there are {', '.join(known)})")
    if not given:
        raise UsageError("no target is given; say target.rung=NAME, or target.params_non_embedding=N target.tokens=D")
    if tree["points"] is None and "rung" in given:
        rungs = check_rungs([*tree["rungs"], given["rung"]])
        runs = [
            r.spec
            for r in load_study(compose, [*overrides, f"rungs=[{','.join(rungs)}]"]).runs
            if r.spec.rung == given["rung"]
        ]
        size: dict[str, float] = {
            "params_total": params_total(runs[0].model),
            "params_non_embedding": params_non_embedding(runs[0].model),
        }
        size |= {"tokens": runs[0].train_tokens, "flops": train_flops(runs[0])}
        given = {**size, **given, "run_keys": tuple(r.key for r in runs)}
    numbers = {k: float(v) for k, v in given.items() if k in SIZES}
    return Target(rung=given.get("rung"), run_keys=given.get("run_keys", ()), **numbers)


def score(compose: ComposeFn, overrides: Sequence[str], tree: dict[str, Any], settings: Settings) -> None:
    """Fill in the outcomes of forecasts whose runs are done; doing it twice changes nothing."""
    from analysis import forecast as forecasts
    from analysis.command import read_points
    from analysis.forecast_files import load_all, save

    points = read_points(fit_request(tree, settings))
    for frozen in load_all(settings.sweep_dir / "forecasts"):
        save(forecasts.score(frozen, points), settings.sweep_dir / "forecasts")
    to_mlflow(tree, settings)
    show(compose, overrides, tree, settings)


def show(compose: ComposeFn, overrides: Sequence[str], tree: dict[str, Any], settings: Settings) -> None:
    """All forecasts of the sweep and how they did."""
    from analysis.forecast import calibration
    from analysis.forecast_files import load_all
    from sweeps.screen import console, table

    found = load_all(settings.sweep_dir / "forecasts")
    record = calibration(found)
    if settings.format == "json":
        print(
            json.dumps(
                {"forecasts": [asdict(f) for f in found], "calibration": asdict(record)}, indent=2, sort_keys=True
            )
        )
        return
    columns = ["target", "law", "predicted", "95 % interval", "actual", "inside", "frozen", "forecast"]
    console().print(table(f"forecasts of {settings.name}", columns, [forecast_row(f) for f in found]))
    inside = ", ".join(f"{record.inside[level]} of {record.scored} inside {level} %" for level in record.inside)
    console().print(
        f"calibration: {record.scored} scored ({inside}); still pending: {record.pending}; backtests: {record.backtests}"
    )


def forecast_row(f: Any) -> list[str]:
    low, high = f.intervals["95"]
    outcome = f.outcome
    ended = ["-", "-"] if outcome is None else [f"{outcome.actual:.4f}", "yes" if outcome.inside["95"] else "NO"]
    kind = f.created_at if f.before_run else f"{f.created_at} (backtest)"
    name = f.target.rung or ", ".join(f"{k} {v:g}" for k in SIZES if (v := getattr(f.target, k)))
    return [name, f.law, f"{f.mean:.4f}", f"{low:.4f} to {high:.4f}", *ended, kind, f.id]


def to_mlflow(tree: dict[str, Any], settings: Settings) -> None:
    """The forecast files onto the sweep's MLflow run."""
    if tree["points"] is None:
        tracker = Tracker(
            settings.tracking_uri, settings.name, settings.root / "mlartifacts", check_rungs(tree["rungs"])
        )
        tracker.open_sweep("")
        tracker.log_folder(settings.sweep_dir / "forecasts", "forecasts")
