"""Proves: the schedule hits its published ends, Adam is Adam, and neither it nor rounding depends on the cut.

Compared with torch.optim.AdamW; shards of every size give the same bits; bfloat16 parameters with stochastic rounding
follow updates far below their resolution.
"""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import demo_spec

from gopher.draws import bits, fill_normal, stream_key
from gopher.errors import UsageError
from gopher.optim import Adam, Part, clip_scale, learning_rate, optimizer_of, stochastic_bfloat16
from gopher.spec import OptimSpec, PrecisionSpec, RunSpec

torch.set_num_threads(1)
NARROW = PrecisionSpec(parameters="bfloat16", compute="bfloat16", stochastic_rounding=True)


def adam_on(values: torch.Tensor, run: RunSpec, start: int = 0) -> tuple[Adam, torch.nn.Parameter]:
    parameter = torch.nn.Parameter(values.clone())
    return Adam([Part(name="w", parameter=parameter, local=parameter.detach(), place=start)], run), parameter


def gradient(step: int, count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(step))


def test_learning_rate_ends() -> None:
    optim = OptimSpec(lr=2e-3, warmup_steps=10)
    rates = [learning_rate(optim, step, 100) for step in range(1, 101)]
    assert rates[0] == pytest.approx(1e-7 + (2e-3 - 1e-7) / 10)
    assert rates[9] == max(rates) == 2e-3
    assert rates[54] == pytest.approx(2e-3 * 0.55)
    assert rates[99] == pytest.approx(2e-4, rel=1e-12) and rates[99] == min(rates[9:])
    assert learning_rate(OptimSpec(lr=1e-3, warmup_steps=0), 1, 1) == pytest.approx(1e-4)


def test_the_papers_warm_up_is_the_default() -> None:
    """From 1e-7 over 1,500 steps (Rae et al. 2021, section 3.1)."""
    optim = OptimSpec(lr=2e-3)
    assert learning_rate(optim, 0, 10_000) == 1e-7
    assert learning_rate(optim, 750, 10_000) == pytest.approx((1e-7 + 2e-3) / 2)
    assert learning_rate(optim, 1_499, 10_000) < learning_rate(optim, 1_500, 10_000) == 2e-3
    assert learning_rate(optim, 1_501, 10_000) < 2e-3


@given(st.integers(0, 50), st.integers(1, 400), st.floats(0.01, 1.0))
def test_learning_rate_rises_then_falls(warmup: int, rest: int, floor: float) -> None:
    optim = OptimSpec(lr=1e-2, warmup_steps=warmup, final_lr_fraction=floor)
    rates = [learning_rate(optim, step, warmup + rest) for step in range(1, warmup + rest + 1)]
    peak = max(0, warmup - 1)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(floor * 1e-2)


