"""Rolling hold-out: the largest rungs predicted from the smaller ones only, with naive baselines beside.

A law is chosen by these errors and never by how well it describes the points it was fitted to.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from analysis.bootstrap import Resamples, resample
from analysis.estimate import Estimate, design_of, estimate, law_inputs
from analysis.intervals import prediction_intervals
from analysis.law import Law
from analysis.laws import law_named
from analysis.rows import Array, Points

MAX_GROUPS = 24  # more distinct rungs than this are cut into bins of the size axis
HOLDOUT_RESAMPLES = 300  # for the intervals of studies with many points


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """One rung predicted from smaller ones only."""

    rung: str
    predicted: float
    actual: float  # geometric mean over the rung's runs
    interval95: tuple[float, float] | None  # prediction interval of that mean: parameters and residual noise
    law: str
    fitted_rungs: int  # how many smaller rungs were fitted
    decades: float  # log10 distance of the rung from the largest fitted value along `x`
    x: str  # the input of the law, or the axis of the hold-out, that is extrapolated farthest
    runs: int  # of the held-out rung
    baselines: dict[str, float]  # naive predictions: power law without offset, the largest fitted rung's loss

    @property
    def error_percent(self) -> float:
        return 100.0 * (self.predicted / self.actual - 1.0)

    @property
    def inside(self) -> bool | None:
        """Whether the 95 % interval holds what was measured; None without an interval."""
        return None if self.interval95 is None else self.interval95[0] <= self.actual <= self.interval95[1]


def size_axis(law: Law) -> str:
    """The input along which `law` is extrapolated: its only one, or FLOPs where it reads several."""
    return law.inputs[0] if len(law.inputs) == 1 else "flops"


def rung_groups(points: Points, axis: str, parameters: str) -> dict[str, Array]:
    """name -> row numbers, smallest first along `axis`: the rungs, or bins of the axis where there are too many."""
    values = points.inputs(parameters)[axis]
    names = np.array([p.rung for p in points])
    labels = list(dict.fromkeys(names))
    if len(labels) <= MAX_GROUPS:
        middle = {name: float(np.log(values[names == name]).mean()) for name in labels}
        return {name: np.flatnonzero(names == name) for name in sorted(labels, key=lambda n: middle[n])}
    edges = np.quantile(values, np.linspace(0, 1, 11)[1:-1])
    bins = np.searchsorted(edges, values, side="right")
    rows = [np.flatnonzero(bins == b) for b in np.unique(bins)]
    return {f"{axis} {values[r].min():.3g} to {values[r].max():.3g}": r for r in rows}


def rolling(
    law: Law,
    points: Points,
    *,
    parameters: str,
    delta: float | None,
    pinned: Mapping[str, float],
    seeds: str,
    most: int | None,
    seed: int = 0,
    axis: str | None = None,
) -> tuple[HoldOut, ...]:
    """Hold-outs of the 1, 2, ... largest rungs while at least one degree of freedom is left; the largest rung first."""
    axis = axis or size_axis(law)
    if not np.isfinite(points.inputs(parameters)[axis]).all():
        axis = "params"
    groups = rung_groups(points, axis, parameters)
    names = list(groups)
    out: list[HoldOut] = []
    for k in range(1, (3 if most is None else most) + 1):
        kept = names[: len(names) - k]
        free = len(law.parameters) - sum(1 for p in pinned if p in law.parameters)
        smaller = points.take(np.sort(np.concatenate([groups[n] for n in kept]))) if len(kept) >= 2 else None
        if smaller is None or len(np.unique(design_of(law_inputs(law, smaller, parameters)))) < free + 1:
            break
        e = estimate(
            law,
            smaller,
            parameters=parameters,
            delta=delta,
            pinned=pinned,
            seeds=seeds,
        )
        few = e.delta is None and len(e.loss) < 200
        r = None if few else resample(e, HOLDOUT_RESAMPLES, seed)
        for name in reversed(names[len(names) - k :]):
            out.append(hold_out(e, r, points.take(groups[name]), name, len(kept), axis, parameters, seed))
    return tuple(out)


def hold_out(
    e: Estimate,
    r: Resamples | None,
    left: Points,
    name: str,
    fitted_rungs: int,
    axis: str,
    parameters: str,
    seed: int,
) -> HoldOut:
    """The rung `left` predicted by the estimate `e` and its resamples, as the geometric mean over its runs."""
    table = left.inputs(parameters)
    inputs = law_inputs(e.law, left, parameters)
    predicted = e.law.predict(e.params, inputs)
    # how far beyond the fitted range, along the held-out axis or the input that goes farthest: rungs held out by compute
    # need not be larger, and rungs held out by size may cost fewer FLOPs
    fitted = e.points.inputs(parameters)
    sized = dict.fromkeys([axis, *(n for n in e.law.inputs if n != "family")])
    decades = {n: float(np.log10(np.exp(np.log(table[n]).mean()) / fitted[n].max())) for n in sized}
    farthest = max(decades, key=lambda n: decades[n])
    return HoldOut(
        rung=name,
        predicted=float(np.exp(np.log(predicted).mean())),
        actual=float(np.exp(np.log(left.column("loss")).mean())),
        interval95=interval95(e, r, inputs, predicted, seed),
        law=e.law.name,
        fitted_rungs=fitted_rungs,
        decades=decades[farthest],
        x=farthest,
        runs=len(left),
        baselines=baselines(e, table, axis, parameters),
    )


def interval95(
    e: Estimate, r: Resamples | None, inputs: Mapping[str, Array], predicted: Array, seed: int
) -> tuple[float, float] | None:
    """The 95 % prediction interval of the rung's mean; None when the data give no bound.

    It is computed at the rung's mean inputs and moved to the mean prediction: runs of one rung may differ in tokens.
    """
    middle = {n: np.exp(np.log(v).mean(keepdims=True)) if v.dtype.kind == "f" else v[:1] for n, v in inputs.items()}
    low, high = prediction_intervals(e, r, middle, [95.0], runs=len(predicted), seed=seed)[95.0]
    shift = float(np.exp(np.log(predicted).mean()) / e.law.predict(e.params, middle)[0])
    return (shift * float(low[0]), shift * float(high[0])) if np.isfinite([low[0], high[0]]).all() else None


def baselines(e: Estimate, table: Mapping[str, Array], axis: str, parameters: str) -> dict[str, float]:
    """What no insight would predict: a straight line in log-log along `axis`, and no further gain at all."""
    fitted = e.points.inputs(parameters)
    last = fitted[axis] == fitted[axis].max()
    line = estimate(law_named("power_law", axis), e.points, parameters=parameters, seeds="mean")
    at = {axis: table[axis]}
    return {
        "no_offset": float(np.exp(np.log(line.law.predict(line.params, at)).mean())),
        "last_point": float(np.exp(np.log(e.loss[last]).mean())),
    }


def next_rungs(holdouts: tuple[HoldOut, ...]) -> dict[tuple[str, int], HoldOut]:
    """Of every set of fitted rungs the nearest larger rung: (rung, fitted rungs) -> hold-out."""
    nearest: dict[int, HoldOut] = {}
    for h in holdouts:
        if h.fitted_rungs not in nearest or h.decades < nearest[h.fitted_rungs].decades:
            nearest[h.fitted_rungs] = h
    return {(h.rung, h.fitted_rungs): h for h in nearest.values()}


def error_log(holdouts: Iterable[HoldOut]) -> float | None:
    """Root mean square of log prediction errors; None without hold-outs."""
    errors = [np.log(h.predicted / h.actual) for h in holdouts]
    return float(np.sqrt(np.mean(np.square(errors)))) if errors else None
