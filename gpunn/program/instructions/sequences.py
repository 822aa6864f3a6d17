"""Instructions of attention, of tokens and their positions, and of columns."""

from __future__ import annotations

from typing import Any

from gpunn.kernels import loops_sequences as loops
from gpunn.kernels.native import array_at, compiled, itemsize
from gpunn.program.instructions.words import (
    FLAG,
    PITCH,
    WORKSPACE,
    A,
    B,
    C,
    D,
    E,
    K,
    M,
    N,
    by_name,
    context_of,
    integers,
    rows_of,
    words_of,
)
from gpunn.program.products import add_product, matrix, product, transpose

#: Queries that are taken together: their scores stay in the cache.
QUERIES = 64


@by_name
def embedding(op: int, ctx: int, one: Any) -> None:
    """C = the rows of b (k, n) at the m indices a; NaN where one is out of range."""
    w = words_of(op)
    table, result = rows_of(w[B], w[K], w[N], one), rows_of(w[C], w[M], w[N], one)
    loops.look_up(integers(w[A], w[M]), table, result)


@by_name
def embedding_backward(op: int, ctx: int, one: Any) -> None:
    """C = the sums of the rows b (m, n) at the indices a, for k of these, the first is `flag`."""
    w = words_of(op)
    grad, sums = rows_of(w[B], w[M], w[N], one), rows_of(w[C], w[K], w[N], one)
    loops.add_by_row(integers(w[A], w[M]), grad, w[FLAG], sums)


@by_name
def add_positions(op: int, ctx: int, one: Any) -> None:
    """C = a + b for each of m rows."""
    w = words_of(op)
    x, result = rows_of(w[A], w[M], w[N], one), rows_of(w[C], w[M], w[N], one)
    table = array_at(w[B], (w[N],), one)
    for i in range(w[M]):
        for j in range(w[N]):
            result[i, j] = x[i, j] + table[j]


@by_name
def copy_columns(op: int, ctx: int, one: Any) -> None:
    """C = the first k entries of each of m rows of a; rows of a are n long, those of c `pitch`."""
    w = words_of(op)
    for i in range(w[M]):
        given = array_at(w[A] + i * w[N] * itemsize(one), (w[K],), one)
        copied = array_at(w[C] + i * w[PITCH] * itemsize(one), (w[K],), one)
        for j in range(w[K]):
            copied[j] = given[j]


@compiled
def _scale(width: int, heads: int, one: Any) -> Any:
    """Return what scores are multiplied by."""
    return type(one)((width // heads) ** -0.5)


@by_name
def attention(op: int, ctx: int, one: Any) -> None:
    """C = the weighted means of the values in a, of k heads; d the weights, if they are wanted.

    For m sequences of n positions, whose vectors are `pitch` long; `flag` is whether it is causal,
    and e room for the scores of `QUERIES`.
    """
    w, room = words_of(op), context_of(ctx)[WORKSPACE]
    t, heads, width, causal = w[N], w[K], w[PITCH], w[FLAG] != 0
    d, size, scale = width // heads, itemsize(one), _scale(width, heads, one)
    for i in range(w[M] * heads):
        sample, head = i // heads, i % heads
        q = w[A] + (sample * t * 3 * width + head * d) * size
        k, v = q + width * size, q + 2 * width * size
        for start in range(0, t, QUERIES):
            rows = min(QUERIES, t - start)
            seen = start + rows if causal else t
            kept = w[D] + (i * t + start) * t * size if w[D] else w[E]
            scores, queries = matrix(kept, t), matrix(q + start * 3 * width * size, 3 * width)
            product((rows, seen, d), queries, transpose(matrix(k, 3 * width)), scores, room, one)
            loops.softmax_of_scores(rows_of(kept, rows, t, one), start, causal, scale)
            mean = w[C] + ((sample * t + start) * width + head * d) * size
            means, zero = matrix(mean, width), type(one)(0)
            add_product((rows, d, seen), scores, matrix(v, 3 * width), zero, means, room)


@by_name
def attention_backward(op: int, ctx: int, one: Any) -> None:
    """C = the gradient of b, from a, that of the means, and the weights d; else as `attention`."""
    w, room = words_of(op), context_of(ctx)[WORKSPACE]
    t, heads, width, causal = w[N], w[K], w[PITCH], w[FLAG] != 0
    d, size, scale = width // heads, itemsize(one), _scale(width, heads, one)
    first = type(one)(1) if t > QUERIES else type(one)(0)
    for i in range(w[M] * heads):
        sample, head = i // heads, i % heads
        skipped = (sample * t * 3 * width + head * d) * size
        q, k, v = w[B] + skipped, w[B] + skipped + width * size, w[B] + skipped + 2 * width * size
        grad_q = w[C] + skipped
        grad_k, grad_v = grad_q + width * size, grad_q + 2 * width * size
        if t > QUERIES:
            _clear(grad_k, t, d, 3 * width, one)
            _clear(grad_v, t, d, 3 * width, one)
        for start in range(0, t, QUERIES):
            rows = min(QUERIES, t - start)
            seen = start + rows if causal else t
            kept = w[D] + (i * t + start) * t * size
            down = start * 3 * width * size
            given = matrix(w[A] + ((sample * t + start) * width + head * d) * size, width)
            weights, grads = matrix(kept, t), matrix(w[E], seen)
            product((rows, seen, d), given, transpose(matrix(v, 3 * width)), grads, room, one)
            add_product(
                (seen, d, rows), transpose(weights), given, first, matrix(grad_v, 3 * width), room
            )
            loops.slope_of_scores(
                rows_of(kept, rows, t, one), rows_of(w[E], rows, seen, one), scale
            )
            add_product(
                (rows, d, seen),
                grads,
                matrix(k, 3 * width),
                type(one)(0),
                matrix(grad_q + down, 3 * width),
                room,
            )
            add_product(
                (seen, d, rows),
                transpose(grads),
                matrix(q + down, 3 * width),
                first,
                matrix(grad_k, 3 * width),
                room,
            )


@compiled
def _clear(place: int, rows: int, columns: int, pitch: int, one: Any) -> None:
    """Write zeros over the first columns of rows that are `pitch` long."""
    for i in range(rows):
        array_at(place + i * pitch * itemsize(one), (columns,), one)[:] = 0
