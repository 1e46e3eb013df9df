"""A run table (frame, CSV, Parquet) as points: columns mapped, rows filtered, anything that cannot be right refused by name.

Schema: run_id, rung, family, seed, step, params_total, params_non_embedding, tokens, unique_tokens, flops,
flops_convention, loss, loss_name, metric_name, metric_value, metric_stderr, learning_rate, note, and provenance
(mlflow_run, config_hash, data_hash, checkpoint). Only `loss` is needed at first; each law says which others it reads.
Counts are plain numbers. `key=value;` pairs in `note` can be used in `where` like columns.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.rows import Excluded, Point, Points
from analysis.selection import best_learning_rates
from gopher.errors import UsageError, did_you_mean

NUMBERS = ("seed", "step", "params_total", "params_non_embedding", "tokens", "unique_tokens", "flops", "learning_rate")
TEXTS = ("flops_convention", "mlflow_run", "config_hash", "data_hash", "checkpoint")
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
)
COLUMNS = NAMES + NUMBERS + TEXTS
MAX_POINTS = 20_000  # a fit with its hold-outs then takes minutes
POSITIVE = ("params_total", "params_non_embedding", "tokens", "unique_tokens", "flops")


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
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"{path.name} cannot be read as a table ({first}); give a CSV file with a header line or a Parquet file"
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
    table = select_rows(rename(frame.reset_index(drop=True), columns or {}, source), where, source)
    if len(table) > MAX_POINTS:
        raise UsageError(
            f"{source} gives {len(table):,} rows and a law is fitted to at most {MAX_POINTS:,}; "
            "keep one row per finished run with where= (for example the last step of each run)"
        )
    table = numeric(pick_metric(table, metric, source), source)
    table, excluded = screen(table, metric, bad_rows, source)
    one_loss(table, source)
    table, repeated = drop_duplicates(table, bad_rows, source)
    points, tuned, notes = best_learning_rates(to_points(with_flops(table), source))
    left_out = (*excluded, *repeated, *tuned)
    if len(points) < 2:
        why = f" (left out: {left_out[0].run_id}, {left_out[0].reason})" if left_out else ""
        raise UsageError(
            f"{source} leaves {len(points)} point(s) after filtering{why}; a law needs at least 2, so widen where= or add runs"
        )
    return Points(rows=in_order(points), excluded=left_out, source=source, notes=notes)


def in_order(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """Points in an order of their own, so that results do not depend on the order of the source."""

    def key(p: Point) -> tuple[Any, ...]:
        numbers = (p.params_non_embedding, p.params_total, p.tokens, p.flops, p.unique_tokens, p.loss, p.step, p.seed)
        return tuple(-1.0 if v is None else float(v) for v in numbers) + (p.family, p.rung, p.run_id)

    return tuple(sorted(points, key=key))


# ----------------------------------------------------------------------------------- columns and rows


def rename(frame: pd.DataFrame, columns: Mapping[str, str], source: str) -> pd.DataFrame:
    """The frame with mapped columns under our names; the `note` pairs of all rows as further columns."""
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
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f'where is "{where}" and cannot be evaluated on {source} ({first}); use column names ({", ".join(map(str, table.columns))}) '
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


# ------------------------------------------------------------------------------------------- screening


def fault_of(row: Mapping[Any, Any], metric: str) -> tuple[str, float, str] | None:
    """(column, value, what is wrong) of the first rule that a row breaks."""
    value = row["value"]
    if math.isnan(value):
        return metric, value, "is missing"
    if math.isinf(value):
        return metric, value, "is not finite"
    if metric == "loss" and value <= 0:
        return metric, value, "is not above 0, which no loss in nats or bits can be"
    for name in POSITIVE:
        amount = row.get(name, math.nan)
        if not math.isnan(amount) and not (0 < amount < math.inf):
            return name, amount, "is not a positive finite number"
    for name in ("params_total", "params_non_embedding"):
        if row.get("tokens", math.nan) < 1e-3 * row.get(name, math.nan):
            return (
                "tokens",
                row["tokens"],
                f"is below {name} ({row[name]:g}) / 1000, so one of the two is in another unit",
            )
    return None


def screen(table: pd.DataFrame, metric: str, bad_rows: str, source: str) -> tuple[pd.DataFrame, tuple[Excluded, ...]]:
    """Rows that can be right; the first that cannot raises, or all are listed with bad_rows='exclude'."""
    faults = [(i, row, fault) for i, row in enumerate(table.to_dict("records")) if (fault := fault_of(row, metric))]
    if not faults:
        return table, ()
    if bad_rows == "refuse":
        _, row, (column, value, wrong) = faults[0]
        raise UsageError(
            f"{source} {label_of(row)} has {column} = {value:g}, which {wrong} "
            f"({len(faults)} such row(s)); mend the file, map another column, filter with where= or set bad_rows=exclude"
        )
    left_out = tuple(
        Excluded(run_id=name_of(row), reason=f"{column} = {value:g} {wrong}")
        for _, row, (column, value, wrong) in faults
    )
    return table.drop(index=table.index[[i for i, _, _ in faults]]), left_out


def name_of(row: Any) -> str:
    """How a row is called in messages: its run_id, or its number in the file."""
    run = row.get("run_id")
    return str(run) if isinstance(run, str) and run else f"row {int(row['row']) + 1}" if pd.isna(run) else f"{run}"


def label_of(row: Any) -> str:
    """`row 4`, with the run's name where it has one of its own."""
    number, name = f"row {int(row['row']) + 1}", name_of(row)
    return number if name == number else f"{number} ({name})"


