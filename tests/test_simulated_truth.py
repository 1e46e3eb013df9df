"""Proves on simulated studies with a known truth that 95 % intervals cover it 90 to 99 times in a hundred.

    python -m pytest tests/test_simulated_truth.py -m slow      (about three CPU minutes)

Parameters of the Chinchilla law (runs resampled), parameters of a ladder with a floor (losses redrawn), and prediction
intervals of a held-out largest rung, with equal noise and with the scatter between rungs larger than between seeds.
"""

from dataclasses import replace

import numpy as np
import pytest
from scaling import HOFFMANN, ladder, loss_of, make_points, study

from analysis.bootstrap import interval, resample
from analysis.estimate import estimate
from analysis.fit import FitSettings, fit
from analysis.holdout import rolling
from analysis.intervals import prediction_intervals
from analysis.laws import law_named

pytestmark = pytest.mark.slow
STUDIES = 200
LOW, HIGH = 0.90, 0.99


def coverage(hits):
    return {name: float(np.mean(values)) for name, values in hits.items()}


def assert_covered(hits):
    found = coverage(hits)
    assert all(LOW <= share <= HIGH for share in found.values()), found


def test_chinchilla_parameters_allocation_and_predictions():
    law = law_named("chinchilla")
    truth = {name: np.array([v]) for name, v in HOFFMANN.items()}
    quantities = HOFFMANN | {"a_opt": float(law.derived(truth)["a_opt"][0])}
    target = {"params": [7e10], "tokens": [1.4e12]}
    hits = {name: [] for name in (*quantities, "N_opt", "new run", "curve")}
    for k in range(STUDIES):
        rng = np.random.default_rng([1, k])
        e = estimate(law, study(rng, noise=0.01, sizes=12, ratios=8), delta=1e-3)
        r = resample(e, 250, k)
        values = r.quantities(e)
        for name, value in quantities.items():
            low, high = interval(values[name], 95)
            hits[name].append(low <= value <= high)
        low, high = interval(law.allocate(values, 5.76e23)["N_opt"], 95)
        hits["N_opt"].append(low <= law.allocate(truth, 5.76e23)["N_opt"][0] <= high)
        for name, noise in (("new run", True), ("curve", False)):
            actual = float(loss_of(7e10, 1.4e12)) * (np.exp(0.01 * rng.standard_normal()) if noise else 1.0)
            low, high = prediction_intervals(e, r, target, [95.0], noise=noise, seed=k)[95.0]
            hits[name].append(low[0] <= actual <= high[0])
    assert_covered(hits)


def test_ladder_parameters():
    hits = {"E": [], "alpha": [], "A": []}
    truth = {"E": 1.7, "alpha": 0.25, "A": 40.0}
    for k in range(STUDIES):
        points = ladder(np.random.default_rng([2, k]), noise=0.001, sizes=7, seeds=(2, 2, 1, 1, 1, 1, 1))
        e = estimate(law_named("power_law_offset"), points, seeds="mean")
        values = resample(e, 250, k).quantities(e)
        for name, value in truth.items():
            low, high = interval(values[name], 95)
            hits[name].append(low <= value <= high)
    assert_covered(hits)


@pytest.mark.parametrize(
    ("rung_scatter", "law"), [(0.0, "power_law_offset"), (0.004, "power_law_offset"), (0.0, "power_law")]
)
def test_held_out_rung_is_inside_its_prediction_interval(rung_scatter, law):
    """Six rungs, two with a second seed, the largest predicted from five: what the demo ladder shows."""
    hits = {"largest": [], "two ahead": []}
    floor = {"e": 1e-9, "a": 12.0, "alpha": 0.08} if law == "power_law" else {}
    for k in range(STUDIES):
        rng = np.random.default_rng([3, k])
        points = ladder(rng, noise=0.002, **floor)
        shift = dict(zip(sorted({p.params_total for p in points}), rung_scatter * rng.standard_normal(6), strict=True))
        rows = tuple(type(p)(**{**vars(p), "loss": p.loss * float(np.exp(shift[p.params_total]))}) for p in points)
        held = rolling(
            law_named(law), type(points)(rows=rows), parameters="total", delta=None, pinned={}, seeds="mean", most=2
        )
        for h, name in zip(held[:2], hits, strict=True):
            hits[name].append(h.interval95 is not None and h.interval95[0] <= h.actual <= h.interval95[1])
    assert_covered(hits)


def test_isoflop_exponent():
    """Seven budgets of 8 to 14 sizes; the truth is what the parabolas give without noise."""
    hits = {"N_exponent": [], "D_exponent": []}
    planted = {name: np.array([v]) for name, v in HOFFMANN.items()}
    budgets = np.geomspace(6e18, 3e21, 7)
    optima = np.array([law_named("chinchilla").allocate(planted, c)["N_opt"][0] for c in budgets])
    for k in range(STUDIES):
        rng = np.random.default_rng([4, k])
        sizes = rng.integers(8, 15, 7)
        flops, middle = np.repeat(budgets, sizes), np.repeat(optima, sizes)
        n = middle * 10 ** rng.uniform(-0.5, 0.5, len(flops))
        d, noise = flops / 6 / n, np.exp(0.003 * rng.standard_normal(len(flops)))
        settings = FitSettings(law="isoflop", bootstrap=250, holdout=0, fallback=False)
        truth = fit(make_points(n, d, loss_of(n, d), flops=flops), replace(settings, bootstrap=0))
        found = fit(make_points(n, d, loss_of(n, d) * noise, flops=flops), settings)
        for name in hits:
            low, high = found.ci[name]["95"]
            hits[name].append(low <= truth.params[name] <= high)
    assert_covered(hits)
