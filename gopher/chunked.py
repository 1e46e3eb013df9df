"""Relative attention by tiles of scores that stay in a core's cache: the fastest way on a CPU.

The relative shift costs nothing: position scores by distance are written into a table with one pad column, inside which
the scores by key are a view, row i starting i elements earlier. dS written into that view is the gradient by distance.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

KEEP_BYTES = 256 << 20  # keep the probabilities of one layer for the backward pass up to this size, else recompute
CPU_TILE_SCORES, CUDA_TILE_SCORES = 1 << 18, 1 << 26  # 1 MiB stays in a core's cache; a GPU wants few launches
QUERY_ROWS = 128  # of a tile, at most


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
    """Attended values by tiles of `rows` queries and about `tile_scores` scores; arguments as in `gopher.attention`.

    Probabilities above `keep_bytes` are computed again in the backward pass. Inputs narrower than float32 are computed
    in float32, because a bfloat16 score is off by 0.4 %.
    """
    most = tile_scores or usual_tile_scores(q.size(2), q.is_cuda)
    wide = (x.to(torch.promote_types(q.dtype, torch.float32)) for x in (q, k, v, r, u, v_bias))
    return Chunked.apply(*wide, scale, rows or query_rows(q.size(2)), keep_bytes, most).to(q.dtype)


@dataclass(frozen=True)
class Tile:
    """Queries `rows` of some (head, sequence) pairs, counted head first, and the heads that those pairs belong to."""

    pairs: slice
    heads: slice
    rows: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """(pairs, queries, keys that the last query sees)."""
        return self.pairs.stop - self.pairs.start, self.rows.stop - self.rows.start, self.rows.stop


def tiles_of(n_heads: int, batch: int, length: int, rows: int, most: int) -> list[Tile]:
    """Every query of every pair once: some sequences of one head, or whole heads where `most` scores hold them."""
    fit = max(1, most // (min(rows, length) * length))  # pairs in a tile
    if fit < batch:
        starts = [(h, b) for h in range(n_heads) for b in range(0, batch, fit)]
        groups = [(slice(h * batch + b, h * batch + min(b + fit, batch)), slice(h, h + 1)) for h, b in starts]
    else:
        heads = [slice(h, min(h + fit // batch, n_heads)) for h in range(0, n_heads, fit // batch)]
        groups = [(slice(h.start * batch, h.stop * batch), h) for h in heads]
    return [Tile(*group, block) for group in groups for block in row_blocks(length, rows)]


class Chunked(torch.autograd.Function):
    """Pairs first, (H * B, T, d_head). All tiles share scratch: fresh memory costs more than the product that fills it."""

    @staticmethod
    def forward(
        ctx: Any, q: Any, k: Any, v: Any, r: Any, u: Any, v_bias: Any, scale: float, rows: int, keep: int, most: int
    ) -> torch.Tensor:
        batch, n_heads, length, width = q.shape
        scaled = q.transpose(0, 1) * scale
        laid_out = (
            scaled + (u * scale)[:, None, None],
            scaled + (v_bias * scale)[:, None, None],
            *(x.transpose(0, 1) for x in (k, v)),
        )
        query_u, query_v, keys, values = (x.reshape(-1, length, width) for x in laid_out)
        table, tiles = descending(r), tiles_of(n_heads, batch, length, rows, most)
        keeping = any(ctx.needs_input_grad) and n_heads * batch * length * length * q.itemsize <= keep
        scratch, out, kept = Scratch(tiles, q), torch.empty_like(query_u), []
        for tile in tiles:
            weights = q.new_empty(tile.shape) if keeping else scratch.weights(tile)
            probabilities(query_u, query_v, keys, table, tile, scratch, weights)
            torch.bmm(weights, values[tile.pairs, : tile.rows.stop], out=out[tile.pairs, tile.rows])
            kept += [weights] if keeping else []
        ctx.save_for_backward(query_u, query_v, keys, values, table, *kept)
        ctx.scale, ctx.tiles, ctx.shape = scale, tiles, (n_heads, batch, length, width)
        return out.view(ctx.shape).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> Any:
        query_u, query_v, keys, values, table, *kept = ctx.saved_tensors
        length, width = query_u.shape[1:]
        grad_out = grad_out.transpose(0, 1).reshape(-1, length, width)
        grad_u, grad_v = torch.empty_like(query_u), torch.empty_like(query_v)
        grad_keys, grad_values, grad_table = (torch.zeros_like(x) for x in (keys, values, table))
        scratch = Scratch(ctx.tiles, keys)
        for i, tile in enumerate(ctx.tiles):
            pairs, rows, seen = tile.pairs, tile.rows, tile.rows.stop
            weights = kept[i] if kept else scratch.weights(tile)
            if not kept:
                probabilities(query_u, query_v, keys, table, tile, scratch, weights)
            grad_values[pairs, :seen].baddbmm_(weights.mT, grad_out[pairs, rows])
            grad_scores = torch.bmm(grad_out[pairs, rows], values[pairs, :seen].mT, out=scratch.scores(tile))
            torch._softmax_backward_data(grad_scores, weights, -1, weights.dtype, grad_input=grad_scores)
            torch.bmm(grad_scores, keys[pairs, :seen], out=grad_u[pairs, rows])
            grad_keys[pairs, :seen].baddbmm_(grad_scores.mT, query_u[pairs, rows])
            by_distance = scratch.by_distance(tile)
            by_distance[:, : tile.shape[1] - 1] = by_distance[:, -1:] = 0  # what the view by key leaves out
            shifted_view(by_distance, *tile.shape[1:]).copy_(grad_scores)
            by_distance, near = by_head(by_distance, tile, seen + 1), table[tile.heads, length - seen :]
            grad_v[pairs, rows] = torch.bmm(by_distance, near).view(*tile.shape[:2], width)
            grad_table[tile.heads, length - seen :].baddbmm_(by_distance.mT, by_head(query_v[pairs, rows], tile, width))
        grad_u, grad_v = (x.mul_(ctx.scale).view(ctx.shape) for x in (grad_u, grad_v))
        grad_k, grad_w = (x.view(ctx.shape).transpose(0, 1) for x in (grad_keys, grad_values))
        grad_r = grad_table[:, :length].flip(1)
        gradients = (grad_u + grad_v).transpose(0, 1), grad_k, grad_w, grad_r, grad_u.sum((1, 2)), grad_v.sum((1, 2))
        return *gradients, None, None, None, None


class Scratch:
    """Memory for the largest of `tiles`, in the dtype and on the device of `like`; every tile overwrites it."""

    def __init__(self, tiles: list[Tile], like: torch.Tensor) -> None:
        most = max(math.prod(tile.shape) for tile in tiles)
        padded = max(math.prod(tile.shape) + math.prod(tile.shape[:2]) for tile in tiles)
        self._by_distance, self._scores, self._weights = (like.new_empty(n) for n in (padded, most, most))

    def by_distance(self, tile: Tile) -> torch.Tensor:
        """(pairs, queries * (keys + 1)): rows of distances keys - 1 down to 0 and one pad."""
        pairs, queries, keys = tile.shape
        return self._by_distance[: pairs * queries * (keys + 1)].view(pairs, -1)

    def scores(self, tile: Tile) -> torch.Tensor:
        return self._scores[: math.prod(tile.shape)].view(tile.shape)

    def weights(self, tile: Tile) -> torch.Tensor:
        return self._weights[: math.prod(tile.shape)].view(tile.shape)


def probabilities(query_u: Any, query_v: Any, keys: Any, table: Any, tile: Tile, scratch: Scratch, out: Any) -> None:
    """Softmax of a tile's queries over the keys that they see, into `out`."""
    length, width = query_v.shape[1:]
    _, count, seen = tile.shape
    by_distance = scratch.by_distance(tile)
    near = table[tile.heads, length - seen :].mT
    torch.bmm(by_head(query_v[tile.pairs, tile.rows], tile, width), near, out=by_head(by_distance, tile, seen + 1))
    scores = scratch.scores(tile).copy_(shifted_view(by_distance, count, seen))
    scores.baddbmm_(query_u[tile.pairs, tile.rows], keys[tile.pairs, :seen].mT)
    scores[..., seen - count :] += causal_mask(count, count, scores.dtype, scores.device)
    torch.softmax(scores, dim=-1, out=out)


