"""Transformer-XL relative attention as Triton kernels: flash attention that reads its position scores by distance.

score_ij = query_u_i . k_j + query_v_i . r_{i-j} with query_u = scale (q + u) and query_v = scale (q + v_bias). The second
term, P, is made for one layer at a time and made again for the backward pass, so that no T x T tensor outlives its layer
(Dao et al. 2022 for the rest of the recipe). The backward pass overwrites P by the gradient of the scores. No atomic
additions, so that results repeat bit for bit. q, k, v and all outputs are (B, H, T, d_head) seen in memory of
(B, T, H, d_head), which is how the model's linear maps write and read them.

One row of P is made by distance and read by key, so each row is shifted by one against the one before. Shifted rows would
be read number by number. Here row i is shifted by i rounded down to a multiple of G instead, where G numbers are 16 bytes:
every read and write is a whole vector. What is left of the shift, i mod G, is the same for queries that stand G apart:
they are multiplied together with a table of distances that begins i mod G later. In a matrix of T rows and W columns,
the score of query i and key j stands in row i and column j - i // G * G + end(T) - G, that of distance d in column
end(T) - G + i mod G - d. Columns of keys after the query are written as zeros by the backward pass, up to the end of the
block; W leaves room for that.

P and the gradient of the scores are in the dtype of q, all sums in float32: with bfloat16 a position score is off by up to
0.4 %, and the CUDA tests allow 1.5e-2 of the norm of outputs and gradients (2e-6 with float32). Scores are in base 2.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton reads its kernels' annotations: they say constexpr or nothing.

import math
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
ROWS = 128  # of a block in the kernels that only read or write them
TOGETHER = 4  # sequences whose position scores are made together
MARGIN = 128  # numbers after every row, and before the first: the largest block
LOG2_E = math.log2(math.e)
LN_2 = tl.constexpr(math.log(2))
HIDDEN = tl.constexpr(-1e30)  # not -inf: a row without keys must not become nan


@triton.jit
def load_rows(base, rows, stride, T, D: tl.constexpr):
    inside = (rows >= 0) & (rows < T)
    return tl.load(base + rows[:, None] * stride + tl.arange(0, D)[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def store_rows(base, rows, stride, T, value, D: tl.constexpr):
    place = base + rows[:, None] * stride + tl.arange(0, D)[None, :]
    tl.store(place, value.to(base.dtype.element_ty), mask=rows[:, None] < T)


@triton.jit
def biased_kernel(Query, U, V, QueryU, QueryV, T, H, query_row, query_head, factor, D: tl.constexpr, BM: tl.constexpr):
    """factor (q + u) and factor (q + v_bias), (B, H, T, D), rounded once."""
    sequence_head = tl.program_id(1).to(tl.int64)
    sequence, head = sequence_head // H, sequence_head % H
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    q = load_rows(Query + sequence * T * query_row + head * query_head, i, query_row, T, D).to(tl.float32)
    column = head * D + tl.arange(0, D)[None, :]
    u, v = tl.load(U + column).to(tl.float32), tl.load(V + column).to(tl.float32)
    store_rows(QueryU + sequence_head * T * D, i, D, T, (q + u) * factor, D)
    store_rows(QueryV + sequence_head * T * D, i, D, T, (q + v) * factor, D)


@triton.jit
def end(T):
    """Columns of a matrix of scores that hold any."""
    return (T + 15) // 16 * 16


@triton.jit
def score_rows(matrix, i, T, W, G: tl.constexpr):
    """Where the score of key 0 is found for every query `i`; for queries that do not exist that of the last one."""
    row = tl.minimum(i, T - 1)
    return matrix + (row * W - row // G * G + (end(T) - G))


@triton.jit
def position_scores_kernel(
    Query, R, P, B, T, H, W, D: tl.constexpr, G: tl.constexpr, S: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """Position scores of BM / S queries that stand G apart, of S sequences: they share the rows of r."""
    m = tl.num_programs(0) - 1 - tl.program_id(0)
    sequence, head = tl.program_id(1) // H * S + tl.arange(0, BM) // (BM // S), tl.program_id(1) % H
    phase, first = m % G, m // G * (BM // S)
    i = (first + tl.arange(0, BM) % (BM // S)) * G + phase
    inside = (sequence < B) & (i < T)
    own = tl.where(inside, (sequence.to(tl.int64) * H + head) * T + i, 0)  # among all rows
    query = tl.load(Query + own[:, None] * D + tl.arange(0, D)[None, :], mask=inside[:, None], other=0.0)
    table = R + head * T * D
    for x in range(0, tl.minimum(first + BM // S, (T + G - 1) // G) * G, BN):
        column = end(T) - x - BN + tl.arange(0, BN)
        far = load_rows(table, phase + end(T) - G - column, D, T, D)
        scores = tl.dot(query, tl.trans(far), input_precision="ieee")
        tl.store((P + own * W)[:, None] + column[None, :], scores.to(P.dtype.element_ty), mask=inside[:, None])


@triton.jit
def attend(
    top, total, out, query, keys, values, rows, i, n, T, key_row, value_row,
    D: tl.constexpr, BN: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One block of keys of the softmax so far; WHOLE where every query sees all of them."""
    j = n + tl.arange(0, BN)
    scores = tl.load(rows[:, None] + j[None, :]).to(tl.float32)
    scores += tl.dot(query, tl.trans(load_rows(keys, j, key_row, T, D)), input_precision="ieee")
    if not WHOLE:
        scores = tl.where(i[:, None] >= j[None, :], scores, HIDDEN)
    higher = tl.maximum(top, tl.max(scores, 1))
    p = tl.exp2(scores - higher[:, None])
    shrink = tl.exp2(top - higher)
    value = load_rows(values, j, value_row, T, D)
    out = out * shrink[:, None] + tl.dot(p.to(value.dtype), value, input_precision="ieee")
    return higher, total * shrink + tl.sum(p, 1), out