def one_loss(table: pd.DataFrame, source: str) -> None:
    """Refuse to mix units or evaluations: every row must have the same `loss_name`."""
    if "loss_name" not in table.columns:
        return
    names = sorted(map(str, table["loss_name"].dropna().unique()))
    if len(names) > 1:
        units = {"bits per byte" if re.search("bpb|bits", n) else "nats" for n in names}
        what = "different units" if len(units) > 1 else "different evaluations"
        raise UsageError(
            f"{source} mixes loss_name {', '.join(names[:6])}, which are {what}; keep one with where=\"loss_name=='{names[0]}'\""
        )


def drop_duplicates(table: pd.DataFrame, bad_rows: str, source: str) -> tuple[pd.DataFrame, tuple[Excluded, ...]]:
    """One row per run and step. Further metric rows of a run are folded silently; two rows for one measurement are not."""
    key = [c for c in ("run_id", "family", "rung", "seed", "step", *POSITIVE, "learning_rate") if c in table.columns]
    long = [c for c in ("metric_name",) if c in table.columns and table[c].notna().any()]
    folded = table.drop_duplicates([*key, "value"]) if long else table
    named = "run_id" in table.columns and table["run_id"].notna().all()
    same = folded.duplicated([*key] if named else [*key, "value"], keep="first")
    if long:
        same |= table.loc[folded.index].duplicated([*key], keep="first")
    if not same.any():
        return folded, ()
    if bad_rows == "refuse":
        first = folded[same].iloc[0]
        raise UsageError(
            f"{source} {label_of(first)} repeats an earlier one ({int(same.sum())} duplicate row(s)); a run counts once, "
            "so filter with where=, give each run its own run_id or set bad_rows=exclude to keep the first"
        )
    out = tuple(
        Excluded(run_id=name_of(row), reason="duplicate of an earlier row of the same run")
        for _, row in folded[same].iterrows()
    )
    return folded[~same], out


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
    if "flops" in table.columns or "tokens" not in table.columns or size is None:
        return table
    return table.assign(flops=6 * table[size] * table["tokens"], flops_convention=f"6 {size} tokens, derived")


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
        rung = text(row.get("rung")) or (rung_name(row[size]) if size else "all")
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


def rung_name(value: float) -> str:
    """A parameter count with three significant digits and a suffix: 43663872 is 43.7M."""
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:
            return f"{value / limit:.3g}{suffix}" if value < 999.5 * limit else f"{value / limit:.0f}{suffix}"
    return f"{value:.3g}"


def optional(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def whole(value: float | None) -> int | None:
    return None if value is None or not math.isfinite(value) else int(value)


def text(value: Any) -> str | None:
    return None if value is None or pd.isna(value) or value == "" else str(value)
