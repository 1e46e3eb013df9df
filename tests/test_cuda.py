"""Proves on a CUDA device what the other tests prove on a CPU: `make test-gpu`, or with torch, pytest and this repository alone

    python -m pytest -m gpu tests/test_cuda.py tests/test_gpu_step.py

Kernels in three dtypes at up to 8,192 positions, both fused optimizers, the model compiled and sharded, and a run whose
sums are read one step late.
"""

import dataclasses
import json
import math
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from kernel_checks import APART, FAR, LARGE, PLACES, ROUNDED, TOLERANCES, errors, last_head_moves, unequal_bits
from studies import demo_spec
from torch.distributed.device_mesh import init_device_mesh

from gopher.attention import choose, relative_attention
from gopher.model import Transformer, initialise, logits, summed_loss
from gopher.optim import Adam, Part, clip_scale
from gopher.shard import DTYPES, parts, process_group, shard
from gopher.spec import ModelSpec, PrecisionSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("default"),  # compilers and drivers of a GPU machine warn as they like
]
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
LONG = {torch.float32: 5, torch.float16: 3, torch.bfloat16: 2}  # times the tolerance: sums of thousands of terms
MIXED = PrecisionSpec(compute="bfloat16")
SMALL = ModelSpec(n_layers=3, n_heads=2, d_head=64, d_model=128, vocab_size=512, context=256)


# ---- attention


@needs_triton
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (2, 3, 150, 32),
        (5, 2, 300, 128),
        (2, 2, 1000, 64),
        (1, 2, 2048, 128),
        (1, 1, 4099, 64),
        (1, 1, 8192, 32),
        (1, 1, 8192, 128),
    ],
    ids=str,
)
def test_the_kernel_equals_float64(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    found = errors(shape, dtype, "cuda")
    limit = TOLERANCES[dtype] * (1 if shape[2] <= 1024 else LONG[dtype])
    assert all(x < limit for x in found), found


@needs_triton
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_scores_beyond_the_range_of_exp(dtype: torch.dtype) -> None:
    """Probabilities are 0 or 1 nearly everywhere then: the scores' gradients are small differences, exact in float32 alone."""
    found = errors((1, 2, 300, 64), dtype, "cuda", LARGE)
    assert all(map(math.isfinite, found))
    compared = found if dtype == torch.float32 else [found[0], found[3]]
    assert all(x < LARGE * TOLERANCES[dtype] for x in compared), found


@needs_triton
def test_offsets_beyond_32_bits_reach_the_right_numbers() -> None:
    """Rows of q, k and v far apart; position scores of one sequence that are 2.7e9 numbers."""
    found = errors(*FAR, "cuda", apart=APART)
    found += last_head_moves((1, 40, 8192, 32), torch.float16, "cuda")
    assert all(x < TOLERANCES[torch.float16] for x in found), found


@needs_triton
def test_one_position_and_many_sequences() -> None:
    """No gradient of the scores at all with one position; more sequences than the scratch for position scores holds."""
    found = errors((1, 1, 1, 64), torch.bfloat16, "cuda")
    assert found[0] < 1.5e-2 and found[3] < 1.5e-2
    q, k, v = torch.randn(3, 40, 8, 2048, 32, device="cuda", dtype=torch.bfloat16).unbind(0)
    r, u, w = (torch.randn(8, n, 32, device="cuda", dtype=torch.bfloat16) for n in (2048, 1, 1))
    given = (r, u[:, 0], w[:, 0], 32**-0.5, "triton")
    together = relative_attention(q, k, v, *given).float()
    for i in (0, 39):
        alone = relative_attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], *given)[0].float()
        assert (together[i] - alone).norm() / alone.norm() < 1e-2


@needs_triton
def test_the_kernel_repeats_itself_bit_for_bit() -> None:
    sizes = [(2, 2, 700, 64)] * 3 + [(2, 700, 64), (2, 64), (2, 64)]
    given = [torch.randn(n, device="cuda", dtype=torch.bfloat16, requires_grad=True) for n in sizes]

    def out_and_gradients() -> list[torch.Tensor]:
        out = relative_attention(*given, 0.125, "triton")
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), given)]

    assert all(map(torch.equal, out_and_gradients(), out_and_gradients()))


@needs_triton
@pytest.mark.parametrize("dtype", list(TOLERANCES), ids=str)
def test_the_kernel_is_what_a_device_chooses(dtype: torch.dtype) -> None:
    assert choose("auto", torch.device("cuda"), dtype, (2, 2, 2048, 64))[0] == "triton"


