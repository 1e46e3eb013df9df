"""Forward passes that continue: keys and values are kept, so that new tokens cost only themselves.

Transformer-XL scores depend on the distance of two positions, never on where they stand. So keys and values are
cached as they are, nothing is rotated, and one table W_R r per layer, made once per weights, serves every length.
Work is laid out head first, (H, B, T, d_head), as in `gopher.attention`.
"""

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gopher.attention import product, relative_attention, sinusoids
from gopher.chunked import CPU_TILE_SCORES, QUERY_ROWS, causal_mask, row_blocks, shifted_view
from gopher.errors import UsageError
from gopher.matrix import Matrix
from gopher.model import Block, Transformer
from gopher.step import HIDDEN, step, weights_of


@dataclass(kw_only=True, eq=False, repr=False)
class Cache:
    """Keys and values of `length` columns for a batch of rows, behind an optional prefix that all rows share.

    With `starts`, row b is right-aligned: its columns before `starts[b]` are padding (then there is no prefix, which
    the padding would move away from the row).
    """

    store: torch.Tensor  # (layers, 2, H, rows, room, d_head)
    length: int = 0
    prefix: "Cache | None" = None  # of one row
    starts: torch.Tensor | None = None

    @staticmethod
    def empty(model: Transformer, rows: int, room: int, prefix: "Cache | None" = None) -> "Cache":
        """A cache for `rows` sequences with room for `room` columns; it grows when they are used up."""
        spec = model.spec
        return Cache(
            store=model.embedding.new_empty(spec.n_layers, 2, spec.n_heads, rows, room, spec.d_head), prefix=prefix
        )

    @property
    def total(self) -> int:
        """Columns that the next token sees, the prefix included."""
        return self.length + (self.prefix.total if self.prefix else 0)

    def reserve(self, columns: int) -> None:
        """Make room for `columns` more, at least doubling."""
        room, needed = self.store.size(4), self.length + columns
        if needed > room:
            wider = self.store.new_empty(*self.store.shape[:4], max(2 * room, needed), self.store.size(5))
            wider[..., : self.length, :] = self.store[..., : self.length, :]
            self.store = wider

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the next columns of one layer; `length` moves when all layers are written."""
        columns = slice(self.length, self.length + keys.size(2))
        self.store[layer, 0, :, :, columns] = keys
        self.store[layer, 1, :, :, columns] = values

    def spans(self, layer: int, columns: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(keys, values) of the prefix, if any, and of the first `columns` own columns."""
        before = self.prefix.spans(layer, self.prefix.length) if self.prefix else []
        return [*before, (self.store[layer, 0, :, :, :columns], self.store[layer, 1, :, :, :columns])]

    def select(self, rows: torch.Tensor) -> "Cache":
        """A copy with the given rows, which may repeat."""
        starts = None if self.starts is None else self.starts[rows]
        return Cache(store=self.store[:, :, :, rows], length=self.length, prefix=self.prefix, starts=starts)

    def cut(self, ends: torch.Tensor) -> "Cache":
        """Row b without its columns from `ends[b]` on: shortened in place for one row, else a copy right-aligned again."""
        starts = torch.zeros_like(ends) if self.starts is None else self.starts
        sizes = ends - starts
        length = int(sizes.max())
        if bool((ends == length).all()):
            self.length = length
            return self
        columns = torch.arange(length, device=ends.device) - length + ends[:, None]
        index = columns.clamp_(min=0)[:, :, None].expand(-1, -1, self.store.size(5))
        store = self.store.gather(4, index.expand(*self.store.shape[:3], *index.shape))
        return Cache(store=store, length=length, starts=padding_starts(length - sizes))


