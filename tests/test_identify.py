"""Proves that a number is refused when the data do not determine it, with the reason, and not refused when they do."""

import numpy as np
import pytest
from scaling import HOFFMANN, ladder, loss_of, make_points, study

from analysis.bootstrap import pairs
from analysis.estimate import estimate
from analysis.fit import FitSettings, fit
from analysis.laws import law_named
from analysis.rows import Points

QUICK = {"bootstrap": 60, "holdout": 0, "sensitivity": False}


def verdict_of(points, **values):
    result = fit(points, FitSettings(**QUICK, **values))
    return result, " ".join(result.verdict.reasons)


def noisy(n, d, seed=0, noise=0.003):
    return loss_of(n, d) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))


N = np.geomspace(3e7, 1e10, 12)


@pytest.mark.parametrize(
    ("tokens", "word"),
    [
        (20 * N, "about 20 tokens per parameter"),
        (np.full(12, 3e11), "about 3e+11 tokens"),
        (5 * N**0.8, "D follows N^0.80"),
        (1e21 / 6 / N, "D follows N^-1.00"),
    ],
)
def test_collinear_ladders_are_refused_and_fall_back_to_flops(tokens, word):
    points = make_points(N, tokens, noisy(N, tokens), flops=np.geomspace(1e17, 1e21, 12))
    result, reasons = verdict_of(points, law="chinchilla")
    assert not result.verdict.identified and "collinear" in reasons and word in reasons
    assert result.law in ("flops", "flops_power_law") and result.verdict.law == "chinchilla"
    assert result.verdict.refused_params is not None and set(result.params) <= {"A", "E", "alpha"}
    assert f"{result.law} is reported instead of chinchilla" in reasons


def test_one_size_cannot_carry_a_parameter_exponent():
    d = np.geomspace(1e9, 1e11, 9)
    n = np.full(9, 1e8)
    result, reasons = verdict_of(make_points(n, d, noisy(n, d), flops=6 * n * d), law="chinchilla", fallback=False)
    assert result.law == "chinchilla" and not result.verdict.identified and "about 1e+08 parameters" in reasons


def test_a_grid_of_sizes_and_ratios_is_identified():
    result, reasons = verdict_of(study(np.random.default_rng(1), noise=0.003), law="chinchilla")
    assert result.verdict.identified and not reasons
    assert all(p.bounded == (True, True) for p in result.profiles)


def test_no_degrees_of_freedom():
    n = N[:3]
    result, reasons = verdict_of(make_points(n, None, noisy(n, 20 * n)), law="power_law_offset")
    assert "no degrees of freedom: 3 distinct design point(s) for 3 free parameters" in reasons
    assert result.law == "power_law"
    two = fit(make_points(n[:2], None, noisy(n[:2], 20 * n[:2])), FitSettings(**QUICK, law="power_law"))
    assert not two.verdict.identified and two.ci == {} and two.noise is not None and two.noise.prediction_sd_log is None


def test_a_floor_that_is_not_there_is_not_reported():
    n = np.geomspace(1e6, 1e9, 7)
    loss = 12 * n**-0.08 * np.exp(0.002 * np.random.default_rng(3).standard_normal(7))
    result, reasons = verdict_of(make_points(n, None, loss), law="power_law_offset")
    assert result.law == "power_law" and "E is" in reasons
    assert abs(result.params["alpha"] - 0.08) < 0.005
    kept, _ = verdict_of(make_points(n, None, loss), law="power_law_offset", fallback=False)
    assert kept.law == "power_law_offset" and not kept.verdict.identified


def test_a_floor_that_is_there_is_reported():
    result, reasons = verdict_of(ladder(np.random.default_rng(4), noise=0.0005), law="power_law_offset")
    assert result.law == "power_law_offset" and result.verdict.identified and not reasons
    assert abs(result.params["E"] - 1.7) < 0.05


def test_an_exponent_that_runs_away_is_named():
    """Tokens that stopped mattering: beta and B have nothing to hold on to."""
    n, ratio = np.meshgrid(np.geomspace(3e7, 3e9, 6), [20.0, 60.0, 200.0])
    n, d = n.ravel(), (ratio * n).ravel()
    loss = (1.9 + 300 * n**-0.33) * np.exp(0.004 * np.random.default_rng(5).standard_normal(len(n)))
    result, reasons = verdict_of(make_points(n, d, loss, flops=6 * n * d), law="chinchilla", fallback=False)
    assert not result.verdict.identified and ("B is" in reasons or "beta is" in reasons)


