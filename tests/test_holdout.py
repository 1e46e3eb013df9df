"""Proves that hold-outs see smaller rungs only, that their intervals are honest where theory is exact, and that noise is pooled rightly."""

import numpy as np
import pytest
from scaling import ladder, make_points, study
from scipy import stats

from analysis.estimate import estimate
from analysis.holdout import error_log, rolling, rung_groups
from analysis.intervals import prediction_intervals
from analysis.laws import law_named
from analysis.noise import noise_of

POWER = law_named("power_law")


def roll(points, law=POWER, most=None):
    return rolling(law, points, parameters="total", delta=None, pinned={}, seeds="mean", most=most)


def test_largest_rungs_are_predicted_from_smaller_ones_only():
    points = ladder(np.random.default_rng(1))
    held = roll(points)
    assert [(h.rung, h.fitted_rungs) for h in held] == [
        ("1e+09", 5),
        ("1e+09", 4),
        ("2.512e+08", 4),
        ("1e+09", 3),
        ("2.512e+08", 3),
        ("6.31e+07", 3),
    ]
    n, loss = points.column("params_total"), points.column("loss")
    small = n < 9e8
    weights = np.array([1 / (n == v).sum() for v in n])[small]
    slope, middle = np.polyfit(np.log(n[small]), np.log(loss[small]), 1, w=np.sqrt(weights))
    assert held[0].predicted == pytest.approx(np.exp(middle + slope * np.log(1e9)))
    assert held[0].actual == pytest.approx(loss[-1]) and held[0].decades == pytest.approx(0.6)
    assert held[0].baselines["no_offset"] == pytest.approx(held[0].predicted)
    assert held[0].baselines["last_point"] == pytest.approx(loss[-2])


def test_a_law_is_held_out_while_a_degree_of_freedom_is_left():
    points = ladder(np.random.default_rng(2), sizes=5)
    assert len(roll(points, law_named("power_law_offset"))) == 1
    assert len(roll(points, law_named("power_law_offset"), most=0)) == 0
    assert len(roll(points)) == 3
    assert error_log(()) is None


def test_prediction_interval_of_a_linear_law_is_students():
    n = np.geomspace(1e6, 1e9, 6)
    x, y = np.log(n), np.log(12 * n**-0.08) + 0.01 * np.random.default_rng(3).standard_normal(6)
    e = estimate(POWER, make_points(n, None, np.exp(y)))
    line = stats.linregress(x, y)
    s = np.sqrt(((y - line.intercept - line.slope * x) ** 2).sum() / 4)
    at = np.log(1e11)
    for noise, extra in ((True, 1.0), (False, 0.0)):
        half = stats.t.ppf(0.9, 4) * s * np.sqrt(extra + 1 / 6 + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
        low, high = prediction_intervals(e, None, {"params": [1e11]}, [80.0], noise=noise)[80.0]
        assert np.log([low[0], high[0]]) == pytest.approx(
            [line.intercept + line.slope * at - half, line.intercept + line.slope * at + half], abs=half * 0.02
        )


def test_a_floor_makes_the_interval_lopsided():
    """Far out the loss cannot fall below the straight line but can stay near the last rung."""
    e = estimate(law_named("power_law_offset"), ladder(np.random.default_rng(4), noise=0.003), seeds="mean")
    low, high = prediction_intervals(e, None, {"params": [1e12]}, [95.0])[95.0]
    middle = float(e.law.predict(e.params, {"params": [1e12]})[0])
    assert low[0] < middle < high[0] and abs(np.log(high[0] / middle)) != pytest.approx(
        abs(np.log(low[0] / middle)), rel=0.05
    )


def test_no_degrees_of_freedom_give_no_interval():
    e = estimate(POWER, make_points(np.array([1e6, 1e7]), None, np.array([4.0, 3.5])))
    low, high = prediction_intervals(e, None, {"params": [1e8]}, [95.0])[95.0]
    assert np.isnan(low[0]) and np.isnan(high[0])


def test_seed_noise_is_pooled_unless_lack_of_fit_dominates():
    rng = np.random.default_rng(5)
    design = np.repeat(np.arange(8), 3)
    seeds = 0.01 * rng.standard_normal(24)
    seeds -= np.repeat(seeds.reshape(8, 3).mean(1), 3) * 0.5  # no lack of fit beyond what seeds make
    small = noise_of(seeds, design, np.full(24, 1 / 3), 2)
    assert small.per == "run" and small.prediction_dof == 22 and small.seed_dof == 16
    assert small.seed_sd_log == pytest.approx(0.01, rel=0.3) and small.target_weight(3) == pytest.approx(1.0)
    rung = 0.05 * rng.standard_normal(8)
    large = noise_of(seeds + rung[design], design, np.full(24, 1 / 3), 2)
    assert large.per == "rung" and large.prediction_dof == 6 and large.target_weight(3) == 1.0
    assert large.prediction_sd_log == pytest.approx(0.05, rel=0.5)


def test_many_sizes_are_held_out_in_bins_of_compute():
    points = study(np.random.default_rng(6), noise=0.003, sizes=30, ratios=4)
    groups = rung_groups(points, "flops", "total")
    assert len(groups) == 10 and sum(map(len, groups.values())) == 120
    held = rolling(law_named("chinchilla"), points, parameters="total", delta=1e-3, pinned={}, seeds="runs", most=1)
    assert abs(held[0].error_percent) < 0.5 and held[0].interval95 is not None
    assert held[0].x == "flops" and held[0].decades > 0  # more compute, if not more parameters than the smaller bins
    assert held[0].interval95[0] < held[0].predicted < held[0].interval95[1]
