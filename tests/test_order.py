"""The order of sequences: a bijection per epoch, the mixture exact per block, any slice the same however it is asked for."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gopher.order import BLOCK, Order, block_counts, permute


@given(st.integers(1, 3_000), st.integers(0, 2**60))
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


def test_permute_looks_random() -> None:
    values = permute(np.arange(10_000), 10_000, 7)
    assert abs(np.corrcoef(np.arange(10_000), values)[0, 1]) < 0.03
    assert (permute(np.arange(10_000), 10_000, 8) != values).mean() > 0.99


@given(st.integers(0, 5_000), st.integers(1, 40), st.integers(0, 9))
def test_a_slice_is_the_same_however_it_is_asked_for(start: int, length: int, seed: int) -> None:
    order = Order({"a": 0.6, "b": 0.4}, {"a": 50, "b": 999}, seed)
    whole = order.locate(start, start + length)
    assert whole == [order.locate(i, i + 1)[0] for i in range(start, start + length)]
    assert whole == Order({"a": 0.6, "b": 0.4}, {"a": 50, "b": 999}, seed).locate(start, start + length)


def test_the_mixture_is_exact_per_block_and_epochs_are_permutations() -> None:
    order = Order({"a": 0.5, "b": 0.2, "c": 0.3}, {"a": 70, "b": 10_000, "c": 100}, seed=3)
    places = order.locate(0, 2 * BLOCK)
    assert Counter(name for name, _ in places[:BLOCK]) == {"a": 500, "b": 200, "c": 300}
    rows = sorted(r for name, r in places if name == "a")[: 14 * 70]
    assert Counter(r for name, r in places if name == "c") == {row: 6 for row in range(100)}
    assert len({r for name, r in places if name == "b"}) == 400 and rows


def test_seeds_give_other_orders() -> None:
    one, two = (Order({"a": 1.0}, {"a": 1000}, seed).locate(0, 100) for seed in (0, 1))
    assert one != two


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=8))
def test_block_counts_add_up_and_leave_nobody_out(shares: list[float]) -> None:
    counts = block_counts(np.array(shares))
    assert counts.sum() == BLOCK and counts.min() >= 1
