"""Instructions of dense layers, activations and dropout.

Matrices are C-contiguous, with `m` rows of `n` numbers; `a` and `b` are read and `c` is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpunn.kernels import loops, loops_activation
from gpunn.kernels.activation_kinds import KINDS
from gpunn.kernels.native import array_at
from gpunn.program.instructions.words import (
    FLAG,
    KEYS,
    LIMIT,
    PITCH,
    STEP,
    WORKSPACE,
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
    instruction,
    numbers_of,
    register,
    rows_of,
    words_of,
)
from gpunn.program.products import matrix, transpose
from gpunn.program.products import product as blas_product


@instruction
def product(op: int, ctx: int, one: Any) -> None:
    """C = a b, with a (m, k) and b (k, n)."""
    w, x = words_of(op), context_of(ctx)
    a, b, c = matrix(w[A], w[K]), matrix(w[B], w[N]), matrix(w[C], w[N])
    blas_product((w[M], w[N], w[K]), a, b, c, x[WORKSPACE], one)


@instruction
def product_transposed(op: int, ctx: int, one: Any) -> None:
    """C = a b', with a (m, k) and b (n, k)."""
    w, x = words_of(op), context_of(ctx)
    a, b, c = matrix(w[A], w[K]), transpose(matrix(w[B], w[K])), matrix(w[C], w[N])
    blas_product((w[M], w[N], w[K]), a, b, c, x[WORKSPACE], one)


@instruction
def product_over_batch(op: int, ctx: int, one: Any) -> None:
    """C = a' b, with a (k, m), whose rows are `pitch` apart, and b (k, n)."""
    w, x = words_of(op), context_of(ctx)
    a, b, c = transpose(matrix(w[A], w[PITCH])), matrix(w[B], w[N]), matrix(w[C], w[N])
    blas_product((w[M], w[N], w[K]), a, b, c, x[WORKSPACE], one)


@instruction
def add_bias(op: int, ctx: int, one: Any) -> None:
    """A += b for each row; then max(a, 0) if `flag`."""
    w = words_of(op)
    z, bias = rows_of(w[A], w[M], w[N], one), array_at(w[B], (w[N],), one)
    loops.add_bias(z, bias, w[FLAG] != 0)


@instruction
def add(op: int, ctx: int, one: Any) -> None:
    """C = a + b."""
    w = words_of(op)
    n = w[M] * w[N]
    a, b, c = array_at(w[A], (n,), one), array_at(w[B], (n,), one), array_at(w[C], (n,), one)
    for i in range(n):
        c[i] = a[i] + b[i]


@instruction
def multiply(op: int, ctx: int, one: Any) -> None:
    """C = a * b."""
    w = words_of(op)
    n = w[M] * w[N]
    a, b, c = array_at(w[A], (n,), one), array_at(w[B], (n,), one), array_at(w[C], (n,), one)
    for i in range(n):
        c[i] = a[i] * b[i]


@instruction
def dropout(op: int, ctx: int, one: Any) -> None:
    """C = a * d with a mask d, the k-th of `e` masks; `flag` is the first row."""
    w, f = words_of(op), numbers_of(op)
    x = context_of(ctx)
    n = w[M] * w[N]
    key = array_at(x[KEYS], (1 << 60,), np.uint64(0))[x[STEP] * w[E] + w[K]]
    given, result = array_at(w[A], (n,), one), array_at(w[C], (n,), one)
    mask = array_at(w[D], (n,), one)
    loops.drop(given, w[FLAG] * w[N], key, np.uint64(w[LIMIT]), f[P], result, mask)


def _activation(kind: int) -> Callable[..., None]:
    def activation(op: int, ctx: int, one: Any) -> None:
        w, f = words_of(op), numbers_of(op)
        n = w[M] * w[N]
        h = array_at(w[C], (n,), one)
        if w[A] != w[C]:
            x = array_at(w[A], (n,), one)
            for i in range(n):
                h[i] = x[i]
        if kind <= loops.SIGMOID:
            loops.activate(kind, h)
        elif kind <= loops.SOFTPLUS:
            loops.activate_otherwise(kind, type(one)(f[P]), h)
        elif kind <= loops_activation.LOG_SIGMOID:
            loops_activation.activate_smooth(kind, type(one)(f[P]), h)
        else:
            loops_activation.activate_hard(kind, type(one)(f[P]), h)

    return activation


