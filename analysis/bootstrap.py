"""Resampled fits, thousands in seconds: one damped Newton for all resamples at once.

Two ways to resample. `pairs`: runs drawn with replacement, as integer weights, for studies of many design points.
`parametric`: the design kept and log losses redrawn about the fitted law, for a ladder of a few rungs, where drawing
rungs with replacement would often leave fewer rungs than parameters. The residual variance is itself redrawn
(scaled inverse chi-square), so that three degrees of freedom give intervals as wide as Student's t.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.estimate import Estimate, design_of
from analysis.law import Quantities, natural
from analysis.objective import Model, gap, huber
from analysis.optimum import minimise
from analysis.rows import Array

FEW_DESIGNS = 20  # below this many design points, resampling them is not a picture of the sampling error
CHUNK_CELLS = 60_000  # resamples x points held at once
LEVELS = (80, 95)  # of the intervals of parameters
Interval = tuple[float, float]
TOLERANCE = 1e-9  # relative gain at which a resample has converged: far below what an interval can show


@dataclass(frozen=True, kw_only=True, eq=False)
class Resamples:
    """Refitted parameters, one row a resample."""

    theta: Array  # internal, (resamples, parameters)
    objective: Array
    method: str  # pairs | parametric

    def quantities(self, e: Estimate) -> Quantities:
        """Natural parameters and what follows from them, by name."""
        values = natural(e.law, self.theta)
        params = {name: values[:, i] for i, name in enumerate(e.law.parameters)}
        with np.errstate(all="ignore"):
            return params | e.law.derived(params)


def resample(e: Estimate, count: int, seed: int) -> Resamples | None:
    """`count` refits by the method that suits the design; None when there are no degrees of freedom or nothing to refit."""
    if count == 0 or e.model.size == 0:
        return None
    if len(np.unique(design_of(e.inputs))) >= max(FEW_DESIGNS, 2 * e.model.size):
        return pairs(e, count, seed)
    return parametric(e, count, seed) if e.noise.prediction_sd_log else None


def pairs(e: Estimate, count: int, seed: int, counts: Array | None = None) -> Resamples:
    """Runs drawn with replacement (all points of a run together). `counts` (resamples x runs) overrides the draw."""
    clusters = e.points.clusters()
    runs = int(clusters.max()) + 1
    rng = np.random.default_rng(seed)
    start = candidates(e, rng)
    scores = huber(gap(e.model.log_law(start), e.model.z, e.model.absolute), e.delta).T  # (points, candidates)
    theta, objective = [], []
    rows = max(16, CHUNK_CELLS // len(e.loss))
    for first in range(0, count, rows):
        size = min(rows, count - first)
        drawn = rng.multinomial(runs, np.full(runs, 1 / runs), size) if counts is None else counts[first : first + size]
        w = drawn[:, clusters] * e.weights
        t, f = polish(e.model, start, w @ scores, w, e.delta)
        theta.append(e.model.to_theta(t))
        objective.append(f)
    return Resamples(theta=np.concatenate(theta), objective=np.concatenate(objective), method="pairs")


def candidates(e: Estimate, rng: np.random.Generator, cloud: int = 600) -> Array:
    """Starting points for resamples: every minimum of the full data and a cloud of the expected spread around the best."""
    best = e.model.from_theta(e.optimum.minima)
    near = best[0] + rng.standard_normal((cloud, e.model.size)) @ spread(e).T
    return np.clip(np.concatenate([best, near]), *e.model.limits)  # where the fit itself may not go, no resample starts


def spread(e: Estimate) -> Array:
    """Matrix whose square is the sandwich covariance H^-1 (sum psi^2 g g') H^-1 at the optimum."""
    t = e.model.from_theta(e.optimum.theta)
    _, _, h = e.model.evaluate(t, e.weights[None], e.delta, False)
    residual = gap(e.model.log_law(t), e.model.z, e.model.absolute)
    psi = residual if e.delta is None else np.clip(residual, -e.delta, e.delta)
    _, _, meat = e.model.evaluate(t, (e.weights * psi) ** 2, None, False)
    scale = np.sqrt(np.maximum(np.diag(h[0]), 1e-300))
    values, vectors = np.linalg.eigh(h[0] / np.outer(scale, scale))
    inverse = (vectors / np.maximum(values, 1e-9)) @ vectors.T / np.outer(scale, scale)
    values, vectors = np.linalg.eigh(inverse @ meat[0] @ inverse)
    return vectors * np.minimum(np.sqrt(np.maximum(values, 0.0)), 3.0)


def polish(model: Model, start: Array, scores: Array, w: Array, delta: float | None) -> tuple[Array, Array]:
    """The best-scoring start of each resample run to convergence."""
    t, _ = minimise(model, start[np.argmin(scores, 1)], w, delta, iterations=12, exact=False, tolerance=1e-4)
    return minimise(model, t, w, delta, iterations=40, tolerance=TOLERANCE)


def parametric(e: Estimate, count: int, seed: int) -> Resamples:
    """Log losses redrawn about the fitted law with the noise of the fit, design unchanged."""
    rng = np.random.default_rng(seed)
    t = e.model.from_theta(e.optimum.theta)
    z = e.model.log_law(t) + draw_noise(e, count, rng)
    w = e.weights[None]
    start = candidates(e, rng, cloud=200)
    predicted = e.model.log_law(start)
    rows = max(16, CHUNK_CELLS // len(e.loss) // 8)
    theta, objective = [], []
    for first in range(0, count, rows):
        part = z[first : first + rows]
        scores = huber(gap(predicted[None], part[:, None], e.model.absolute), e.delta) @ e.weights
        at, _ = minimise(
            e.model, start[np.argmin(scores, 1)], w, e.delta, z=part, iterations=12, exact=False, tolerance=1e-4
        )
        at, f = minimise(e.model, at, w, e.delta, z=part, iterations=40, tolerance=TOLERANCE)
        theta.append(e.model.to_theta(at))
        objective.append(f)
    return Resamples(theta=np.concatenate(theta), objective=np.concatenate(objective), method="parametric")


def draw_noise(e: Estimate, count: int, rng: np.random.Generator) -> Array:
    """(count, points) of noise: per run, or common to a design point where lack of fit dominates."""
    assert e.noise.prediction_sd_log is not None
    dof = e.noise.prediction_dof
    sd = e.noise.prediction_sd_log * np.sqrt(dof / rng.chisquare(dof, (count, 1)))
    if e.noise.per == "run":
        return sd * rng.standard_normal((count, len(e.loss)))
    design = design_of(e.inputs)
    shared = rng.standard_normal((count, int(design.max()) + 1))[:, design]
    seeds = rng.standard_normal((count, len(e.loss))) * (e.noise.seed_sd_log or 0.0)
    return sd * shared + seeds - np.array([seeds[:, design == d].mean(1) for d in design]).T


def uncertainty(samples: Mapping[str, Array]) -> tuple[dict[str, dict[str, Interval]], dict[str, float]]:
    """Percentile intervals and standard deviations of resampled quantities, by name."""
    return {name: intervals(v) for name, v in samples.items()}, {name: deviation(v) for name, v in samples.items()}


def intervals(values: Array) -> dict[str, Interval]:
    return {str(level): interval(values, level) for level in LEVELS}


def interval(values: Array, level: float) -> Interval:
    """Percentile interval of a sample, ignoring resamples in which the quantity does not exist."""
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [50 - level / 2, 50 + level / 2]) if len(finite) else (np.nan, np.nan)
    return float(low), float(high)


def deviation(values: Array) -> float:
    """Standard deviation of a sample, ignoring resamples in which the quantity does not exist."""
    finite = values[np.isfinite(values)]
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # a parameter that ran away has no standard error: inf or nan, null in JSON
        return float(np.std(finite)) if len(finite) else float("nan")
