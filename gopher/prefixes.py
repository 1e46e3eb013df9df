"""Token sequences that begin alike, arranged so that every shared token is evaluated once.

Sequences become a tree of segments. A small tree is packed into one row: its tokens depth first, each with its distance
from the root and the set of tokens (its ancestors) that it may see. numpy only, no model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]


@dataclass(kw_only=True, eq=False)
class Segment:
    """Tokens that one set of sequences has in common, between two branchings."""

    tokens: Tokens
    depth: int  # tokens before this segment
    sequences: range  # the sequences through it, as indices into the sorted list
    branches: "list[Segment]" = field(default_factory=list)
    size: int = 0  # tokens of the whole subtree

    @property
    def is_chain(self) -> bool:
        return not self.branches


@dataclass(frozen=True, kw_only=True)
class Row:
    """A subtree laid out as one row of tokens."""

    tokens: Tokens
    depth: Tokens  # tokens before each one, counted from the row's first
    sees: npt.NDArray[np.bool_] | None  # (n, n) which tokens each one sees; None: all before it
    segments: tuple[tuple[int, Segment], ...]  # (first column, segment)


def order(sequences: Sequence[Tokens]) -> list[int]:
    """Indices that sort the sequences, so that those which begin alike are neighbours."""
    return sorted(range(len(sequences)), key=lambda i: sequences[i].astype(">u4").tobytes())


def tree(sequences: Sequence[Tokens]) -> list[Segment]:
    """The top segments of sorted, distinct, non-empty sequences."""
    top: list[Segment] = []
    made: list[Segment] = []
    waiting = [(range(len(sequences)), 0, top)]
    while waiting:
        span, depth, siblings = waiting.pop()
        for branch in by_next_token(sequences, span, depth):
            segment, rest = grow(sequences, branch, depth)
            siblings.append(segment)
            made.append(segment)
            waiting.append((rest, depth + len(segment.tokens), segment.branches))
    for segment in reversed(made):  # branches were made after their parents
        segment.size = len(segment.tokens) + sum(branch.size for branch in segment.branches)
    return top


def by_next_token(sequences: Sequence[Tokens], span: range, depth: int) -> Iterator[range]:
    """Runs of `span` with the same token at `depth`; all of them are longer than that."""
    begin = span.start
    for i in span:
        if i + 1 == span.stop or sequences[i][depth] != sequences[i + 1][depth]:
            yield range(begin, i + 1)
            begin = i + 1


def grow(sequences: Sequence[Tokens], span: range, depth: int) -> tuple[Segment, range]:
    """The longest segment from `depth` on before `span` branches, and the sequences that go on behind it.

    A sequence that merely ends inside the segment does not cut it.
    """
    last = sequences[span.stop - 1]
    alive = span.start
    end = common(sequences[alive], last)
    while end == len(sequences[alive]) and alive + 1 < span.stop:
        alive += 1
        end = common(sequences[alive], last)
    rest = range(alive + (end == len(sequences[alive])), span.stop)
    return Segment(tokens=last[depth:end], depth=depth, sequences=span), rest


def common(a: Tokens, b: Tokens) -> int:
    """Tokens at the beginning that are equal."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def pack(root: Segment) -> Row:
    """The subtree of `root` as one row."""
    tokens, depth = np.empty(root.size, np.int64), np.empty(root.size, np.int64)
    sees = None if root.is_chain else np.zeros((root.size, root.size), np.bool_)
    placed, begin = [], 0
    waiting = [(root, -1)]
    while waiting:
        segment, parent = waiting.pop()
        columns = slice(begin, begin + len(segment.tokens))
        tokens[columns] = segment.tokens
        depth[columns] = np.arange(len(segment.tokens)) + segment.depth - root.depth
        if sees is not None:
            sees[columns, :begin] = sees[parent, :begin] if parent >= 0 else False
            sees[columns, columns] = np.tri(len(segment.tokens), dtype=np.bool_)
        placed.append((begin, segment))
        begin = columns.stop
        waiting.extend((branch, begin - 1) for branch in reversed(segment.branches))
    return Row(tokens=tokens, depth=depth, sees=sees, segments=tuple(placed))


def batches(segments: Sequence[Segment], tokens: int) -> Iterator[list[Segment]]:
    """Subtrees of similar size together, largest first, of at most `tokens` with padding (or one); chains apart from trees."""
    for chains in (True, False):
        alike = sorted((s for s in segments if s.is_chain == chains), key=lambda s: -s.size)
        while alike:
            count = max(1, tokens // alike[0].size)
            yield alike[:count]
            del alike[:count]