@triton.jit
def forward_kernel(
    Query, Key, Value, P, Out, LogSum, T, H, W, key_row, key_head, value_row, value_head,
    D: tl.constexpr, G: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    m, sequence_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    sequence, head = sequence_head // H, sequence_head % H
    keys = Key + sequence * T * key_row + head * key_head
    values = Value + sequence * T * value_row + head * value_head
    i = m * BM + tl.arange(0, BM)
    query = load_rows(Query + sequence_head * T * D, i, D, T, D)
    rows = score_rows(P + sequence_head * T * W, i, T, W, G)
    top = tl.full([BM], HIDDEN, tl.float32)
    total = tl.zeros([BM], tl.float32)
    out = tl.zeros([BM, D], tl.float32)
    whole = m * BM // BN * BN
    for n in range(0, whole, BN):
        top, total, out = attend(top, total, out, query, keys, values, rows, i, n, T, key_row, value_row, D, BN, True)
    for n in range(whole, m * BM + BM, BN):
        top, total, out = attend(top, total, out, query, keys, values, rows, i, n, T, key_row, value_row, D, BN, False)
    store_rows(Out + sequence * T * H * D + head * D, i, H * D, T, out / total[:, None], D)
    tl.store(LogSum + sequence_head * T + i, top + tl.log2(total), mask=i < T)


@triton.jit
def delta_kernel(Out, GradOut, Delta, T, H, D: tl.constexpr, BM: tl.constexpr):
    """Sum over the width of out times its gradient, (B, H, T)."""
    sequence_head = tl.program_id(1).to(tl.int64)
    own = sequence_head // H * T * H * D + sequence_head % H * D
    i = tl.program_id(0) * BM + tl.arange(0, BM)
    out, grad = load_rows(Out + own, i, H * D, T, D), load_rows(GradOut + own, i, H * D, T, D)
    tl.store(Delta + sequence_head * T + i, tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1), mask=i < T)


