"""Proves: reading with a cache gives the hidden states of the full forward pass, however the tokens are cut up.

To 1e-12 in float64 and 5e-7 in float32 (relative norm): any split into prefill and single tokens, more columns than
reserved, left-padded rows, branches of a tree behind a shared prefix, rows cut back to different lengths.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference import SPEC, model_of

from gopher.attention import product
from gopher.cache import HIDDEN, Cache, Places, Reader, mix, token_ids
from gopher.errors import UsageError
from gopher.model import Transformer

torch.set_num_threads(1)
MODEL = model_of(torch.float64)


def full(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    """Hidden states without any cache."""
    with torch.no_grad():
        return model.hidden(tokens)


def text(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, SPEC.vocab_size, (rows, length), generator=torch.Generator().manual_seed(length))


def close(ours: torch.Tensor, exact: torch.Tensor, limit: float = 1e-12) -> None:
    assert (ours - exact).norm() / exact.norm() < limit


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 60))
@settings(deadline=None, max_examples=15)
def test_any_cut_equals_the_full_forward(cuts: list[int], room: int) -> None:
    tokens, reader, cache = text(2, sum(cuts)), Reader(MODEL), Cache.empty(MODEL, 2, room)
    parts = [reader.read(part, cache) for part in tokens.split(cuts, dim=1)]
    close(torch.cat(parts, dim=1), full(MODEL, tokens))
    assert cache.length == sum(cuts)


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_of_weights_read_far_apart(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only larger weights are worth: eight rows of one at a time."""
    monkeypatch.setattr("gopher.matrix.CACHED_BYTES", 0)
    tokens, reader, cache = text(rows, 12), Reader(MODEL), Cache.empty(MODEL, rows, 4)
    assert reader.head.far is not None and all(w.qkv.far is not None for w in reader.layers)
    exact = full(MODEL, tokens)
    parts = [reader.read(part, cache) for part in tokens.split([5, *[1] * 7], dim=1)]
    close(torch.cat(parts, dim=1), exact)
    close(reader.logits(parts[-1]), exact[:, -1:] @ MODEL.embedding.detach().t())


@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize(("count", "skip"), [(9, 4), (9, 9), (1, 1), (200, 70), (200, 131)])
def test_skipped_tokens_are_cached_all_the_same(before: int, count: int, skip: int) -> None:
    tokens, reader, cache = text(2, before + count + 3), Reader(MODEL), Cache.empty(MODEL, 2, 8)
    exact = full(MODEL, tokens)
    if before:
        reader.read(tokens[:, :before], cache)
    asked = reader.read(tokens[:, before : before + count], cache, skip=skip)
    assert asked.shape == (2, count - skip, SPEC.d_model)
    if skip < count:
        close(asked, exact[:, before + skip : before + count])
    close(reader.read(tokens[:, before + count :], cache), exact[:, before + count :])


def test_blocks_of_queries_behind_a_cache() -> None:
    """More new tokens than one block of queries, and more than the context: the tables are extended."""
    tokens, reader, cache = text(1, 310), Reader(MODEL), Cache.empty(MODEL, 1, 310)
    parts = [reader.read(part, cache) for part in tokens.split([3, 1, 300, 6], dim=1)]
    close(torch.cat(parts, dim=1), full(MODEL, tokens))


def test_float32_and_bfloat16() -> None:
    tokens = text(2, 40)
    for dtype, limit in ((torch.float32, 5e-7), (torch.bfloat16, 3e-2)):
        model = model_of(dtype)
        reader, cache = Reader(model), Cache.empty(model, 2, 8)
        parts = [reader.read(part, cache) for part in tokens.split([11, 1, 1, 27], dim=1)]
        close(torch.cat(parts, dim=1).float(), full(model, tokens).float(), limit)
        assert reader.logits(parts[0]).dtype == torch.float32


