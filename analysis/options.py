"""Runs that could be made, as options for `analysis.design`: from a table of them, or around the runs done. Each with its price.

A price comes from where it is known: a `cost` column of the options, else the costs of the runs done, else FLOPs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.design import INPUTS, Option
from analysis.numbers import count, rung_name
from analysis.result import FitResult
from analysis.rows import Array
from analysis.screening import name_of, text
from analysis.sizes import TOLERANCE, designs
from analysis.table import numeric, read_frame, rename
from gopher.errors import UsageError

TOKEN_FACTORS = (0.5, 2.0, 4.0)


def options_from_file(path: str | Path, result: FitResult, columns: Mapping[str, str] | None = None) -> list[Option]:
    """One option for each row of a CSV or Parquet file with the columns of the run table, `cost` among them where known.

    Costs are in any unit, the same for all rows. FLOPs that are missing are counted as those of the runs done are.
    """
    frame, source = read_frame(path), Path(path).name
    table = numeric(rename(frame, {k: v for k, v in (columns or {}).items() if v in frame.columns}, source), source)
    rule, law = price_rule(result), result.known_estimate().law
    out = []
    for row in table.to_dict("records"):
        sizes = {name: row.get(result.parameters if name == "params" else name) for name in (*INPUTS, "cost")}
        known = {name: float(v) for name, v in sizes.items() if v is not None and not pd.isna(v)}
        name = text(row.get("run_id")) or text(row.get("rung")) or name_of(row)
        for column, value in known.items():
            if not (math.isfinite(value) and value > 0):
                raise UsageError(
                    f"{source} option {name} has {column} = {value:g}, which is not a positive finite number; mend the file"
                )
        cost, inputs = known.pop("cost", None), fields(known, rule)
        if lacking := [n for n in law.inputs if n not in inputs]:
            column = result.parameters if lacking[0] == "params" else lacking[0]
            raise UsageError(
                f"{source} option {name} has no {column}, which law {law.name} was fitted to; "
                f"add the column or map it with columns.{column}=NAME"
            )
        out.append(Option(name=name, cost=cost, **inputs))
    return priced(out, result)


def default_options(result: FitResult, target: Mapping[str, float]) -> list[Option]:
    """A further seed of every design done; new sizes between the rungs of a ladder and one beyond; and each design also at
    half, twice and four times the tokens where the law reads both. Nothing above the target's own FLOPs."""
    done = designs_done(result)
    names, sizes = [name for name, _ in done], [size for _, size in done]
    wanted = [(f"{name}, one more seed", size) for name, size in done]
    if len(done) == len({p.rung for p in result.points}) > 1:
        pairs = zip(names, names[1:], sizes, sizes[1:], strict=False)
        wanted += [(f"between {a} and {b}", middle(x, y)) for a, b, x, y in pairs]
        wanted += [(f"beyond {names[-1]}", {k: v * (v / sizes[-2].get(k, v)) for k, v in sizes[-1].items()})]
    if {"tokens", "params"} <= set(result.known_estimate().law.inputs):
        wanted += [(f"{name}, {f:g}x tokens", longer(size, f)) for name, size in done for f in TOKEN_FACTORS]
    rule = price_rule(result)
    options = [Option(name=name, **fields(size, rule)) for name, size in wanted]
    limit = fields({k: float(v) for k, v in target.items() if k in INPUTS}, rule).get("flops")
    able = [o for o in options if limit is None or o.flops is None or o.flops <= limit * (1 + TOLERANCE)]
    return priced(able, result)


def designs_done(result: FitResult) -> list[tuple[str, dict[str, float]]]:
    """(name, sizes) of every design with runs, smallest first; a rung with several is named with its tokens."""
    table = result.points.inputs(result.parameters)
    known = [k for k in INPUTS if (np.isfinite(table[k]) & (table[k] > 0)).all()]
    own = [p.rung for p in result.points]
    groups = designs({k: table[k] for k in known}, own)
    rungs = [own[rows[0]] for rows in groups]
    out = []
    for rung, rows in zip(rungs, groups, strict=True):
        size = {k: float(np.exp(np.log(table[k][rows]).mean())) for k in known}
        at = f" at {count(size['tokens'])} tokens" if rungs.count(rung) > 1 and "tokens" in size else ""
        out.append((rung_name(rung) + at, size))
    return sorted(out, key=lambda pair: tuple(pair[1].get(k, 0.0) for k in ("params", "flops", "tokens")))


def middle(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {k: math.sqrt(a[k] * b[k]) for k in a if k in b}


def longer(size: Mapping[str, float], factor: float) -> dict[str, float]:
    scaled = ("tokens", "flops", "unique_tokens")
    return {k: v * factor if k in scaled else v for k, v in size.items()}


# -------------------------------------------------------------------------------------------------- prices


def price_rule(result: FitResult) -> float | None:
    """FLOPs per parameter and token of the runs done (6 when unknown); None without tokens."""
    table = result.points.inputs(result.parameters)
    if not np.isfinite(table["tokens"]).all():
        return None
    ratio: Array = table["flops"] / (table["params"] * table["tokens"])
    return float(np.exp(np.nanmean(np.log(ratio)))) if np.isfinite(ratio).any() else 6.0


def fields(size: Mapping[str, float], rule: float | None) -> dict[str, float]:
    """The sizes with FLOPs filled in from parameters and tokens where they are missing."""
    out = dict(size)
    if "flops" not in out and rule is not None and "params" in out and "tokens" in out:
        out["flops"] = rule * out["params"] * out["tokens"]
    return out


def priced(options: Sequence[Option], result: FitResult) -> list[Option]:
    """Options without any cost of their own at what the runs done of their FLOPs cost, where those tell."""
    done = [(p.flops, p.cost) for p in result.points if p.flops is not None and p.cost is not None]
    if any(o.cost is not None for o in options) or len(done) < len(result.points):
        return list(options)
    return [o if o.flops is None else replace(o, cost=price(o.flops, done)) for o in options]


def price(flops: float, done: Sequence[tuple[float, float]]) -> float:
    """What a run of these FLOPs costs, from (FLOPs, cost) of runs done: a line in logarithms between them, in proportion beyond."""
    sizes = sorted({size for size, _ in done})
    costs = [float(np.mean([cost for size, cost in done if size == s])) for s in sizes]
    nearest = min(max(flops, sizes[0]), sizes[-1])
    return float(np.exp(np.interp(np.log(nearest), np.log(sizes), np.log(costs)))) * flops / nearest
