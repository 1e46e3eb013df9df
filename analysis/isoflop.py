"""Chinchilla approaches 1 and 2: the compute-optimal size read from the data, N_opt = k C^a, D_opt = k' C^b.

Approach 2 (isoFLOP): at each budget a parabola of loss in log10 N (and in log10 D); the minima against C on log axes.
Budgets with fewer than four sizes or a parabola that opens downwards are skipped and listed.
Approach 1 (envelope): of all training curves, the run with the lowest loss at each compute; its N and D against C.
Both return exponents and coefficients only; losses are predicted by approach 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t

from analysis.bootstrap import deviation, interval
from analysis.holdout import HoldOut
from analysis.identify import Verdict
from analysis.optimum import Optimum
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


def parabola_minimum(size: Array, loss: Array) -> tuple[float, float] | None:
    """(log10 size, loss) at the minimum of the quadratic; None where it has none near the sizes."""
    x = np.log10(size)
    if len(np.unique(x)) < 3:
        return None
    at, lowest = parabola_minima(x, loss[None])
    return (float(at[0]), float(lowest[0])) if np.isfinite(at[0]) else None


def parabola_minima(x: Array, loss: Array) -> tuple[Array, Array]:
    """(log10 size, loss) at the minimum of the quadratic through each row of `loss`; nan where it has none near the sizes."""
    middle = float(x.mean())  # centred, so that the squares do not cancel
    a, b, c = np.polyfit(x - middle, loss.T, 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        at, lowest = -b / (2 * a), c - b * b / (4 * a)
    found = (a > 0) & (np.abs(at) <= FARTHEST)
    return np.where(found, middle + at, np.nan), np.where(found, lowest, np.nan)


def valley(n: Array, d: Array, loss: Array, flops: Array) -> Minimum | Skipped:
    """The minimum of one budget, in N and in D."""
    budget = float(np.exp(np.log(flops).mean()))
    if len(np.unique(n)) < FEWEST_SIZES:
        return Skipped(flops=budget, runs=len(n), reason=f"{len(np.unique(n))} sizes, fewer than {FEWEST_SIZES}")
    in_n, in_d = parabola_minimum(n, loss), parabola_minimum(d, loss)
    if in_n is None or in_d is None:
        return Skipped(flops=budget, runs=len(n), reason="the parabola has no minimum near the sizes")
    x, y = in_n[0], in_d[0]
    inside = np.log10(n.min()) < x < np.log10(n.max()) and np.log10(d.min()) < y < np.log10(d.max())
    return Minimum(flops=budget, runs=len(n), n_opt=10**x, d_opt=10**y, loss=in_n[1], at_edge=not inside)


@dataclass(frozen=True, kw_only=True)
class Minima:
    """Lowest points as columns: what the lines are fitted to."""

    flops: Array
    n_opt: Array
    d_opt: Array
    loss: Array

    def __len__(self) -> int:
        return len(self.flops)

    def points(self) -> list[Minimum]:
        rows = zip(self.flops.tolist(), self.n_opt.tolist(), self.d_opt.tolist(), self.loss.tolist(), strict=True)
        return [Minimum(flops=c, runs=1, n_opt=n, d_opt=d, loss=v, at_edge=False) for c, n, d, v in rows]


def columns_of(minima: list[Minimum]) -> Minima:
    return Minima(
        **{name: np.array([getattr(m, name) for m in minima]) for name in ("flops", "n_opt", "d_opt", "loss")}
    )


def frontier(minima: Minima) -> dict[str, float]:
    """Least squares of log N_opt and log D_opt on log C."""
    log_c = np.log10(minima.flops)
    (a, k), (b, m) = (np.polyfit(log_c, np.log10(y), 1) for y in (minima.n_opt, minima.d_opt))
    return {"N_exponent": float(a), "N_coef": float(10**k), "D_exponent": float(b), "D_coef": float(10**m)}


# ----------------------------------------------------------------------------------------- approach 2


def fit_isoflop(points: Points, s: FitSettings) -> FitResult:
    """Approach 2, with intervals from losses redrawn about each budget's parabola."""
    n, d, c, loss = columns(points, s, "isoflop")
    groups = budgets(c)
    found = valleys(n, d, c, loss)
    minima, skipped = apart(found)
    need(len(minima) >= 2, points, f"{len(minima)} of {len(groups)} FLOP budgets have a minimum")
    used = [g for g, m in zip(groups, found, strict=True) if isinstance(m, Minimum)]
    sampled = redrawn_lines(n, d, loss, used, minima, s.bootstrap, np.random.default_rng(s.seed)) if s.bootstrap else []
    rows = tuple({**vars(m), "kept": isinstance(m, Minimum), "reason": getattr(m, "reason", "")} for m in found)
    lowest = columns_of(minima)
    return result(
        points,
        s,
        "isoflop",
        frontier(lowest),
        sampled,
        edge_reasons(minima, skipped),
        {"isoflop": rows},
        frontier_residual(lowest),
        held_out("isoflop", minima[-1:], smaller([[m] for m in minima])),
        evidence(lowest, [np.log10(n[g]) for g in used]),
    )