def test_adam_equals_torch() -> None:
    run = demo_spec()
    adam, parameter = adam_on(torch.ones(1000), run)
    theirs = torch.nn.Parameter(torch.ones(1000))
    reference = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0)
    for step in range(1, 30):
        parameter.grad, theirs.grad = gradient(step, 1000), 0.5 * gradient(step, 1000)
        adam.step(step, 1e-2, scale=0.5)
        reference.step()
    torch.testing.assert_close(parameter, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", [PrecisionSpec(), NARROW])
@pytest.mark.parametrize("size", [1, 3, 17, 33, 250, 999])
def test_shards_of_any_size_give_the_same_bits(size: int, precision: PrecisionSpec) -> None:
    run = dataclasses.replace(demo_spec(), precision=precision)
    values = gradient(0, 1000).to(torch.bfloat16 if precision.stochastic_rounding else torch.float32)
    whole, parameter = adam_on(values, run)
    shards = [adam_on(part, run, start=i * size) for i, part in enumerate(values.split(size))]
    for step in range(1, 6):
        parameter.grad = gradient(step, 1000).to(values.dtype)
        whole.step(step, 1e-2, 0.7)
        for (adam, piece), grad in zip(shards, parameter.grad.split(size), strict=True):
            piece.grad = grad
            adam.step(step, 1e-2, 0.7)
    assert torch.equal(torch.cat([piece for _, piece in shards]), parameter)


def test_norm_is_over_all_gradients_in_float64() -> None:
    adam, parameter = adam_on(torch.zeros(1000), demo_spec())
    parameter.grad = gradient(1, 1000)
    assert adam.squared_norm().item() == pytest.approx(parameter.grad.double().square().sum().item(), rel=1e-14)
    scales = clip_scale(torch.tensor([0.25, 16.0, 0.0, math.nan, math.inf], dtype=torch.float64), 1.0)
    assert scales[:3].tolist() == [1.0, 0.25, 1.0] and scales[3:].isnan().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing(bad: float) -> None:
    """Neither parameters nor moments, whichever way they are updated; moments are float32 under bfloat16 parameters too."""
    for precision in (PrecisionSpec(), NARROW):
        dtype = torch.bfloat16 if precision == NARROW else torch.float32
        adam, parameter = adam_on(torch.ones(100, dtype=dtype), dataclasses.replace(demo_spec(), precision=precision))
        assert {m.dtype for m in (*adam.mean, *adam.square)} == {torch.float32}
        for update in [adam.step] if precision == NARROW else [adam.step, adam.fused_step]:
            parameter.grad = gradient(1, 100).to(dtype)
            update(1, 1e-2, clip_scale(adam.squared_norm(), 1.0))
            before = [x.clone() for x in (parameter.detach(), *adam.mean, *adam.square)]
            parameter.grad = torch.full((100,), bad, dtype=dtype)
            update(2, 1e-2, clip_scale(adam.squared_norm(), 1.0))
            after = (parameter.detach(), *adam.mean, *adam.square)
            assert all(map(torch.equal, before, after)) and not torch.equal(before[0], torch.ones(100, dtype=dtype))


def test_bfloat16_parameters_follow_updates_below_their_resolution() -> None:
    """40 updates of 1e-4 from 1.0, where neighbours are 0.0039 apart: plain rounding would stay at 1."""
    run = dataclasses.replace(demo_spec(), precision=NARROW)
    adam, parameter = adam_on(torch.ones(8192, dtype=torch.bfloat16), run)
    for step in range(1, 41):
        parameter.grad = torch.ones(8192, dtype=torch.bfloat16)
        adam.step(step, 1e-4, 1.0)
    assert parameter.float().mean().item() == pytest.approx(0.996, abs=4e-4)  # 6 standard errors


def halfway(seed: int, step: int, name: str) -> torch.Tensor:
    """Whether each of 4,096 ones was rounded down by update number `step`, which takes half the way to the next number."""
    run = dataclasses.replace(demo_spec(seed=seed), precision=NARROW)
    parameter = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    adam = Adam([Part(name=name, parameter=parameter, local=parameter.detach(), place=0)], run)
    parameter.grad = torch.ones(4096, dtype=torch.bfloat16)
    o = run.optim
    first = (1 - o.beta1) / math.sqrt(1 - o.beta2) * math.sqrt(1 - o.beta2**step) / (1 - o.beta1**step)
    adam.step(step, 2**-9 / first, 1.0)  # moments are as after one step, whatever the step's number
    return parameter.detach() < 1


def test_rounding_draws_anew_for_every_seed_step_and_parameter() -> None:
    usual = halfway(0, 1, "w")
    assert torch.equal(usual, halfway(0, 1, "w")) and usual.float().mean().item() == pytest.approx(0.5, abs=0.05)
    for other in (halfway(1, 1, "w"), halfway(0, 2, "w"), halfway(0, 1, "v")):
        assert (usual == other).float().mean().item() == pytest.approx(0.5, abs=0.05)  # 6 standard errors


@settings(deadline=None)
@given(st.floats(allow_nan=False, width=32), st.integers(0, 2**63))
def test_rounding_goes_to_a_neighbour(value: float, key: int) -> None:
    exact = torch.full((64,), value)
    rounded = stochastic_bfloat16(exact, key, 0).double()
    nearest = exact.bfloat16().double()
    if math.isinf(nearest[0].item()) or torch.equal(nearest, exact.double()):
        assert torch.equal(rounded, nearest) or math.isinf(nearest[0].item())
    else:
        step = max(abs(value) * 2**-7, 2**-133)
        assert ((rounded - value).abs() < step).all()


def test_rounding_keeps_the_mean_and_what_is_not_finite() -> None:
    rounded = stochastic_bfloat16(torch.full((1 << 16,), 1 + 1 / 512), stream_key(1), 0).double()
    assert set(rounded.tolist()) == {1.0, 1 + 1 / 128}
    assert rounded.mean().item() == pytest.approx(1 + 1 / 512, abs=7e-5)  # 5 standard errors
    kept = stochastic_bfloat16(torch.tensor([math.inf, -math.inf, math.nan, 0.0]), 7, 0)
    assert kept[:2].tolist() == [math.inf, -math.inf] and kept[2].isnan() and kept[3] == 0


def test_draws_are_those_of_splitmix64() -> None:
    """The published test vector of seed 1234567 (Vigna, splitmix64.c)."""
    unsigned = [x % 2**64 for x in bits(1234567, 0, 5).tolist()]
    assert unsigned == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_draws_are_uniform_and_normal() -> None:
    high = (bits(stream_key("a"), 0, 1 << 16) >> 60) & 15
    counts = torch.bincount(high, minlength=16).double()
    assert ((counts - 4096) ** 2 / 4096).sum() < 40  # chi-squared, 15 degrees of freedom, p = 5e-4
    out = torch.empty(1 << 16, dtype=torch.float64)
    fill_normal(out, stream_key("b"), std=2.0)
    assert out.mean().abs() < 0.04 and out.std().item() == pytest.approx(2, rel=0.015)
    assert (out / 2).pow(4).mean().item() == pytest.approx(3, rel=0.07)
    assert stream_key(1, "2") != stream_key("1", 2) != stream_key(12)


def test_the_fused_kernel_gives_the_same_update() -> None:
    """What CUDA runs use; the kernel exists on the CPU too."""
    run = demo_spec()
    (ours, mine), (fused, theirs) = (adam_on(torch.ones(1000), run) for _ in range(2))
    for step in range(1, 30):
        mine.grad, theirs.grad = gradient(step, 1000), gradient(step, 1000)
        ours.step(step, 1e-2, scale=0.5)
        fused.fused_step(step, 1e-2, scale=0.5)
    assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-7)
    assert torch.allclose(ours.square[0], fused.square[0], rtol=1e-5)


