"""Chinchilla approaches 1 and 2: the compute-optimal size read from the data, N_opt = k C^a, D_opt = k' C^b.

Approach 2 (isoFLOP): at each budget a parabola of loss in log10 N (and in log10 D); the minima against C on log axes.
Budgets with fewer than four sizes or a parabola that opens downwards are skipped and listed.
Approach 1 (envelope): of all training curves, the run with the lowest loss at each compute; its N and D against C.
Both return exponents and coefficients only; losses are predicted by approach 3.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t

from analysis.bootstrap import deviation, interval
from analysis.holdout import HoldOut
from analysis.identify import Verdict
from analysis.result import LEVELS, FitResult, FitSettings, Interval, Prediction
from analysis.rows import Array, Points
from gopher.errors import UsageError

BUDGET_GAP = 0.04  # decades of FLOPs between neighbours that still belong to one budget
FEWEST_SIZES = 4  # of a budget: three coefficients and one to spare
FARTHEST = 2.0  # decades from the middle size beyond which a minimum is that of a straight line
FEWEST_BUDGETS = 3  # two budgets give a line and no way to doubt it
ENVELOPE_STEPS = 1500  # budgets at which the lowest curve is looked up (Hoffmann et al. 2022)
PARAMETERS = ("N_exponent", "N_coef", "D_exponent", "D_coef")


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """The lowest point of one budget."""

    flops: float
    runs: int
    n_opt: float
    d_opt: float
    loss: float
    at_edge: bool  # outside the sizes that were run, or the smallest or largest of them


@dataclass(frozen=True, kw_only=True)
class Skipped:
    flops: float
    runs: int
    reason: str


def budgets(flops: Array) -> list[Array]:
    """Row numbers of each FLOP budget, smallest first."""
    order = np.argsort(flops, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(np.log10(flops[order])) > BUDGET_GAP) + 1)


def parabola_minimum(size: Array, loss: Array, w: Array) -> tuple[float, float] | None:
    """(log10 size, loss) at the minimum of the weighted quadratic; None where it has none near the sizes."""
    x = np.log10(size)
    middle = float(np.average(x, weights=w))  # centred, so that the squares do not cancel
    if len(np.unique(x[w > 0])) < 3:
        return None
    a, b, c = np.polyfit(x - middle, loss, 2, w=np.sqrt(w))
    if a <= 0 or abs(b / (2 * a)) > FARTHEST:
        return None
    return middle - b / (2 * a), float(c - b * b / (4 * a))


def valley(n: Array, d: Array, loss: Array, flops: Array, w: Array) -> Minimum | Skipped:
    """The minimum of one budget, in N and in D."""
    budget = float(np.exp(np.log(flops).mean()))
    used = w > 0
    if len(np.unique(n[used])) < FEWEST_SIZES:
        return Skipped(flops=budget, runs=len(n), reason=f"{len(np.unique(n[used]))} sizes, fewer than {FEWEST_SIZES}")
    in_n, in_d = parabola_minimum(n, loss, w), parabola_minimum(d, loss, w)
    if in_n is None or in_d is None:
        return Skipped(flops=budget, runs=len(n), reason="the parabola has no minimum near the sizes")
    x, y = in_n[0], in_d[0]
    inside = np.log10(n.min()) < x < np.log10(n.max()) and np.log10(d.min()) < y < np.log10(d.max())
    return Minimum(flops=budget, runs=len(n), n_opt=10**x, d_opt=10**y, loss=in_n[1], at_edge=not inside)


def frontier(minima: list[Minimum]) -> dict[str, float]:
    """Least squares of log N_opt and log D_opt on log C."""
    log_c = np.log10([m.flops for m in minima])
    (a, k), (b, m) = (np.polyfit(log_c, np.log10([getattr(x, name) for x in minima]), 1) for name in ("n_opt", "d_opt"))
    return {"N_exponent": float(a), "N_coef": float(10**k), "D_exponent": float(b), "D_coef": float(10**m)}


# ----------------------------------------------------------------------------------------- approach 2


def fit_isoflop(points: Points, s: FitSettings) -> FitResult:
    """Approach 2, with intervals from runs resampled within their budgets."""
    n, d, c, loss = columns(points, s, "isoflop")
    groups = budgets(c)
    ones = np.ones(len(n))
    found = [valley(n[g], d[g], loss[g], c[g], ones[g]) for g in groups]
    minima = [m for m in found if isinstance(m, Minimum)]
    skipped = [m for m in found if isinstance(m, Skipped)]
    need(len(minima) >= 2, points, f"{len(minima)} of {len(groups)} FLOP budgets have a minimum")
    rng = np.random.default_rng(s.seed)
    sampled = [frontier(m) for _ in range(s.bootstrap) if len(m := resampled_minima(n, d, loss, c, groups, rng)) >= 2]
    rows = tuple({**vars(m), "kept": isinstance(m, Minimum), "reason": getattr(m, "reason", "")} for m in found)
    residual = frontier_residual(minima)
    return result(
        points,
        s,
        "isoflop",
        frontier(minima),
        sampled,
        edge_reasons(minima, skipped),
        {"isoflop": rows},
        residual,
        held_out("isoflop", [[m] for m in sorted(minima, key=lambda m: m.flops)]),
    )


def resampled_minima(
    n: Array, d: Array, loss: Array, c: Array, groups: list[Array], rng: np.random.Generator
) -> list[Minimum]:
    out = []
    for g in groups:
        w = rng.multinomial(len(g), np.full(len(g), 1 / len(g))).astype(float)
        m = valley(n[g], d[g], loss[g], c[g], w)
        if isinstance(m, Minimum):
            out.append(m)
    return out


def edge_reasons(minima: list[Minimum], skipped: list[Skipped]) -> list[str]:
    reasons = []
    edge = [m for m in minima if m.at_edge]
    if edge:
        named = ", ".join(f"{m.flops:.3g}" for m in edge)
        reasons.append(f"the isoFLOP minimum is on the edge of its grid of sizes at {named} FLOPs; add sizes beyond it")
    if len(minima) < FEWEST_BUDGETS:
        reasons.append(
            f"no degrees of freedom: {len(minima)} budgets with a minimum, a line with a check needs {FEWEST_BUDGETS}"
        )
    if len(skipped) > len(minima):
        reasons.append(f"{len(skipped)} of {len(minima) + len(skipped)} budgets have no minimum")
    return reasons


def frontier_residual(minima: list[Minimum]) -> Array:
    """log10 distances of the minima from the N line."""
    line = frontier(minima)
    return np.array([np.log10(m.n_opt / (line["N_coef"] * m.flops ** line["N_exponent"])) for m in minima])


def held_out(law: str, groups: list[list[Minimum]]) -> tuple[HoldOut, ...]:
    """The optimal size at the largest group of minima predicted from the smaller groups: budgets of approach 2, winning
    sizes of approach 1 (whose minima along one curve are no independent measurements)."""
    out = []
    for k in range(1, min(3, len(groups) - 2) + 1):
        kept, target = groups[:-k], centre(groups[-1])
        line, last = frontier([m for g in kept for m in g]), centre(kept[-1])
        predicted = line["N_coef"] * target.flops ** line["N_exponent"]
        out.append(
            HoldOut(
                rung=f"N_opt at {target.flops:.3g} FLOPs",
                predicted=predicted,
                actual=target.n_opt,
                interval95=line_interval([centre(g) for g in kept], target.flops, predicted),
                law=law,
                fitted_rungs=len(kept),
                decades=float(np.log10(target.flops / last.flops)),
                x="flops",
                runs=target.runs,
                baselines={
                    "last_point": last.n_opt,
                    "square_root": last.n_opt * (target.flops / last.flops) ** 0.5,
                },
            )
        )
    return tuple(out)


def centre(group: list[Minimum]) -> Minimum:
    """The geometric mean of a group's minima."""
    names = ("flops", "n_opt", "d_opt", "loss")
    means = {name: float(np.exp(np.mean(np.log([getattr(m, name) for m in group])))) for name in names}
    return Minimum(**means, runs=max(m.runs for m in group), at_edge=any(m.at_edge for m in group))