def valleys(n: Array, d: Array, c: Array, loss: Array) -> list[Minimum | Skipped]:
    """The minimum of each budget, smallest budget first."""
    return [valley(n[g], d[g], loss[g], c[g]) for g in budgets(c)]


def apart(found: Sequence[Minimum | Skipped]) -> tuple[list[Minimum], list[Skipped]]:
    return [m for m in found if isinstance(m, Minimum)], [m for m in found if isinstance(m, Skipped)]


def too_few_minima(points: Points, s: FitSettings) -> Verdict | None:
    """Why approach 2 has no line to trust: fewer than three budgets have a minimum among their sizes; None where they have."""
    n, d, c, loss = columns(points, s, "isoflop")
    minima, skipped = apart(valleys(n, d, c, loss))
    if sum(not m.at_edge for m in minima) >= FEWEST_BUDGETS:
        return None
    return Verdict(
        identified=False,
        reasons=tuple(edge_reasons(minima, skipped)),
        law="isoflop",
        reported="isoflop",
        refused_params=frontier(columns_of(minima)) if len(minima) >= 2 else None,
    )


def redrawn_lines(
    n: Array, d: Array, loss: Array, groups: list[Array], minima: list[Minimum], count: int, rng: np.random.Generator
) -> list[dict[str, float]]:
    """The lines of `count` studies whose losses lie about each budget's parabola as the measured ones do.

    Relative residuals are drawn with replacement within their budget, widened for the three coefficients. Drawing runs
    instead leaves budgets with few sizes: on simulated studies its 80 % intervals covered 90 to 96 %, its 95 % ones
    99.5 to 100 %, at up to twice the width; these cover 84 to 92 % and 96 to 99 %.
    """
    sizes, tokens = [], []
    for g in groups:
        x, k = np.log10(n[g]), len(g)
        fitted = np.polyval(np.polyfit(x - x.mean(), loss[g], 2), x - x.mean())
        residual = (loss[g] / fitted - 1) * np.sqrt(k / (k - 3))
        drawn = fitted * (1 + rng.choice(residual, (count, k)))
        sizes.append(parabola_minima(x, drawn)[0])
        tokens.append(parabola_minima(np.log10(d[g]), drawn)[0])
    log_n, log_d, flops = np.array(sizes).T, np.array(tokens).T, np.array([m.flops for m in minima])
    lines = []
    for row_n, row_d in zip(log_n, log_d, strict=True):
        at = np.isfinite(row_n) & np.isfinite(row_d)
        if at.sum() >= 2:
            lines.append(
                frontier(Minima(flops=flops[at], n_opt=10 ** row_n[at], d_opt=10 ** row_d[at], loss=row_n[at]))
            )
    return lines


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


def frontier_residual(minima: Minima) -> Array:
    """log10 distances of the minima from the N line."""
    line = frontier(minima)
    return np.log10(minima.n_opt / (line["N_coef"] * minima.flops ** line["N_exponent"]))


def evidence(minima: Minima, parabolas: Sequence[Array] = ()) -> Optimum:
    """Why nothing was searched: every step is linear least squares, whose one minimum is found in closed form.

    The gradient is that of the N line; the condition number is the largest of the line's and of the budgets' parabolas'
    (log sizes of each in `parabolas`), in centred coordinates with columns of equal length.
    """
    x, line = np.log10(minima.flops), frontier(minima)
    design = scaled_powers(x, 1)
    residual = np.log10(minima.n_opt) - np.polyval([line["N_exponent"], np.log10(line["N_coef"])], x)
    objective = float((residual**2).sum())
    designs = [design, *(scaled_powers(sizes, 2) for sizes in parabolas)]
    theta = np.array([line[name] for name in PARAMETERS])
    return Optimum(
        theta=theta,
        objective=objective,
        start_share=1.0,
        starts=0,
        runner_up=None,
        runner_up_params=None,
        grad_norm=float(np.linalg.norm(design.T @ residual) / np.sqrt(max(objective, 1e-20 * len(x)))),
        condition=max(float(np.linalg.cond(d.T @ d)) for d in designs),
        minima=theta[None],
    )


def scaled_powers(x: Array, degree: int) -> Array:
    """Powers 0 to `degree` of x about its mean, each column of length 1."""
    columns = np.vander(x - x.mean(), degree + 1)
    return np.asarray(columns / np.linalg.norm(columns, axis=0))


Groups = list[
    list[Minimum]
]  # budgets of approach 2; winning sizes of approach 1, whose minima along one curve are not independent


def smaller(groups: Groups) -> list[Groups]:
    """What is left without the largest one, two and three groups, as long as there are two."""
    return [groups[:-k] for k in range(1, min(3, len(groups) - 2) + 1)]


