"""What approaches 1 and 2 share: lowest points over compute, the lines N_opt = k C^a and D_opt = k' C^b through them, and
the result that these lines make. They give exponents and coefficients only; losses are predicted by approach 3."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t

from analysis.bootstrap import intervals, uncertainty
from analysis.holdout import HoldOut
from analysis.identify import Verdict
from analysis.optimum import Optimum
from analysis.result import FitResult, FitSettings, Prediction
from analysis.rows import Array, Points
from gopher.errors import UsageError

FEWEST_BUDGETS = 3  # two budgets give a line and no way to doubt it
PARAMETERS = ("N_exponent", "N_coef", "D_exponent", "D_coef")
COLUMNS = ("flops", "n_opt", "d_opt", "loss")


@dataclass(frozen=True, kw_only=True)
class Minimum:
    """The lowest point of one budget."""

    flops: float
    runs: int
    n_opt: float
    d_opt: float
    loss: float
    at_edge: bool  # outside the sizes that were run, or the smallest or largest of them


Groups = list[list[Minimum]]  # budgets of approach 2; winning sizes of approach 1, whose minima are not independent


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
    return Minima(**{name: np.array([getattr(m, name) for m in minima]) for name in COLUMNS})


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


# ----------------------------------------------------------------------------------------- the lines


def frontier(minima: Minima) -> dict[str, float]:
    """Least squares of log N_opt and log D_opt on log C."""
    log_c = np.log10(minima.flops)
    (a, k), (b, m) = (np.polyfit(log_c, np.log10(y), 1) for y in (minima.n_opt, minima.d_opt))
    return {"N_exponent": float(a), "N_coef": float(10**k), "D_exponent": float(b), "D_coef": float(10**m)}


def lines_at(p: Any, flops: Any) -> dict[str, Any]:
    """Both lines at a budget; `p` holds numbers or columns of them."""
    n, d = p["N_coef"] * flops ** p["N_exponent"], p["D_coef"] * flops ** p["D_exponent"]
    return {"N_opt": n, "D_opt": d, "tokens_per_parameter": d / n}


def line_residual(minima: Minima) -> Array:
    """log10 distances of the minima from the N line."""
    residual: Array = np.log10(minima.n_opt / lines_at(frontier(minima), minima.flops)["N_opt"])
    return residual


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


# ----------------------------------------------------------------------------------------- hold-outs


def held_out(law: str, largest: list[Minimum], smaller_groups: Sequence[Groups]) -> tuple[HoldOut, ...]:
    """The optimal size at the largest group of minima predicted from each choice of smaller groups, which must not know it."""
    out = []
    for kept in smaller_groups:
        target = centre(largest)
        line, last = frontier(columns_of([m for g in kept for m in g])), centre(kept[-1])
        predicted = lines_at(line, target.flops)["N_opt"]
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
    means = {name: float(np.exp(np.mean(np.log([getattr(m, name) for m in group])))) for name in COLUMNS}
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


# ---------------------------------------------------------------------------------------- the result


def lines_result(
    points: Points,
    s: FitSettings,
    law: str,
    minima: Minima,
    *,
    rows: Sequence[dict[str, Any]],
    sampled: Sequence[dict[str, float]],
    reasons: Sequence[str],
    holdout: tuple[HoldOut, ...],
    parabolas: Sequence[Array] = (),
) -> FitResult:
    """The lines through `minima` as the common result object, with intervals from the lines `sampled`."""
    params, residual = frontier(minima), line_residual(minima)
    samples = np.array([[one[name] for name in PARAMETERS] for one in sampled]).reshape(-1, len(PARAMETERS))
    drawn = dict(zip(PARAMETERS, samples.T, strict=True)) if len(samples) else {}
    ci, errors = uncertainty(drawn)
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
        optimum=evidence(minima, parabolas),
        ci=ci,
        standard_errors=errors,
        derived={"a_opt": params["N_exponent"], "b_opt": params["D_exponent"]},
        verdict=Verdict(identified=not reasons, reasons=tuple(reasons), law=law, reported=law),
        holdout=holdout if s.holdout != 0 else (),
        noise=None,
        resampling=("residuals" if law == "isoflop" else "pairs") if drawn else "none",
        predictions=tuple(allocation(params, drawn, dict(target)) for target in s.targets),
        allocation=allocation(params, drawn, {"flops": float(points.column("flops").max())}),
        tables={law: tuple(rows)},
        sample_values=samples,
    )


def allocation(params: dict[str, float], drawn: dict[str, Array], target: dict[str, float]) -> Prediction:
    """N_opt and D_opt at a budget; the loss there is not this law's business (nan)."""
    if set(target) != {"flops"}:
        raise UsageError(
            f"target {target} is not a FLOP budget; approaches 1 and 2 take targets such as {{flops: 5.76e+23}}"
        )
    c = float(target["flops"])
    ci = {name: intervals(v) for name, v in lines_at(drawn, c).items()} if drawn else {}
    return Prediction(inputs={"flops": c}, mean=float("nan"), intervals={}, derived=lines_at(params, c), derived_ci=ci)
