"""Which rows of a table can be right: finished, positive, in units that fit each other, of one evaluation, each run once.

The first row that cannot be right ends the command with its value and the cure; with bad_rows='exclude' all are listed.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.rows import Excluded, Point
from analysis.selection import RunFacts, one_evaluation
from gopher.errors import UsageError

MAX_LOSS = 100.0  # nats or bits: a uniform guess among 2^32 tokens has 22
MAX_TOKENS_PER_PARAMETER = 1_000_000  # published studies reach 64,000
POSITIVE = ("params_total", "params_non_embedding", "tokens", "unique_tokens", "flops")


def finished_rows(table: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Excluded, ...]]:
    """Rows whose `state` is finished, or not told; the others by name, whatever their loss."""
    if "state" not in table.columns:
        return table, ()
    state = table["state"].map(lambda v: (text(v) or "finished").lower())
    gone = table[state != "finished"]
    out = tuple(
        Excluded(run_id=name_of(row), reason=f"state is {s}")
        for row, s in zip(gone.to_dict("records"), state[gone.index], strict=True)
    )
    return table[state == "finished"], out


def of_one_evaluation(table: pd.DataFrame, points: tuple[Point, ...]) -> tuple[tuple[Point, ...], tuple[Excluded, ...]]:
    """Points of the most common `eval_version`, where the table has that column."""
    if "eval_version" not in table.columns:
        return points, ()
    facts = [RunFacts(state="finished", reason="", evaluation=text(v) or "", started=0) for v in table["eval_version"]]
    kept, out = one_evaluation(list(zip(points, facts, strict=True)))
    return tuple(point for point, _ in kept), tuple(out)


def fault_of(row: Mapping[Any, Any], metric: str) -> tuple[str, float, str] | None:
    """(column, value, what is wrong) of the first rule that a row breaks."""
    value = row["value"]
    if math.isnan(value):
        return metric, value, "is missing"
    if math.isinf(value):
        return metric, value, "is not finite"
    if value <= 0:
        why = "which no loss in nats or bits can be" if metric == "loss" else "and laws are fitted to the logarithm"
        return metric, value, f"is not above 0, {why}"
    if metric == "loss" and value > MAX_LOSS:
        return metric, value, f"is above {MAX_LOSS:g}, more than any loss per token or byte (a perplexity, or a sum?)"
    for name in (*POSITIVE, "batch_tokens", "cost"):
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
        if row.get("tokens", math.nan) > MAX_TOKENS_PER_PARAMETER * row.get(name, math.nan):
            return (
                name,
                row[name],
                f"is below tokens ({row['tokens']:g}) / {MAX_TOKENS_PER_PARAMETER:,}, so one of the two is in another unit",
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
    named = table["loss_name"].notna() & (table["loss_name"] != "")
    names = sorted(map(str, table["loss_name"][named].unique()))
    if names and not named.all():
        raise UsageError(
            f"{source} {label_of(table[~named].iloc[0])} has no loss_name and others have '{names[0]}' "
            f"({int((~named).sum())} of {len(table)} rows have none), so units may be mixed; name it in every row or filter with where="
        )
    if len(names) > 1:
        units = {"bits per byte" if re.search("bpb|bits", n) else "nats" for n in names}
        what = "different units" if len(units) > 1 else "different evaluations"
        raise UsageError(
            f"{source} mixes loss_name {', '.join(names[:6])}, which are {what}; keep one with where=\"loss_name=='{names[0]}'\""
        )


def drop_duplicates(table: pd.DataFrame, bad_rows: str, source: str) -> tuple[pd.DataFrame, tuple[Excluded, ...]]:
    """One row per run and step. Further metric rows of a run are folded silently; two rows for one measurement are not."""
    key = [
        c
        for c in ("run_id", "family", "rung", "seed", "step", *POSITIVE, "learning_rate", "batch_tokens")
        if c in table.columns
    ]
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


def text(value: Any) -> str | None:
    return None if value is None or pd.isna(value) or value == "" else str(value)
