"""Instructions of normalisation; see `gpunn.kernels.norm`.

For a norm within samples, `m` is the number of rows, each of `k` positions of `n` channels in
`pitch` groups; `e` holds its statistics.
"""

from __future__ import annotations

from typing import Any

from gpunn.kernels import loops_norm
from gpunn.kernels.native import array_at
from gpunn.program.instructions.words import (
    FLAG,
    LIMIT,
    PITCH,
    THREADS,
    A,
    B,
    C,
    D,
    E,
    K,
    M,
    N,
    P,
    context_of,
    doubles,
    entries,
    instruction,
    numbers_of,
    rows_of,
    words_of,
)

#: Gradients of gain and bias are summed over about this many numbers at a time, while they are
#: still in the cache from the gradient of x.
_AT_ONCE = 1 << 12


@instruction
def row_norm(op: int, ctx: int, one: Any) -> None:
    """C = the norm of a, with gain b and optional bias d; `flag` says whether it is centred."""
    w, f = words_of(op), numbers_of(op)
    shape = w[M], w[K], w[N]
    x, y = array_at(w[A], shape, one), array_at(w[C], shape, one)
    gain, bias = entries(w[B], w[N], one), entries(w[D], w[N], one)
    statistics = array_at(w[E], (w[M], w[PITCH], 2), one)
    loops_norm.row_norm(x, gain, bias, y, statistics, w[PITCH], w[FLAG] != 0, f[P])


@instruction
def row_norm_backward(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dx from a = dJ/dy, b = x and the gain d, unless c is absent.

    This thread's parts of the gradients of gain and bias go to `limit`; `flag` is twice their
    number, plus 1 if the norm is centred.
    """
    w = words_of(op)
    shape, groups, n_sums = (w[M], w[K], w[N]), w[PITCH], w[FLAG] // 2
    grad, x = array_at(w[A], shape, one), array_at(w[B], shape, one)
    gain, statistics = entries(w[D], w[N], one), array_at(w[E], (w[M], groups, 2), one)
    result = array_at(w[C], shape if w[C] else (0, 0, 0), one)
    sums = array_at(w[LIMIT], (n_sums, w[N]), one)
    sums[:] = 0
    rows = max(1, _AT_ONCE // (w[K] * w[N]))
    for first in range(0, w[M], rows):
        last = min(first + rows, w[M])
        own = grad[first:last], x[first:last], statistics[first:last]
        if w[C]:
            loops_norm.row_norm_backward(*own, gain, result[first:last], groups, w[FLAG] % 2 != 0)
        if n_sums:
            loops_norm.add_row_norm_sums(*own, groups, sums)


# Over the batch: `m` rows of `n` channels, `k` rows per sample


@instruction
def batch_moments(op: int, ctx: int, one: Any) -> None:
    """D = the mean and squared deviations of a's columns, and scratch as long as the mean."""
    w = words_of(op)
    n, moments = w[N], doubles(w[D], 3 * w[N])
    shift = array_at(w[D] + 16 * n, (n,), one)
    loops_norm.batch_moments(rows_of(w[A], w[M], n, one), shift, moments[: 2 * n].reshape(2, n))


@instruction
def batch_statistics(op: int, ctx: int, one: Any) -> None:
    """C = the statistics of the columns over m samples, from all threads' moments a; epsilon p."""
    w, f, x = words_of(op), numbers_of(op), context_of(ctx)
    moments = doubles(w[A], x[THREADS] * 3 * w[N]).reshape(x[THREADS], 3, w[N])
    statistics = rows_of(w[C], 3, w[N], one)
    loops_norm.batch_statistics(moments, w[M], w[K], statistics, f[P])


@instruction
def fixed_statistics(op: int, ctx: int, one: Any) -> None:
    """C = the statistics of a mean a and a variance b; epsilon p."""
    w, f = words_of(op), numbers_of(op)
    mean, variance = entries(w[A], w[N], one), entries(w[B], w[N], one)
    loops_norm.fixed_statistics(mean, variance, rows_of(w[C], 3, w[N], one), f[P])


@instruction
def scale_columns(op: int, ctx: int, one: Any) -> None:
    """C = b (a - mean) scale + d, for the statistics e."""
    w = words_of(op)
    x, y = rows_of(w[A], w[M], w[N], one), rows_of(w[C], w[M], w[N], one)
    gain, bias = entries(w[B], w[N], one), entries(w[D], w[N], one)
    loops_norm.scale_columns(x, rows_of(w[E], 3, w[N], one), gain, bias, y)


@instruction
def batch_norm_sums(op: int, ctx: int, one: Any) -> None:
    """D = the sums of a x_hat and of a, for b = x and the statistics e."""
    w = words_of(op)
    grad, x = rows_of(w[A], w[M], w[N], one), rows_of(w[B], w[M], w[N], one)
    sums = doubles(w[D], 2 * w[N]).reshape(2, w[N])
    loops_norm.batch_norm_sums(grad, x, rows_of(w[E], 3, w[N], one), sums)


@instruction
def add_up_doubles(op: int, ctx: int, one: Any) -> None:
    """C = the sums over threads of m doubles, from `flag` on, of each thread's n at a."""
    w, x = words_of(op), context_of(ctx)
    parts = doubles(w[A], x[THREADS] * w[N]).reshape(x[THREADS], w[N])
    totals = entries(w[C], w[M], one)
    for j in range(w[M]):
        total = 0.0
        for thread in range(x[THREADS]):
            total += parts[thread, w[FLAG] + j]
        totals[j] = total


@instruction
def batch_norm_backward(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dx from a = dJ/dy, b = x, the gain d, statistics e and totals at `limit`.

    The totals, over `k` rows, are replaced by means.
    """
    w = words_of(op)
    n = w[N]
    grad, x = rows_of(w[A], w[M], n, one), rows_of(w[B], w[M], n, one)
    gain, statistics = entries(w[D], n, one), rows_of(w[E], 3, n, one)
    means = rows_of(w[LIMIT], 2, n, one)
    for j in range(n):
        means[0, j] *= statistics[1, j] / w[K]
        means[1, j] /= w[K]
    loops_norm.batch_norm_backward(grad, x, statistics, gain, means, rows_of(w[C], w[M], n, one))


@instruction
def track(op: int, ctx: int, one: Any) -> None:
    """Move m running means c and variances d a fraction p of the way to the statistics at a.

    The statistics are three rows of n numbers.
    """
    w, f = words_of(op), numbers_of(op)
    p = type(one)(f[P])
    statistics = entries(w[A], 2 * w[N] + w[M], one)
    mean, variance = entries(w[C], w[M], one), entries(w[D], w[M], one)
    for j in range(w[M]):
        mean[j] += p * (statistics[j] - mean[j])
        variance[j] += p * (statistics[2 * w[N] + j] - variance[j])
