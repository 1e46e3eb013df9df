"""The kernels of `gopher.kernels.relative`, and how position scores lie in memory.

One row of P is made by distance and read by key, so each row is shifted by one against the one before. Shifted rows would
be read number by number. Here row i is shifted by i rounded down to a multiple of G instead, where G numbers are 16 bytes:
every read and write is a whole vector. What is left of the shift, i mod G, is the same for queries that stand G apart:
they are multiplied together with a table of distances that begins i mod G later. In a matrix of T rows and W columns,
the score of query i and key j stands in row i and column j - i // G * G + end(T) - G, that of distance d in column
end(T) - G + i mod G - d. Columns of keys after the query are written as zeros by the backward pass, up to the end of the
block; W leaves room for that.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton reads its kernels' annotations: they say constexpr or nothing.

import math

import triton
import triton.language as tl

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
