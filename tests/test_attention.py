"""Proves: every attention implementation computes the written definition, outputs and all six gradients.

In float64 to 1e-13 against the explicit-index reference; in bfloat16 to what rounding the inputs allows; the sinusoid
table is exact to one rounding; the rotation identity of sinusoids gives the same scores by a plain dot product.
"""

import math
import shutil
from collections import Counter

import pytest
import torch

from gopher.attention import (
    IMPLEMENTATIONS,
    automatic,
    choose,
    relative_attention,
    sinusoids,
    spare_from_compiler,
)
from gopher.chunked import Tiling, most_pairs
from gopher.errors import UsageError
from gopher.spec import ATTENTION

torch.set_num_threads(1)
SHAPES = [(2, 3, 50, 8), (1, 2, 96, 4), (2, 1, 33, 8), (1, 1, 1, 4)]


def inputs(shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    batch, heads, length, width = shape
    generator = torch.Generator().manual_seed(length)
    sizes = [(batch, heads, length, width)] * 3 + [(heads, length, width)] + [(heads, width)] * 2
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in sizes]


def out_and_gradients(impl: str, given: list[torch.Tensor], **options: int) -> list[torch.Tensor]:
    out = IMPLEMENTATIONS[impl](*given, scale=given[0].size(3) ** -0.5, **options)
    probe = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * probe).sum(), given)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("impl", ["chunked", "sdpa_bias"])
