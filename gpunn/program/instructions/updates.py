"""Instructions of updates and of sums over threads."""

from __future__ import annotations

import math
from typing import Any

from gpunn.kernels import loops_update
from gpunn.kernels.native import array_at, compiled
from gpunn.program.instructions.words import (
    DECAYS,
    EPSILONS,
    FACTOR,
    FLAG,
    PENALTIES,
    RATES,
    STEP,
    THREAD,
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
    Q,
    R,
    S,
    context_of,
    doubles,
    instruction,
    numbers_of,
    words_of,
)


@compiled
def _operands(op: int, ctx: int, one: Any) -> Any:
    """Return the arguments of a rule in `loops_update`, for m numbers.

    a is the value, b the gradient, and c, e and k the states; p, q and r are the settings, and s is
    the limit on gradient entries. d says whether weight decay applies, n whether it is decoupled,
    and `flag` whether gradients are clipped by their norm.
    """
    w, f = words_of(op), numbers_of(op)
    x, m = context_of(ctx), w[M]
    step, decay, keep = x[STEP], 0.0, 1.0
    if w[D]:
        decay = doubles(x[DECAYS], step + 1)[step]
    if w[N]:
        decay, keep = 0.0, 1.0 - decay
    rate, epsilon = doubles(x[RATES], step + 1)[step], doubles(x[EPSILONS], step + 1)[step]
    factor = doubles(ctx, 20)[FACTOR] if w[FLAG] else 1.0
    value, grad = array_at(w[A], (m,), one), array_at(w[B], (m,), one)
    first, second = array_at(w[C], (m,), one), array_at(w[E], (m,), one)
    third = array_at(w[K], (m,), one)
    common = rate, epsilon, decay, keep, f[S], factor
    return value, grad, (first, second, third), common, (f[P], f[Q], f[R])


@instruction
def sgd(op: int, ctx: int, one: Any) -> None:
    """Update numbers by SGD."""
    loops_update.sgd(*_operands(op, ctx, one))


@instruction
def adam(op: int, ctx: int, one: Any) -> None:
    """Update numbers by Adam."""
    loops_update.adam(*_operands(op, ctx, one))


@instruction
def rmsprop(op: int, ctx: int, one: Any) -> None:
    """Update numbers by RMSprop."""
    loops_update.rmsprop(*_operands(op, ctx, one))


@instruction
def adagrad(op: int, ctx: int, one: Any) -> None:
    """Update numbers by Adagrad."""
    loops_update.adagrad(*_operands(op, ctx, one))


@instruction
def lion(op: int, ctx: int, one: Any) -> None:
    """Update numbers by Lion."""
    loops_update.lion(*_operands(op, ctx, one))


@instruction
def gradient_sum(op: int, ctx: int, one: Any) -> None:
    """Add gradients to sums."""
    loops_update.gradient_sum(*_operands(op, ctx, one))


@instruction
def average(op: int, ctx: int, one: Any) -> None:
    """Move m averages at a towards the numbers at b by the fraction p."""
    w, f = words_of(op), numbers_of(op)
    value, weight = array_at(w[A], (w[M],), one), array_at(w[B], (w[M],), one)
    common = f[P], 0.0, 0.0, 1.0, math.inf, 1.0
    loops_update.average(value, weight, (value, value, value), common, (0.0, 0.0, 0.0))


@instruction
def penalty(op: int, ctx: int, one: Any) -> None:
    """Add half the weight decay times the sum of squares of a to the step's penalty."""
    w, x = words_of(op), context_of(ctx)
    decay = doubles(x[DECAYS], x[STEP] + 1)[x[STEP]]
    if decay != 0.0:
        value, squares = array_at(w[A], (w[M],), one), type(one)(0)
        for i in range(w[M]):
            squares += value[i] * value[i]
        place = x[STEP] * x[THREADS] + x[THREAD]
        doubles(x[PENALTIES], place + 1)[place] += 0.5 * decay * squares


@instruction
def squared_norm(op: int, ctx: int, one: Any) -> None:
    """Add the sum of squares of a, clipped to +-p, to the sum at d; set it if `flag`."""
    w, f = words_of(op), numbers_of(op)
    grad, limit, squares = array_at(w[A], (w[M],), one), type(one)(f[P]), type(one)(0)
    for i in range(w[M]):
        g = grad[i]
        g = limit if g > limit else (-limit if g < -limit else g)
        squares += g * g
    total = doubles(w[D], 1)
    total[0] = squares if w[FLAG] else total[0] + squares


@instruction
def clip_factor(op: int, ctx: int, one: Any) -> None:
    """Compute the factor that clips all gradients to the norm p, from the threads' sums at d."""
    w, f = words_of(op), numbers_of(op)
    x, total = context_of(ctx), 0.0
    sums = doubles(w[D], x[THREADS])
    for i in range(x[THREADS]):
        total += sums[i]
    norm = math.sqrt(total)
    # 1 where the norm is below, and NaN where it is NaN.
    doubles(ctx, 20)[FACTOR] = f[P] / (f[P] if norm < f[P] else norm)


@instruction
def accumulate(op: int, ctx: int, one: Any) -> None:
    """C += a, of m numbers."""
    w = words_of(op)
    a, c = array_at(w[A], (w[M],), one), array_at(w[C], (w[M],), one)
    for i in range(w[M]):
        c[i] += a[i]


@instruction
def add_up(op: int, ctx: int, one: Any) -> None:
    """C = the sums over threads of m numbers, from `flag` on, of each thread's n at a."""
    w, x = words_of(op), context_of(ctx)
    parts = array_at(w[A], (x[THREADS], w[N]), one)
    c = array_at(w[C], (w[M],), one)
    for j in range(w[M]):
        c[j] = parts[0, w[FLAG] + j]
    for thread in range(1, x[THREADS]):
        for j in range(w[M]):
            c[j] += parts[thread, w[FLAG] + j]
