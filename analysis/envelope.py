"""Chinchilla approach 1 (envelope): of all training curves, the run with the lowest loss at each compute; its N and D
against C."""

from dataclasses import dataclass

import numpy as np

from analysis.minima import FEWEST_BUDGETS, Groups, Minima, columns, frontier, held_out, lines_result, need
from analysis.result import FitResult, FitSettings
from analysis.rows import Array, Points

STEPS = 1500  # budgets at which the lowest curve is looked up (Hoffmann et al. 2022)


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
    minima = lowest(table, np.arange(len(curves)))
    need(len(minima) >= 2, points, "no compute at which a middle size is the best")
    rng = np.random.default_rng(s.seed)
    drawn = (rng.integers(0, len(curves), len(curves)) for _ in range(s.bootstrap))
    sampled = [frontier(m) for rows in drawn if len(m := lowest(table, rows)) >= 2]
    sizes = sorted(set(minima.n_opt))
    reasons = (
        []
        if len(sizes) >= FEWEST_BUDGETS
        else [f"only {len(sizes)} sizes are ever the best and not at the end of the ladder"]
    )
    # a larger curve bounds the stretches that smaller ones win: what is predicted from is found without it
    below = [by_size(lowest(table, np.flatnonzero(table.sizes < size))) for size in sizes[:-4:-1]]
    found = minima.points()
    return lines_result(
        points,
        s,
        "envelope",
        minima,
        rows=[vars(m) for m in found[:: max(1, len(found) // 100)]],
        sampled=sampled,
        reasons=reasons,
        holdout=held_out("envelope", by_size(minima)[-1], [groups for groups in below if len(groups) >= 2]),
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
    grid = np.geomspace(used.min(), used.max(), STEPS)
    table = np.full((len(curves), len(grid)), np.inf)
    tokens = np.full((len(curves), len(grid)), np.inf)
    for i, g in enumerate(curves):
        inside = (grid >= c[g[0]]) & (grid <= c[g[-1]])
        for out, values in ((table, loss), (tokens, d)):
            out[i, inside] = np.exp(np.interp(np.log(grid[inside]), np.log(c[g]), np.log(values[g])))
    return CurveTable(flops=grid, sizes=np.array([n[g[0]] for g in curves]), loss=table, tokens=tokens)


def lowest(table: CurveTable, rows: Array) -> Minima:
    """Per compute the lowest of the curves `rows`; computes won by their smallest or largest size are left out (its neighbours are missing)."""
    sizes, steps = table.sizes[rows], np.arange(len(table.flops))
    best = np.argmin(table.loss[rows], 0)
    loss, size = table.loss[rows[best], steps], sizes[best]
    kept = np.isfinite(loss) & (size != sizes.min()) & (size != sizes.max())
    tokens = table.tokens[rows[best], steps]
    return Minima(flops=table.flops[kept], n_opt=size[kept], d_opt=tokens[kept], loss=loss[kept])


def by_size(minima: Minima) -> Groups:
    """The minima that each winning size has, smallest size first."""
    found = minima.points()
    return [[m for m in found if m.n_opt == size] for size in sorted(set(minima.n_opt))]
