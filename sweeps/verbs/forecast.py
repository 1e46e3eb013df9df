"""`gopher forecast freeze|score|list`: predictions written down before their run, scored after it, with a calibration record."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from analysis.sizes import SIZES, TRAINED_TOLERANCE
from gopher.errors import UsageError, did_you_mean
from gopher.identity import content_hash
from gopher.size import params_non_embedding, params_total, train_flops
from sweeps.provenance import code_state, versions
from sweeps.screen import console
from sweeps.settings import Settings, settings_of
from sweeps.study import ComposeFn, check_rungs, load_study
from sweeps.track import opened_tracker
from sweeps.verbs.fit import fit_request

ACTIONS = ("freeze", "score", "list")


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
    path = save(frozen, settings.sweep_dir / "forecasts")
    console(stderr=True).print(f"forecast: {path}", markup=False)
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
    numbers: dict[str, Any] = {name: size_of(name, given[name]) for name in SIZES if name in given}
    if tree["points"] is not None or "rung" not in given:
        return Target(rung=given.get("rung"), **numbers)
    rungs = check_rungs([*tree["rungs"], given["rung"]])
    study = load_study(compose, [*overrides, f"rungs=[{','.join(rungs)}]"])
    specs = [s for s in study.specs if s.rung == given["rung"]]
    planned = sorted({s.train_tokens for s in specs})
    tokens = numbers.get("tokens", float(planned[0]))
    if len(planned) > 1 and "tokens" not in numbers:
        raise UsageError(
            f"rung {given['rung']} is planned at {', '.join(map(str, planned))} tokens; say which with target.tokens=N"
        )
    own = [s for s in specs if abs(s.train_tokens / tokens - 1) < TRAINED_TOLERANCE]
    size: dict[str, Any] = {
        "params_total": params_total(specs[0].model),
        "params_non_embedding": params_non_embedding(specs[0].model),
        "tokens": tokens,
    }
    size |= {"flops": train_flops(own[0])} if own else {}
    return Target(rung=given["rung"], run_keys=tuple(s.key for s in own), **(size | numbers))


def size_of(name: str, value: Any) -> float:
    """One size of the target as a number that a run can have."""
    try:
        size = float(value)
    except (TypeError, ValueError):
        size = math.nan
    if not (math.isfinite(size) and size > 0):
        raise UsageError(f"target.{name} is {value!r}; give a number above 0, such as target.{name}=2.8e+11")
    return size


def score(compose: ComposeFn, overrides: Sequence[str], tree: dict[str, Any], settings: Settings) -> None:
    """Fill in the outcomes of forecasts whose runs are done; doing it twice changes nothing."""
    from analysis import forecast as forecasts
    from analysis.command import read_points
    from analysis.forecast_files import load_all, save

    points = read_points(fit_request(tree, settings))
    metric = points.rows[0].loss_name
    for frozen in load_all(settings.sweep_dir / "forecasts"):
        if frozen.loss_name == metric:
            save(forecasts.score(frozen, points), settings.sweep_dir / "forecasts")
        else:
            told = f"forecast {frozen.id} is of {frozen.loss_name} and these points hold {metric}; it is scored with metric="
            console(stderr=True).print(told, markup=False)
    to_mlflow(tree, settings)
    show(compose, overrides, tree, settings)


def show(compose: ComposeFn, overrides: Sequence[str], tree: dict[str, Any], settings: Settings) -> None:
    """All forecasts of the sweep and how they did."""
    from analysis.forecast import calibration
    from analysis.forecast_files import load_all
    from sweeps.screen import Table

    found = load_all(settings.sweep_dir / "forecasts")
    record = calibration(found)
    if settings.format == "json":
        print(
            json.dumps(
                {
                    "forecasts": [asdict(f) | {"is_backtest": f.is_backtest} for f in found],
                    "calibration": asdict(record),
                },
                indent=2,
                sort_keys=True,
            )
        )
        return
    columns = ["target", "law", "predicted", "95 % interval", "actual", "inside", "frozen", "forecast"]
    console().print(Table(f"forecasts of {settings.name}", columns, [forecast_row(f) for f in found]))
    inside = ", ".join(f"{record.inside[level]} of {record.scored} inside {level} %" for level in record.inside)
    console().print(
        f"calibration: {record.scored} scored ({inside}); still pending: {record.pending}; backtests: {record.backtests}"
    )
    if any(f.is_backtest for f in found):
        console().print(
            "backtest: a run of the target was measured before, or is not known to have come after the freeze "
            "(runs in MLflow say so; a table does in the columns started_at and finished_at)",
            style="dim",
        )


def forecast_row(f: Any) -> list[str]:
    low, high = f.intervals["95"]
    outcome = f.outcome
    ended = ["-", "-"] if outcome is None else [f"{outcome.actual:.4f}", "yes" if outcome.inside["95"] else "NO"]
    kind = f"{f.created_at} (backtest)" if f.is_backtest else f.created_at
    name = f.target.rung or ", ".join(f"{k} {v:g}" for k in SIZES if (v := getattr(f.target, k)))
    return [name, f.law, f"{f.mean:.4f}", f"{low:.4f} to {high:.4f}", *ended, kind, f.id]


def to_mlflow(tree: dict[str, Any], settings: Settings) -> None:
    """The forecast files onto the MLflow run of the sweep; those about a table only where tracking.uri names a store."""
    if tree["points"] is None or settings.tracking.uri is not None:
        tracker = opened_tracker(settings, check_rungs(tree["rungs"]))
        tracker.log_folder(settings.sweep_dir / "forecasts", "forecasts")