def line_interval(kept: list[Minimum], flops: float, predicted: float) -> tuple[float, float] | None:
    """95 % prediction interval of N_opt around `predicted`: the t interval of a line through log10 N_opt against
    log10 C, scatter of a single new minimum included; None with two minima, which leave no scatter to see."""
    if len(kept) < 3:
        return None
    x, y = (np.log10([getattr(m, name) for m in kept]) for name in ("flops", "n_opt"))
    residual = y - np.polyval(np.polyfit(x, y, 1), x)
    scatter = float((residual**2).sum()) / (len(x) - 2)
    leverage = 1 + 1 / len(x) + (np.log10(flops) - x.mean()) ** 2 / float(((x - x.mean()) ** 2).sum())
    half = float(t.ppf(0.975, len(x) - 2) * np.sqrt(scatter * leverage))
    return predicted / 10**half, predicted * 10**half


# ----------------------------------------------------------------------------------------- approach 1


def fit_envelope(points: Points, s: FitSettings) -> FitResult:
    """Approach 1: the lowest of all training curves at each compute; runs resampled whole."""
    n, d, c, loss = columns(points, s, "envelope")
    clusters = points.clusters()
    curves = [np.flatnonzero(clusters == k) for k in range(int(clusters.max()) + 1)]
    curves = [g[np.argsort(c[g])] for g in curves if len(np.unique(c[g])) >= 2]
    need(
        len({float(n[g[0]]) for g in curves}) >= 3,
        points,
        "fewer than 3 sizes have training curves of two or more steps",
    )
    minima = envelope(n, d, c, loss, curves)
    need(len(minima) >= 2, points, "no compute at which a middle size is the best")
    rng = np.random.default_rng(s.seed)
    sampled = []
    for _ in range(min(s.bootstrap, 400)):
        drawn = [curves[i] for i in rng.integers(0, len(curves), len(curves))]
        if len(m := envelope(n, d, c, loss, drawn)) >= 2:
            sampled.append(frontier(m))
    reasons = (
        []
        if len({m.n_opt for m in minima}) >= FEWEST_BUDGETS
        else [f"only {len({m.n_opt for m in minima})} sizes are ever the best and not at the end of the ladder"]
    )
    rows = tuple(vars(m) for m in minima[:: max(1, len(minima) // 100)])
    sizes = sorted({m.n_opt for m in minima})
    held = held_out("envelope", [[m for m in minima if m.n_opt == size] for size in sizes])
    return result(
        points, s, "envelope", frontier(minima), sampled, reasons, {"envelope": rows}, frontier_residual(minima), held
    )


def envelope(n: Array, d: Array, c: Array, loss: Array, curves: list[Array]) -> list[Minimum]:
    """Per compute the lowest interpolated curve; computes won by the smallest or largest size are left out (its neighbours are missing)."""
    low, high = c[np.concatenate(curves)].min(), c[np.concatenate(curves)].max()
    grid = np.geomspace(low, high, ENVELOPE_STEPS)
    table = np.full((len(curves), len(grid)), np.inf)
    for i, g in enumerate(curves):
        inside = (grid >= c[g[0]]) & (grid <= c[g[-1]])
        table[i, inside] = np.exp(np.interp(np.log(grid[inside]), np.log(c[g]), np.log(loss[g])))
    best = np.argmin(table, 0)
    sizes = np.array([n[g[0]] for g in curves])
    ends = (sizes.min(), sizes.max())
    out = []
    for k, i in enumerate(best):
        if np.isfinite(table[i, k]) and sizes[i] not in ends:
            g = curves[i]
            tokens = float(np.exp(np.interp(np.log(grid[k]), np.log(c[g]), np.log(d[g]))))
            out.append(
                Minimum(
                    flops=float(grid[k]),
                    runs=1,
                    n_opt=float(sizes[i]),
                    d_opt=tokens,
                    loss=float(table[i, k]),
                    at_edge=False,
                )
            )
    return out


# --------------------------------------------------------------------------------------------- shared


def columns(points: Points, s: FitSettings, law: str) -> tuple[Array, Array, Array, Array]:
    """N, D, C and loss; D = C / 6N where tokens are not known."""
    table = points.inputs(s.parameters)
    n, d, c = table["params"], table["tokens"], table["flops"]
    for name, values in (("params", n), ("flops", c)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise UsageError(
                f"law {law} reads {name} and some points have none; map the column with columns.{'params_total' if name == 'params' else name}=NAME or leave them out with where="
            )
    d = np.where(np.isfinite(d), d, c / (6 * n))
    return n, d, c, table["loss"]


def need(ok: bool, points: Points, what: str) -> None:
    if not ok:
        raise UsageError(
            f"{points.source or 'the table'} does not allow this fit: {what}; add runs, or fit law=chinchilla to scattered points"
        )


def result(
    points: Points,
    s: FitSettings,
    law: str,
    params: dict[str, float],
    sampled: list[dict[str, float]],
    reasons: list[str],
    tables: dict[str, tuple[dict[str, Any], ...]],
    residual: Array,
    holdout: tuple[HoldOut, ...],
) -> FitResult:
    """The common result object; the lines are linear least squares, so there is no optimum to prove."""
    samples = np.array([[one[name] for name in PARAMETERS] for one in sampled]).reshape(-1, len(PARAMETERS))
    ci: dict[str, dict[str, Interval]] = {}
    errors: dict[str, float] = {}
    for i, name in enumerate(PARAMETERS if len(samples) else ()):
        ci[name] = {str(level): interval(samples[:, i], level) for level in LEVELS}
        errors[name] = deviation(samples[:, i])
    return FitResult(
        law=law,
        requested=s.law,
        settings=s,
        x="flops",
        parameters=points.parameter_column(s.parameters),
        points=points,
        params=params,
        objective=float((residual**2).sum()),
        objective_name="sum of squared log10 distances of N_opt from the line",
        optimum=None,
        ci=ci,
        standard_errors=errors,
        derived={"a_opt": params["N_exponent"], "b_opt": params["D_exponent"]},
        verdict=Verdict(identified=not reasons, reasons=tuple(reasons), law=law, reported=law),
        holdout=holdout if s.holdout != 0 else (),
        noise=None,
        resampling="pairs" if len(samples) else "none",
        predictions=tuple(allocation(params, samples, dict(target)) for target in s.targets),
        tables=tables,
        sample_values=samples,
    )


def allocation(params: dict[str, float], samples: Array, target: dict[str, float]) -> Prediction:
    """N_opt and D_opt at a budget; the loss there is not this law's business (nan)."""
    if set(target) != {"flops"}:
        raise UsageError(
            f"target {target} is not a FLOP budget; approaches 1 and 2 take targets such as {{flops: 5.76e+23}}"
        )
    c = float(target["flops"])

    def at(p: Any) -> dict[str, Any]:
        n, d = p["N_coef"] * c ** p["N_exponent"], p["D_coef"] * c ** p["D_exponent"]
        return {"N_opt": n, "D_opt": d, "tokens_per_parameter": d / n}

    drawn = at(dict(zip(PARAMETERS, samples.T, strict=True))) if len(samples) else {}
    ci = {k: {str(level): interval(v, level) for level in LEVELS} for k, v in drawn.items()}
    return Prediction(inputs={"flops": c}, mean=float("nan"), intervals={}, derived=at(params), derived_ci=ci)
