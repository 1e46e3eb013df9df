"""Scatter of log loss about a law: within design points (seeds), between them (lack of fit), and which one predictions use."""

from dataclasses import dataclass

import numpy as np

from analysis.rows import Array


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Scatter of log loss. A design point is one (N, D, C); several runs at it differ by seed."""

    residual_sd_log: float | None  # of design-point means about the law
    residual_dof: int
    seed_sd_log: float | None  # between runs of one design point, pooled
    seed_dof: int
    prediction_sd_log: float | None  # of one new run about the law; None without degrees of freedom
    prediction_dof: int
    per: str  # run: the scatter is that of seeds and more of them average it out; rung: lack of fit, which they do not
    unit_sd_log: float | None  # of an observation of weight 1 in the objective
    seed_weight: float  # weight of one new run, in the same units, when per is run
    rung_weight: float  # weight of a new design point when per is rung

    def target_weight(self, runs: int) -> float:
        """Weight of a new design point with `runs` runs."""
        return self.seed_weight * runs if self.per == "run" else self.rung_weight


def noise_of(residuals: Array, design: Array, weights: Array, free: int) -> Noise:
    """Seed and lack-of-fit scatter of a fit with `free` parameters and run weights `weights`.

    They are pooled only where lack of fit shows no larger mean square than seeds do. Otherwise it alone, with its few
    degrees of freedom, is the basis for predicting a new rung: a significance test before pooling has too little power
    with one or two degrees of freedom, and the intervals then cover 88 % instead of 95 % (simulated ladders).
    """
    codes, index, counts = np.unique(design, return_inverse=True, return_counts=True)
    means = np.bincount(index, residuals) / counts
    totals = np.bincount(index, weights)  # weight of a design point: 1 when seeds are averaged, its runs otherwise
    within = float(((residuals - means[index]) ** 2).sum())
    between = float((totals * means**2).sum())
    seed_dof, fit_dof = len(residuals) - len(codes), max(len(codes) - free, 0)
    share = float((totals / counts).mean())  # E[between] / fit_dof = share * seed variance when the law is right
    seed = within / seed_dof if seed_dof else None
    lack = between / fit_dof if fit_dof else None
    dof = fit_dof + seed_dof
    if lack is not None and seed is not None and lack > seed * share:
        per, dof, unit, run = "rung", fit_dof, lack, lack / float(totals.mean())
    elif dof:
        run = ((between / share if fit_dof else 0.0) + within) / dof
        per, unit = "run", run * share
    else:
        per, unit, run = "run", None, None
    return Noise(
        residual_sd_log=root(None if lack is None else lack / float(totals.mean())),
        residual_dof=fit_dof,
        seed_sd_log=root(seed),
        seed_dof=seed_dof,
        prediction_sd_log=root(run),
        prediction_dof=dof,
        per=per,
        unit_sd_log=root(unit),
        seed_weight=share,
        rung_weight=float(totals.mean()),
    )


def root(square: float | None) -> float | None:
    return None if square is None else float(np.sqrt(square))