def padding_starts(starts: torch.Tensor) -> torch.Tensor | None:
    """`starts`, or None when no row is padded."""
    return starts if bool(starts.any()) else None


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where new tokens stand when they are branches of trees: per row, query and key, (B, n, total)."""

    distance: torch.Tensor  # int64, any value where the key is hidden
    mask: torch.Tensor  # added to scores: 0 for the token itself and its ancestors, else HIDDEN
    stem: int = 0  # of the n, the first ones that in every row see all before them


@dataclass(frozen=True, kw_only=True)
class Queries:
    """A block of new tokens and what they see."""

    rows: slice  # of the queries that are computed
    seen: int  # columns up to its last token's own, those of a shared prefix included
    column: torch.Tensor | None  # (B, n, seen), of the score in a table by distance; None: as they follow one another
    mask: torch.Tensor | None  # (n, n) or (B, n, seen), added to scores of the last columns
    padding: torch.Tensor | None  # (B, 1, seen), likewise


class Reader:
    """A model for inference with its distance tables; make a new one when the weights change."""

    def __init__(self, model: Transformer) -> None:
        self.model = model.eval()
        self.device = model.embedding.device
        head = model.embedding.detach()
        self.head = Matrix(head.float() if head.dtype == torch.bfloat16 else head)  # bfloat16 logits are off by 0.4 %
        self.tables = head.new_empty(0, 0, 1, 0)  # see `cover`
        self.layers = weights_of(model)

    @torch.no_grad()
    def read(self, tokens: torch.Tensor, cache: Cache, places: Places | None = None, skip: int = 0) -> torch.Tensor:
        """Final hidden states (B, n - skip, d_model) of new `tokens` (B, n) but the first `skip`; the cache gets them all.

        They follow the cache one after another, unless `places` puts them in trees. For the skipped ones the last block
        attends to nothing and has no MLP.
        """
        count = tokens.size(1)
        cache.reserve(count)
        self.cover(cache.total + count)
        x = self.model.embed(tokens.to(self.device))
        if count == 1 and cache.prefix is None and places is None and x.dtype != torch.bfloat16:
            x = step(self.layers, x[:, 0], cache.store, cache.length, self.tables, cache.starts)[:, None]
            cache.length += 1
            return self.model.norm(x[:, skip:])
        fresh = cache.total == 0 and cache.starts is None and places is None
        queries = [] if fresh else query_blocks(cache, 0, count, places)
        early = 0 if fresh and 2 * skip < count else skip  # attention of all first tokens is faster than that of most
        for layer, block in enumerate(self.model.blocks):
            assert isinstance(block, Block)
            q, k, v = block.project(x)
            cache.append(layer, k.transpose(0, 1), v.transpose(0, 1))
            if early and layer == len(self.model.blocks) - 1:
                fresh, queries = False, query_blocks(cache, early, count, places)
                q, x = q[:, :, early:], x[:, early:]
            if fresh:
                attended = self.first(block, layer, q, k, v, self.model.implementation(x))
            else:
                attended = self.next(block, layer, q.transpose(0, 1), cache, queries).transpose(0, 1)
            x = block.finish(x, attended)
        cache.length += count
        return self.model.norm(x[:, skip - early :])

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 logits of hidden states (float64 for a float64 model)."""
        return self.head.of(hidden.to(self.head.transposed.dtype))

    @torch.no_grad()
    def cover(self, length: int) -> None:
        """Make the tables reach distance length - 1: (layers, H, room + 1, d_head), descending, the last row padding.

        In memory the distances of one component follow one another, as products with queries like them best.
        """
        room = self.tables.size(2) - 1
        if length > room:
            spec, room = self.model.spec, max(length, self.model.spec.context, 2 * room)
            tables = self.model.embedding.new_zeros(spec.n_layers, spec.n_heads, spec.d_head, room + 1)
            sines = sinusoids(room, spec.d_model, tables.dtype, self.device)
            for table, block in zip(tables, self.model.blocks, strict=True):
                table[..., :-1] = block.distances(sines).flip(1).mT  # type: ignore[operator]
            self.tables = tables.mT

    def first(self, block: Block, layer: int, q: Any, k: Any, v: Any, attention: str) -> torch.Tensor:
        """Attended values of the first tokens of all rows: the same attention as in training."""
        r = self.tables[layer][:, -q.size(2) - 1 : -1].flip(1)
        return relative_attention(q, k, v, r, block.u, block.v, 1 / math.sqrt(block.d_head), attention)

    def next(self, block: Block, layer: int, q: Any, cache: Cache, queries: list[Queries]) -> torch.Tensor:
        """Attended values (H, B, n, d_head) of q, block by block."""
        scale = 1 / math.sqrt(block.d_head)
        query_u, query_v = (torch.add(bias[:, None, None] * scale, q, alpha=scale) for bias in (block.u, block.v))
        outputs = []
        for part in queries:
            position = position_scores(query_v[:, :, part.rows], self.tables[layer][:, -part.seen - 1 :])
            spans = cache.spans(layer, part.seen - cache.total + cache.length)
            scores = content_scores(query_u[:, :, part.rows], [keys for keys, _ in spans])
            scores = masked(scores.add_(by_key(position, part)), part)
            outputs.append(mix(scores, [values for _, values in spans]))
        return torch.cat(outputs, dim=2) if outputs else q


