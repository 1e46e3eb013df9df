"""A run table (frame, CSV, Parquet) as points: columns mapped, rows filtered, anything that cannot be right refused by name.

Schema: run_id, rung, family, seed, step, params_total, params_non_embedding, tokens, unique_tokens, flops,
flops_convention, loss, loss_name, metric_name, metric_value, metric_stderr, learning_rate, batch_tokens, cost, note, and provenance
(mlflow_run, config_hash, data_hash, checkpoint, started_at, finished_at). Only `loss` is needed at first; each law says which others it reads.
`state` (only finished rows count) and `eval_version` (the most common one counts) are read where they are there. Counts are
plain numbers. `key=value;` pairs in `note` can be used in `where` like columns.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.rows import Excluded, Point, Points
from analysis.screening import (
    drop_duplicates,
    finished_rows,
    name_of,
    of_one_evaluation,
    one_loss,
    screen,
    text,
)
from analysis.selection import best_learning_rates, untuned
from analysis.sizes import SIZES
from analysis.tasks import is_lower_better
from gopher.errors import UsageError, did_you_mean, first_line

NUMBERS = (
    "seed",
    "step",
    "params_total",
    "params_non_embedding",
    "tokens",
    "unique_tokens",
    "flops",
    "learning_rate",
    "batch_tokens",
    "cost",
)
TEXTS = ("flops_convention", "mlflow_run", "config_hash", "data_hash", "checkpoint", "started_at", "finished_at")
NAMES = (
    "run_id",
    "rung",
    "family",
    "loss",
    "loss_name",
    "metric_name",
    "metric_value",
    "metric_stderr",
    "note",
    "split",
    "state",
    "eval_version",
)
COLUMNS = NAMES + NUMBERS + TEXTS
MAX_POINTS = 20_000  # a fit with its hold-outs then takes minutes


def points_from_file(
    path: str | Path,
    where: str = "",
    columns: Mapping[str, str] | None = None,
    metric: str = "loss",
    bad_rows: str = "refuse",
) -> Points:
    """Points of a CSV or Parquet file; see `points_from_frame`."""
    return points_from_frame(read_frame(path), where, columns, metric, bad_rows, source=Path(path).name)


def read_frame(path: str | Path) -> pd.DataFrame:
    """The table in a .csv or .parquet file, values as they stand."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"points is {str(path)!r} and there is no such file; give the path of a CSV or Parquet file")
    try:
        frame = pd.read_parquet(path) if path.suffix in (".parquet", ".pq") else pd.read_csv(path, low_memory=False)
    except (ValueError, OSError) as error:
        raise UsageError(
            f"{path.name} cannot be read as a table ({first_line(error)}); give a CSV file with a header line or a Parquet file"
        ) from None
    if frame.empty:
        raise UsageError(f"{path.name} has a header and no rows; give a file with one row per run")
    return frame


def points_from_frame(
    frame: pd.DataFrame,
    where: str = "",
    columns: Mapping[str, str] | None = None,
    metric: str = "loss",
    bad_rows: str = "refuse",
    source: str = "frame",
) -> Points:
    """Rows of `frame` as points. `columns` maps our names to the frame's; `where` is a pandas query; `metric` is `loss` or
    a value of `metric_name`. A row that cannot be right raises `UsageError`; with bad_rows='exclude' it is listed instead."""
    if bad_rows not in ("refuse", "exclude"):
        raise UsageError(f"bad_rows is '{bad_rows}'; use refuse or exclude")
    whole = rename(frame.reset_index(drop=True), columns or {}, source)
    table = picked = select_rows(whole, where, source)
    if len(table) > MAX_POINTS:
        raise UsageError(
            f"{source} gives {len(table):,} rows and a law is fitted to at most {MAX_POINTS:,}; "
            "keep one row per finished run with where= (for example the last step of each run)"
        )
    table = numeric(pick_metric(table, metric, source), source)
    table, unfinished = finished_rows(table)
    table, excluded = screen(table, metric, bad_rows, source)
    one_loss(table, source)
    table, repeated = drop_duplicates(table, bad_rows, source)
    measured, mixed = of_one_evaluation(table, to_points(with_flops(table), source))
    points, tuned, notes = best_learning_rates(measured, metric == "loss" or is_lower_better(metric))
    left_out = (*unfinished, *excluded, *repeated, *mixed, *tuned)
    if len(points) < 2:
        why = f" (left out: {left_out[0].run_id}, {left_out[0].reason})" if left_out else ""
        raise UsageError(
            f"{source} leaves {len(points)} point(s) after filtering{why}; a law needs at least 2, so widen where= or add runs"
        )
    gone = len(whole) - len(picked)
    return Points(
        rows=in_order(points),
        excluded=left_out,
        source=source,
        notes=(*notes, *untuned(points)),
        filtered=f'where="{where}" leaves out {gone:,} of {len(whole):,} rows' if gone else "",
        source_rows=whole,
    )


