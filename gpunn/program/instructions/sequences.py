"""Instructions of attention, embeddings, positions and columns."""

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
    context_of,
    instruction,
    integers,
    rows_of,
    words_of,
)
from gpunn.program.products import add_product, matrix, product, transpose

#: Queries processed together: their scores stay in the cache.
QUERIES = 64


@instruction
def embedding(op: int, ctx: int, one: Any) -> None:
    """C = the rows of b (k, n) at the m indices a; NaN if an index is out of range."""
    w = words_of(op)
    table, result = rows_of(w[B], w[K], w[N], one), rows_of(w[C], w[M], w[N], one)
    loops.look_up(integers(w[A], w[M]), table, result)


@instruction
def embedding_backward(op: int, ctx: int, one: Any) -> None:
    """C = the sums of the rows of b (m, n) with equal indices a, for k indices from `flag` on."""
    w = words_of(op)
    grad, sums = rows_of(w[B], w[M], w[N], one), rows_of(w[C], w[K], w[N], one)
    loops.add_by_row(integers(w[A], w[M]), grad, w[FLAG], sums)


@instruction
def add_positions(op: int, ctx: int, one: Any) -> None:
    """C = a + b for each of m rows."""
    w = words_of(op)
    x, result = rows_of(w[A], w[M], w[N], one), rows_of(w[C], w[M], w[N], one)
    table = array_at(w[B], (w[N],), one)
    for i in range(w[M]):
        for j in range(w[N]):
            result[i, j] = x[i, j] + table[j]


@instruction
def copy_columns(op: int, ctx: int, one: Any) -> None:
    """C = the first k entries of m rows of a; a's rows have n entries, and c's have `pitch`."""
    w = words_of(op)
    for i in range(w[M]):
        given = array_at(w[A] + i * w[N] * itemsize(one), (w[K],), one)
        copied = array_at(w[C] + i * w[PITCH] * itemsize(one), (w[K],), one)
        for j in range(w[K]):
            copied[j] = given[j]


@compiled
def _scale(width: int, heads: int, one: Any) -> Any:
    """Return the factor of the scores, 1 / sqrt(the width of a head)."""
    return type(one)((width // heads) ** -0.5)


@instruction
def attention(op: int, ctx: int, one: Any) -> None:
    """C = the weighted means of the values in a, for k heads; d = the weights, if wanted.

    There are m sequences of n positions, with vectors `pitch` long; `flag` says whether attention
    is causal, and e is scratch memory for the scores of `QUERIES` queries.
    """
    w, workspace = words_of(op), context_of(ctx)[WORKSPACE]
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
            product(
                (rows, seen, d), queries, transpose(matrix(k, 3 * width)), scores, workspace, one
            )
            loops.softmax_of_scores(rows_of(kept, rows, t, one), start, causal, scale)
            mean = w[C] + ((sample * t + start) * width + head * d) * size
            means, zero = matrix(mean, width), type(one)(0)
            add_product((rows, d, seen), scores, matrix(v, 3 * width), zero, means, workspace)


@instruction
def attention_backward(op: int, ctx: int, one: Any) -> None:
    """C = the gradient of b = qkv, from a, the means' gradient, and the weights d.

    The other words are those of `attention`.
    """
    w, workspace = words_of(op), context_of(ctx)[WORKSPACE]
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
            product((rows, seen, d), given, transpose(matrix(v, 3 * width)), grads, workspace, one)
            add_product(
                (seen, d, rows),
                transpose(weights),
                given,
                first,
                matrix(grad_v, 3 * width),
                workspace,
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
                workspace,
            )
            add_product(
                (seen, d, rows),
                transpose(grads),
                matrix(q + down, 3 * width),
                first,
                matrix(grad_k, 3 * width),
                workspace,
            )


@compiled
def _clear(place: int, rows: int, columns: int, pitch: int, one: Any) -> None:
    """Zero the first columns of rows that are `pitch` long."""
    for i in range(rows):
        array_at(place + i * pitch * itemsize(one), (columns,), one)[:] = 0
