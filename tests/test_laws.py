"""Proves that every law predicts by its formula and that its derivatives are those of the formula, in every batch row."""

import numpy as np
import pytest
from scaling import HOFFMANN, loss_of, make_points

from analysis.estimate import estimate
from analysis.laws import LAWS, internal, law_named, named, shared_offset
from analysis.objective import model_of
from gopher.errors import UsageError

EXAMPLES = {
    "power_law": {"A": 12.0, "alpha": 0.08},
    "power_law_offset": {"A": 40.0, "E": 1.7, "alpha": 0.25},
    "flops": {"A": 90.0, "E": 1.7, "alpha": 0.12},
    "flops_power_law": {"A": 30.0, "alpha": 0.06},
    "kaplan_n": {"A": 12.0, "alpha": 0.076},
    "kaplan_d": {"A": 12.0, "alpha": 0.095},
    "kaplan_c": {"A": 30.0, "alpha": 0.05},
    "chinchilla": HOFFMANN,
    "chinchilla_tied": {"A": 406.4, "B": 410.7, "E": 1.69, "alpha": 0.31},
    "overtraining": {"a": 200.0, "b": 400.0, "E": 1.8, "eta": 0.14},
    "data_constrained": HOFFMANN | {"R_D": 15.0, "R_N": 5.0},
    "bnsl": {"a": 0.4, "b": 9.0, "c0": 0.05, "c1": 0.6, "d1": 3e8, "f1": 0.4},
}
N = np.array([2e7, 1e8, 4e8, 2e9, 9e9, 5e7, 7e8])
INPUTS = {
    "params": N,
    "tokens": N * np.array([3.0, 200.0, 20.0, 8.0, 40.0, 900.0, 60.0]),
    "unique_tokens": np.full(7, 2e9),
}
INPUTS["flops"] = 6 * N * INPUTS["tokens"]


def test_every_law_has_an_example():
    assert set(EXAMPLES) == set(LAWS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_gradient_is_the_slope_of_the_prediction(name):
    law, params = law_named(name), EXAMPLES[name]
    theta = internal(law, params)
    for j in range(len(theta)):
        step = np.zeros(len(theta))
        step[j] = 1e-6
        slope = (law.log_predict((theta + step)[None], INPUTS) - law.log_predict((theta - step)[None], INPUTS))[
            0
        ] / 2e-6
        np.testing.assert_allclose(law.gradient(params, INPUTS)[:, j], slope, atol=1e-7)
    assert named(law, theta) == pytest.approx(dict(params))


@pytest.mark.parametrize("delta", [None, 1e-2])
@pytest.mark.parametrize("name", EXAMPLES)
def test_objective_derivatives(name, delta):
    """Gradient and exact Hessian of the batched objective against differences; a second row shows that rows do not mix."""
    law, params = law_named(name), EXAMPLES[name]
    loss = law.predict(params, INPUTS) * np.exp(0.03 * np.sin(np.arange(7.0)))
    model = model_of(law, INPUTS, loss)
    t = model.from_theta(np.stack([internal(law, params)] * 2) + np.array([[0.0], [0.01]]))
    w = np.stack([np.arange(1.0, 8.0), np.ones(7)])
    _, gradient, hessian = model.evaluate(t, w, delta, True)
    for j in range(model.size):
        step = np.zeros(model.size)
        step[j] = 1e-6
        up, down = model.evaluate(t + step, w, delta, True), model.evaluate(t - step, w, delta, True)
        np.testing.assert_allclose(
            gradient[:, j], (up[0] - down[0]) / 2e-6, rtol=1e-5, atol=1e-6 * np.abs(gradient).max()
        )
        scale = np.abs(hessian).max()
        np.testing.assert_allclose(hessian[:, j], (up[1] - down[1]) / 2e-6, rtol=2e-4, atol=2e-5 * scale)


def test_formulas():
    assert law_named("chinchilla").predict(HOFFMANN, INPUTS) == pytest.approx(
        loss_of(INPUTS["params"], INPUTS["tokens"])
    )
    p = EXAMPLES["overtraining"]
    ratio = INPUTS["tokens"] / INPUTS["params"]
    by_hand = p["E"] + (p["a"] * ratio ** p["eta"] + p["b"] * ratio ** -p["eta"]) * INPUTS["flops"] ** -p["eta"]
    assert law_named("overtraining").predict(p, INPUTS) == pytest.approx(by_hand)
    p = EXAMPLES["bnsl"]
    x = INPUTS["params"]
    by_hand = p["a"] + p["b"] * x ** -p["c0"] * (1 + (x / p["d1"]) ** (1 / p["f1"])) ** (-p["c1"] * p["f1"])
    assert law_named("bnsl").predict(p, INPUTS) == pytest.approx(by_hand)


def test_kaplan_scale():
    quantities = {name: np.array([value]) for name, value in EXAMPLES["kaplan_n"].items()}
    n_c = law_named("kaplan_n").derived(quantities)["N_c"][0]
    assert (n_c / N) ** 0.076 == pytest.approx(law_named("kaplan_n").predict(EXAMPLES["kaplan_n"], INPUTS))


def test_optimal_allocation_minimises_the_loss_at_fixed_compute():
    law = law_named("chinchilla")
    quantities = {name: np.array([value]) for name, value in HOFFMANN.items()}
    best = {name: float(v[0]) for name, v in law.allocate(quantities, 5.76e23).items()}
    n = best["N_opt"] * np.exp(np.linspace(-0.3, 0.3, 7))
    losses = loss_of(n, 5.76e23 / 6 / n)
    assert int(np.argmin(losses)) == 3 and losses[3] == pytest.approx(best["loss_opt"])
    assert best["N_opt"] * best["D_opt"] * 6 == pytest.approx(5.76e23)


def test_repetition_worth_keeps_its_digits_for_large_scales():
    """1 - exp(-R / R*) written out is 0 at R* = 1e17 and makes a false minimum; the worth must go to R."""
    law = law_named("data_constrained")
    free = law.predict(HOFFMANN | {"R_D": 1e17, "R_N": 1e17}, INPUTS)
    assert free == pytest.approx(loss_of(INPUTS["params"], INPUTS["tokens"]), rel=1e-12)


def test_irreducible_loss_can_be_pinned_and_shared():
    n = np.geomspace(1e6, 1e9, 6)
    points = make_points(n, None, 1.7 + 40 * n**-0.25)
    pinned = estimate(law_named("power_law_offset"), points, pinned={"E": 1.6})
    assert pinned.params["E"] == 1.6 and pinned.free == 2
    families = ("dense", "sparse")
    inputs = {"params": np.tile(n, 2), "family": np.repeat(families, 6)}
    loss = 1.7 + np.concatenate([40 * n**-0.25, 25 * n**-0.22])
    law = shared_offset("params", families)
    model = model_of(law, inputs, loss)
    from analysis.optimum import optimise

    found = named(law, optimise(model, inputs, np.ones(12), None, {}, wide=False).theta)
    assert found == pytest.approx(
        {"A@dense": 40.0, "A@sparse": 25.0, "E": 1.7, "alpha@dense": 0.25, "alpha@sparse": 0.22}, rel=1e-4
    )


def test_unknown_laws_are_met_with_a_suggestion():
    with pytest.raises(UsageError, match="law is 'chincilla'; did you mean 'chinchilla'"):
        law_named("chincilla")
    with pytest.raises(UsageError, match="x is 'size'"):
        law_named("power_law", "size")
