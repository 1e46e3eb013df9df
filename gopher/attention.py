"""Causal Transformer-XL relative attention: one function, several implementations.

score_ij = scale * ((q_i + u) . k_j + (q_i + v_bias) . r_{i-j}) for j <= i (Dai et al. 2019, equation of section 3.3;
scale = 1/sqrt(d_head) on the sum). Layout: q, k, v (B, H, T, d_head); r (H, T, d_head), r[:, m] the projected sinusoid
of distance m; u (content) and v_bias (position) (H, d_head).
"""

import math
import os
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F

from gopher.errors import UsageError, did_you_mean
from gopher.spec import ATTENTION

QUERY_ROWS = 128  # the largest chunk: scratch is O(QUERY_ROWS * T) instead of O(T^2)
BIAS_BYTES = 1 << 30  # position scores of one layer up to which SDPA with a bias is tried on CUDA
KEEP_BYTES = 256 << 20  # keep the probabilities of one layer for the backward pass up to this size, else recompute


def relative_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    r: torch.Tensor,
    u: torch.Tensor,
    v_bias: torch.Tensor,
    scale: float,
    impl: str = "auto",
) -> torch.Tensor:
    """The attended values (B, H, T, d_head) in the dtype of `q`, by one of `IMPLEMENTATIONS` or the one that `choose` names.

    Raises UsageError for an unknown implementation.
    """
    if impl not in IMPLEMENTATIONS:
        impl, _ = choose(impl, q.device, q.dtype, tuple(q.shape))
    # Under autocast the biases stay float32 while q is narrow: batched products refuse the mixture.
    r, u, v_bias = (x.to(q.dtype) for x in (r, u, v_bias))
    return IMPLEMENTATIONS[impl](q, k, v, r, u, v_bias, scale)


@cache
def choose(impl: str, device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> tuple[str, str]:
    """The implementation for queries of `shape` (B, H, T, d_head), and the choice as a sentence.

    `auto` takes the fastest that fits, any other name is taken at its word. Raises UsageError for an unknown name, and
    for `triton` where it cannot run.
    """
    if impl not in ATTENTION:
        raise UsageError(f"attention is '{impl}'{did_you_mean(impl, ATTENTION)}; use one of {', '.join(ATTENTION)}")
    refusal = triton_refusal(device, dtype, shape) if impl in ("auto", "triton") else None
    if impl == "triton" and refusal:
        raise UsageError(f"attention=triton {refusal}; use attention=auto")
    name = automatic(device, dtype, shape, refusal) if impl == "auto" else impl
    reason = f" (triton {refusal})" if impl == "auto" and refusal else ""
    return name, f"{name} attention for {dtype} on {device}, {shape[1]} heads of width {shape[3]}{reason}"


def automatic(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int], refusal: str | None) -> str:
    """`triton` unless refused; else `sdpa_bias` on CUDA while its scores stay small; else `chunked`, on CPU the fastest."""
    if refusal is None:
        return "triton"
    batch, n_heads, length, _ = shape
    small = batch * n_heads * length * length * dtype.itemsize <= BIAS_BYTES
    return "sdpa_bias" if device.type == "cuda" and small else "chunked"