def _slope(kind: int) -> Callable[..., None]:
    def slope(op: int, ctx: int, one: Any) -> None:
        w, f = words_of(op), numbers_of(op)
        n = w[M] * w[N]
        grad, saved = array_at(w[A], (n,), one), array_at(w[B], (n,), one)
        result = array_at(w[C], (n,), one)
        if kind <= loops.SIGMOID:
            loops.times_slope(kind, grad, saved, result)
        elif kind <= loops.SOFTPLUS:
            loops.times_slope_otherwise(kind, type(one)(f[P]), grad, saved, result)
        elif kind <= loops_activation.LOG_SIGMOID:
            loops_activation.times_slope_smooth(kind, type(one)(f[P]), grad, saved, result)
        else:
            loops_activation.times_slope_hard(kind, type(one)(f[P]), grad, saved, result)

    return slope


@instruction
def slope_and_sums(op: int, ctx: int, one: Any) -> None:
    """C = a * h'(b), d = its column sums; `flag` is the activation: ReLU, tanh or sigmoid."""
    w = words_of(op)
    shape = w[M], w[N]
    grad, saved, result = (
        array_at(w[A], shape, one),
        array_at(w[B], shape, one),
        array_at(w[C], shape, one),
    )
    loops.times_slope_and_sums(w[FLAG], grad, saved, result, array_at(w[D], (w[N],), one))


@instruction
def column_sums(op: int, ctx: int, one: Any) -> None:
    """D = the sums of the columns of a."""
    w = words_of(op)
    a, sums = rows_of(w[A], w[M], w[N], one), array_at(w[D], (w[N],), one)
    sums[:] = 0
    for i in range(w[M]):
        for j in range(w[N]):
            sums[j] += a[i, j]


@instruction
def softmax(op: int, ctx: int, one: Any) -> None:
    """C = softmax of each row of a."""
    w = words_of(op)
    a, c = rows_of(w[A], w[M], w[N], one), rows_of(w[C], w[M], w[N], one)
    loops.subtract_largest(a, c)
    loops.exponentiate(array_at(w[C], (w[M] * w[N],), one))
    for i in range(w[M]):
        total = type(one)(0)
        for j in range(w[N]):
            total += c[i, j]
        for j in range(w[N]):
            c[i, j] /= total


@instruction
def softmax_slope(op: int, ctx: int, one: Any) -> None:
    """C = b (a - sum of a b) for each row: dJ/dx of softmax, from a = dJ/dh and b = h."""
    w = words_of(op)
    grad, h = rows_of(w[A], w[M], w[N], one), rows_of(w[B], w[M], w[N], one)
    result = rows_of(w[C], w[M], w[N], one)
    for i in range(w[M]):
        total = type(one)(0)
        for j in range(w[N]):
            total += grad[i, j] * h[i, j]
        for j in range(w[N]):
            result[i, j] = h[i, j] * (grad[i, j] - total)


@instruction
def log_softmax(op: int, ctx: int, one: Any) -> None:
    """C = log softmax of each row of a."""
    w = words_of(op)
    a, c = rows_of(w[A], w[M], w[N], one), rows_of(w[C], w[M], w[N], one)
    loops.subtract_largest(a, c)
    for i in range(w[M]):
        total = type(one)(0)
        for j in range(w[N]):
            total += np.exp(c[i, j])
        less = np.log(total)
        for j in range(w[N]):
            c[i, j] -= less


@instruction
def log_softmax_slope(op: int, ctx: int, one: Any) -> None:
    """C = a - e^b * (sum of a) for each row: dJ/dx of log softmax, from a = dJ/dh and b = h."""
    w = words_of(op)
    grad, h = rows_of(w[A], w[M], w[N], one), rows_of(w[B], w[M], w[N], one)
    result = rows_of(w[C], w[M], w[N], one)
    for i in range(w[M]):
        total = type(one)(0)
        for j in range(w[N]):
            total += grad[i, j]
        for j in range(w[N]):
            result[i, j] = grad[i, j] - np.exp(h[i, j]) * total


for _name, _kind in KINDS.items():
    register(f"activation_{_name}", _activation(_kind.code))
    register(f"slope_{_name}", _slope(_kind.code))
register("activation_gelu_tanh", _activation(loops.GELU_TANH))
register("slope_gelu_tanh", _slope(loops.GELU_TANH))