def test_equals_the_definition_in_float64(impl: str, shape: tuple[int, int, int, int]) -> None:
    given = inputs(shape)
    for ours, exact in zip(out_and_gradients(impl, given), out_and_gradients("reference", given), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
@pytest.mark.parametrize("rows", [16, 32, 50])
def test_many_blocks_with_and_without_recomputation(rows: int, keep_bytes: int) -> None:
    given = inputs((2, 2, 90, 8))
    exact = out_and_gradients("reference", given)
    ours = out_and_gradients("chunked", given, rows=rows, keep_bytes=keep_bytes)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("tile_scores", [1, 20 * 16 * 2, 20 * 16 * 3, 20 * 16 * 7, 1 << 20])
@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
def test_tiles_of_one_pair_some_sequences_or_several_heads(tile_scores: int, keep_bytes: int) -> None:
    given = inputs((3, 5, 20, 4))
    exact = out_and_gradients("reference", given)
    ours = out_and_gradients("chunked", given, rows=16, keep_bytes=keep_bytes, tile_scores=tile_scores)
    for a, b in zip(ours, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_more_sequences_in_a_tile_are_no_more_products() -> None:
    """torch multiplies into a part of a batched tensor pair by pair, which two threads cannot share."""

    def products(batch: int) -> Counter[str]:
        given = inputs((batch, 2, 128, 8), torch.float32)
        with torch.profiler.profile() as profile:
            out_and_gradients("chunked", given)
        return Counter(event.name for event in profile.events() if "mm" in event.name)

    few, many = products(2), products(8)
    assert few == many and few["aten::bmm"] > 0


def test_a_batch_without_divisors() -> None:
    """Seven sequences where four fit into a tile: four and three."""
    given = inputs((7, 2, 20, 4))
    ours = out_and_gradients("chunked", given, rows=16, tile_scores=4 * 20 * 16)
    for a, b in zip(ours, out_and_gradients("reference", given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("tile_scores", [1, 1 << 20])
@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
def test_a_bad_number_stays_in_its_sequence_and_head(tile_scores: int, keep_bytes: int) -> None:
    """Tiles share scratch, and zero times nan would carry a nan from one to the next."""
    given = [x.detach() for x in inputs((2, 3, 40, 4))]
    given[1][0, 0, 20] = math.nan  # a key
    results = out_and_gradients(
        "chunked", [x.requires_grad_() for x in given], rows=16, tile_scores=tile_scores, keep_bytes=keep_bytes
    )
    for found in results[:4]:  # attended values and the gradients of q, k, v
        bad = found.isfinite().logical_not().flatten(2).any(-1)
        assert not bad[1].any() and not bad[0, 1:].any()
    assert not results[0][0, 0].isfinite().all()
    for found in results[4:]:
        assert found[1:].isfinite().all()


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 12, 1000])
@pytest.mark.parametrize(("n_heads", "batch"), [(5, 3), (4, 6), (1, 7), (8, 1)])
def test_tiles_hold_every_query_of_every_pair_once(n_heads: int, batch: int, limit: int) -> None:
    length, pairs = 40, most_pairs(n_heads, batch, limit)
    assert 1 <= pairs <= max(1, limit)
    tiling = Tiling(n_heads, batch, length, 16, pairs)
    x = torch.zeros(n_heads * batch, length, 1)
    head = torch.arange(n_heads).repeat_interleave(batch)[:, None, None].expand(-1, length, 1)
    table = torch.arange(n_heads)[:, None, None].expand(-1, length + 1, 1)
    for own, near, of_head in zip(tiling.own(x), tiling.near(table), tiling.own(head), strict=True):
        own += 1
        assert set(near.flatten().tolist()) == set(of_head.flatten().tolist())
    assert (x == 1).all()


@pytest.mark.parametrize("impl", ["chunked", "sdpa_bias"])
def test_bfloat16_is_within_rounding_of_its_inputs(impl: str) -> None:
    """Against float64 on the same bfloat16 numbers; scores kept in bfloat16 would be off by 1.3e-2 in the gradients."""
    narrow = inputs((2, 2, 64, 16), torch.bfloat16)
    wide = [x.detach().double().requires_grad_() for x in narrow]
    for ours, exact in zip(out_and_gradients(impl, narrow), out_and_gradients("reference", wide), strict=True):
        assert (ours.double() - exact).norm() / exact.norm() < (6e-3 if impl == "chunked" else 1e-2)


def test_u_is_for_content_and_v_for_position() -> None:
    """With r = 0 only u acts, with k = 0 only v: swapping the two biases would pass neither."""
    q, k, v, r, u, v_bias = (x.detach() for x in inputs((1, 2, 12, 4)))
    zeros = torch.zeros_like
    for impl in ("reference", "chunked", "sdpa_bias"):
        content = relative_attention(q, k, v, zeros(r), u, v_bias, 0.5, impl)
        torch.testing.assert_close(content, relative_attention(q + u[:, None], k, v, zeros(r), zeros(u), u, 0.5, impl))
        position = relative_attention(q, zeros(k), v, r, u, v_bias, 0.5, impl)
        shifted = relative_attention(q + v_bias[:, None], zeros(k), v, r, u, zeros(u), 0.5, impl)
        torch.testing.assert_close(position, shifted)


def test_scores_equal_a_plain_dot_product_of_rotated_queries() -> None:
    """sin and cos of i - j split: a . r_{i-j} = Rot_i(a) . r_j, so attention is causal SDPA of width d_head + d_model."""
    batch, heads, length, width, d_model = 2, 2, 40, 6, 12
    q, k, v, _, u, v_bias = (x.detach() for x in inputs((batch, heads, length, width)))
    table = sinusoids(length, d_model, torch.float64, torch.device("cpu"))
    weight = torch.randn(heads, width, d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    sin, cos = table.chunk(2, dim=1)
    first, second = ((q + v_bias[:, None]) @ weight).chunk(2, dim=-1)
    rotated = torch.cat([-first * cos + second * sin, first * sin + second * cos], dim=-1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        torch.cat([q + u[:, None], rotated], -1),
        torch.cat([k, table.expand(batch, heads, length, d_model)], -1),
        v,
        is_causal=True,
        scale=0.3,
    )
    r = torch.einsum("td,hwd->htw", table, weight)
    torch.testing.assert_close(relative_attention(q, k, v, r, u, v_bias, 0.3), expected, rtol=1e-12, atol=1e-13)


def test_no_query_sees_the_future() -> None:
    given = [x.detach() for x in inputs((1, 2, 20, 4))]
    before = relative_attention(*given, scale=0.5)
    given[1][:, :, 11:] += 5
    given[2][:, :, 11:] -= 5
    after = relative_attention(*given, scale=0.5)
    assert torch.equal(before[:, :, :11], after[:, :, :11])


def test_sinusoids_are_exact_to_one_rounding() -> None:
    table = sinusoids(2048, 64, torch.float32, torch.device("cpu")).double()
    for position, i in ((0, 0), (1, 5), (641, 3), (2047, 0), (2047, 31)):
        angle = position * 10_000.0 ** (-2 * i / 64)
        assert abs(table[position, i] - math.sin(angle)) < 6e-8
        assert abs(table[position, 32 + i] - math.cos(angle)) < 6e-8
    narrow = sinusoids(2048, 64, torch.bfloat16, torch.device("cpu")).double()
    assert (narrow - table).abs().max() < 2**-8


def test_the_names_that_a_config_may_give_are_those_there_are() -> None:
    assert set(ATTENTION) == {"auto", *IMPLEMENTATIONS}


def test_unknown_implementation_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'chunked'"):
        relative_attention(*inputs((1, 1, 1, 4)), scale=1.0, impl="chunkd")


def test_a_choice_comes_with_its_reason() -> None:
    name, sentence = choose("auto", torch.device("cpu"), torch.float64, (7, 1, 3, 4))
    assert name == "chunked"
    assert (
        sentence == "chunked attention for torch.float64 on cpu, 1 heads of width 4 (triton runs on CUDA, not on cpu)"
    )


def test_triton_is_refused_where_it_cannot_run() -> None:
    with pytest.raises(UsageError, match="attention=triton runs on CUDA, not on cpu; use attention=auto"):
        choose("triton", torch.device("cpu"), torch.float32, (1, 1, 8, 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_large_shapes_on_cuda_without_triton_do_not_hold_all_scores(dtype: torch.dtype) -> None:
    cuda = torch.device("cuda")
    assert automatic(cuda, dtype, (1, 16, 2048, 32), "is not installed") == "sdpa_bias"
    assert automatic(cuda, dtype, (64, 16, 2048, 32), "is not installed") == "chunked"
    assert automatic(cuda, dtype, (64, 16, 2048, 32), None) == "triton"


@pytest.mark.parametrize("impl", ["chunked", "sdpa_bias", "reference"])
def test_float32_biases_under_bfloat16_queries(impl: str) -> None:
    """What autocast gives: torch's batched products refuse the mixture, so biases and table are cast."""
    wide = [x.detach() for x in inputs((1, 2, 20, 8), torch.float32)]
    mixed = [x.bfloat16() for x in wide[:3]] + wide[3:]
    out = relative_attention(*mixed, scale=0.3, impl=impl)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), relative_attention(*wide, scale=0.3, impl=impl), rtol=0.1, atol=0.05)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs g++ on a CPU")
@pytest.mark.filterwarnings("ignore")  # the compiler imports what torch deprecates
def test_compiled_callers_get_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of queries share memory: the compiler, let in, cuts the loop over them and fails at the second."""
    monkeypatch.setitem(IMPLEMENTATIONS, "chunked", IMPLEMENTATIONS["chunked"])
    given = inputs((2, 2, 160, 8))

    def twice(*given: torch.Tensor) -> torch.Tensor:
        return 2 * relative_attention(*given, scale=0.3, impl="chunked")

    plain = twice(*given)
    spare_from_compiler()
    compiled = torch.compile(twice)(*given)
    assert torch.equal(compiled, plain)
    for ours, exact in zip(*(torch.autograd.grad(x.sum(), given) for x in (compiled, plain)), strict=True):
        assert torch.equal(ours, exact)
    torch.compiler.reset()
