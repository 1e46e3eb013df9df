"""Simulated scaling studies with a known truth, shared by the tests of `analysis`."""

import numpy as np

from analysis.rows import Point, Points
from analysis.table import in_order

HOFFMANN = {"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.34, "beta": 0.28}


def loss_of(n, d, p=None):
    p = p or HOFFMANN
    return p["E"] + p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"]


def study(rng=None, noise=0.0, sizes=10, ratios=6, scale=1.0):
    """Sizes x tokens-per-parameter ratios, log noise; `scale` changes the unit of N and D."""
    n, ratio = np.meshgrid(np.geomspace(3e7, 1e10, sizes), np.geomspace(2, 300, ratios))
    n = n.ravel()
    d = ratio.ravel() * n
    loss = loss_of(n, d) * (np.exp(noise * rng.standard_normal(len(n))) if rng is not None else 1.0)
    return make_points(n / scale, d / scale, loss, flops=6 * n * d)


def make_points(n, d, loss, flops=None, rungs=None, seeds=None, unique=None):
    rows = []
    for i in range(len(n)):
        rows.append(
            Point(
                run_id=f"run{i:04d}",
                rung=rungs[i] if rungs is not None else f"{n[i]:.4g}",
                loss=float(loss[i]),
                seed=None if seeds is None else int(seeds[i]),
                params_total=float(n[i]),
                tokens=None if d is None else float(d[i]),
                unique_tokens=None if unique is None else float(unique[i]),
                flops=None if flops is None else float(flops[i]),
            )
        )
    return Points(rows=in_order(tuple(rows)))


def ladder(
    rng, noise=0.002, sizes=6, seeds=(2, 2, 1, 1, 1, 1), e=1.7, a=40.0, alpha=0.25, ratio=20.0, low=1e6, high=1e9
):
    """One run per rung and seed at a fixed tokens-per-parameter ratio: loss = E + A / N^alpha with log noise."""
    n = np.repeat(np.geomspace(low, high, sizes), seeds[:sizes])
    number = np.concatenate([np.arange(s) for s in seeds[:sizes]])
    loss = (e + a * n**-alpha) * np.exp(noise * rng.standard_normal(len(n)))
    return make_points(n, ratio * n, loss, flops=6 * ratio * n * n, seeds=number)
