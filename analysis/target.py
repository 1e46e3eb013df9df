"""What a forecast predicts, and which runs are its own: those that its fit must not see.

A run is the target's by its key, by its rung's name, or by its design. The whole source is searched, with the rows that
`where=` or a rule keeps from the fit: a run that exists is no longer there to be forecast, whether it was fitted or not.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.rows import Array, Excluded, Points
from analysis.sizes import SIZES, TRAINED_TOLERANCE, same_design
from analysis.table import measured_rows, size_name
from gopher.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is predicted: a rung by name, by size, or both. The fit takes the parameter count of its own convention."""

    rung: str | None = None
    params_total: float | None = None
    params_non_embedding: float | None = None
    tokens: float | None = None
    flops: float | None = None
    run_keys: tuple[str, ...] = ()  # runs planned for it, when known

    @property
    def sizes(self) -> dict[str, float]:
        return {name: value for name in SIZES if (value := getattr(self, name)) is not None}

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {value:.4g}" for name, value in self.sizes.items())
        return " ".join(filter(None, (self.rung, f"({sizes})" if sizes else ""))) or "(unnamed)"


def completed(target: Target, points: Points) -> Target:
    """The target with sizes that its rung's own runs already show (sizes only, never their losses)."""
    tables = (points_table(points), measured_rows(points))
    own = next((rows for table in tables if len(rows := table[named_own(table, target)])), tables[0][:0])
    found: dict[str, Any] = {name: target.sizes.get(name, shared_size(own, name)) for name in SIZES}
    if all(value is None for value in found.values()):
        raise UsageError(
            f"the target {target.rung or '(unnamed)'} has no size; give target.params_non_embedding, target.tokens "
            "or target.flops, or plan the rung in the sweep"
        )
    return replace(target, **found)


def shared_size(own: pd.DataFrame, name: str) -> float | None:
    """The size that all these runs have in common, or None."""
    values = set(column(own, name))
    return float(values.pop()) if len(values) == 1 and np.isfinite(list(values)).all() else None


def apart(points: Points, target: Target) -> tuple[Points, tuple[Excluded, ...]]:
    """(points that may be fitted, the target's own runs in the source with the reason each is kept out)."""
    table, everything = points_table(points), measured_rows(points)
    everything = everything[everything["family"].isin({"", *table["family"]})]
    reasons, unfitted = own_reasons(table, target), own_reasons(everything, target)
    runs = {*table["run_id"][reasons != ""], *everything["run_id"][unfitted != ""]}
    params = {name: value for name, value in target.sizes.items() if name.startswith("params")}
    one_size = same_design(sizes_of(table), params) if params else np.ones(len(table), bool)
    siblings = (reasons == "") & table["run_id"].isin(runs).to_numpy() & one_size
    reasons[siblings] = "it is an earlier measurement of a run of the target"
    others = everything[unfitted != ""].assign(why=unfitted[unfitted != ""]).drop_duplicates("run_id")
    others = others[~others["run_id"].isin(table["run_id"][reasons != ""])]
    out = [
        Excluded(run_id=p.run_id, rung=p.rung, seed=p.seed, reason=why)
        for p, why in zip(points, reasons, strict=True)
        if why
    ]
    out += [
        Excluded(run_id=run, reason=f"{why}; it was measured already, though where= or a rule keeps it from the fit")
        for run, why in zip(others["run_id"], others["why"], strict=True)
    ]
    kept = points.take(reasons == "")
    if len({p.rung for p in kept}) < 2:
        raise UsageError(
            f"the forecast's target {target} leaves {len(kept)} point(s) of {len({p.rung for p in kept})} rung(s) to fit; "
            "a law needs at least 2 other rungs, so finish more of the sweep first"
        )
    return kept, tuple(out)


def own_reasons(table: pd.DataFrame, target: Target) -> Array:
    """Why each row is a run of the target, empty where it is none."""
    reasons: Array = np.full(len(table), "", object)
    reasons[same_design(sizes_of(table), target.sizes)] = f"it has the target's size {replace(target, rung=None)}"
    by_name = named_own(table, target)
    reasons[by_name] = f"it is of the target's rung {target.rung}"
    reasons[keyed(table, target)] = "it is a run of the target"
    return reasons


def named_own(table: pd.DataFrame, target: Target) -> Array:
    """Rows of the target by key, or by its rung's name unless they were trained on another number of tokens."""
    if target.rung is None:
        return keyed(table, target)
    params = column(table, "params_non_embedding")
    params = np.where(np.isfinite(params), params, column(table, "params_total"))
    called = [name or (size_name(n) if np.isfinite(n) else "") for name, n in zip(table["rung"], params, strict=True)]
    tokens = column(table, "tokens")
    elsewhere = (
        np.zeros(len(table), bool) if target.tokens is None else np.abs(tokens / target.tokens - 1) > TRAINED_TOLERANCE
    )
    found: Array = keyed(table, target) | ((np.array(called, object) == target.rung) & ~elsewhere)
    return found


def keyed(table: pd.DataFrame, target: Target) -> Array:
    found: Array = (table["run_id"].isin(target.run_keys) | table["mlflow_run"].isin(target.run_keys)).to_numpy(bool)
    return found


def points_table(points: Points) -> pd.DataFrame:
    return pd.DataFrame([vars(p) for p in points], columns=["run_id", "rung", "family", "mlflow_run", *SIZES])


def sizes_of(table: pd.DataFrame) -> dict[str, Array]:
    return {name: column(table, name) for name in SIZES}


def column(table: pd.DataFrame, name: str) -> Array:
    """A size of all rows as float64, nan where it is unknown."""
    values: Array = pd.to_numeric(table[name], errors="coerce").to_numpy(float)
    return values
