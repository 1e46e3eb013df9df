"""Prediction intervals of a fitted law: parameters and residual noise together.

Few design points (least squares): the profile-likelihood prediction interval. The target joins the data with a trial
value y0; the values for which the sum of squares rises by less than s^2 t^2 form the interval. For a linear law this
is exactly Student's interval; for a law with a floor it keeps the asymmetry that the delta method loses.
Many points: percentiles of resampled predictions plus resampled residuals.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from analysis.bootstrap import Resamples
from analysis.estimate import Estimate
from analysis.law import Law
from analysis.objective import model_of
from analysis.optimum import minimise
from analysis.rows import Array

CURVE_WEIGHT = 1e8  # a target weight so large that the trial value is the curve itself
GRID = (
    np.sinh(np.linspace(-3.2, 3.2, 61)) / 3.0
)  # trial values in units of the delta-method half width: dense near 1, out to 4


def prediction_intervals(
    e: Estimate,
    resamples: Resamples | None,
    inputs: Mapping[str, Any],
    levels: Sequence[float],
    *,
    runs: int = 1,
    noise: bool = True,
    seed: int = 0,
) -> dict[float, tuple[Array, Array]]:
    """level -> (low, high) in units of the loss, one per target; nan where the data give no finite bound.

    `runs` is how many runs of the target are averaged; noise=False gives the interval of the curve itself.
    """
    targets = target_inputs(e.law, inputs)
    size = len(next(iter(targets.values())))
    if e.noise.prediction_sd_log is None:
        return {level: (np.full(size, np.nan), np.full(size, np.nan)) for level in levels}
    if resamples is None or (resamples.method == "parametric" and e.delta is None and not e.law.absolute):
        return profiled(e, targets, levels, runs if noise else None)
    return sampled(e, resamples, targets, levels, runs if noise else None, seed)


def target_inputs(law: Law, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """The inputs that `law` reads as equally long arrays."""
    arrays = np.broadcast_arrays(*[np.atleast_1d(np.asarray(inputs[name])) for name in law.inputs])
    return dict(zip(law.inputs, arrays, strict=True))


def profiled(
    e: Estimate, targets: Mapping[str, Array], levels: Sequence[float], runs: int | None
) -> dict[float, tuple[Array, Array]]:
    size = len(next(iter(targets.values())))
    bounds = {level: (np.empty(size), np.empty(size)) for level in levels}
    for i in range(size):
        one = {name: values[i : i + 1] for name, values in targets.items()}
        for level, (low, high) in zip(levels, profile_one(e, one, levels, runs), strict=True):
            bounds[level][0][i], bounds[level][1][i] = low, high
    return bounds


def profile_one(
    e: Estimate, target: Mapping[str, Array], levels: Sequence[float], runs: int | None
) -> list[tuple[float, float]]:
    """Bounds of one target: trial values refitted in one batch, the rise of the objective inverted by interpolation."""
    sd, dof = e.noise.unit_sd_log, e.noise.prediction_dof
    assert sd is not None
    weight = CURVE_WEIGHT if runs is None else e.noise.target_weight(runs)
    joined = {name: np.concatenate([e.inputs[name], target[name]]) for name in e.law.inputs}
    model = model_of(e.law, joined, np.append(e.loss, 1.0), e.pinned)
    theta = e.optimum.theta[None]
    centre = float(e.law.log_predict(theta, target)[0, 0])
    reach = half_width(e, target, weight) * stats.t.ppf(0.5 + max(levels) / 200, dof)
    trial = centre + reach * GRID
    z = np.concatenate([np.repeat(e.model.z[None], len(trial), 0), trial[:, None]], 1)
    w = np.append(e.weights, weight)[None]
    start = np.repeat(model.from_theta(theta), len(trial), 0)
    rise = np.full(len(trial), np.inf)
    for begin in (start, np.repeat(model.from_theta(e.optimum.minima[-1:]), len(trial), 0)):
        if model.size:
            rise = np.minimum(rise, minimise(model, begin, w, None, z=z)[1])
        else:
            rise = model.evaluate(begin, np.repeat(w, len(trial), 0), None, False, z)[0]
    root = np.sqrt(2 * np.maximum(rise - e.optimum.objective, 0.0)) / sd
    return [cut(trial, root, float(stats.t.ppf(0.5 + level / 200, dof)), centre) for level in levels]


def cut(trial: Array, root: Array, limit: float, centre: float) -> tuple[float, float]:
    """exp of the trial values on either side of the centre at which the root deviance reaches `limit`; nan if it never does."""
    middle = int(np.argmin(np.abs(trial - centre)))
    low = crossing(trial[middle::-1], root[middle::-1], limit)
    high = crossing(trial[middle:], root[middle:], limit)
    return float(np.exp(low)), float(np.exp(high))


def crossing(trial: Array, root: Array, limit: float) -> float:
    above = np.flatnonzero(root >= limit)
    if len(above) == 0:
        return float("nan")
    k = int(above[0])
    if k == 0:
        return float(trial[0])
    share = (limit - root[k - 1]) / (root[k] - root[k - 1])
    return float(trial[k - 1] + share * (trial[k] - trial[k - 1]))


def half_width(e: Estimate, target: Mapping[str, Array], weight: float) -> float:
    """Standard error of a new value by the delta method: s sqrt(1/weight + g' (G'G)^-1 g)."""
    sd = e.noise.unit_sd_log or 0.0
    params, free = e.params, e.free_columns
    if not free:
        return sd / np.sqrt(weight)
    design = e.law.gradient(params, e.inputs)[:, free] * np.sqrt(e.weights)[:, None]
    slope = e.law.gradient(params, target)[0, free]
    scale = np.maximum(np.abs(design).max(0), 1e-300)
    coefficients = np.linalg.lstsq((design / scale).T, slope / scale, rcond=1e-10)[0]
    return float(sd * np.sqrt(1 / weight + coefficients @ coefficients))


def sampled(
    e: Estimate, r: Resamples, targets: Mapping[str, Array], levels: Sequence[float], runs: int | None, seed: int
) -> dict[float, tuple[Array, Array]]:
    """Percentiles of resampled predictions, with residual noise added unless `runs` is None."""
    predicted = e.law.log_predict(r.theta, targets)
    if runs is not None:
        rng = np.random.default_rng([seed, 1])
        predicted = predicted + residual_draws(e, predicted.shape, runs, rng)
    out = {}
    for level in levels:
        low, high = np.percentile(predicted, [50 - level / 2, 50 + level / 2], axis=0)
        out[level] = (np.exp(low), np.exp(high))
    return out


def residual_draws(e: Estimate, shape: tuple[int, ...], runs: int, rng: np.random.Generator) -> Array:
    """Noise of the mean of `runs` new runs: residuals drawn with replacement, widened for the degrees of freedom used."""
    residual = e.residuals * np.sqrt(len(e.loss) / max(len(e.loss) - e.free, 1))
    return rng.choice(residual, (*shape, runs)).mean(-1)
