"""The verdict before a number: do these points determine the parameters of this law?

Structure first (degrees of freedom, N and D collinear), then the optimum (a parameter at its bound, a second minimum
the data cannot tell from the first), then the profile of every parameter: the objective with that parameter held and
all others refitted. A profile that never reaches its cut on one side means that the parameter may run to that end.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.bootstrap import Resamples
from analysis.estimate import Estimate, design_of
from analysis.law import SumLaw, named
from analysis.objective import Model, gap, model_of
from analysis.optimum import minimise
from analysis.rows import Array

COLLINEAR = 0.1  # spread of ln D about its line on ln N below which the two cannot be told apart (10 %)
VANISHING = 1e-3  # largest share of the loss below which a term is absent
EXPONENT_END = 4.0  # an exponent that may reach this is unbounded for any practical purpose
EXPONENT_START = 0.002
SAME_SIZE = 1.5  # ratio of tokens (or parameters) below which runs are of one kind
OTHER_SIZE = {"params": ("N", "tokens", "tokens"), "tokens": ("D", "params", "parameters")}
UNSTABLE = 0.025  # share of resamples at a bound that a 95 % interval would notice


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Objective along one parameter with all others refitted."""

    parameter: str
    values: tuple[float, ...]  # natural units, increasing
    excess: tuple[float, ...]  # deviance above the minimum
    limit: float  # its 95 % cut: t^2 for least squares, 3.84 for Huber (robust deviance)

    @property
    def bounded(self) -> tuple[bool, bool]:
        """Whether the cut is reached below and above the minimum."""
        low = int(np.argmin(self.excess))
        return max(self.excess[: low + 1]) >= self.limit, max(self.excess[low:]) >= self.limit


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the data determine the parameters of the law asked for, and if not why."""

    identified: bool
    reasons: tuple[str, ...] = ()
    law: str = ""  # the law the verdict is about
    reported: str = ""  # the law whose numbers are reported; another one after a fall-back
    refused_params: dict[str, float] | None = None  # numbers of the law asked for, when a simpler one is reported


def structural_reasons(e: Estimate) -> list[str]:
    """Faults of the design that no loss values could mend."""
    designs = len(np.unique(design_of(e.inputs)))
    reasons = []
    if designs <= e.free:
        reasons.append(
            f"no degrees of freedom: {designs} distinct design point(s) for {e.free} free parameters of {e.law.name}; "
            f"at least {e.free + 1} are needed"
        )
    if "params" in e.inputs and "tokens" in e.inputs and e.free > 1:
        reasons += collinear(np.log(e.inputs["params"]), np.log(e.inputs["tokens"]))
    if "R_D" in e.law.parameters and "R_D" not in e.pinned and (e.inputs["tokens"] <= e.inputs["unique_tokens"]).all():
        reasons.append(
            "no run repeats its data: tokens never exceed unique tokens, so what repetition costs cannot be seen; "
            "add runs of more than one epoch"
        )
    return reasons


def other_size_reasons(e: Estimate) -> list[str]:
    """One sentence when a law of N alone (or D alone) meets runs of one N whose D differ: it mixes the two."""
    read = [name for name in e.inputs if name in OTHER_SIZE]
    if len(read) != 1 or "flops" in e.inputs:
        return []
    letter, other, words = OTHER_SIZE[read[0]]
    size = e.points.inputs()[other]
    known = np.isfinite(size) & (size > 0)
    logs, design = np.log(size[known]), design_of(e.inputs)[known]
    top, bottom = np.full(len(size), -np.inf), np.full(len(size), np.inf)
    np.maximum.at(top, design, logs)
    np.minimum.at(bottom, design, logs)
    ratio = float(np.exp((top - bottom).max()))
    if ratio <= SAME_SIZE:
        return []
    return [
        f"{words} vary {ratio:.3g}x at equal {letter}, so a law of {letter} alone mixes the effects of both; "
        "fit law=chinchilla, or keep one choice with where="
    ]


def collinear(n: Array, d: Array) -> list[str]:
    """One sentence when ln N and ln D move together, so that their exponents cannot be separated."""
    cure = "add runs with at least two tokens-per-parameter ratios at two sizes, or fit loss against FLOPs"
    if np.ptp(d) < COLLINEAR:
        return [
            f"N and D collinear: every run has about {np.exp(d.mean()):.3g} tokens, so the token term cannot be told from E; {cure}"
        ]
    if np.ptp(n) < COLLINEAR:
        return [
            f"N and D collinear: every run has about {np.exp(n.mean()):.3g} parameters, so the parameter term cannot be told from E; {cure}"
        ]
    slope, middle = np.polyfit(n, d, 1)
    if np.std(d - slope * n - middle) >= COLLINEAR:
        return []
    if abs(slope - 1) < 0.05:
        return [
            f"N and D collinear: every run has about {np.exp((d - n).mean()):.3g} tokens per parameter, so alpha and beta cannot be separated; {cure}"
        ]
    return [f"N and D collinear: D follows N^{slope:.2f} in every run, so alpha and beta cannot be separated; {cure}"]


def optimum_reasons(e: Estimate) -> list[str]:
    """What the optimum itself says: terms that vanished, exponents at their ends, a second minimum."""
    reasons = at_bound(e)
    o = e.optimum
    if o.runner_up is not None and o.runner_up_params is not None and np.isfinite(scale := deviance_scale(e)):
        excess = scale * (o.runner_up - o.objective)
        if excess < limit(e):
            other = ", ".join(f"{k} {v:.4g}" for k, v in o.runner_up_params.items() if k not in e.pinned)
            reasons.append(
                f"two minima that the data cannot tell apart: another one at {other} has an objective {100 * (o.runner_up / o.objective - 1):.2g} % higher"
            )
    return reasons


def at_bound(e: Estimate) -> list[str]:
    gradient = e.law.gradient(e.params, e.inputs)
    limits = e.law.limits
    reasons = []
    for i, (name, is_log) in enumerate(zip(e.law.parameters, e.law.logged(), strict=True)):
        if name in e.pinned:
            continue
        value = e.params[name]
        low, high = limits.get(name, (-np.inf, np.inf))
        if not low < e.optimum.theta[i] < high:
            reasons.append(f"{name} is at its bound: it ran to {value:.4g}, where larger values make no difference")
        elif is_log and np.abs(gradient[:, i]).max() < VANISHING:
            reasons.append(
                f"{name} is at its bound: at {value:.4g} it changes no loss by more than {100 * VANISHING:g} %, so the data carry no such term"
            )
        elif not is_log and isinstance(e.law, SumLaw) and not EXPONENT_START < value < EXPONENT_END:
            reasons.append(f"{name} is at its bound: {value:.4g} is outside {EXPONENT_START:g} to {EXPONENT_END:g}")
    return reasons


def deviance_scale(e: Estimate) -> float:
    """Factor that turns a rise of the objective into a deviance with the chi-square (or t^2) cut.

    Least squares: 2 / s^2. Huber: 2 E[psi'] / E[psi^2] (robust likelihood-ratio test, Huber & Ronchetti 2009, ch. 13);
    E[psi'] from the share of residuals within a bandwidth, since very few lie within a small delta.
    """
    if e.delta is None:
        return np.inf if not e.objective_sd else 2.0 / e.objective_sd**2
    r = gap(e.model.z - e.residuals, e.model.z, e.law.absolute)
    width = max(e.delta, 0.4 * float(np.median(np.abs(r))) / 0.6745)
    slope = float((np.abs(r) <= width).mean()) * e.delta / width
    square = float((np.clip(r, -e.delta, e.delta) ** 2).sum()) / max(len(r) - e.free, 1)
    return 2.0 * slope / square if square > 0 else np.inf


def limit(e: Estimate) -> float:
    """95 % cut of the deviance of one parameter."""
    if e.delta is None and e.noise.prediction_dof:
        return float(stats.t.ppf(0.975, e.noise.prediction_dof) ** 2)
    return float(stats.chi2.ppf(0.95, 1))


def profiles(e: Estimate) -> tuple[Profile, ...]:
    """The profile of every free parameter; empty without a noise estimate."""
    if not e.noise.prediction_dof or not np.isfinite(deviance_scale(e)):
        return ()
    points = 33 if isinstance(e.law, SumLaw) else 17  # a law with a formula of its own costs ten times as much
    raw = model_of(e.law, e.inputs, e.loss, e.pinned, centred=False)
    return tuple(profile(e, raw, name, points) for name in e.law.parameters if name not in e.pinned)


def profile(e: Estimate, raw: Model, name: str, points: int) -> Profile:
    """One parameter held on a grid around its estimate and at its far ends, the others refitted from the optimum."""
    i = e.law.parameters.index(name)
    column, is_log = e.free_columns.index(i), bool(e.law.logged()[i])
    low, high = e.law.limits.get(name, (-np.inf, np.inf))
    centred = name not in {n for n, lg in zip(e.law.parameters, e.law.logged(), strict=True) if lg}
    best = e.optimum.theta[i]
    grid = np.unique(np.clip(profile_grid(e, name, best, is_log, points), low, high))
    model = e.model if centred and not is_log else raw
    start = follow(e, model, column, grid)
    t, f = minimise(model, start, e.weights[None], e.delta, held=column, iterations=60)
    if isinstance(e.law, SumLaw):
        f = np.minimum(f, minimise(model, t, e.weights[None], e.delta, held=column, iterations=80)[1])
    excess = deviance_scale(e) * np.maximum(f - e.optimum.objective, 0.0)
    values = np.exp(grid) if is_log else grid
    return Profile(parameter=name, values=tuple(map(float, values)), excess=tuple(map(float, excess)), limit=limit(e))


def profile_grid(e: Estimate, name: str, best: float, is_log: bool, points: int) -> Array:
    """Values dense around the estimate (in standard errors) and reaching the ends at which the term is gone or saturated."""
    se = min(standard_error(e, name), 2.0 if is_log else 0.5)
    near = best + se * np.sinh(np.linspace(-2.8, 2.8, points)) / 1.6
    far = np.array([best - 12.0, best + 12.0])
    if not is_log and isinstance(e.law, SumLaw):
        far = np.array([EXPONENT_START, EXPONENT_END])
        near = near[(near > EXPONENT_START) & (near < EXPONENT_END)]
    return np.unique(np.concatenate([near, far, [best]]))


def standard_error(e: Estimate, name: str) -> float:
    """Gauss-Newton standard error of one internal parameter."""
    i = e.law.parameters.index(name)
    free = e.free_columns
    design = e.law.gradient(e.params, e.inputs)[:, free] * np.sqrt(e.weights)[:, None]
    scale = np.maximum(np.linalg.norm(design, axis=0), 1e-300)
    inverse = np.linalg.pinv((design / scale).T @ (design / scale), rcond=1e-12)
    k = free.index(i)
    return float(np.sqrt(max(inverse[k, k], 0.0)) / scale[k] * (e.noise.unit_sd_log or 1.0))


def follow(e: Estimate, model: Model, column: int, grid: Array) -> Array:
    """Starts for a profile: the other parameters moved along the valley predicted by the Gauss-Newton matrix."""
    t = model.from_theta(e.optimum.theta)
    _, _, h = model.evaluate(t, e.weights[None], e.delta, False)
    rest = [j for j in range(model.size) if j != column]
    start = np.repeat(t, len(grid), 0)
    start[:, column] = grid
    if rest:
        scale = np.sqrt(np.maximum(np.diag(h[0]), 1e-300))
        scaled = h[0] / np.outer(scale, scale)
        slope = (
            -np.linalg.lstsq(scaled[np.ix_(rest, rest)], scaled[rest, column], rcond=1e-10)[0]
            * scale[column]
            / scale[rest]
        )
        move = np.clip((grid - t[0, column])[:, None] * slope, -3, 3)
        start[:, rest] += move
    return start


def profile_reasons(found: tuple[Profile, ...]) -> list[str]:
    """One sentence per parameter whose profile never reaches its cut."""
    reasons = []
    for p in found:
        below, above = p.bounded
        end = " and ".join(w for w, ok in (("towards 0", below), ("to infinity", above)) if not ok)
        if end:
            at = p.values[int(np.argmin(p.excess))]
            reasons.append(
                f"{p.parameter} is not determined: from {at:.4g} it may run {end} within the 95 % limit of its profile"
            )
    return reasons


def resample_reasons(e: Estimate, r: Resamples | None) -> list[str]:
    """Parameters that reach their ends in more resamples than a 95 % interval can ignore."""
    if r is None:
        return []
    reasons = []
    for i, (name, is_log) in enumerate(zip(e.law.parameters, e.law.logged(), strict=True)):
        if name in e.pinned:
            continue
        values = r.theta[:, i]
        out = resampled_out(e, name, is_log, values, float(e.optimum.theta[i]))
        if out.mean() > UNSTABLE:
            reasons.append(f"{name} is not determined: it runs to an end in {100 * out.mean():.0f} % of the resamples")
    return reasons


def resampled_out(e: Estimate, name: str, is_log: bool, values: Array, best: float) -> Array:
    """Which resamples have this parameter at an end: a floor gone, an exponent out of range, a scale off by e^8."""
    if not isinstance(e.law, SumLaw):
        low, high = e.law.limits.get(name, (best - 8.0, best + 8.0))
        return (values <= low) | (values >= high)
    if is_log:
        return values < best - 6.0 if name == "E" else np.zeros(len(values), bool)
    return (values < EXPONENT_START) | (values > EXPONENT_END)


def judge(e: Estimate, r: Resamples | None) -> tuple[Verdict, tuple[Profile, ...]]:
    """The verdict on an estimate, with the profiles it rests on."""
    reasons = structural_reasons(e)
    found: tuple[Profile, ...] = ()
    if not reasons and e.free:
        found = profiles(e)
        reasons = other_size_reasons(e) + optimum_reasons(e) + profile_reasons(found) + resample_reasons(e, r)
    shown = named(e.law, e.optimum.theta)
    return (
        Verdict(
            identified=not reasons,
            reasons=tuple(dict.fromkeys(reasons)),
            law=e.law.name,
            reported=e.law.name,
            refused_params=shown if reasons else None,
        ),
        found,
    )