@triton.jit
def grad_scores_of(
    grad_key, grad_value, key, value, queries, grads, matrix, log_sums, deltas, j, m, T, W, grad_row,
    D: tl.constexpr, G: tl.constexpr, BM: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """One block of queries of the gradients of keys and values; its position scores become gradients of scores."""
    i = m + tl.arange(0, BM)
    query = load_rows(queries, i, D, T, D)
    grad = load_rows(grads, i, grad_row, T, D)
    place = score_rows(matrix, i, T, W, G)[None, :] + j[:, None]
    scores = tl.load(place).to(tl.float32)
    scores += tl.dot(key, tl.trans(query), input_precision="ieee")
    # a query that does not exist has no part in anything: its probabilities are 0
    log_sum = tl.load(log_sums + i, mask=i < T, other=float("inf"))
    delta = tl.load(deltas + i, mask=i < T, other=0.0)
    if not WHOLE:  # masked before exp: the future would overflow
        scores = tl.where(i[None, :] >= j[:, None], scores, HIDDEN)
    p = tl.exp2(scores - log_sum[None, :])
    grad_value += tl.dot(p.to(grad.dtype), grad, input_precision="ieee")
    grad_scores = p * (tl.dot(value, tl.trans(grad), input_precision="ieee") - delta[None, :])
    grad_scores = grad_scores.to(query.dtype)
    grad_key += tl.dot(grad_scores, query, input_precision="ieee")
    tl.store(place, grad_scores, mask=i[None, :] < T)
    return grad_key, grad_value


@triton.jit
def backward_keys_kernel(
    Query, Key, Value, P, GradOut, LogSum, Delta, GradKey, GradValue, T, H, W,
    key_row, key_head, value_row, value_head,
    D: tl.constexpr, G: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of keys and values; P becomes the gradient of the scores."""
    n, sequence_head = tl.program_id(0) * BN, tl.program_id(1).to(tl.int64)
    sequence, head = sequence_head // H, sequence_head % H
    own = sequence * T * H * D + head * D
    j = n + tl.arange(0, BN)
    key = load_rows(Key + sequence * T * key_row + head * key_head, j, key_row, T, D)
    value = load_rows(Value + sequence * T * value_row + head * value_head, j, value_row, T, D)
    queries = Query + sequence_head * T * D
    matrix = P + sequence_head * T * W
    log_sums, deltas = LogSum + sequence_head * T, Delta + sequence_head * T
    grad_key = tl.zeros([BN, D], tl.float32)
    grad_value = tl.zeros([BN, D], tl.float32)
    whole = tl.cdiv(n + BN - 1, BM) * BM
    for m in range(n // BM * BM, tl.minimum(whole, T), BM):
        grad_key, grad_value = grad_scores_of(
            grad_key, grad_value, key, value, queries, GradOut + own, matrix, log_sums, deltas, j, m, T, W, H * D,
            D, G, BM, False,
        )  # fmt: skip
    for m in range(whole, T, BM):
        grad_key, grad_value = grad_scores_of(
            grad_key, grad_value, key, value, queries, GradOut + own, matrix, log_sums, deltas, j, m, T, W, H * D,
            D, G, BM, True,
        )  # fmt: skip
    store_rows(GradKey + own, j, H * D, T, grad_key * LN_2, D)
    store_rows(GradValue + own, j, H * D, T, grad_value, D)


@triton.jit
def backward_queries_kernel(
    Key, R, GradP, GradQuery, Sums, T, H, W, key_row, key_head, scale,
    D: tl.constexpr, G: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradient of BM queries that stand G apart, and its sums over them by content and by position."""
    m, sequence_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    sequence, head = sequence_head // H, sequence_head % H
    keys, table = Key + sequence * T * key_row + head * key_head, R + head * T * D
    phase, first = m % G, m // G * BM
    a = first + tl.arange(0, BM)
    i = a * G + phase
    rows = score_rows(GradP + sequence_head * T * W, i, T, W, G)
    own = tl.minimum(a, (T - 1) // G) * G  # like `rows`, the last query's for those that do not exist
    last = tl.minimum(first + BM, (T + G - 1) // G) * G
    whole = tl.where((first + BM - 1) * G + phase < T, first * G // BN * BN, 0)  # up to here every query sees every key
    content = tl.zeros([BM, D], tl.float32)
    position = tl.zeros([BM, D], tl.float32)
    for n in range(0, whole, BN):
        j = n + tl.arange(0, BN)
        content += tl.dot(
            tl.load(rows[:, None] + j[None, :]), load_rows(keys, j, key_row, T, D), input_precision="ieee"
        )
    for n in range(whole, last, BN):
        j = n + tl.arange(0, BN)
        grad = tl.load(rows[:, None] + j[None, :])
        grad = tl.where((i[:, None] >= j[None, :]) & (i[:, None] < T), grad, 0.0)
        content += tl.dot(grad, load_rows(keys, j, key_row, T, D), input_precision="ieee")
    for x in range(0, whole, BN):
        column = end(T) - x - BN + tl.arange(0, BN)
        j = own[:, None] + (column - (end(T) - G))[None, :]
        far = load_rows(table, phase + end(T) - G - column, D, T, D)
        position += tl.dot(tl.load(rows[:, None] + j), far, input_precision="ieee")
    for x in range(whole, last, BN):
        column = end(T) - x - BN + tl.arange(0, BN)
        j = own[:, None] + (column - (end(T) - G))[None, :]
        grad = tl.where((j >= 0) & (i[:, None] < T), tl.load(rows[:, None] + j), 0.0)
        far = load_rows(table, phase + end(T) - G - column, D, T, D)
        position += tl.dot(grad, far, input_precision="ieee")
    store_rows(GradQuery + sequence * T * H * D + head * D, i, H * D, T, (content + position) * scale, D)
    sums = Sums + (sequence_head * tl.num_programs(0) + m) * 2 * D + tl.arange(0, D)
    tl.store(sums, tl.sum(content, 0) * scale)
    tl.store(sums + D, tl.sum(position, 0) * scale)


@triton.jit
def table_gradient_of(
    total, queries, matrix, first, column, phase, T, W, D: tl.constexpr, G: tl.constexpr, BM: tl.constexpr, WHOLE: tl.constexpr
):  # fmt: skip
    """One block of queries of the gradient of rows of r."""
    a = first + tl.arange(0, BM)
    i = a * G + phase
    j = (tl.minimum(a, (T - 1) // G) * G)[:, None] + (column - (end(T) - G))[None, :]
    grad = tl.load(score_rows(matrix, i, T, W, G)[:, None] + j)
    if not WHOLE:
        grad = tl.where((j >= 0) & (i[:, None] < T), grad, 0.0)
    return total + tl.dot(tl.trans(grad), load_rows(queries, i, D, T, D), input_precision="ieee")


@triton.jit
def backward_table_kernel(
    Query, GradP, GradTable, B, T, H, W, X, D: tl.constexpr, G: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):
    """Gradient of BN rows of r from the queries of one phase of all sequences, (G, H, X, D): row x is distance x + phase - (G - 1)."""
    x, phase, head = tl.program_id(0) * BN, tl.program_id(1) % G, tl.program_id(1) // G
    column = end(T) - x - BN + tl.arange(0, BN)
    count = tl.maximum(T - phase + G - 1, 0) // G  # queries
    # blocks with a query as far from its first key as the nearest of these rows, and as the farthest
    near, far = tl.maximum(x - G + 1, 0) // G // BM, tl.cdiv(tl.cdiv(tl.maximum(x + BN - G, 0), G), BM)
    far, whole, blocks = tl.minimum(far, tl.cdiv(count, BM)), count // BM, tl.cdiv(count, BM)
    whole = tl.maximum(whole - far, 0)  # in which every query reaches every row
    cut = tl.maximum(blocks - near - whole, 0)
    total = tl.zeros([BN, D], tl.float32)
    for step in range(0, B * whole):
        sequence_head = (step // whole).to(tl.int64) * H + head
        queries, matrix = Query + sequence_head * T * D, GradP + sequence_head * T * W
        total = table_gradient_of(
            total, queries, matrix, (far + step % whole) * BM, column, phase, T, W, D, G, BM, True
        )
    for step in range(0, B * cut):
        sequence_head = (step // cut).to(tl.int64) * H + head
        queries, matrix = Query + sequence_head * T * D, GradP + sequence_head * T * W
        block = near + step % cut
        block += tl.where(block < far, 0, whole)
        total = table_gradient_of(total, queries, matrix, block * BM, column, phase, T, W, D, G, BM, False)
    back = x + BN - 1 - tl.arange(0, BN)
    place = GradTable + ((phase * H + head) * X + back[:, None]) * D + tl.arange(0, D)[None, :]
    tl.store(place, total * LN_2)


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
    """Position scores in the layout described above, (B * H, T, W) numbers."""
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
