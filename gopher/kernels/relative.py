"""Transformer-XL relative attention as Triton kernels: flash attention that reads its position scores by distance.

score_ij = query_u_i . k_j + query_v_i . r_{i-j} with query_u = scale (q + u) and query_v = scale (q + v_bias). The second
term, P, is made for one layer at a time and made again for the backward pass, so that no T x T tensor outlives its layer
(Dao et al. 2022 for the rest of the recipe). The backward pass overwrites P by the gradient of the scores. No atomic
additions, so that results repeat bit for bit. q, k, v and all outputs are (B, H, T, d_head) seen in memory of
(B, T, H, d_head), which is how the model's linear maps write and read them.

P and the gradient of the scores are in the dtype of q, all sums in float32: with bfloat16 a position score is off by up to
0.4 %, and the CUDA tests allow 1.5e-2 of the norm of outputs and gradients (2e-6 with float32). Scores are in base 2.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import triton

from gopher.kernels.blocks import (
    backward_keys_kernel,
    backward_queries_kernel,
    backward_table_kernel,
    biased_kernel,
    delta_kernel,
    forward_kernel,
    position_scores_kernel,
)

HEAD_WIDTHS = (32, 64, 128)
MAX_LENGTH = 8192  # offsets inside one T x T matrix are 32 bit
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SCRATCH_BYTES = 2 << 30  # position scores of as many sequences as fit, at least one
GRID_ROWS = 65_535  # CUDA's limit for the second axis of a grid
ROWS = 128  # of a block in the kernels that only read or write them
TOGETHER = 4  # sequences whose position scores are made together
MARGIN = 128  # numbers after every row, and before the first: the largest block
LOG2_E = math.log2(math.e)


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
    """Block sizes, warps and loads in flight: with narrow numbers the fastest of a dozen on an H200, or within 5 % of it."""
    narrow = {
        position_scores_kernel: (128, 64, 8, 3) if width == 128 else (64, 128, 4, 2),
        forward_kernel: (64, 64, 4, 2),
        backward_keys_kernel: (32, 64, 4, 3),
        backward_queries_kernel: (64, 64, 4, 4),
        backward_table_kernel: (32, 128, 4, 4),
    }
    wide = (16, 16, 8, 1) if kernel is backward_keys_kernel else (32, 32, 4, 1)
    sizes = wide if dtype == torch.float32 else narrow[kernel]
    return dict(zip(("BM", "BN", "num_warps", "num_stages"), sizes, strict=True))


def vector(dtype: torch.dtype) -> int:
    """G: numbers in 16 bytes."""
    return 16 // dtype.itemsize


def blocks(kernel: Any, q: torch.Tensor) -> int:
    """Programs of a kernel per head of a sequence."""
    sizes, group, length = tiles(kernel, q.size(3), q.dtype), vector(q.dtype), q.size(2)
    if kernel is backward_queries_kernel:
        return triton.cdiv(triton.cdiv(length, group), sizes["BM"]) * group
    return triton.cdiv(length, sizes["BN" if kernel is backward_keys_kernel else "BM"])


def launch(kernel: Any, q: torch.Tensor, *arguments: Any) -> None:
    batch, n_heads, _, width = q.shape
    with torch.cuda.device_of(q):
        grid = (blocks(kernel, q), batch * n_heads)
        kernel[grid](*arguments, D=width, G=vector(q.dtype), **tiles(kernel, width, q.dtype))


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
    """(attended values (B, H, T, d_head), base-2 log of each softmax's denominator (B, H, T) in float32)."""
    q, k, v = map(as_rows, (q, k, v))
    out, log_sum = empty_rows(q), row_scalars(q)
    shape = (q.size(2), q.size(1), pitch(q))
    for part in groups(q):
        query_u, query_v = biased(q[part], u, v_bias, scale)
        position = position_scores(query_v, r)
        launch(
            forward_kernel, query_u, query_u, k[part], v[part], position, out[part], log_sum[part], *shape,
            *strides(k), *strides(v),
        )  # fmt: skip
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
    q, k, v, grad_out = *map(as_rows, (q, k, v)), own_rows(grad_out)
    grad_q, grad_k, grad_v = empty_rows(q), empty_rows(q), empty_rows(q)
    grad_r, grad_u, grad_w = (torch.zeros_like(x, dtype=torch.float32) for x in (r, u, v_bias))
    shape = (q.size(2), q.size(1), pitch(q))
    for part in groups(q):
        query_u, query_v = biased(q[part], u, v_bias, scale)
        position, delta = position_scores(query_v, r), row_products(out[part], grad_out[part])
        launch(
            backward_keys_kernel, query_u, query_u, k[part], v[part], position, grad_out[part], log_sum[part], delta,
            grad_k[part], grad_v[part], *shape, *strides(k), *strides(v),
        )  # fmt: skip
        sums = delta.new_empty(*delta.shape[:2], blocks(backward_queries_kernel, query_u), 2, q.size(3))
        launch(
            backward_queries_kernel, query_u, k[part], r.contiguous(), position, grad_q[part], sums, *shape, *strides(k),
            scale,
        )  # fmt: skip
        by_content, by_position = sums.sum((0, 2)).unbind(1)
        grad_u += by_content
        grad_w += by_position
        grad_r += table_gradient(query_v, position)
    return grad_q, grad_k, grad_v, grad_r.to(r.dtype), grad_u.to(u.dtype), grad_w.to(v_bias.dtype)


def biased(q: torch.Tensor, u: torch.Tensor, v_bias: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """query_u and query_v, (B, H, T, d_head)."""
    batch, n_heads, length, width = q.shape
    both = q.new_empty(2, *q.shape)
    with torch.cuda.device_of(q):
        biased_kernel[(triton.cdiv(length, ROWS), batch * n_heads)](
            q, u.contiguous(), v_bias.contiguous(), both[0], both[1], length, n_heads, *strides(q), scale * LOG2_E,
            D=width, BM=ROWS,
        )  # fmt: skip
    return both[0], both[1]


def position_scores(query: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """Position scores in the layout of `gopher.kernels.blocks`, (B * H, T, W) numbers."""
    batch, n_heads, length, width = query.shape
    row, group, sizes = pitch(query), vector(query.dtype), tiles(position_scores_kernel, width, query.dtype)
    together = min(TOGETHER, 1 << batch.bit_length() - 1)
    programs = triton.cdiv(triton.cdiv(length, group), sizes["BM"] // together) * group
    scores = query.new_empty(batch * n_heads * length * row + 2 * MARGIN)[MARGIN:]
    with torch.cuda.device_of(query):
        position_scores_kernel[(programs, triton.cdiv(batch, together) * n_heads)](
            query, r.contiguous(), scores, batch, length, n_heads, row, D=width, G=group, S=together, **sizes
        )
    return scores


def row_products(out: torch.Tensor, grad_out: torch.Tensor) -> torch.Tensor:
    """What softmax subtracts from the gradient of its outputs, (B, H, T) in float32."""
    batch, n_heads, length, width = out.shape
    delta = row_scalars(out)
    with torch.cuda.device_of(out):
        delta_kernel[(triton.cdiv(length, ROWS), batch * n_heads)](
            out, grad_out, delta, length, n_heads, D=width, BM=ROWS
        )
    return delta


def table_gradient(query: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """The gradient of r, (H, T, d_head) in float32, summed over sequences, from that of the scores."""
    batch, n_heads, length, width = query.shape
    group, sizes = vector(query.dtype), tiles(backward_table_kernel, width, query.dtype)
    programs = triton.cdiv(length + group - 1, sizes["BN"])
    rows = programs * sizes["BN"]
    by_phase = query.new_empty(group, n_heads, rows, width, dtype=torch.float32)
    with torch.cuda.device_of(query):
        backward_table_kernel[(programs, n_heads * group)](
            query, grad, by_phase, batch, length, n_heads, pitch(query), rows, D=width, G=group, **sizes
        )
    steps = ((n_heads * rows - 1) * width, rows * width, width, 1)  # distance d of phase b stands in row d + G - 1 - b
    return by_phase.as_strided((group, n_heads, length, width), steps, (group - 1) * width).sum(0)


def groups(q: torch.Tensor) -> Iterator[slice]:
    """The sequences whose position scores are held at one time, and whose heads fit one axis of a grid."""
    batch, n_heads, length, _ = q.shape
    count = max(1, min(SCRATCH_BYTES // (n_heads * length * pitch(q) * q.itemsize), GRID_ROWS // n_heads))
    return (slice(start, min(start + count, batch)) for start in range(0, batch, count))


def pitch(q: torch.Tensor) -> int:
    """W: numbers from one row of position scores to the next."""
    return (q.size(2) + 15) // 16 * 16 + MARGIN


def strides(x: torch.Tensor) -> tuple[int, int]:
    """Of rows and of heads."""
    return x.stride(2), x.stride(1)


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
    return x if fits else empty_rows(x).copy_(x)


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
