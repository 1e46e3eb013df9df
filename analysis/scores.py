"""Task score as a function of task loss: a sigmoid between chance and 1, or an exponential approach to chance error.

Fitted by bounded least squares of the score itself; `scipy.optimize.least_squares` from several starts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from analysis.rows import Array
from gopher.errors import UsageError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class ScoreCurve:
    """score = f(loss; parameters) with bounds, slope by parameter, and starts."""

    name: str
    parameters: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    value: Callable[[Array, Array], Array]  # (parameters, loss) -> score
    slope: Callable[[Array, Array], Array]  # (parameters, loss) -> (points, parameters)
    starts: Callable[[Array, Array], list[list[float]]]  # (loss, score)
    ideal: tuple[float, float] | None  # a point that every model must approach: loss 0, score 1


def sigmoid_value(p: Array, x: Array) -> Array:
    a, x0, k, b = p
    return a / (1 + np.exp(-np.clip(k * (x - x0), -500, 500))) + b


def sigmoid_slope(p: Array, x: Array) -> Array:
    a, x0, k, _ = p
    s = 1 / (1 + np.exp(-np.clip(k * (x - x0), -500, 500)))
    bend = a * s * (1 - s)
    return np.stack([s, -k * bend, (x - x0) * bend, np.ones_like(x)], 1)


def sigmoid_starts(x: Array, y: Array) -> list[list[float]]:
    low, middle = float(y.min()), float(np.median(x))
    return [[max(low - 1, -1.0), middle, k, 1.0] for k in (2.0, 5.0, 12.0)]


def exponential_value(p: Array, x: Array) -> Array:
    epsilon, k, gamma = p
    return 1 - epsilon + k * np.exp(-gamma * x)


def exponential_slope(p: Array, x: Array) -> Array:
    _, k, gamma = p
    fall = np.exp(-gamma * x)
    return np.stack([-np.ones_like(x), fall, -k * x * fall], 1)


def exponential_starts(x: Array, y: Array) -> list[list[float]]:
    out = []
    for gamma in (0.3, 0.8, 2.0):
        design = np.stack([-np.ones_like(x), np.exp(-gamma * x)], 1)
        epsilon, k = np.linalg.lstsq(design, y - 1, rcond=None)[0]
        out.append([max(float(epsilon), 1e-6), max(float(k), 1e-6), gamma])
    return out


SIGMOID = ScoreCurve(
    # Bhagia et al. 2024 (OLMo ladder): a / (1 + exp(-k (L - x0))) + b with a in [-1, 0], b in [0, 1]
    name="sigmoid",
    parameters=("score_a", "score_x0", "score_k", "score_b"),
    lower=(-1.0, 0.0, 0.0, 0.0),
    upper=(0.0, np.inf, np.inf, 1.0),
    value=sigmoid_value,
    slope=sigmoid_slope,
    starts=sigmoid_starts,
    ideal=(0.0, 1.0),
)
EXPONENTIAL = ScoreCurve(
    # Gadre et al. 2024, eq. 5: error = epsilon - k exp(-gamma L)
    name="exponential",
    parameters=("epsilon", "k", "gamma"),
    lower=(0.0, 0.0, 0.0),
    upper=(np.inf, np.inf, np.inf),
    value=exponential_value,
    slope=exponential_slope,
    starts=exponential_starts,
    ideal=None,
)
CURVES = {curve.name: curve for curve in (SIGMOID, EXPONENTIAL)}


def curve_named(name: str) -> ScoreCurve:
    if name not in CURVES:
        raise UsageError(f"task.step2 is '{name}'{did_you_mean(name, list(CURVES))}; use one of {', '.join(CURVES)}")
    return CURVES[name]


def fit_scores(
    curve: ScoreCurve, loss: Array, score: Array, weights: Array, start: Array | None = None
) -> tuple[Array, float]:
    """(parameters, weighted sum of squares) of the best of the starts, or from `start` alone."""
    if curve.ideal is not None:
        loss, score, weights = (
            np.append(loss, curve.ideal[0]),
            np.append(score, curve.ideal[1]),
            np.append(weights, 1.0),
        )
    root = np.sqrt(weights)

    def misfit(p: Array) -> Array:
        return root * (curve.value(p, loss) - score)

    def slope(p: Array) -> Array:
        return root[:, None] * curve.slope(p, loss)

    lower, upper = np.array(curve.lower), np.array(curve.upper)
    best: tuple[Array, float] | None = None
    for p0 in [start] if start is not None else curve.starts(loss, score):
        found = least_squares(
            misfit,
            np.clip(p0, lower + 1e-9, upper - 1e-9),
            jac=slope,
            bounds=(lower, upper),
            xtol=1e-10,
            ftol=1e-12 if start is None else 1e-9,
            gtol=None,
            x_scale="jac",
            max_nfev=500,
        )
        if best is None or 2 * found.cost < best[1]:
            best = (found.x, 2 * float(found.cost))
    assert best is not None
    return best
