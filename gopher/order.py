"""The order of training sequences: index i -> (subset, row), a pure function of (seed, i). numpy only.

Every rung with the same seed sees the same sequences in the same order, a shorter run sees a prefix of a longer one,
and any worker can compute any part, so resuming needs one integer and the number of workers is free.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

BLOCK = 1_000  # sequences over which the mixture is exact
ROUNDS = 4  # of the Feistel network; enough to look random, cheap enough to forget


def permute(index: Ints, size: int, key: int) -> Ints:
    """`index` under a keyed bijection of 0 .. size-1, without a table: a balanced Feistel network, walked until inside.

    The network permutes the next power of four; a value that falls outside is sent through again, which keeps it a
    bijection on the inside and takes at most four tries on average.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    keys = np.random.Generator(np.random.Philox(key=key)).integers(0, 2**63, ROUNDS, dtype=np.uint64)
    values = np.asarray(index, np.uint64).copy()
    todo = np.ones(values.shape, bool)
    while todo.any():
        values[todo] = feistel(values[todo], half, keys)
        todo = values >= size
    return values.astype(np.int64)


def feistel(values: npt.NDArray[np.uint64], half: int, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A keyed permutation of 2^(2 half) values; each round mixes one half into the other (splitmix-style multiply and shift)."""
    width, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> width, values & mask
    for key in keys:
        mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(32))) & mask)
    return (left << width) | right


@dataclass(frozen=True)
class Order:
    """The endless sequence of rows for subsets of `rows` rows each, mixed by `weights` under `seed`."""

    weights: Mapping[str, float]  # shares summing to 1
    rows: Mapping[str, int]  # rows available per subset
    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "_names", tuple(self.weights))
        object.__setattr__(self, "_counts", block_counts(np.array(list(self.weights.values()))))
        object.__setattr__(self, "_cache", {})

    def locate(self, start: int, stop: int) -> list[tuple[str, int]]:
        """(subset, row) of sequences start .. stop-1."""
        out: list[tuple[str, int]] = []
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            subsets, rows = self._block(block)
            first, last = max(start - block * BLOCK, 0), min(stop - block * BLOCK, BLOCK)
            out += [(self._names[s], int(r)) for s, r in zip(subsets[first:last], rows[first:last], strict=True)]  # type: ignore[attr-defined]
        return out

    def _block(self, block: int) -> tuple[Ints, Ints]:
        """Subset number and row of every sequence in a block; the last two blocks asked for are kept."""
        cache: dict[int, tuple[Ints, Ints]] = self._cache  # type: ignore[attr-defined]
        if block not in cache:
            if len(cache) > 1:
                cache.pop(next(iter(cache)))
            cache[block] = self._make_block(block)
        return cache[block]

    def _make_block(self, block: int) -> tuple[Ints, Ints]:
        counts: Ints = self._counts  # type: ignore[attr-defined]
        slots = np.random.Generator(np.random.Philox(key=[self.seed, block])).permutation(
            np.repeat(np.arange(len(counts)), counts)
        )
        rows = np.empty(BLOCK, np.int64)
        for number, name in enumerate(self._names):  # type: ignore[attr-defined]
            places = np.flatnonzero(slots == number)
            nth = block * counts[number] + np.arange(len(places))  # how many of this subset came before
            epochs, within = np.divmod(nth, self.rows[name])
            for epoch in np.unique(epochs):
                chosen = epochs == epoch
                key = (self.seed << 40) + (number << 24) + int(epoch)
                rows[places[chosen]] = permute(within[chosen], self.rows[name], key)
        return slots, rows


def block_counts(shares: npt.NDArray[np.float64]) -> Ints:
    """Sequences of each subset in one block: largest remainders, summing to BLOCK, at least one each."""
    exact = shares / shares.sum() * BLOCK
    counts = np.maximum(np.floor(exact), 1).astype(np.int64)
    for i in np.argsort(counts - exact)[: max(0, BLOCK - counts.sum())]:
        counts[i] += 1
    while counts.sum() > BLOCK:  # only when tiny shares were raised to one
        counts[np.argmax(counts)] -= 1
    return counts