def by_head(x: torch.Tensor, tile: Tile, columns: int) -> torch.Tensor:
    """(heads, the queries of all their pairs, columns): pairs of a head share its table."""
    return x.reshape(tile.heads.stop - tile.heads.start, -1, columns)


def query_rows(length: int) -> int:
    """Rows of a block: half a block of a square is masked work, so short sequences take smaller ones (measured on CPU)."""
    return QUERY_ROWS // 2 if length <= 1024 else QUERY_ROWS


def usual_tile_scores(length: int, cuda: bool) -> int:
    """Twice as many for long sequences, whose tiles would else hold a single head: calls then cost more than a larger tile."""
    return CUDA_TILE_SCORES if cuda else CPU_TILE_SCORES * (2 if length > 1024 else 1)


def row_blocks(length: int, rows: int) -> list[slice]:
    return [slice(begin, min(begin + rows, length)) for begin in range(0, length, rows)]


def descending(r: torch.Tensor) -> torch.Tensor:
    """(H, T + 1, d_head): distances T-1 .. 0, then one row of zeros."""
    return F.pad(r.flip(1), (0, 0, 0, 1))


def shifted_view(flat: torch.Tensor, count: int, seen: int) -> torch.Tensor:
    """Scores by key, (n, count, seen), inside a flat position table of rows of seen + 1 distances: row i starts i earlier."""
    return flat[:, count - 1 : count - 1 + count * seen].view(-1, count, seen)


def causal_mask(rows: int, seen: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(rows, seen): 0 where the last `rows` queries of `seen` positions may look, -inf in their future."""
    if torch.compiler.is_compiling():  # the compiler makes it part of the graph, and warns of a cache
        return new_mask(rows, seen, dtype, device)
    with torch.inference_mode(False):
        return kept_mask(rows, seen, dtype, device)


def new_mask(rows: int, seen: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full((rows, seen), -math.inf, dtype=dtype, device=device).triu(seen - rows + 1)


kept_mask = lru_cache(maxsize=8)(new_mask)