@pytest.mark.parametrize("impl", ["chunked", "sdpa_bias"])
def test_other_paths_agree_in_bfloat16(impl: str) -> None:
    draw = torch.Generator("cuda").manual_seed(0)
    sizes = [(2, 2, 300, 64)] * 3 + [(2, 300, 64), (2, 64), (2, 64)]
    given = [torch.randn(s, generator=draw, device="cuda").bfloat16() for s in sizes]
    exact = relative_attention(*(x.double() for x in given), 0.125, "reference")
    assert (relative_attention(*given, 0.125, impl).double() - exact).norm() / exact.norm() < 1.5e-2


# ---- loss


def test_logits_are_kept_in_float32() -> None:
    draw = torch.Generator("cuda").manual_seed(0)
    x, embedding = (torch.randn(n, 128, generator=draw, device="cuda").bfloat16() for n in (300, 1000))
    targets = torch.randint(0, 1000, (300,), generator=draw, device="cuda")
    exact = torch.nn.functional.cross_entropy(x.double() @ embedding.double().T, targets, reduction="sum")
    with torch.no_grad():
        assert logits(x, embedding).dtype == torch.float32
        assert summed_loss(x, embedding, targets).item() == pytest.approx(exact.item(), rel=1e-5)
    both = [x.requires_grad_(), embedding.requires_grad_()]
    loss = summed_loss(x, embedding, targets)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, both))


# ---- optimizer


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_fused_rounding_update_gives_the_bits_of_a_cpu(place: object, dtype: torch.dtype) -> None:
    assert unequal_bits(place, dtype, "cuda", count=100_003) == [0, 0, 0]  # type: ignore[arg-type]
    assert unequal_bits(place, dtype, "cuda", count=1 << 16) == [0, 0, 0]  # type: ignore[arg-type]


def adam_on(device: str, precision: PrecisionSpec) -> tuple[Adam, list[Part]]:
    run = dataclasses.replace(demo_spec(), precision=precision)
    held = []
    for name, count in (("a", 5000), ("b", 7)):
        values = torch.linspace(-1, 1, count, dtype=DTYPES[precision.parameters], device=device)
        parameter = torch.nn.Parameter(values)
        held.append(Part(name=name, parameter=parameter, local=parameter.detach(), place=0))
    return Adam(held, run), held