def test_narrow_numbers_are_multiplied_and_weighed_in_float32() -> None:
    """A bfloat16 score or logit is off by 0.4 %, enough to turn an answer: products of narrow numbers are float32 ones."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, *n, 32, generator=generator).to(torch.bfloat16) for n in ((5,), (7,)))
    exact = a.double() @ b.double().mT
    torch.testing.assert_close(product(a, b.mT).double(), exact, rtol=1e-5, atol=1e-6)
    reader = Reader(model_of(torch.bfloat16))
    hidden = torch.randn(3, reader.head.transposed.size(0), generator=generator).to(torch.bfloat16)
    logits = hidden.double() @ reader.model.embedding.double().t()
    torch.testing.assert_close(reader.logits(hidden).double(), logits, rtol=1e-5, atol=1e-6)
    # one head, row and query; scores 100 and 100.25, which bfloat16 does not tell apart
    scores = torch.tensor([100.0, 100.25])[None, None, None]
    values = torch.tensor([0.0, 1.0], dtype=torch.bfloat16)[None, None, :, None]
    mixed = mix(scores, [values])
    assert mixed.item() == pytest.approx(torch.softmax(scores, -1)[..., 1].item(), rel=4e-3)


def test_left_padded_rows_equal_each_row_alone() -> None:
    lengths, reader = [7, 3, 12], Reader(MODEL)
    rows = [text(1, n) for n in lengths]
    padded = torch.cat([torch.nn.functional.pad(row, (12 - row.size(1), 0), value=9) for row in rows])
    cache = Cache.empty(MODEL, 3, 20)
    cache.starts = torch.tensor([12 - n for n in lengths])
    first, second = reader.read(padded, cache), reader.read(text(3, 2), cache)
    for i, row in enumerate(rows):
        exact = full(MODEL, torch.cat([row, text(3, 2)[i : i + 1]], dim=1))[0]
        close(first[i, 12 - lengths[i] :], exact[:-2])
        close(second[i], exact[-2:])


def test_rows_selected_and_cut_back_to_different_lengths() -> None:
    tokens, reader, cache = text(3, 15), Reader(MODEL), Cache.empty(MODEL, 3, 15)
    reader.read(tokens, cache)
    cache = cache.select(torch.tensor([2, 0, 0]))
    ends, follow = [9, 13, 4], text(3, 5)
    cache = cache.cut(torch.tensor(ends))
    assert cache.length == 13
    hidden = reader.read(follow, cache)
    for i, (row, end) in enumerate(zip([2, 0, 0], ends, strict=True)):
        close(hidden[i], full(MODEL, torch.cat([tokens[row : row + 1, :end], follow[i : i + 1]], dim=1))[0, end:])
    shorter = cache.cut(torch.tensor([14, 17, 16]))
    assert shorter.starts is not None
    assert shorter.length == 17 and shorter.starts.tolist() == [7, 0, 10]  # rows hold 10, 17 and 7 columns


def test_one_row_is_cut_without_a_copy() -> None:
    reader, cache = Reader(MODEL), Cache.empty(MODEL, 1, 10)
    reader.read(text(1, 9), cache)
    assert cache.cut(torch.tensor([6])) is cache and cache.length == 6


def test_branches_of_a_tree_behind_shared_prefixes() -> None:
    """Tokens 0 1 2, then 3 4 and 5 as two branches of token 1: each sees its ancestors alone, at its own distance."""
    reader = Reader(MODEL)
    head, middle, tree = text(1, 5), text(1, 4), text(2, 6)
    outer = Cache.empty(MODEL, 1, 5)
    reader.read(head, outer)
    inner = Cache.empty(MODEL, 1, 4, prefix=outer)
    reader.read(middle, inner)
    depth, parents = [0, 1, 2, 2, 3, 2], [-1, 0, 1, 1, 3, 1]
    mask = torch.full((6, 6), HIDDEN, dtype=torch.float64)
    for i in range(6):
        node = i
        while node >= 0:
            mask[i, node], node = 0.0, parents[node]
    own = torch.tensor(depth)[:, None] - torch.tensor(depth)
    before = 9 + torch.tensor(depth)[:, None] - torch.arange(9)
    places = Places(
        distance=torch.cat([before, own], dim=1).expand(2, -1, -1),
        mask=torch.cat([torch.zeros(6, 9), mask], dim=1).expand(2, -1, -1),
    )
    hidden = reader.read(tree, Cache.empty(MODEL, 2, 6, prefix=inner), places)
    for row in range(2):
        for branch in ([0, 1, 2], [0, 1, 3, 4], [0, 1, 5]):
            whole = torch.cat([head, middle, tree[row : row + 1, branch]], dim=1)
            close(hidden[row, branch], full(MODEL, whole)[0, 9:])


def test_foreign_token_ids_are_refused() -> None:
    with pytest.raises(UsageError, match="token id 40 is outside the model's vocabulary of 40"):
        token_ids([3, 40], 40)
    with pytest.raises(UsageError, match="token id -1 is outside"):
        token_ids(np.array([3, -1], np.int8), 40)
    for odd in ([1.7], [True], ["1"], [[1, 2]], [[1], [2, 3]], np.array([1.0]), [None], [10**30]):
        with pytest.raises(UsageError, match="give one list of integers for each text"):
            token_ids(odd, 40)  # type: ignore[arg-type]
    assert token_ids(np.array([3, 39], np.uint16), 40).dtype == token_ids([], 40).dtype == np.int64