def test_isoflop_minimum_on_the_edge_is_flagged():
    budgets = np.geomspace(1e18, 1e20, 4)
    flops = np.repeat(budgets, 6)
    n = np.concatenate([np.geomspace(0.02, 0.12, 6) * (c / 6) ** 0.5 for c in budgets])  # optimum near 0.16 sqrt(C / 6)
    d = flops / 6 / n
    result = fit(make_points(n, d, loss_of(n, d), flops=flops), FitSettings(**QUICK, law="isoflop"))
    assert not result.verdict.identified and "edge of its grid" in " ".join(result.verdict.reasons)
    assert result.law == "chinchilla" and result.verdict.law == "isoflop"  # no budget has a minimum among its sizes


def test_profile_limit_is_the_square_of_student_t():
    """For a power law (linear in log space) the profile interval is Student's interval."""
    from scipy import stats

    n = np.geomspace(1e6, 1e9, 7)
    loss = 12 * n**-0.08 * np.exp(0.01 * np.random.default_rng(6).standard_normal(7))
    result = fit(make_points(n, None, loss), FitSettings(**QUICK, law="power_law"))
    line = stats.linregress(-np.log(n), np.log(loss))
    half = stats.t.ppf(0.975, 5) * line.stderr
    profile = next(p for p in result.profiles if p.parameter == "alpha")
    inside = np.array(profile.values)[np.array(profile.excess) <= profile.limit]
    step = np.diff(np.array(profile.values)).max()
    assert profile.limit == pytest.approx(stats.t.ppf(0.975, 5) ** 2)
    np.testing.assert_allclose(
        np.interp([line.slope - half, line.slope + half], profile.values, profile.excess), profile.limit, rtol=0.06
    )
    assert line.slope - half - step < inside.min() and inside.max() < line.slope + half + step


@pytest.mark.parametrize("seed", [1, 5])
def test_losses_without_a_law_end_in_a_verdict(seed):
    """Random losses over a narrow range of sizes: an exponent free to run takes its amplitude out of float64."""
    rng = np.random.default_rng(seed)
    n, d = 1e6 * 10 ** rng.uniform(0, 0.3, 150), 10 ** rng.uniform(8, 12, 150)
    loss = rng.uniform(1, 5, 150)
    loss[np.argsort(n)[:3]] = 9
    result = fit(make_points(n, d, loss), FitSettings(law="chinchilla", bootstrap=0, holdout=0, fallback=False))
    assert not result.verdict.identified and all(np.isfinite(list(result.params.values())))


@pytest.mark.parametrize(("law", "letter", "words"), [("kaplan_n", "N", "tokens"), ("kaplan_d", "D", "parameters")])
def test_a_law_of_one_size_says_that_the_other_varies(law, letter, words):
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(3e7, 3e9, 5), np.geomspace(1e9, 3e11, 5)))
    points = make_points(n, d, noisy(n, d))
    result, reasons = verdict_of(points, law=law)
    assert not result.verdict.identified and f"{words} vary" in reasons and f"at equal {letter}" in reasons
    offset, told = verdict_of(points, law="power_law_offset", x="params" if letter == "N" else "tokens")
    assert offset.law == "power_law_offset" and f"{words} vary" in told  # the power law would mix them as well


def test_without_repetition_the_law_of_fresh_data_is_reported():
    points = study(np.random.default_rng(1), noise=0.003, sizes=6, ratios=5)
    fresh = Points(rows=tuple(type(p)(**{**vars(p), "unique_tokens": p.tokens}) for p in points))
    result, reasons = verdict_of(fresh, law="data_constrained")
    assert (
        result.law == "chinchilla" and "no run repeats its data" in reasons and result.verdict.law == "data_constrained"
    )


def test_resamples_stay_within_the_limits_of_a_law():
    """Excess parameters that cost nothing: R_N runs to its end, in the fit as in every resample."""
    rng = np.random.default_rng(2)
    n, d = 10 ** rng.uniform(7.5, 9.8, 40), 10 ** rng.uniform(9.0, 11.5, 40)
    unique = d / 10 ** rng.uniform(0, 1.7, 40)
    law = law_named("data_constrained")
    truth = HOFFMANN | {"R_D": 12.0, "R_N": 1e5}
    loss = law.predict(truth, {"params": n, "tokens": d, "unique_tokens": unique}) * np.exp(
        0.01 * rng.standard_normal(40)
    )
    e = estimate(law, make_points(n, d, loss, unique=unique), delta=1e-3)
    theta = pairs(e, 40, 0).theta
    for name, (low, high) in law.limits.items():
        column = theta[:, law.parameters.index(name)]
        assert low <= column.min() and column.max() <= high
