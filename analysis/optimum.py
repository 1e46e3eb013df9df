"""The true optimum: many starts, batched damped Newton, and the evidence that the minimum is the minimum.

A solver's own success flag is never used: L-BFGS from Hoffmann's published point stops 14 % above the optimum and
reports success. What counts is the objective, the share of starts that reach it, the next minimum and the gradient.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import nnls

from analysis.law import SumLaw, feature, named
from analysis.objective import CurveModel, Model, SumModel, gap, huber, model_of
from analysis.rows import Array

ANNEAL = (3e-2, 1e-2, 3e-3)  # Huber deltas on the way to the target: wide first, so that far starts see the data
NARROWEST = 1e-4  # Huber delta below which starts are followed in small steps
HOPELESS = 30.0  # times the best objective: starts that are still worse after the rough steps are given up
SHORTLIST = 6  # starts kept where only the optimum is wanted (hold-outs, variants)
SCREENED = 4000  # points beyond which starts are tried on a sample of that size: a hundred starts on all take minutes
SAME = 1e-6  # relative difference below which two objectives are the same minimum


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """The best minimum found, with the evidence."""

    theta: Array  # internal parameters of the law
    objective: float
    start_share: float  # of the starts that reached it (within 1e-6 relative); of a sample beyond `SCREENED` points
    starts: int
    runner_up: float | None  # objective of the next distinct minimum; None when there is no other
    runner_up_params: dict[str, float] | None
    grad_norm: float  # |scaled gradient| / sqrt(objective): dimensionless, near 0 at a minimum
    condition: float  # of the scaled Gauss-Newton matrix in centred coordinates
    minima: Array = field(repr=False)  # internal parameters of the distinct minima, best first

    @property
    def search(self) -> str:
        """How the minimum was found."""
        return f"{self.starts} starts" if self.starts else "closed form: one minimum, nothing to search"


def minimise(
    model: Model,
    t: Array,
    w: Array,
    delta: float | None,
    *,
    z: Array | None = None,
    iterations: int = 60,
    exact: bool = True,
    tolerance: float = 1e-12,
    held: int | None = None,
) -> tuple[Array, Array]:
    """(parameters, objective) after damped Newton on every row at once; a row leaves the batch when it has converged.

    Each row has its own Levenberg damping. `held` keeps one coordinate at its start (profiles).
    """
    t = np.array(t, float)
    w = np.broadcast_to(w, (len(t), w.shape[-1]))
    z = None if z is None else np.broadcast_to(z, (len(t), z.shape[-1]))
    active, damping, quiet = np.arange(len(t)), np.full(len(t), 1e-3), np.zeros(len(t), int)
    f, g, h = model.evaluate(t, w, delta, exact, z)
    best = np.where(np.isfinite(f), f, np.inf)
    for _ in range(iterations):
        if len(active) == 0:
            break
        step = newton_step(g, h, damping[active], exact, frozen(model, t[active], g, held))
        trial = np.clip(t[active] + step, *model.limits)
        f_new, g_new, h_new = model.evaluate(trial, w[active], delta, exact, None if z is None else z[active])
        better = np.isfinite(f_new) & (f_new < best[active])
        gain = (best[active] - f_new) / np.maximum(best[active], 1e-300)
        moved = active[better]
        t[moved], best[moved] = trial[better], f_new[better]
        damping[moved] = np.maximum(damping[moved] * 0.2, 1e-12)
        damping[active[~better]] *= 8.0
        g[better], h[better] = g_new[better], h_new[better]
        quiet[active] += better & (gain < tolerance)
        stay = (quiet[active] < 2) & (damping[active] < 1e10) & (best[active] > 1e-28)
        active, g, h = active[stay], g[stay], h[stay]
    return t, best


def frozen(model: Model, t: Array, g: Array, held: int | None) -> Array | None:
    """Coordinates that do not move: the held one, and those at a limit that the gradient pushes against; None for none."""
    low, high = model.limits
    mask = ((t <= low) & (g > 0)) | ((t >= high) & (g < 0))
    if held is not None:
        mask[:, held] = True
    return mask if mask.any() else None


def newton_step(g: Array, h: Array, damping: Array, exact: bool, still: Array | None) -> Array:
    """Damped step per row in coordinates scaled by the diagonal; eigenvalues are made positive where the Hessian is exact."""
    size = g.shape[1]
    if still is not None:
        g = np.where(still, 0.0, g)
        h = np.where(still[:, :, None] | still[:, None, :], np.eye(size), h)
    scale = np.sqrt(np.maximum(np.abs(np.einsum("bii->bi", h)), 1e-30))
    scaled, slope = h / (scale[:, :, None] * scale[:, None, :]), g / scale
    if exact:
        values, vectors = np.linalg.eigh(scaled)
        values = np.maximum(np.abs(values), 1e-8) + damping[:, None]
        step = -np.einsum("bij,bj->bi", vectors, np.einsum("bij,bi->bj", vectors, slope) / values)
    else:
        scaled[:, range(size), range(size)] += damping[:, None] + 1e-12
        step = -np.linalg.solve(scaled, slope[:, :, None])[:, :, 0]
    step /= scale
    longest = np.abs(step).max(1, initial=0.0)
    return step * np.minimum(1.0, 2.0 / np.maximum(longest, 1e-300))[:, None]


def descend(model: Model, t: Array, w: Array, delta: float | None) -> tuple[Array, Array]:
    """From rough starts to minima: annealed Huber widths, IRLS steps, then exact Newton."""
    for width in ANNEAL if delta is not None else ():
        t, _ = minimise(model, t, w, max(width, delta or width), iterations=25, exact=False, tolerance=1e-4)
    t, f = minimise(model, t, w, delta, iterations=20, exact=False, tolerance=1e-5)
    near = f <= HOPELESS * f.min() + 1e-18 * len(model.z)  # the rest cannot be a minimum that matters
    t[near], f[near] = minimise(model, t[near], w, delta, iterations=80)
    return t, f


def shortlist(model: Model, t: Array, w: Array, delta: float | None) -> Array:
    """The starts with the lowest objective."""
    score = (huber(gap(model.log_law(t), model.z, model.absolute), delta) * w).sum(1)
    return t[np.argsort(score, kind="stable")[:SHORTLIST]]


def narrow(model: Model, t: Array, w: Array, delta: float) -> tuple[Array, Array]:
    """Minima at `NARROWEST` followed to a smaller delta: towards least absolute deviations the quadratic zone holds few points."""
    width = NARROWEST
    while width > delta:
        width = max(width / 1.6, delta)
        t, f = minimise(model, t, w, width, iterations=60)
    return t, f


# ------------------------------------------------------------------------------------------- starts


def projected_starts(law: SumLaw, inputs: Mapping[str, Any], loss: Array, pinned: Mapping[str, float]) -> Array:
    """Variable projection: on a grid of exponents the amplitudes are a non-negative least-squares problem in L.

    Rows are weighted by 1/L, so that the residual is relative. Zero amplitudes start at 1e-3 of the loss.
    """
    names = law.parameters
    free = [n for n in law.exponents if n not in pinned]
    cells = {1: 24, 2: 6, 3: 4}.get(len(free), 2 if free else 1)
    grid = np.linspace(0.05, 1.2, cells) if cells > 2 else np.array([0.1, 0.4])
    logs = [[(names.index(p), sign * feature(f, inputs)) for p, f, sign in t.factors] for t in law.terms]
    logged = law.logged()
    held = np.array(
        [np.log(pinned[n]) if lg else pinned[n] for n, lg in zip(names, logged, strict=True) if n in pinned]
    )
    at = np.array([i for i, n in enumerate(names) if n in pinned], int)
    out = []
    for cell in itertools.product(grid, repeat=len(free)):
        theta = np.zeros(len(names))
        theta[at] = held
        theta[[names.index(n) for n in free]] = cell
        out.append(fill_amplitudes(theta, logs, logged, at, loss))
    return np.array(out)


def fill_amplitudes(
    theta: Array, logs: list[list[tuple[int, Array]]], logged: Array, held: Array, loss: Array
) -> Array:
    """`theta` with its free amplitudes set by non-negative least squares for the exponents it holds."""
    columns: dict[int, Array] = {}
    known = np.zeros(len(loss))
    for term in logs:
        shape = sum((theta[i] * f for i, f in term if not logged[i]), np.zeros(len(loss)))
        amplitudes = [(i, f) for i, f in term if logged[i]]
        for i, f in amplitudes:
            part = np.exp(shape) * (f != 0)
            if i in held:
                known = known + np.exp(theta[i]) * part
            else:
                columns[i] = columns.get(i, 0.0) + part
    if not columns:
        return theta
    matrix = np.stack(list(columns.values()), 1)
    scale = np.maximum(matrix.mean(0), 1e-300)
    weights, _ = nnls(matrix / scale / loss[:, None], np.maximum(1 - known / loss, 1e-3))
    amounts = np.maximum(weights, 1e-3 * loss.mean()) / scale
    theta[list(columns)] = np.log(amounts)
    return theta


def grid_starts(model: SumModel) -> Array:
    """A plain grid in centred coordinates: each amplitude 5, 40 or 90 % of the mean loss, exponents 0.1 to 1.2."""
    logged = np.asarray(model.coordinates.basis[model.law.logged()].any(0)).tolist()
    middle = float(model.z.mean())
    levels = [middle + np.log([0.05, 0.4, 0.9]) if is_log else np.array([0.1, 0.5, 1.2]) for is_log in logged]
    cells = np.array(list(itertools.product(*levels)))
    return cells[:: max(1, len(cells) // 243)]


def starts(model: Model, inputs: Mapping[str, Any], pinned: Mapping[str, float], wide: bool) -> Array:
    """Start coordinates: variable projection, and with `wide` a plain grid as an independent witness."""
    if isinstance(model, SumModel):
        first = model.from_theta(projected_starts(model.law, inputs, np.exp(model.z), pinned))
        return np.concatenate([first, grid_starts(model)]) if wide and len(model.terms) > 1 else first
    assert isinstance(model, CurveModel)
    return model.from_theta(model.law.starts(inputs, np.exp(model.z)))


# ------------------------------------------------------------------------------------------ optimum


def optimise(
    model: Model,
    inputs: Mapping[str, Any],
    weights: Array,
    delta: float | None,
    pinned: Mapping[str, float],
    wide: bool = True,
) -> Optimum:
    """The lowest minimum over all starts, with the share of starts that reached it and the runner-up."""
    w = weights[None]
    if model.size == 0:
        return evaluated(model, w, delta)
    floor = 1e-20 * len(model.z)  # objectives below it are exact fits
    zone = delta if delta is None else max(delta, NARROWEST)
    if len(model.z) > SCREENED:
        t, f, share, tried = screened(model, inputs, weights, zone, pinned, wide)
    else:
        first = starts(model, inputs, pinned, wide)
        t, f = descend(model, first if wide else shortlist(model, first, w, zone), w, zone)
        share, tried = float((f <= f.min() * (1 + SAME) + floor).mean()), len(f)
    order = np.argsort(f, kind="stable")
    t, f = t[order], f[order]
    minima = distinct(model, t, f, w, zone, floor)
    if delta is not None and delta < NARROWEST:
        t, f = narrow(model, t[minima], w, delta)
        order = np.argsort(f, kind="stable")
        t, f, minima = t[order], f[order], list(range(len(order)))
    _, g, h = model.evaluate(t[:1], w, delta, False)
    _, slope, _ = model.evaluate(t[:1], w, delta, True)
    at_limit = frozen(model, t[:1], slope, None)
    slope = slope if at_limit is None else np.where(at_limit, 0.0, slope)
    scale = np.sqrt(np.maximum(np.einsum("bii->bi", h), 1e-300))
    other = minima[1] if len(minima) > 1 else None
    return Optimum(
        theta=model.to_theta(t[0]),
        objective=float(f[0]),
        start_share=share,
        starts=tried,
        runner_up=None if other is None else float(f[other]),
        runner_up_params=None if other is None else named(model.law, model.to_theta(t[other])),
        grad_norm=float(np.linalg.norm(slope[0] / scale[0]) / np.sqrt(max(f[0], floor))),
        condition=float(np.linalg.cond(h[0] / np.outer(scale[0], scale[0]))),
        minima=model.to_theta(t[minima]),
    )


def screened(
    model: Model,
    inputs: Mapping[str, Any],
    weights: Array,
    delta: float | None,
    pinned: Mapping[str, float],
    wide: bool,
) -> tuple[Array, Array, float, int]:
    """(minima, objectives, share of starts, starts): all starts on a random sample of the points, its minima on all."""
    some = np.sort(np.random.default_rng(0).choice(len(model.z), SCREENED, replace=False))
    part = {name: np.asarray(values)[some] for name, values in inputs.items()}
    small = model_of(model.law, part, np.exp(model.z[some]), pinned)
    found = optimise(small, part, weights[some], delta, pinned, wide)
    t, f = minimise(model, model.from_theta(found.minima), weights[None], delta, iterations=80)
    return t, f, found.start_share, found.starts


def distinct(model: Model, t: Array, f: Array, w: Array, delta: float | None, floor: float) -> list[int]:
    """Row numbers of separate minima, best first: converged, positive curvature, exponents positive, objectives apart by more than 1e-6."""
    _, g, h = model.evaluate(t, w, delta, True)
    scale = np.sqrt(np.maximum(np.abs(np.einsum("bii->bi", h)), 1e-300))
    flat = np.linalg.norm(g / scale, axis=1) <= 1e-4 * np.sqrt(np.maximum(f, floor))
    convex = np.linalg.eigvalsh(h / (scale[:, :, None] * scale[:, None, :])).min(1) > 0
    exponents = ~model.law.logged() if isinstance(model, SumModel) else np.zeros(len(model.law.parameters), bool)
    sensible = np.asarray((model.to_theta(t)[:, exponents] > 0).all(1))
    kept = [0]
    for i in range(1, len(f)):
        if flat[i] and convex[i] and sensible[i] and f[i] > f[kept[-1]] * (1 + SAME) + floor:
            kept.append(i)
    return kept[:8]


def evaluated(model: Model, w: Array, delta: float | None) -> Optimum:
    """The law at fully pinned parameters: nothing is searched."""
    theta = model.to_theta(np.empty((1, 0)))[0]
    value, _, _ = model.evaluate(np.empty((1, 0)), w, delta, False)
    return Optimum(
        theta=theta,
        objective=float(value[0]),
        start_share=1.0,
        starts=0,
        runner_up=None,
        runner_up_params=None,
        grad_norm=0.0,
        condition=1.0,
        minima=theta[None],
    )
