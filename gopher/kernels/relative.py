"""Transformer-XL relative attention as Triton kernels: flash attention that reads its position scores by distance.

score_ij = query_u_i . k_j + P[i, i - j] with query_u = scale (q + u) and P = scale (q + v_bias) r^T. P is a plain matrix
product, made for one layer at a time, trimmed to the causal half and made again for the backward pass, so that no T x T
tensor outlives its layer (Dao et al. 2022 for the rest of the recipe). The backward pass overwrites P by the gradient of
the scores, still by distance: the gradients of q and r are then matrix products too. No atomic additions, so that results
repeat bit for bit. q, k, v and all outputs are (B, H, T, d_head) seen in memory of (B, T, H, d_head), which is how the
model's linear maps write and read them.

P and the gradient of the scores are in the dtype of q, all sums in float32: with bfloat16 a position score is off by up to
0.4 %, and the CUDA tests allow 1.5e-2 of the norm of outputs and gradients (2e-6 with float32).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton reads its kernels' annotations: they say constexpr or nothing.

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

HEAD_WIDTHS = (32, 64, 128)
MAX_LENGTH = 8192  # offsets inside one T x T matrix are 32 bit
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SCRATCH_BYTES = 2 << 30  # position scores of as many sequences as fit, at least one
GRID_ROWS = 65_535  # CUDA's limit for the second axis of a grid
TRIM_ROWS = 512  # rows per product of position scores: distances after the last row are left out
HIDDEN = tl.constexpr(-1e30)  # not -inf: a row without keys must not become nan


@triton.jit
def load_rows(base, rows, stride, T, D: tl.constexpr):
    return tl.load(base + rows[:, None] * stride + tl.arange(0, D)[None, :], mask=rows[:, None] < T, other=0.0)


@triton.jit
def store_rows(base, rows, stride, T, value, D: tl.constexpr):
    place = base + rows[:, None] * stride + tl.arange(0, D)[None, :]
    tl.store(place, value.to(base.dtype.element_ty), mask=rows[:, None] < T)


@triton.jit
def forward_kernel(
    Query, Key, Value, P, Out, LogSum, T, H, key_row, key_head, value_row, value_head,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    m, sequence_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sequence, head, own_stride = sequence_head // H, sequence_head % H, H * D
    own = sequence * T * own_stride + head * D
    keys = Key + sequence * T * key_row + head * key_head
    values = Value + sequence * T * value_row + head * value_head
    i = m * BM + tl.arange(0, BM)
    query = load_rows(Query + own, i, own_stride, T, D)
    top = tl.full([BM], HIDDEN, tl.float32)
    total = tl.zeros([BM], tl.float32)
    out = tl.zeros([BM, D], tl.float32)
    by_distance = P + sequence_head * T * T
    for n in range(0, (m + 1) * BM, BN):
        j = n + tl.arange(0, BN)
        seen = (i[:, None] >= j[None, :]) & (i[:, None] < T)
        scores = tl.load(by_distance + i[:, None] * T + (i[:, None] - j[None, :]), mask=seen, other=0.0).to(tl.float32)
        scores += tl.dot(query, tl.trans(load_rows(keys, j, key_row, T, D)), input_precision="ieee")
        scores = tl.where(seen, scores, HIDDEN)
        higher = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        total, top = total * shrink + tl.sum(p, 1), higher
        value = load_rows(values, j, value_row, T, D)
        out = out * shrink[:, None] + tl.dot(p.to(value.dtype), value, input_precision="ieee")
    store_rows(Out + own, i, own_stride, T, out / total[:, None], D)
    tl.store(LogSum + sequence_head * T + i, top + tl.log(total), mask=i < T)


@triton.jit
def backward_keys_kernel(
    Query, Key, Value, P, GradOut, LogSum, Delta, GradKey, GradValue, T, H, key_row, key_head, value_row, value_head,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of keys and values; P becomes the gradient of the scores, by distance."""
    n, sequence_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sequence, head, own_stride = sequence_head // H, sequence_head % H, H * D
    own = sequence * T * own_stride + head * D
    j = n * BN + tl.arange(0, BN)
    key = load_rows(Key + sequence * T * key_row + head * key_head, j, key_row, T, D)
    value = load_rows(Value + sequence * T * value_row + head * value_head, j, value_row, T, D)
    grad_key = tl.zeros([BN, D], tl.float32)
    grad_value = tl.zeros([BN, D], tl.float32)
    by_distance = P + sequence_head * T * T
    for m in range((n * BN // BM) * BM, T, BM):
        i = m + tl.arange(0, BM)
        seen = (i[:, None] >= j[None, :]) & (i[:, None] < T)
        query = load_rows(Query + own, i, own_stride, T, D)
        grad = load_rows(GradOut + own, i, own_stride, T, D)
        place = by_distance + i[:, None] * T + (i[:, None] - j[None, :])
        scores = tl.load(place, mask=seen, other=0.0).to(tl.float32)
        scores += tl.dot(query, tl.trans(key), input_precision="ieee")
        log_sum = tl.load(LogSum + sequence_head * T + i, mask=i < T, other=0.0)
        delta = tl.load(Delta + sequence_head * T + i, mask=i < T, other=0.0)
        p = tl.exp(tl.where(seen, scores - log_sum[:, None], HIDDEN))  # masked before exp: the future would overflow
        grad_value += tl.dot(tl.trans(p.to(grad.dtype)), grad, input_precision="ieee")
        grad_scores = p * (tl.dot(grad, tl.trans(value), input_precision="ieee") - delta[:, None])
        grad_scores = grad_scores.to(query.dtype)
        grad_key += tl.dot(tl.trans(grad_scores), query, input_precision="ieee")
        tl.store(place, grad_scores, mask=seen)
    store_rows(GradKey + own, j, own_stride, T, grad_key, D)
    store_rows(GradValue + own, j, own_stride, T, grad_value, D)


@triton.jit
def backward_queries_kernel(
    Key, GradP, GradQuery, T, H, key_row, key_head, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """Gradient of one block of query_u: the gradient of the scores, read by distance, times the keys."""
    m, sequence_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    sequence, head, own_stride = sequence_head // H, sequence_head % H, H * D
    keys = Key + sequence * T * key_row + head * key_head
    i = m * BM + tl.arange(0, BM)
    total = tl.zeros([BM, D], tl.float32)
    by_distance = GradP + sequence_head * T * T
    for n in range(0, (m + 1) * BM, BN):
        j = n + tl.arange(0, BN)
        seen = (i[:, None] >= j[None, :]) & (i[:, None] < T)
        grad = tl.load(by_distance + i[:, None] * T + (i[:, None] - j[None, :]), mask=seen, other=0.0)
        total += tl.dot(grad, load_rows(keys, j, key_row, T, D), input_precision="ieee")
    store_rows(GradQuery + sequence * T * own_stride + head * D, i, own_stride, T, total, D)


def refusal(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> str | None:
    """Why these kernels cannot take queries of `shape`, as the end of a sentence, or None."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return f"needs compute capability 8.0, {torch.cuda.get_device_name(device)} has less"
    if dtype not in DTYPES:
        return f"takes bfloat16, float16 or float32, not {str(dtype).removeprefix('torch.')}"
    if shape[3] not in HEAD_WIDTHS:
        return f"takes heads of width 32, 64 or 128, not {shape[3]}"
    return None if shape[2] <= MAX_LENGTH else f"takes at most {MAX_LENGTH} positions, not {shape[2]}"


def tiles(kernel: Any, width: int, dtype: torch.dtype) -> dict[str, int]:
    """Block sizes and warps that compile for sm_90 and spill at most 16 bytes of registers (float32 at width 128: 504); not yet timed."""
    keys = kernel is backward_keys_kernel
    if dtype == torch.float32:
        return (
            {"BM": 16, "BN": 16, "num_warps": 8, "num_stages": 1}
            if keys
            else {"BM": 32, "BN": 32, "num_warps": 4, "num_stages": 1}
        )
    if keys:
        return {"BM": 64, "BN": 64, "num_warps": 4 if width == 32 else 8, "num_stages": 2}
    return {"BM": 128, "BN": 32 if width == 128 else 64, "num_warps": 8, "num_stages": 2}


def launch(kernel: Any, over: str, q: torch.Tensor, *arguments: Any) -> None:
    """One program per block of rows (`over` BM or BN) and per head of every sequence of `q`."""
    batch, n_heads, length, width = q.shape
    sizes = tiles(kernel, width, q.dtype)
    with torch.cuda.device_of(q):
        kernel[(triton.cdiv(length, sizes[over]), batch * n_heads)](*arguments, D=width, **sizes)


@torch.library.custom_op("gopher::relative_attention", mutates_args=())
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    r: torch.Tensor,
    u: torch.Tensor,
    v_bias: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(attended values (B, H, T, d_head), log of each softmax's denominator (B, H, T) in float32)."""
    out, log_sum, k, v = empty_rows(q), row_scalars(q), as_rows(k), as_rows(v)
    for part in groups(q):
        n_heads, length = q.shape[1:3]
        query_u, query_v = biased(q[part], u, scale), biased(q[part], v_bias, scale)
        position = position_scores(query_v, r)
        strides = (length, n_heads, k.stride(2), k.stride(1), v.stride(2), v.stride(1))
        launch(forward_kernel, "BM", query_u, query_u, k[part], v[part], position, out[part], log_sum[part], *strides)
    return out, log_sum


@torch.library.custom_op("gopher::relative_attention_backward", mutates_args=())
def attention_backward(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    r: torch.Tensor,
    u: torch.Tensor,
    v_bias: torch.Tensor,
    out: torch.Tensor,
    log_sum: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v, r, u and v_bias."""
    n_heads, length = q.shape[1:3]
    k, v, grad_out = as_rows(k), as_rows(v), own_rows(grad_out)
    grad_q, grad_k, grad_v = empty_rows(q), empty_rows(q), empty_rows(q)
    grad_r, grad_u, grad_w = (torch.zeros_like(x, dtype=torch.float32) for x in (r, u, v_bias))
    for part in groups(q):
        query_u, query_v = biased(q[part], u, scale), biased(q[part], v_bias, scale)
        position = position_scores(query_v, r)
        delta = (grad_out[part].float() * out[part]).sum(-1).contiguous()
        launch(
            backward_keys_kernel, "BN", query_u, query_u, k[part], v[part], position, grad_out[part], log_sum[part],
            delta, grad_k[part], grad_v[part], length, n_heads, k.stride(2), k.stride(1), v.stride(2), v.stride(1),
        )  # fmt: skip
        launch(
            backward_queries_kernel,
            "BM",
            query_u,
            k[part],
            position,
            grad_q[part],
            length,
            n_heads,
            k.stride(2),
            k.stride(1),
        )
        grad_position = position_gradients(position, query_v, r, grad_r)
        grad_u += grad_q[part].sum((0, 2), dtype=torch.float32) * scale
        grad_w += grad_position.sum((0, 2), dtype=torch.float32) * scale
        grad_q[part].add_(grad_position).mul_(scale)
    return grad_q, grad_k, grad_v, grad_r.to(r.dtype), grad_u.to(u.dtype), grad_w.to(v_bias.dtype)


def position_scores(query: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """query r^T, (B * H, T, T), by distance; beyond the last distance of each block of rows it is left unwritten."""
    batch, n_heads, length, width = query.shape
    query, far = query.reshape(-1, length, width), r.expand(batch, *r.shape).reshape(-1, length, width)
    scores = query.new_empty(batch * n_heads, length, length)
    for rows in row_blocks(length):
        torch.bmm(query[:, rows], far[:, : rows.stop].mT, out=scores[:, rows, : rows.stop])
    return scores


def position_gradients(grad: torch.Tensor, query: torch.Tensor, r: torch.Tensor, grad_r: torch.Tensor) -> torch.Tensor:
    """The gradient of `query`, (B, H, T, d_head), from that of its scores; the gradient of r is added to `grad_r`."""
    batch, n_heads, length, width = query.shape
    query, far = query.reshape(-1, length, width), r.expand(batch, *r.shape).reshape(-1, length, width)
    grad_query = torch.empty_like(query)
    for rows in row_blocks(length):
        grad[:, rows, rows].tril_()  # distances that no query has: still scores, not gradients
        known = grad[:, rows, : rows.stop]
        torch.bmm(known, far[:, : rows.stop], out=grad_query[:, rows])
        by_sequence = torch.bmm(known.mT, query[:, rows]).view(batch, n_heads, rows.stop, width)
        grad_r[:, : rows.stop] += by_sequence.sum(0, dtype=torch.float32)
    return grad_query.view(batch, n_heads, length, width)


def groups(q: torch.Tensor) -> Iterator[slice]:
    """The sequences whose position scores are held at one time, and whose heads fit one axis of a grid."""
    batch, n_heads, length, _ = q.shape
    count = max(1, min(SCRATCH_BYTES // (n_heads * length * length * q.itemsize), GRID_ROWS // n_heads))
    return (slice(start, min(start + count, batch)) for start in range(0, batch, count))


def row_blocks(length: int) -> Iterator[slice]:
    return (slice(start, min(start + TRIM_ROWS, length)) for start in range(0, length, TRIM_ROWS))


def biased(q: torch.Tensor, bias: torch.Tensor, scale: float) -> torch.Tensor:
    """scale (q + bias) as own rows, rounded once."""
    return own_rows(torch.mul(q + bias.float()[:, None], scale).to(q.dtype))


def empty_rows(x: torch.Tensor) -> torch.Tensor:
    """Uninitialised (B, H, T, d_head) in memory of (B, T, H, d_head)."""
    batch, n_heads, length, width = x.shape
    return x.new_empty(batch, length, n_heads, width).transpose(1, 2)


def row_scalars(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[:3], dtype=torch.float32)


def own_rows(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """`x` itself when only its row and head strides are free, as for a slice of the joint q, k, v map; else a copy."""
    batch, _, length, _ = x.shape
    fits = x.stride(3) == 1 and (batch == 1 or x.stride(0) == length * x.stride(2))
    return x if fits else own_rows(x)


@attention.register_fake
def _(q: Any, k: Any, v: Any, r: Any, u: Any, v_bias: Any, scale: float) -> Any:
    return empty_rows(q), row_scalars(q)


@attention_backward.register_fake
def _(grad_out: Any, q: Any, k: Any, v: Any, r: Any, u: Any, v_bias: Any, out: Any, log_sum: Any, scale: float) -> Any:
    return empty_rows(q), empty_rows(q), empty_rows(q), *(torch.empty_like(x) for x in (r, u, v_bias))


def keep_for_backward(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)


def gradients(ctx: Any, grad_out: torch.Tensor, _grad_log_sum: torch.Tensor) -> Any:
    return *attention_backward(grad_out, *ctx.saved_tensors, ctx.scale), None


attention.register_autograd(gradients, setup_context=keep_for_backward)


def relative(q: Any, k: Any, v: Any, r: Any, u: Any, v_bias: Any, scale: float) -> torch.Tensor:
    """The attended values (B, H, T, d_head)."""
    return attention(q, k, v, r, u, v_bias, scale)[0]