def triton_refusal(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> str | None:
    """Why the Triton kernel cannot run here, as the end of a sentence about it, or None."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"runs on CUDA, not on {device.type}"
    if find_spec("triton") is None:
        return "is not installed (`make triton`)"
    from gopher.kernels import relative

    return relative.refusal(device, dtype, shape)


@lru_cache(maxsize=8)
def sinusoids(length: int, d_model: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(length, d_model): [sin | cos] of distance * 10000^(-2 i / d_model), computed in float64 and rounded once.

    Positions in bfloat16 would be wrong by up to 0.35 (641 distinct values below 2048).
    """
    with torch.inference_mode(False):
        rates = 10_000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
        angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(device=device, dtype=dtype)


def causal_mask(rows: int, seen: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(rows, seen): 0 where the last `rows` queries of `seen` positions may look, -inf in their future."""
    if torch.compiler.is_compiling():  # the compiler makes it part of the graph, and warns of a cache
        return new_mask(rows, seen, dtype, device)
    with torch.inference_mode(False):
        return kept_mask(rows, seen, dtype, device)


def new_mask(rows: int, seen: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full((rows, seen), -math.inf, dtype=dtype, device=device).triu(seen - rows + 1)


kept_mask = lru_cache(maxsize=8)(new_mask)


def reference(q: Any, k: Any, v: Any, r: Any, u: Any, v_bias: Any, scale: float) -> torch.Tensor:
    """The definition, by explicit index: no shift trick, O(T^2 d) memory."""
    length = q.size(2)
    distance = torch.arange(length, device=q.device)[:, None] - torch.arange(length, device=q.device)[None, :]
    content = torch.einsum("bhid,bhjd->bhij", q + u[:, None], k)
    position = torch.einsum("bhid,hijd->bhij", q + v_bias[:, None], r[:, distance.clamp(min=0)])
    scores = ((content + position) * scale).masked_fill(distance < 0, -math.inf)
    return torch.softmax(scores, dim=-1) @ v


def sdpa_bias(q: Any, k: Any, v: Any, r: Any, u: Any, v_bias: Any, scale: float) -> torch.Tensor:
    """Position scores as an additive mask of `scaled_dot_product_attention`; O(T^2) memory per head."""
    length = q.size(2)
    # Columns are distances T-1..0 and one pad: row i of the flat table, read with row length T from T-1 on, is shifted by i.
    table = torch.matmul(q + v_bias[:, None], descending(r).transpose(1, 2))
    bias = table.flatten(2)[..., length - 1 : length - 1 + length * length].view(*q.shape[:2], length, length) * scale
    mask = bias + causal_mask(length, length, q.dtype, q.device)
    return F.scaled_dot_product_attention(q + u[:, None], k, v, attn_mask=mask, scale=scale)


def descending(r: torch.Tensor) -> torch.Tensor:
    """(H, T + 1, d_head): distances T-1 .. 0, then one row of zeros."""
    return F.pad(r.flip(1), (0, 0, 0, 1))


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
) -> torch.Tensor:
    """By blocks of `rows` queries; probabilities above `keep_bytes` are computed again in the backward pass."""
    return Chunked.apply(q, k, v, r, u, v_bias, scale, rows or query_rows(q.size(2)), keep_bytes)


def triton(q: Any, k: Any, v: Any, r: Any, u: Any, v_bias: Any, scale: float) -> torch.Tensor:
    """Flash attention that reads position scores by distance; O(T^2) scratch for one layer at a time."""
    from gopher.kernels.relative import relative

    return relative(q, k, v, r, u, v_bias, scale)


IMPLEMENTATIONS: dict[str, Any] = {
    "reference": reference,
    "sdpa_bias": sdpa_bias,
    "chunked": chunked,
    "triton": triton,
}


class Chunked(torch.autograd.Function):
    """Causal-trimmed blocks of query rows; scores and softmax in float32 (float64 for float64 inputs) per block.

    The pad column makes the shifted scores of a block one contiguous view of its position table, so that the relative
    shift costs nothing; the backward pass writes dS into that layout again to get the table's gradient. Work is laid
    out head first, (H, B, T, d_head): one batched product per block for all heads and sequences.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Any, k: Any, v: Any, r: Any, u: Any, v_bias: Any, scale: float, rows: int, keep: int
    ) -> torch.Tensor:
        batch, n_heads, length, width = q.shape
        scaled = q.transpose(0, 1) * scale
        query_u, query_v = scaled + (u * scale)[:, None, None], scaled + (v_bias * scale)[:, None, None]
        keys, values = (x.transpose(0, 1).reshape(-1, length, width) for x in (k, v))
        table = descending(r)
        keeping = any(ctx.needs_input_grad) and n_heads * batch * length * length * q.itemsize <= keep
        outputs, kept = [], []
        for block in row_blocks(length, rows):
            weights = probabilities(query_u, query_v, keys, table, block).to(q.dtype)
            outputs.append(torch.bmm(weights, values[:, : block.stop]))
            kept += [weights] if keeping else []
        ctx.save_for_backward(query_u, query_v, keys, values, table, *kept)
        ctx.scale, ctx.rows = scale, rows
        return joined(outputs).view(n_heads, batch, length, width).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> Any:
        query_u, query_v, keys, values, table, *kept = ctx.saved_tensors
        n_heads, batch, length, width = query_u.shape
        grad_out = grad_out.transpose(0, 1).reshape(-1, length, width)
        grad_keys, grad_values, grad_table = (torch.zeros_like(x) for x in (keys, values, table))
        grads_u, grads_v = [], []
        for i, block in enumerate(row_blocks(length, ctx.rows)):
            count, seen = block.stop - block.start, block.stop
            weights = kept[i] if kept else probabilities(query_u, query_v, keys, table, block).to(keys.dtype)
            grad = grad_out[:, block]
            grad_values[:, :seen] += torch.bmm(weights.transpose(1, 2), grad)
            grad_weights = torch.bmm(grad, values[:, :seen].transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            grads_u.append(torch.bmm(grad_scores, keys[:, :seen]))
            grad_keys[:, :seen] += torch.bmm(
                grad_scores.transpose(1, 2), query_u[:, :, block].reshape(-1, count, width)
            )
            unshifted = grad_scores.new_empty(n_heads * batch, count * (seen + 1))
            unshifted[:, : count - 1] = unshifted[:, -1:] = 0  # what the view leaves out
            shifted_view(unshifted, count, seen).copy_(grad_scores)
            unshifted = unshifted.view(n_heads, batch * count, seen + 1)
            grads_v.append(torch.bmm(unshifted, table[:, length - seen :]).view(-1, count, width))
            grad_table[:, length - seen :] += torch.bmm(
                unshifted.transpose(1, 2), query_v[:, :, block].reshape(n_heads, -1, width)
            )
        grad_u, grad_v = (joined(grads).view(query_u.shape).mul_(ctx.scale) for grads in (grads_u, grads_v))
        grad_k, grad_w = (x.view(query_u.shape).transpose(0, 1) for x in (grad_keys, grad_values))
        grad_r = grad_table[:, :length].flip(1)
        return (
            (grad_u + grad_v).transpose(0, 1),
            grad_k,
            grad_w,
            grad_r,
            grad_u.sum((1, 2)),
            grad_v.sum((1, 2)),
            None,
            None,
            None,
        )


def query_rows(length: int) -> int:
    """Rows of a chunk: half a block of a square is masked work, so short sequences take smaller ones (measured on CPU)."""
    return QUERY_ROWS // 2 if length <= 1024 else QUERY_ROWS


def row_blocks(length: int, rows: int) -> list[slice]:
    return [slice(begin, min(begin + rows, length)) for begin in range(0, length, rows)]


def joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def probabilities(query_u: Any, query_v: Any, keys: Any, table: Any, block: slice) -> torch.Tensor:
    """Softmax of one block of rows over the keys it sees, (H * B, queries, keys), at least float32."""
    n_heads, batch, length, width = query_u.shape
    count, seen = block.stop - block.start, block.stop
    position = product(query_v[:, :, block].reshape(n_heads, -1, width), table[:, length - seen :].transpose(1, 2))
    # Masking by addition makes the shifted view contiguous in the same pass: on CPU a product added in place to a
    # strided view runs as a loop of single products, and filling by a broadcast mask costs as much as the softmax.
    mask = causal_mask(count, length, position.dtype, position.device)[:, length - seen :]
    scores = shifted_view(position.view(n_heads * batch, -1), count, seen) + mask
    queries, keys = query_u[:, :, block].reshape(-1, count, width), keys[:, :seen].transpose(1, 2)
    scores = scores.baddbmm_(queries, keys) if queries.dtype == scores.dtype else scores.add_(product(queries, keys))
    return torch.softmax(scores, dim=-1)


def shifted_view(flat: torch.Tensor, count: int, seen: int) -> torch.Tensor:
    """Scores by key, (n, count, seen), inside a flat position table of rows of seen + 1 distances: row i starts i earlier."""
    return flat[:, count - 1 : count - 1 + count * seen].view(-1, count, seen)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Batched a @ b with float32 results for bfloat16 inputs (a bfloat16 score is off by 0.4 %)."""
    if a.dtype != torch.bfloat16:
        return torch.bmm(a, b)
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.bmm(a.float(), b.float())
