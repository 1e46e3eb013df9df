"""Proves that resamples are weights, that runs stay together, and that thousands of refits are each at their own optimum."""

import numpy as np
import pytest
from scaling import ladder, make_points, study

from analysis.bootstrap import interval, pairs, parametric, resample
from analysis.estimate import estimate
from analysis.laws import law_named
from analysis.objective import model_of
from analysis.optimum import optimise
from analysis.rows import Points


def chinchilla(points):
    return estimate(law_named("chinchilla"), points, delta=1e-3)


def test_each_resample_is_at_the_optimum_of_its_weights():
    e = chinchilla(study(np.random.default_rng(1), noise=0.01))
    counts = np.random.default_rng(2).multinomial(60, np.full(60, 1 / 60), 12)
    found = pairs(e, 12, 0, counts)
    for row, objective in zip(counts, found.objective, strict=True):
        full = optimise(e.model, e.inputs, row.astype(float), 1e-3, {}, wide=True)
        assert objective == pytest.approx(full.objective, rel=1e-6)


def test_a_resample_equals_a_fit_to_copies():
    e = chinchilla(study(np.random.default_rng(1), noise=0.01))
    counts = np.random.default_rng(3).multinomial(60, np.full(60, 1 / 60), 1)
    copies = {name: np.repeat(values, counts[0]) for name, values in e.inputs.items()}
    model = model_of(e.law, copies, np.repeat(e.loss, counts[0]))
    again = optimise(model, copies, np.ones(60), 1e-3, {}, wide=False)
    np.testing.assert_allclose(pairs(e, 1, 0, counts).theta[0], again.theta, rtol=1e-4)


def test_points_of_one_run_are_drawn_together():
    points = study(np.random.default_rng(4), noise=0.01, sizes=8, ratios=6)
    together = Points(rows=tuple(type(p)(**{**vars(p), "run_id": f"run{i // 6}"}) for i, p in enumerate(points)))
    assert together.clusters().max() == 7
    narrow, wide = (pairs(chinchilla(t), 200, 0).theta[:, 3].std() for t in (points, together))
    assert wide != narrow


def test_same_seed_same_numbers_whatever_the_row_order():
    points = study(np.random.default_rng(5), noise=0.01, sizes=6, ratios=5)
    first, again, other = (pairs(chinchilla(points), 50, seed).theta for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_method_follows_the_design():
    few = estimate(law_named("power_law_offset"), ladder(np.random.default_rng(6)), seeds="mean")
    many = chinchilla(study(np.random.default_rng(6), noise=0.01))
    assert resample(few, 20, 0).method == "parametric" and resample(many, 20, 0).method == "pairs"
    assert resample(many, 0, 0) is None
    exact = estimate(law_named("power_law"), make_points(np.array([1e6, 1e7]), None, np.array([4.0, 3.5])))
    assert resample(exact, 20, 0) is None  # two points, two parameters: no scatter to draw


def test_parametric_intervals_are_as_wide_as_students_t():
    """A power law is linear in log space, where the exact answer is known: 3 degrees of freedom, t = 3.18."""
    from scipy import stats

    n = np.geomspace(1e6, 1e9, 5)
    loss = 12 * n**-0.08 * np.exp(0.01 * np.random.default_rng(7).standard_normal(5))
    e = estimate(law_named("power_law"), make_points(n, None, loss))
    low, high = interval(parametric(e, 8000, 0).theta[:, 1], 95)
    line = stats.linregress(-np.log(n), np.log(loss))
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 3) * line.stderr, rel=0.1)


def test_interval_of_nothing_is_nothing():
    assert np.isnan(interval(np.array([np.nan, np.inf]), 95)).all()