def in_order(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """Points in an order of their own, so that results do not depend on the order of the source."""

    def key(p: Point) -> tuple[Any, ...]:
        numbers = (p.params_non_embedding, p.params_total, p.tokens, p.flops, p.unique_tokens, p.loss, p.step, p.seed)
        return tuple(-1.0 if v is None else float(v) for v in numbers) + (p.family, p.rung, p.run_id)

    return tuple(sorted(points, key=key))


# ----------------------------------------------------------------------------------- columns and rows


def rename(frame: pd.DataFrame, columns: Mapping[str, str], source: str) -> pd.DataFrame:
    """The frame with mapped columns under our names; `note` pairs can be mapped like columns."""
    if not set(columns.values()) <= set(frame.columns):
        frame = with_notes(frame)
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            raise UsageError(
                f"columns.{ours} is not a column of the run table{did_you_mean(ours, COLUMNS)} (there are {', '.join(COLUMNS)})"
            )
        if theirs not in frame.columns:
            near = did_you_mean(theirs, [str(c) for c in frame.columns])
            raise UsageError(
                f"columns.{ours} is '{theirs}', which is not in {source}{near} (it has {', '.join(map(str, frame.columns))})"
            )
    taken = frame.drop(
        columns=[ours for ours, theirs in columns.items() if ours in frame.columns and ours not in columns.values()]
    )
    table = taken.assign(**{ours: frame[theirs] for ours, theirs in columns.items()})
    return table.assign(row=np.arange(len(table)))


def select_rows(table: pd.DataFrame, where: str, source: str) -> pd.DataFrame:
    """Rows for which the pandas query `where` holds."""
    if not where:
        return table
    try:
        found = with_notes(table).query(where, engine="python")
    except Exception as error:  # pandas raises many types for a bad query; all are the user's to mend
        raise UsageError(
            f'where is "{where}" and cannot be evaluated on {source} ({first_line(error)}); use column names ({", ".join(map(str, table.columns))}) '
            "in a pandas query such as where=\"split=='fit240'\""
        ) from None
    if not isinstance(found, pd.DataFrame) or found.empty:
        raise UsageError(
            f'where is "{where}" and no row of {source} ({len(table)} rows) satisfies it; change the filter'
        )
    return table.loc[found.index]


def with_notes(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `key=value;` pairs of its note column as columns (numbers where all are), existing names kept."""
    if "note" not in table.columns:
        return table
    notes = table["note"].astype(object).where(table["note"].notna(), "").astype(str)
    keys = sorted({m for text in notes.unique() for m in re.findall(r"(?:^|;)\s*([A-Za-z_]\w*)=", text)})
    extra = {}
    for key in keys:
        if key in table.columns:
            continue
        values = notes.str.extract(rf"(?:^|;)\s*{key}=([^;]*)", expand=False)
        as_number = pd.to_numeric(values, errors="coerce")
        extra[key] = as_number if as_number.notna().sum() == values.notna().sum() else values
    return table.assign(**extra)


def pick_metric(table: pd.DataFrame, metric: str, source: str) -> pd.DataFrame:
    """The table with the fitted quantity in `value`: the loss column, or rows of one `metric_name`."""
    if metric == "loss":
        if "loss" not in table.columns:
            raise UsageError(
                f"{source} has no column 'loss'; map one with columns.loss=NAME (it has {', '.join(map(str, table.columns.drop('row')))})"
            )
        return table.assign(value=table["loss"])
    names = sorted(map(str, table["metric_name"].dropna().unique())) if "metric_name" in table.columns else []
    if metric not in names:
        few = ", ".join(names[:12]) + (" ..." if len(names) > 12 else "")
        raise UsageError(
            f"metric is '{metric}' and {source} has no such metric_name{did_you_mean(metric, names)} (it has {few or 'none'})"
        )
    rows = table[table["metric_name"] == metric]
    return rows.assign(value=rows["metric_value"], loss_name=metric)


def numeric(table: pd.DataFrame, source: str) -> pd.DataFrame:
    """The table with its number columns as float64; text in one of them raises."""
    out = {}
    for name in ("value", "metric_stderr", *NUMBERS):
        if name not in table.columns:
            continue
        values = pd.to_numeric(table[name], errors="coerce").astype(float)
        odd = values.isna() & table[name].notna()
        if odd.any():
            first = table[odd].iloc[0]
            label = "loss" if name == "value" else name
            raise UsageError(
                f"{source} row {first['row'] + 1} has {label} = {first[name]!r}, which is not a number; mend the file or leave it out with where="
            )
        out[name] = values
    return table.assign(**out)


def select_points(points: tuple[Point, ...], where: str, source: str) -> tuple[tuple[Point, ...], tuple[Excluded, ...]]:
    """(kept, left out) of points from a tracker under a pandas query over their fields."""
    if not where or not points:
        return points, ()
    frame = pd.DataFrame([vars(p) for p in points])
    kept = set(select_rows(frame, where, source).index)
    out = tuple(
        Excluded(run_id=p.run_id, rung=p.rung, seed=p.seed, reason=f'where="{where}" does not hold')
        for i, p in enumerate(points)
        if i not in kept
    )
    return tuple(p for i, p in enumerate(points) if i in kept), out


# ---------------------------------------------------------------------------------------------- points


def with_flops(table: pd.DataFrame) -> pd.DataFrame:
    """The table with FLOPs = 6 N D, and that convention named, where it has parameters and tokens but no FLOPs.

    N is non-embedding where known (Kaplan et al. 2020, section 2.1); attention's own FLOPs are left out.
    """
    size = size_column(table)
    given = "flops" in table.columns and table["flops"].notna().any()
    if given or "tokens" not in table.columns or size is None:
        return table
    return table.assign(flops=6 * table[size] * table["tokens"], flops_convention=f"6 {size} tokens, derived")


def measured_rows(points: Points) -> pd.DataFrame:
    """Names and sizes of every row of the source that has a finite loss or metric, fitted or not; empty for points made by hand."""
    names = ("run_id", "rung", "family", "mlflow_run")
    if points.source_rows is None:
        return pd.DataFrame({name: [] for name in (*names, *SIZES)})
    table: pd.DataFrame = points.source_rows
    values = [
        pd.to_numeric(table[c], errors="coerce").to_numpy(float) for c in ("loss", "metric_value") if c in table.columns
    ]
    measured = np.flatnonzero(np.isfinite(values).any(axis=0))
    table = table.iloc[measured]
    known = {name: table.get(name, pd.Series(None, index=table.index, dtype=object)) for name in (*names, *SIZES)}
    out = pd.DataFrame(known)
    if "row" in table.columns:
        out["run_id"] = [
            name_of({"run_id": run, "row": row}) for run, row in zip(out["run_id"], table["row"], strict=True)
        ]
    return out.assign(rung=[text(v) or "" for v in out["rung"]], family=[text(v) or "" for v in out["family"]])


def size_column(table: pd.DataFrame) -> str | None:
    """The parameter count that every row has, non-embedding first."""
    names = ("params_non_embedding", "params_total")
    return next((c for c in names if c in table.columns and table[c].notna().all()), None)


def to_points(table: pd.DataFrame, source: str) -> tuple[Point, ...]:
    """Rows as `Point` objects; a rung without a name is called by its parameter count."""
    size = size_column(table)
    out = []
    for row in table.to_dict("records"):
        known: dict[str, Any] = {name: optional(row.get(name)) for name in NUMBERS}
        known |= {name: text(row.get(name)) for name in TEXTS}
        rung = text(row.get("rung")) or (size_name(row[size]) if size else "all")
        out.append(
            Point(
                run_id=name_of(row),
                rung=rung,
                loss=row["value"],
                loss_name=text(row.get("loss_name")) or "loss",
                family=text(row.get("family")) or "",
                seed=whole(known.pop("seed")),
                step=whole(known.pop("step")),
                loss_stderr=optional(row.get("metric_stderr")),
                row=int(row["row"]),
                **known,
            )
        )
    return tuple(out)


def size_name(value: float) -> str:
    """A parameter count with three significant digits and a suffix: 43663872 is 43.7M."""
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:
            return f"{value / limit:.3g}{suffix}" if value < 999.5 * limit else f"{value / limit:.0f}{suffix}"
    return f"{value:.3g}"


def optional(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def whole(value: float | None) -> int | None:
    return None if value is None or not math.isfinite(value) else int(value)
