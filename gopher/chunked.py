"""Relative attention by tiles of scores that stay in a core's cache: the fastest way on a CPU.

A tile is a block of queries of one (head, sequence) pair, (queries, keys), or of several short ones, (pairs, queries, keys).
The relative shift costs nothing: position scores by distance are written into a buffer with one pad column, inside which
the scores by key are a view, row i starting i elements earlier. dS written into that view is the gradient by distance.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

KEEP_BYTES = 256 << 20  # keep the probabilities of one layer for the backward pass up to this size, else recompute
LONG = 512  # tokens from which blocks are whole, and a pair has a tile for itself (times the threads)
CPU_TILE_SCORES, CUDA_TILE_SCORES = 1 << 18, 1 << 26  # 1 MiB stays in a core's cache; a GPU wants few launches
QUERY_ROWS = 128  # of a block, at most


def chunked(
    q: Any,
    k: Any,
    v: Any,
    r: Any,
    u: Any,
    v_bias: Any,
    scale: float,
    rows: int | None = None,
    keep_bytes: int = KEEP_BYTES,
    tile_scores: int | None = None,
) -> torch.Tensor:
    """Attended values by tiles of `rows` queries and at most `tile_scores` scores, where a pair's block has no more.

    Arguments as in `gopher.attention`. Probabilities above `keep_bytes` are computed again in the backward pass. Inputs
    narrower than float32 are computed in float32, because a bfloat16 score is off by 0.4 %.
    """
    batch, n_heads, length, _ = q.shape
    rows = min(rows or query_rows(length), length)
    limit = (tile_scores or usual_tile_scores(length, q.is_cuda)) // (rows * length)
    pairs = most_pairs(n_heads, batch, limit)
    if 2 * pairs <= limit < batch:  # no good divisor, as of a prime number: the rest apart
        shares = [slice(batch - batch % limit), slice(batch - batch % limit, batch)]
        parts = [(q[s], k[s], v[s], r, u, v_bias, scale, rows, keep_bytes, tile_scores) for s in shares]
        return torch.cat([chunked(*part) for part in parts])
    wide = (x.to(torch.promote_types(q.dtype, torch.float32)) for x in (q, k, v, r, u, v_bias))
    keep = keep_bytes if torch.is_grad_enabled() else 0
    return Chunked.apply(*wide, scale, Tiling(n_heads, batch, length, rows, pairs), keep).to(q.dtype)


def query_rows(length: int) -> int:
    """Rows of a block: half a block of a square is masked work, so short sequences take smaller ones (measured on CPU)."""
    return QUERY_ROWS if length >= LONG else QUERY_ROWS // 2


def usual_tile_scores(length: int, cuda: bool) -> int:
    """1 where a pair has a tile for itself. More threads make the products shorter and not the calls."""
    if cuda:
        return CUDA_TILE_SCORES
    return CPU_TILE_SCORES if length < LONG * torch.get_num_threads() else 1


def most_pairs(n_heads: int, batch: int, limit: int) -> int:
    """Pairs of a tile, one or up to `limit`: an equal share of a head's sequences, or of the heads with all sequences."""
    shares = [n for n in range(1, min(limit, batch) + 1) if batch % n == 0]
    shares += [n * batch for n in range(2, min(limit // batch, n_heads) + 1) if n_heads % n == 0]
    return max(shares, default=1)


@dataclass(frozen=True)
class Tiling:
    """Tiles of `pairs` (head, sequence) pairs, counted head first, and `rows` queries: of each group of pairs, block by block."""

    n_heads: int
    batch: int
    length: int
    rows: int
    pairs: int

    @property
    def blocks(self) -> list[slice]:
        """The last queries first: their tile reaches all keys and distances, so what is summed over tiles begins with it."""
        return row_blocks(0, self.length, self.rows)[::-1]

    @property
    def first(self) -> list[tuple[bool, bool]]:
        """Whether each tile is the first of its keys, and of its table."""
        blocks, sharing = len(self.blocks), self.sharing
        tiles = range(self.n_heads * self.batch // self.pairs * blocks)
        return [(i % blocks == 0, i % (blocks * sharing) == 0) for i in tiles]

    @property
    def sharing(self) -> int:
        """Groups of pairs that have one table: the sequences of a head."""
        return max(1, self.batch // self.pairs)

    @property
    def heads(self) -> int:
        return max(1, self.pairs // self.batch)

    def own(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Each tile's queries, of x (H * B, T, d_head)."""
        return self.cut(x, self.pairs, self.blocks)

    def own_by_head(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The same with the pairs of a head in one, (heads, pairs of a head * queries, d_head): they share its table."""
        return self.own(x) if self.pairs == 1 else [part.reshape(self.heads, -1, x.size(-1)) for part in self.own(x)]

    def seen(self, x: torch.Tensor, turned: bool = False) -> list[torch.Tensor]:
        """Each tile's keys, those up to its last query, of x (H * B, T, d_head), or those (d_head, keys)."""
        return self.cut(x, self.pairs, [slice(block.stop) for block in self.blocks], turned=turned)

    def near(self, table: torch.Tensor, turned: bool = False) -> list[torch.Tensor]:
        """The distances of each tile and the pad, of a table (H, T + 1, d_head) as `descending` makes it; `turned` as above."""
        reached = [slice(self.length - block.stop, None) for block in self.blocks]
        return self.cut(table, self.heads, reached, self.sharing, turned)

    def cut(
        self, x: torch.Tensor, size: int, spans: list[slice], times: int = 1, turned: bool = False
    ) -> list[torch.Tensor]:
        """x[group, ..., span] of all tiles; a group has `size` of the leading elements, and `times` as many tiles as spans.

        `turned` swaps the last two dimensions, here and not tile by tile, because views cost more than they seem to.
        """
        grouped = x if self.pairs == 1 else x.unflatten(0, (-1, size))
        parts = [grouped[..., span, :] for span in spans]
        by_span = [(part.mT if turned else part).unbind(0) for part in parts]
        return [part for group in zip(*by_span, strict=True) for _ in range(times) for part in group]

    def buffers(self, like: torch.Tensor) -> list["Buffer"]:
        """Scratch of each tile, all in the same memory: fresh memory costs more than the product that fills it."""
        most = self.pairs * self.rows * (self.length + 1)
        distances, scores, weights = (like.new_empty(most) for _ in range(3))
        buffers = [Buffer.of(self, block, distances, scores, weights) for block in self.blocks]
        return buffers * (self.n_heads * self.batch // self.pairs)


@dataclass(frozen=True, eq=False)
class Buffer:
    """A tile's scratch, in which other tiles' numbers stand until it is written."""

    by_distance: torch.Tensor  # (heads, pairs of a head * queries, keys + 1): distances keys - 1 down to 0 and one pad
    before: torch.Tensor  # what of by_distance by_key leaves out: the first query's distances beyond its first key
    after: torch.Tensor  # and the last query's pad
    by_key: torch.Tensor  # (pairs, queries, keys): a view of the rest
    scores: torch.Tensor  # the same shape, contiguous: by_key itself for one pair, else memory of its own
    weights: torch.Tensor
    diagonal: torch.Tensor  # (pairs, queries, queries): the scores from the first query's own key on
    mask: torch.Tensor  # (queries, queries): to be added there
    scores_turned: torch.Tensor  # views of scores and by_distance with their last two dimensions swapped
    distances_turned: torch.Tensor

    @staticmethod
    def of(
        tiling: Tiling, block: slice, distances: torch.Tensor, scores: torch.Tensor, weights: torch.Tensor
    ) -> "Buffer":
        count, seen = block.stop - block.start, block.stop
        lead, heads = ((), ()) if tiling.pairs == 1 else ((tiling.pairs,), (tiling.heads,))
        size = tiling.pairs * count * seen
        flat = distances[: size + tiling.pairs * count].view(*lead, -1)
        by_key = shifted_view(flat, count, seen)
        contiguous = scores[:size].view(*lead, count, seen) if lead else by_key
        by_distance = flat.view(*heads, -1, seen + 1)
        return Buffer(
            by_distance=by_distance,
            before=flat[..., : count - 1],
            after=flat[..., -1:],
            by_key=by_key,
            scores=contiguous,
            diagonal=contiguous[..., -count:],
            weights=weights[:size].view(*lead, count, seen),
            mask=causal_mask(count, count, scores.dtype, scores.device),
            scores_turned=contiguous.mT,
            distances_turned=by_distance.mT,
        )

    def probabilities(
        self, query_u: Any, query_v: Any, k_turned: Any, near_turned: Any, out: torch.Tensor | None
    ) -> torch.Tensor:
        """Softmax of the tile's queries over the keys that they see."""
        multiply(query_v, near_turned, out=self.by_distance)
        if self.scores is not self.by_key:
            self.scores.copy_(self.by_key)
        accumulate(self.scores, query_u, k_turned)
        self.diagonal.add_(self.mask)
        return torch.softmax(self.scores, dim=-1, out=out)

    def gradient_by_distance(self) -> torch.Tensor:
        """by_distance from the gradient by key that is in `scores`."""
        self.before.zero_()
        self.after.zero_()
        if self.scores is not self.by_key:
            self.by_key.copy_(self.scores)
        return self.by_distance


class Chunked(torch.autograd.Function):
    """Pairs first, (H * B, T, d_head); tile by tile."""

    @staticmethod
    def forward(
        ctx: Any, q: Any, k: Any, v: Any, r: Any, u: Any, v_bias: Any, scale: float, tiling: Tiling, keep: int
    ) -> torch.Tensor:
        batch, n_heads, length, width = q.shape
        # contiguous: rows that stand 3 d_model apart, as one sequence's do, fall into few sets of a cache
        by_pair, flat = (n_heads, batch, length, width), (-1, length, width)
        query_u, query_v = (
            torch.add((x * scale)[:, None, None], q.transpose(0, 1), alpha=scale, out=q.new_empty(by_pair)).view(flat)
            for x in (u, v_bias)
        )
        keys, values = (x.transpose(0, 1).reshape(flat).contiguous() for x in (k, v))
        table = descending(r)
        keeping = any(ctx.needs_input_grad) and n_heads * batch * length * length * q.itemsize <= keep
        out, kept = torch.empty_like(query_u), []
        tiles = zip(
            *(tiling.own(x) for x in (query_u, out)),
            tiling.own_by_head(query_v),
            tiling.seen(keys, turned=True),
            tiling.seen(values),
            tiling.near(table, turned=True),
            tiling.buffers(q),
            strict=True,
        )
        for qu, attended, qv, k_turned, seen_v, near_turned, buffer in tiles:
            weights = buffer.probabilities(qu, qv, k_turned, near_turned, out=None if keeping else buffer.weights)
            multiply(weights, seen_v, out=attended)
            if keeping:
                kept.append(weights)
        ctx.save_for_backward(query_u, query_v, keys, values, table, *kept)
        ctx.scale, ctx.tiling, ctx.shape = scale, tiling, by_pair
        return out.view(ctx.shape).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> Any:
        query_u, query_v, keys, values, table, *kept = ctx.saved_tensors
        grad_out = grad_out.transpose(0, 1).reshape(query_u.shape).contiguous()
        grad_u, grad_v = torch.empty_like(query_u), torch.empty_like(query_v)
        grad_keys, grad_values, grad_table = (torch.empty_like(x) for x in (keys, values, table))
        tiling = ctx.tiling
        tiles = zip(
            *(tiling.own(x) for x in (query_u, grad_out, grad_u, grad_v)),
            tiling.own_by_head(query_v),
            *(tiling.seen(x) for x in (keys, grad_keys, grad_values)),
            tiling.seen(values, turned=True),
            *(tiling.near(x) for x in (table, grad_table)),
            tiling.first,
            tiling.buffers(keys),
            strict=True,
        )
        for i, (qu, go, gu, gv, qv, k, gk, gw, v_turned, near, gr, (new_keys, new_table), buffer) in enumerate(tiles):
            weights = kept[i] if kept else buffer.probabilities(qu, qv, k.mT, near.mT, out=buffer.weights)
            grad_scores = multiply(go, v_turned, out=buffer.scores)
            torch._softmax_backward_data(grad_scores, weights, -1, weights.dtype, grad_input=grad_scores)
            accumulate(gw, weights.mT, go, new_keys)
            multiply(grad_scores, k, out=gu)
            accumulate(gk, buffer.scores_turned, qu, new_keys)
            by_distance = buffer.gradient_by_distance()
            if tiling.pairs == 1:
                multiply(by_distance, near, out=gv)
            else:
                gv.copy_(multiply(by_distance, near).view_as(gv))
            accumulate(gr, buffer.distances_turned, qv, new_table)
        grad_u, grad_v = (x.view(ctx.shape) for x in (grad_u, grad_v))
        grad_biases = [x.sum((1, 2)) * ctx.scale for x in (grad_u, grad_v)]
        grad_k, grad_w = (x.view(ctx.shape).transpose(0, 1) for x in (grad_keys, grad_values))
        grad_r = grad_table[:, :-1].flip(1)
        grad_q = grad_u.add_(grad_v).mul_(ctx.scale).transpose(0, 1)
        return grad_q, grad_k, grad_w, grad_r, *grad_biases, None, None, None


def multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """a @ b of tiles of one pair or of several."""
    return torch.mm(a, b, out=out) if a.dim() == 2 else torch.bmm(a, b, out=out)


def accumulate(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor, new: bool = False) -> None:
    """total += a @ b, likewise, or = for a new total. In place only where that is one product: into a part of a tensor torch goes pair by pair."""
    if new:
        multiply(a, b, out=total)
    elif a.dim() == 2:
        total.addmm_(a, b)
    elif total.is_contiguous():
        total.baddbmm_(a, b)
    else:
        total.add_(torch.bmm(a, b))


def row_blocks(first: int, end: int, rows: int) -> list[slice]:
    return [slice(begin, min(begin + rows, end)) for begin in range(first, end, rows)]


def descending(r: torch.Tensor) -> torch.Tensor:
    """(H, T + 1, d_head): distances T-1 .. 0, then one row of zeros."""
    return F.pad(r.flip(1), (0, 0, 0, 1))


def shifted_view(flat: torch.Tensor, count: int, seen: int) -> torch.Tensor:
    """Scores by key, (..., count, seen), inside a flat position table of rows of seen + 1 distances: row i starts i earlier."""
    return flat[..., count - 1 : count - 1 + count * seen].view(*flat.shape[:-1], count, seen)


def causal_mask(rows: int, seen: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(rows, seen): 0 where the last `rows` queries of `seen` positions may look, -inf in their future."""
    if torch.compiler.is_compiling():  # the compiler makes it part of the graph, and warns of a cache
        return new_mask(rows, seen, dtype, device)
    with torch.inference_mode(False):
        return kept_mask(rows, seen, dtype, device)


def new_mask(rows: int, seen: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full((rows, seen), -math.inf, dtype=dtype, device=device).triu(seen - rows + 1)


kept_mask = lru_cache(maxsize=8)(new_mask)
