"""What else an analyst might have chosen, and how far the answer moves: Huber delta, outlier rule, parameter convention, law.

On the published Chinchilla points the outlier rule moves beta more than its confidence interval, so a fit without
this table says too little.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from analysis.estimate import Estimate, estimate
from analysis.law import Law
from analysis.laws import AXES, law_named
from analysis.rows import Points

DELTAS = (1e-4, 1e-3, 1e-2, None)  # None: least squares
DROPPED = (0.01, 0.02, 0.05)  # shares of the highest losses left out
OTHERS = {
    "chinchilla": ("chinchilla_tied", "flops"),
    "chinchilla_tied": ("chinchilla", "flops"),
    "power_law": ("power_law_offset",),
    "power_law_offset": ("power_law",),
    "flops": ("flops_power_law",),
    "flops_power_law": ("flops",),
    "data_constrained": ("chinchilla",),
    "bnsl": ("power_law_offset", "power_law"),
}
ENOUGH = 20  # points below which a share of them is less than one


def sensitivity_rows(
    e: Estimate, parameters: str, targets: tuple[Mapping[str, float], ...] = ()
) -> tuple[dict[str, Any], ...]:
    """One row per variant: what was changed, to what, points, parameters, derived quantities, prediction of the first target."""
    seeds = "mean" if (e.weights < 1).any() else "runs"
    rows = [row("as fitted", "", e, targets)]
    for what, setting, points, convention, delta in variants(e, parameters):
        other = estimate(e.law, points, parameters=convention, delta=delta, pinned=e.pinned, seeds=seeds)
        rows.append(row(what, setting, other, targets))
    for law in other_laws(e):
        other = estimate(
            law, e.points, parameters=parameters, delta=law.delta, seeds="mean" if law.delta is None else "runs"
        )
        rows.append(row("law", law.name, other, targets))
    return tuple(rows)


def other_laws(e: Estimate) -> Iterator[Law]:
    """Laws of the same inputs, and of FLOPs alone where FLOPs are known."""
    axis = e.law.inputs[0] if e.law.inputs[0] in AXES else "params"
    flops = e.points.column("flops")
    known = bool((np.isfinite(flops) & (flops > 0)).all()) and float(np.ptp(np.log(flops))) > 0
    for name in OTHERS.get(e.law.name, ()):
        law = law_named(name, axis)
        if "flops" not in law.inputs or known:
            yield law


def variants(e: Estimate, parameters: str) -> Iterator[tuple[str, str, Points, str, float | None]]:
    """(what, setting, points, parameter convention, delta) of every variant that differs from the fit."""
    for delta in DELTAS:
        if delta != e.delta:
            yield "Huber delta", "least squares" if delta is None else f"{delta:g}", e.points, parameters, delta
    order = np.argsort(-e.loss, kind="stable")
    for share in DROPPED if len(e.loss) >= ENOUGH else ():
        drop = max(1, round(share * len(e.loss)))
        kept = e.points.take(np.sort(order[drop:]))
        yield "outlier rule", f"without the {drop} highest losses", kept, parameters, e.delta
    current = e.points.parameter_column(parameters)
    for convention in ("non_embedding", "total"):
        column = e.points.column(f"params_{convention}")
        if "params" in e.inputs and f"params_{convention}" != current and (np.isfinite(column) & (column > 0)).all():
            yield "parameter convention", convention.replace("_", "-"), e.points, convention, e.delta


def row(what: str, setting: str, e: Estimate, targets: tuple[Mapping[str, float], ...]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "what": what,
        "setting": setting,
        "n_points": len(e.loss),
        "params": e.params,
        "derived": e.derived,
    }
    if targets and all(name in targets[0] for name in e.law.inputs):
        out["prediction"] = float(e.law.predict(e.params, targets[0])[0])
    return out