def query_blocks(cache: Cache, skip: int, count: int, places: Places | None) -> list[Queries]:
    """`count` new tokens behind `cache` but the first `skip`, in blocks; those of a common stem apart from its branches."""
    _, _, n_heads, batch, _, _ = cache.store.shape
    few = n_heads * batch * QUERY_ROWS * (cache.total + count) <= CPU_TILE_SCORES
    rows = QUERY_ROWS if few else QUERY_ROWS // 2
    stem = max(skip, min(places.stem, count)) if places else count
    blocks = [queries_of(cache, skip, block, None) for block in row_blocks(skip, stem, rows)]
    return blocks + [queries_of(cache, skip, block, places) for block in row_blocks(stem, count, rows)]


def queries_of(cache: Cache, skip: int, block: slice, places: Places | None) -> Queries:
    begin, end, seen = block.start, block.stop, cache.total + block.stop
    dtype, device = torch.promote_types(cache.store.dtype, torch.float32), cache.store.device
    column = padding = None
    mask = causal_mask(end - begin, end - begin, dtype, device) if end - begin > 1 else None
    if places is not None:
        column = (seen - 1 - places.distance[:, block, :seen]).clamp_(0, seen - 1)
        mask = places.mask[:, block, :seen]
    if cache.starts is not None:
        padding = (torch.arange(seen, device=device) < cache.starts[:, None, None]).to(dtype) * HIDDEN
    return Queries(rows=slice(begin - skip, end - skip), seen=seen, column=column, mask=mask, padding=padding)


def position_scores(query_v: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """(H, B, n, seen + 1): scores by distance, seen - 1 down to 0, and one pad column."""
    n_heads, batch, count, width = query_v.shape
    return product(query_v.reshape(n_heads, -1, width), table.transpose(1, 2)).view(n_heads, batch, count, -1)


def by_key(position: torch.Tensor, part: Queries) -> torch.Tensor:
    """Scores by distance (H, B, n, seen + 1) as scores by key (H, B, n, seen)."""
    count, seen = position.size(2), position.size(3) - 1
    if part.column is not None:
        return position.gather(3, part.column.expand(position.size(0), -1, -1, -1))
    return shifted_view(position.flatten(-2), count, seen)


def content_scores(query_u: torch.Tensor, keys: list[torch.Tensor]) -> torch.Tensor:
    """Scores (H, B, n, seen) with the keys of all spans."""
    scores = [by_row(product, query_u, span.transpose(2, 3)) for span in keys]
    return scores[0] if len(scores) == 1 else torch.cat(scores, dim=3)


def masked(scores: torch.Tensor, part: Queries) -> torch.Tensor:
    """The same `scores`, changed in place."""
    if part.mask is not None:
        scores[..., -part.mask.size(-1) :].add_(part.mask)  # += would write the columns once more
    if part.padding is not None:
        scores.add_(part.padding)
    return scores


def mix(scores: torch.Tensor, values: list[torch.Tensor]) -> torch.Tensor:
    """Softmax of scores (H, B, n, seen) times the values of all spans: (H, B, n, d_head)."""
    weights = torch.softmax(scores, dim=-1).to(values[0].dtype)
    if len(values) == 1:
        return by_row(torch.bmm, weights, values[0])
    parts = weights.split([span.size(2) for span in values], dim=3)
    mixed = [by_row(torch.bmm, part, span) for part, span in zip(parts, values, strict=True)]
    return sum(mixed[1:], start=mixed[0])


def by_row(multiply: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a (H, B, n, x) times b (H, B or 1, x, y); a shared b is read once, not copied for every row."""
    n_heads, batch, count, _ = a.shape
    rows = n_heads if b.size(1) == 1 else n_heads * batch
    return multiply(a.reshape(rows, -1, a.size(3)), b.reshape(rows, *b.shape[2:])).view(n_heads, batch, count, -1)


def token_ids(ids: Sequence[int] | npt.NDArray[Any], vocab_size: int) -> npt.NDArray[np.int64]:
    """The ids of one text, int64 (T,). Raises `UsageError` for what is no integer or has no embedding."""
    try:
        given = np.asarray(ids)
        integers = given.ndim == 1 and (given.dtype.kind in "iu" or not given.size)
    except ValueError:  # lists of different lengths in it
        integers = False
    if not integers:
        raise UsageError(f"token ids are {reprlib.repr(ids)}; give one list of integers for each text")
    if given.size and not 0 <= given.min() <= given.max() < vocab_size:
        worst = int(given.max() if given.min() >= 0 else given.min())
        raise UsageError(
            f"token id {worst} is outside the model's vocabulary of {vocab_size}; encode the text with the run's own tokenizer"
        )
    return given.astype(np.int64)