def muon_on(weights: torch.Tensor, gains: torch.Tensor) -> tuple[Adam, list[torch.nn.Parameter]]:
    run = dataclasses.replace(demo_spec(), optim=dataclasses.replace(demo_spec().optim, kind="muon"))
    parameters = [torch.nn.Parameter(x.clone()) for x in (weights, gains)]
    names = ("blocks.0.up.weight", "blocks.0.norm_1.gain")
    parts = [Part(name=n, parameter=p, local=p.detach(), place=0) for n, p in zip(names, parameters, strict=True)]
    return optimizer_of(parts, run), parameters


def test_muon_is_torchs_for_matrices_and_adam_for_the_rest() -> None:
    weights, gains = gradient(100, 48).view(6, 8), torch.ones(8)
    muon, (matrix, gain) = muon_on(weights, gains)
    adam, alone = adam_on(gains, demo_spec())
    theirs = torch.nn.Parameter(weights.clone())
    reference = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for step in range(1, 6):
        matrix.grad, gain.grad = gradient(step, 48).view(6, 8), gradient(-step, 8)
        theirs.grad, alone.grad = matrix.grad.clone(), gain.grad.clone()
        muon.step(step, 1e-2, scale=1.0)
        adam.step(step, 1e-2, scale=1.0)
        reference.step()
    assert torch.equal(matrix, theirs) and torch.equal(gain, alone)


def test_muon_goes_on_from_its_momentum() -> None:
    """The momentum is the part's mean: what a checkpoint keeps and restores."""
    weights, gains = gradient(100, 48).view(6, 8), torch.ones(8)
    whole, (matrix, gain) = muon_on(weights, gains)
    for step in range(1, 7):
        matrix.grad, gain.grad = gradient(step, 48).view(6, 8), gradient(-step, 8)
        whole.step(step, 1e-2, scale=1.0)
        if step == 3:
            resumed, (again, gain_again) = muon_on(matrix.detach(), gain.detach())
            for target, source in zip((*resumed.mean, *resumed.square), (*whole.mean, *whole.square), strict=True):
                target.copy_(source)
        elif step > 3:
            again.grad, gain_again.grad = gradient(step, 48).view(6, 8), gradient(-step, 8)
            resumed.step(step, 1e-2, scale=1.0)
    assert torch.equal(matrix, again) and torch.equal(gain, gain_again)


def test_muon_refuses_parts_of_matrices_and_rounding() -> None:
    run = dataclasses.replace(demo_spec(), optim=dataclasses.replace(demo_spec().optim, kind="muon"))
    matrix = torch.nn.Parameter(torch.ones(6, 8))
    with pytest.raises(UsageError, match="placement.workers=1"):
        optimizer_of([Part(name="blocks.0.up.weight", parameter=matrix, local=matrix.detach()[:3], place=0)], run)
    with pytest.raises(UsageError, match="stochastic rounding"):
        dataclasses.replace(run, precision=NARROW)
    with pytest.raises(UsageError, match="adam or muon"):
        OptimSpec(lr=1e-2, kind="lion")
    assert demo_spec().key != run.key