def held_out(law: str, largest: list[Minimum], smaller_groups: Sequence[Groups]) -> tuple[HoldOut, ...]:
    """The optimal size at the largest group of minima predicted from each choice of smaller groups, which must not know it."""
    out = []
    for kept in smaller_groups:
        target = centre(largest)
        line, last = frontier(columns_of([m for g in kept for m in g])), centre(kept[-1])
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
                    "last_optimum": last.n_opt,
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
    table = curve_table(n, d, c, loss, curves)
    minima = envelope(table, np.arange(len(curves)))
    need(len(minima) >= 2, points, "no compute at which a middle size is the best")
    rng = np.random.default_rng(s.seed)
    drawn = (rng.integers(0, len(curves), len(curves)) for _ in range(s.bootstrap))
    sampled = [frontier(m) for rows in drawn if len(m := envelope(table, rows)) >= 2]
    sizes = sorted(set(minima.n_opt))
    reasons = (
        []
        if len(sizes) >= FEWEST_BUDGETS
        else [f"only {len(sizes)} sizes are ever the best and not at the end of the ladder"]
    )
    found = minima.points()
    # a larger curve bounds the stretches that smaller ones win: what is predicted from is found without it
    below = [by_size(envelope(table, np.flatnonzero(table.sizes < size))) for size in sizes[:-4:-1]]
    held = held_out("envelope", by_size(minima)[-1], [groups for groups in below if len(groups) >= 2])
    return result(
        points,
        s,
        "envelope",
        frontier(minima),
        sampled,
        reasons,
        {"envelope": tuple(vars(m) for m in found[:: max(1, len(found) // 100)])},
        frontier_residual(minima),
        held,
        evidence(minima),
    )


@dataclass(frozen=True, kw_only=True)
class CurveTable:
    """Every training curve interpolated on one grid of compute, (curves, steps); inf where a curve does not reach."""

    flops: Array
    sizes: Array  # of each curve
    loss: Array
    tokens: Array


def curve_table(n: Array, d: Array, c: Array, loss: Array, curves: list[Array]) -> CurveTable:
    used = c[np.concatenate(curves)]
    grid = np.geomspace(used.min(), used.max(), ENVELOPE_STEPS)
    table = np.full((len(curves), len(grid)), np.inf)
    tokens = np.full((len(curves), len(grid)), np.inf)
    for i, g in enumerate(curves):
        inside = (grid >= c[g[0]]) & (grid <= c[g[-1]])
        for out, values in ((table, loss), (tokens, d)):
            out[i, inside] = np.exp(np.interp(np.log(grid[inside]), np.log(c[g]), np.log(values[g])))
    return CurveTable(flops=grid, sizes=np.array([n[g[0]] for g in curves]), loss=table, tokens=tokens)


def envelope(table: CurveTable, rows: Array) -> Minima:
    """Per compute the lowest of the curves `rows`; computes won by their smallest or largest size are left out (its neighbours are missing)."""
    sizes, steps = table.sizes[rows], np.arange(len(table.flops))
    best = np.argmin(table.loss[rows], 0)
    lowest, size = table.loss[rows[best], steps], sizes[best]
    kept = np.isfinite(lowest) & (size != sizes.min()) & (size != sizes.max())
    tokens = table.tokens[rows[best], steps]
    return Minima(flops=table.flops[kept], n_opt=size[kept], d_opt=tokens[kept], loss=lowest[kept])


def by_size(minima: Minima) -> Groups:
    """The minima that each winning size has, smallest size first."""
    found = minima.points()
    return [[m for m in found if m.n_opt == size] for size in sorted(set(minima.n_opt))]


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
    optimum: Optimum,
) -> FitResult:
    """The common result object."""
    samples = np.array([[one[name] for name in PARAMETERS] for one in sampled]).reshape(-1, len(PARAMETERS))
    ci: dict[str, dict[str, Interval]] = {}
    errors: dict[str, float] = {}
    for i, name in enumerate(PARAMETERS if len(samples) else ()):
        ci[name] = {str(level): interval(samples[:, i], level) for level in LEVELS}
        errors[name] = deviation(samples[:, i])
    for name, same in (("a_opt", "N_exponent"), ("b_opt", "D_exponent")) if ci else ():
        ci[name], errors[name] = ci[same], errors[same]
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
        optimum=optimum,
        ci=ci,
        standard_errors=errors,
        derived={"a_opt": params["N_exponent"], "b_opt": params["D_exponent"]},
        verdict=Verdict(identified=not reasons, reasons=tuple(reasons), law=law, reported=law),
        holdout=holdout if s.holdout != 0 else (),
        noise=None,
        resampling=("residuals" if law == "isoflop" else "pairs") if len(samples) else "none",
        predictions=tuple(allocation(params, samples, dict(target)) for target in s.targets),
        allocation=allocation(params, samples, {"flops": float(points.column("flops").max())}),
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
