"""`gopher fit` without its plumbing: plain values in, one result out, printed as JSON or as tables."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from analysis.chain import fit_chain
from analysis.fit import fit
from analysis.holdout import HoldOut
from analysis.numbers import count, number, percent, with_interval
from analysis.points import Points, curves_from_mlflow, points_from_file, points_from_mlflow
from analysis.result import FitResult, FitSettings
from analysis.table import read_frame, rename, select_rows
from analysis.task_runs import TaskSettings, task_runs, task_runs_from_points
from gopher.errors import UsageError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """Where the points come from and how they are fitted."""

    points: str | tuple[str, ...] | None = None  # CSV or Parquet file; several for law=two_step
    sweep: str | None = None  # MLflow experiment
    tracking_uri: str | None = None  # of the MLflow server or sqlite file, with `sweep`
    where: str = ""  # pandas query over the rows
    columns: Mapping[str, str] = field(default_factory=dict)  # our column name -> the file's
    metric: str = "auto"  # loss in a file, final/val_loss in a sweep
    bad_rows: str = "refuse"  # refuse | exclude: rows of a file that cannot be right
    task: TaskSettings = field(default_factory=TaskSettings)  # law=two_step only
    settings: FitSettings = field(default_factory=FitSettings)


REQUEST_KEYS = tuple(f.name for f in dataclasses.fields(FitRequest) if f.name != "settings")
SETTING_KEYS = tuple(f.name for f in dataclasses.fields(FitSettings))


def request_from(values: Mapping[str, Any]) -> FitRequest:
    """A request from the flat values of the command line; unknown keys and wrong types raise `UsageError`."""
    known = REQUEST_KEYS + SETTING_KEYS
    for key in values:
        if key not in known:
            raise UsageError(
                f"'{key}' is no setting of fit{did_you_mean(str(key), known)} (there are {', '.join(known)})"
            )
    settings = {key: setting(key, value) for key, value in values.items() if key in SETTING_KEYS}
    request = {key: value for key, value in values.items() if key in REQUEST_KEYS and value is not None}
    if isinstance(request.get("points"), (list, tuple)):
        request["points"] = tuple(map(str, request["points"]))
    request["task"] = task_from(dict(request.get("task") or {}))
    request["columns"] = {str(k): str(v) for k, v in dict(request.get("columns", {})).items()}
    return FitRequest(**request, settings=FitSettings(**settings))


def task_from(values: dict[str, Any]) -> TaskSettings:
    """Task settings from plain values; metrics as one name, a list of names or a mapping to weights."""
    known = [f.name for f in dataclasses.fields(TaskSettings)]
    for key in values:
        if key not in known:
            raise UsageError(f"task.{key} is no setting{did_you_mean(key, known)} (there are {', '.join(known)})")
    for key in ("loss", "score"):
        if key in values:
            given = values[key]
            names = [given] if isinstance(given, str) else given
            weighted = names if isinstance(names, Mapping) else dict.fromkeys(names, 1.0)
            values[key] = {str(name): weight(key, name, value) for name, value in weighted.items()}
    return TaskSettings(**values)


def weight(key: str, name: Any, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(
            f"task.{key} gives {name} the weight '{value}', which is no number; write {{NAME: 0.5}}, a colon inside a name as \\:"
        ) from None


def setting(key: str, value: Any) -> Any:
    """One setting with the type that `FitSettings` declares, from what a command line gives."""
    try:
        if key in ("bootstrap", "seed", "holdout"):
            whole = None if value is None else int(value)
            if whole is not None and whole != float(value):
                raise ValueError
            return whole
        if key == "delta":
            return None if value is None else float(value)
        if key == "pinned":
            return {str(k): float(v) for k, v in dict(value or {}).items()}
        if key == "targets":
            return tuple({str(k): float(v) for k, v in dict(t).items()} for t in value or ())
    except (TypeError, ValueError, OverflowError):
        kinds = {
            "pinned": "a mapping such as {E: 1.69}",
            "targets": "a list such as [{params: 2.8e+11, tokens: 3.0e+11}]",
        }
        raise UsageError(f"{key} is {value!r}; give {kinds.get(key, 'a number')}") from None
    return value


def read_points(request: FitRequest) -> Points:
    """The points that a request names."""
    if request.points is not None:
        if not isinstance(request.points, str):
            raise UsageError(
                f"points is {list(request.points)}; several files are joined for law=two_step only, so give one"
            )
        metric = "loss" if request.metric == "auto" else request.metric
        return points_from_file(request.points, request.where, request.columns, metric, request.bad_rows)
    if request.sweep is None or request.tracking_uri is None:
        raise UsageError("neither points nor a sweep is given; use points=FILE.csv or sweep=NAME")
    if request.settings.law in ("envelope", "approach1"):  # the one law that reads whole training curves
        return curves_from_mlflow(request.tracking_uri, request.sweep, "val/loss", request.where)
    metric = "final/val_loss" if request.metric == "auto" else request.metric
    return points_from_mlflow(request.tracking_uri, request.sweep, metric, request.where)


def run_fit(request: FitRequest) -> FitResult:
    """Read the points, fit, return the result; nothing is written."""
    if request.settings.law == "two_step":
        return run_two_step(request)
    return fit(read_points(request), request.settings)


def run_two_step(request: FitRequest) -> FitResult:
    """law=two_step: checkpoints from one or more files, or finished runs of a sweep."""
    task, s = request.task, request.settings
    if request.points is not None:
        paths = [request.points] if isinstance(request.points, str) else list(request.points)
        source = "+".join(Path(path).name for path in paths)
        table = rename(pd.concat([read_frame(path) for path in paths], ignore_index=True), request.columns, source)
        return fit_chain(task_runs(select_rows(table, request.where, source), task, source), task, s, source)
    if request.sweep is None or request.tracking_uri is None:
        raise UsageError("neither points nor a sweep is given; use points=FILE.csv or sweep=NAME")
    loss, score = next(iter(task.loss)), next(iter(task.score), "")
    metric = "final/val_loss" if loss == "loss" else loss
    losses = points_from_mlflow(request.tracking_uri, request.sweep, metric, request.where)
    # the loss chooses among settings, for both steps
    scores = points_from_mlflow(request.tracking_uri, request.sweep, score, request.where, best=False)
    return fit_chain(task_runs_from_points(losses, scores, task), task, s, request.sweep)


# -------------------------------------------------------------------------------------------- table


def print_result(result: FitResult, console: Console | None = None) -> None:
    """The result as tables for a terminal."""
    out = console or Console()
    for r in (result, *result.also):
        print_law(r, out)
    if result.excluded:
        out.print(
            grid(
                "left out",
                ("run", "rung", "reason"),
                [(e.run_id, e.rung or "", e.reason) for e in result.excluded[:40]],
            )
        )
        if len(result.excluded) > 40:
            out.print(f"... and {len(result.excluded) - 40} more; format=json lists all")
    for note in result.points.remarks:
        out.print(f"note: {note}", highlight=False)


def print_law(r: FitResult, out: Console) -> None:
    against = f" against {r.x}" if r.x else ""
    title = f"{r.law}{against}: {len(r.points)} points of {r.points.source}, {r.parameters.replace('_', ' ')}"
    rows = [(name, *interval_cells(r, name, value)) for name, value in (r.params | r.derived).items()]
    out.print(grid(title, ("parameter", "value", "80 % interval", "95 % interval"), rows))
    if not r.verdict.identified:
        out.print(f"[bold]not identified[/bold]: {r.verdict.law}", highlight=False)
        for reason in r.verdict.reasons:
            out.print(f"  - {reason}", highlight=False, markup=False)
    if r.noise and r.noise.prediction_sd_log is not None:
        seeds = "unknown (no rung has two seeds)" if r.noise.seed_sd_log is None else percent(100 * r.noise.seed_sd_log)
        out.print(
            f"scatter about the law {percent(100 * r.noise.prediction_sd_log)}, between seeds {seeds}", highlight=False
        )
    if r.holdout:
        head = ("held out", "from", "predicted", "95 % interval", "actual", "error", "inside")
        out.print(
            grid(
                "largest rungs predicted from smaller ones", head, [holdout_row(h) for h in r.holdout if h.law == r.law]
            )
        )
    if r.predictions:
        out.print(grid("predictions", ("target", "loss", "95 % interval"), [prediction_row(p) for p in r.predictions]))


def interval_cells(r: FitResult, name: str, value: float) -> tuple[str, str, str]:
    ci = r.ci.get(name)
    cells = [
        with_interval(value, *ci[level], extra=1).partition(" ") if ci else (number(value), "", "")
        for level in ("95", "80")
    ]
    return cells[0][0], cells[1][2], cells[0][2]


def holdout_row(h: HoldOut) -> tuple[str, ...]:
    low, high = h.interval95 or (None, None)
    value, _, bounds = with_interval(h.predicted, low, high, extra=1).partition(" ")
    return (
        h.rung,
        f"{h.fitted_rungs} rungs",
        value,
        bounds,
        number(h.actual),
        percent(h.error_percent, signed=True),
        {None: "", True: "yes", False: "NO"}[h.inside],
    )


def prediction_row(p: Any) -> tuple[str, str, str]:
    shown = {k: v for k, v in (p.inputs | p.derived).items() if k != "loss_opt"}
    target = ", ".join(f"{k} {count(v) if k != 'flops' else f'{v:.3g}'}" for k, v in shown.items())
    value, _, bounds = with_interval(p.mean, *(p.intervals.get("95") or (None, None))).partition(" ")
    return target, value, bounds


def grid(title: str, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in header:
        table.add_column(name, overflow="fold", no_wrap=name != "reason")
    for row in rows:
        table.add_row(*row)
    return table