@pytest.mark.parametrize("precision", [PrecisionSpec(), ROUNDED], ids=["float32", "rounded"])
def test_adam_on_a_device_is_that_of_a_cpu(precision: PrecisionSpec) -> None:
    if precision == ROUNDED and find_spec("triton") is None:
        pytest.skip("triton is not installed")
    (ours, mine), (plain, theirs) = adam_on("cuda", precision), adam_on("cpu", precision)
    draw = torch.Generator().manual_seed(0)
    for step in range(1, 11):
        for a, b in zip(mine, theirs, strict=True):
            gradient = torch.randn(b.local.shape, generator=draw).to(b.local.dtype)
            a.parameter.grad, b.parameter.grad = gradient.cuda(), gradient
        norms = [adam.squared_norm() for adam in (ours, plain)]
        assert norms[0].item() == pytest.approx(norms[1].item(), rel=1e-5) and norms[0].dtype == torch.float64
        scale = clip_scale(norms[1], 1.0)
        ours.step(step, 1e-2, scale.cuda())
        plain.step(step, 1e-2, scale)
    for i in range(2):
        assert ours.mean[i].dtype == ours.square[i].dtype == torch.float32
        torch.testing.assert_close(ours.mean[i].cpu(), plain.mean[i], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(ours.square[i].cpu(), plain.square[i], rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(mine[i].local.cpu(), theirs[i].local, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", [PrecisionSpec(), ROUNDED], ids=["float32", "rounded"])
def test_an_update_that_is_not_finite_changes_nothing_and_the_host_does_not_wait(precision: PrecisionSpec) -> None:
    if precision == ROUNDED and find_spec("triton") is None:
        pytest.skip("triton is not installed")
    adam, held = adam_on("cuda", precision)
    for step, bad in ((1, 1.0), (2, math.nan), (3, math.inf)):
        before = [x.clone() for x in (*(p.local for p in held), *adam.mean, *adam.square)]
        for part in held:
            part.parameter.grad = torch.full_like(part.parameter, bad)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")  # the first one compiles
        try:
            adam.step(step, 1e-2, clip_scale(adam.squared_norm(), 1.0))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        after = [*(p.local for p in held), *adam.mean, *adam.square]
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert not any(same) if bad == 1.0 else all(same)


# ---- the model, compiled and sharded


def first_losses(
    precision: PrecisionSpec, compiled: bool, recompute: str = "none", device: str = "cuda"
) -> list[float]:
    """Nats per token of four steps of a small model under FSDP2, on the same two sequences."""
    run = dataclasses.replace(demo_spec(), model=SMALL, precision=precision)
    torch.compiler.reset()
    with process_group(device):
        mesh = init_device_mesh(device, (1,))
        with torch.device("meta"):
            model = Transformer(SMALL, recompute=recompute)
        model.to(DTYPES[precision.parameters])
        shard(model, precision, mesh, compile_blocks=compiled)
        model.to_empty(device=device)
        initialise(((p.name, p.local, p.place) for p in parts(model)), SMALL, 0)
        adam = Adam(parts(model), run)
        draw = torch.Generator().manual_seed(0)
        tokens = torch.randint(3, 512, (2, SMALL.context + 1), generator=draw).to(device)
        losses = []
        for step in range(1, 5):
            loss = model(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()) / tokens[:, 1:].numel()
            loss.backward()
            losses.append(loss.item())
            adam.step(step, 1e-3, clip_scale(adam.squared_norm(), 1.0))
            adam.zero_grad()
    return losses


@pytest.mark.parametrize(
    ("precision", "recompute"),
    [(PrecisionSpec(), "none"), (MIXED, "none"), (MIXED, "selective"), (MIXED, "full"), (ROUNDED, "none")],
    ids=["float32", "mixed", "mixed-selective", "mixed-full", "rounded"],
)
def test_compiled_and_sharded_blocks_train_alike(
    precision: PrecisionSpec, recompute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every block sharded by itself, as in large models; float32 says what the first loss should be."""
    monkeypatch.setattr("gopher.shard.ROOT_ONLY_PARAMETERS", 0)
    plain, compiled = first_losses(precision, False), first_losses(precision, True, recompute)
    assert plain[-1] < plain[0]
    assert compiled == pytest.approx(plain, abs=1e-3 if precision.compute == "float32" else 5e-2)
    full = plain if precision == PrecisionSpec() else first_losses(PrecisionSpec(), False)
    assert compiled[0] == pytest.approx(full[0], abs=2e-2)


# ---- a run


@pytest.mark.skipif(
    find_spec("sentencepiece") is None, reason="sentencepiece, which makes the shards, is not installed"
)
@pytest.mark.parametrize("precision", [PrecisionSpec(), MIXED, ROUNDED], ids=["float32", "mixed", "rounded"])
def test_a_step_that_is_not_finite_is_heard_of_late_and_leaves_no_trace(
    precision: PrecisionSpec, tmp_path: Path
) -> None:
    from gopher import corpus
    from gopher.data import prepare
    from gopher.record import FINISHED, RunFolder
    from gopher.spec import DataSpec, Placement, TokenizerSpec
    from gopher.train import train

    (tmp_path / "text" / "prose").mkdir(parents=True)
    for i in range(30):
        numbers = ((7919 * i + 31 * j * j) % 26**4 for j in range(1500))
        words = " ".join("".join(chr(97 + n // 26**k % 26) for k in range(4)) for n in numbers)
        (tmp_path / "text" / "prose" / f"{i:03d}.txt").write_text(words, "utf-8")
    data = DataSpec(kind="local", path=str(tmp_path / "text"), subsets=corpus.discover(tmp_path / "text"))
    shards = prepare(data, TokenizerSpec(vocab_size=512), tmp_path)
    model = dataclasses.replace(demo_spec().model, d_head=32, d_model=64)
    precision = dataclasses.replace(precision, gradient_reduce="float32")
    how = Placement(
        data_dir=str(shards), device="cuda", compile=True, micro_batch_sequences=8, checkpoint_every_steps=5,
        log_every_steps=4,
    )  # fmt: skip
    folders = []
    for name in ("undisturbed", "struck"):
        folder = RunFolder(tmp_path / name)
        folder.create(dataclasses.replace(demo_spec(), model=model, data=data, precision=precision), how, {})
        if name == "struck":
            (folder.path / "drill.json").write_text(json.dumps([{"step": 12, "fault": "nan"}]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert train(folder).state == FINISHED
        folders.append(folder)
    assert [(e["kind"], e["step"]) for e in folders[1].events()] == [("rewind", 12)]
    undisturbed, struck = (f.metrics()["train/loss"] for f in folders)
    assert list(struck) == list(undisturbed)
    assert all(struck[s] == pytest.approx(undisturbed[s], abs=1e-3) for s in struck)
