"""Instructions of normalisation; see `gpunn.kernels.norm`.

Of a norm within samples, `m` is the number of rows, each of `k` positions of `n` channels in
`pitch` groups; `e` are its statistics.
"""

from __future__ import annotations

from typing import Any

from gpunn.kernels import loops_norm
from gpunn.kernels.native import array_at
from gpunn.program.instructions.words import (
    FLAG,
    LIMIT,
    PITCH,
    A,
    B,
    C,
    D,
    E,
    K,
    M,
    N,
    P,
    by_name,
    entries,
    numbers_of,
    words_of,
)

#: Gradients of gain and bias are added up over about so many numbers at a time, while these are
#: still in the cache from the gradient of x.
_AT_ONCE = 1 << 12


@by_name
def row_norm(op: int, ctx: int, one: Any) -> None:
    """C = the norm of a, with gain b and bias d, which may be absent; `flag`: is it centred."""
    w, f = words_of(op), numbers_of(op)
    shape = w[M], w[K], w[N]
    x, y = array_at(w[A], shape, one), array_at(w[C], shape, one)
    gain, bias = entries(w[B], w[N], one), entries(w[D], w[N], one)
    statistics = array_at(w[E], (w[M], w[PITCH], 2), one)
    loops_norm.row_norm(x, gain, bias, y, statistics, w[PITCH], w[FLAG] != 0, f[P])


@by_name
def row_norm_backward(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dx from a = dJ/dy, b = x and the gain d, unless c is absent.

    At `limit` come this thread's part of the gradients of the gain, and of the bias: `flag` is
    twice their number, plus 1 if the norm is centred.
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
