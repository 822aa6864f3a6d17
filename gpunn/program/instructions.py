"""The instructions of the CPU's interpreter: one compiled function for each, found by name.

An instruction is a row of sixteen words of eight bytes, `WORDS`, the first of which is the address
of its function. It is given the address of its row, that of the thread's context, a row of
`CONTEXT` words that change from step to step, and 1 in the dtype of the program. It has no result.

A function is compiled when a program first needs it, and kept in a file for the next process: an
instruction that nobody uses costs nothing, and a new one leaves the others as they are.

Matrices lie in C's order without gaps, if nothing else is said: `m` rows of `n`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from gpunn._typing import Array
from gpunn.kernels.compiled import loops
from gpunn.kernels.compiled.blas import matrix, transpose
from gpunn.kernels.compiled.blas import product as blas_product
from gpunn.kernels.compiled.native import SETTINGS, array_at, compiled, itemsize

#: The words of an instruction: sizes, addresses, whole numbers, and four of double precision.
WORDS: tuple[str, ...] = (
    "function",
    "m",
    "n",
    "k",
    "a",
    "b",
    "c",
    "d",
    "e",
    "flag",
    "pitch",
    "limit",
)
WORDS += ("p", "q", "r", "s")
_M, _N, _K, _A, _B, _C, _D, _E, _FLAG, _PITCH, _LIMIT = range(1, 12)
_P, _Q, _R, _S = range(12, 16)
#: The bytes of an instruction.
SIZE = 8 * len(WORDS)

#: The words of a thread's context. `order` is 0 where rows come as they stand; `start` is the turn
#: of the batch's first row, and `turn` that of the first row of `outputs`, 0 if nobody wants them;
#: `factor` is of double precision; the data come last.
CONTEXT: tuple[str, ...] = (
    "order",
    "start",
    "step",
    "rates",
    "decays",
    "costs",
    "penalties",
    "totals",
)
CONTEXT += ("outputs", "turn", "keys", "thread", "threads", "workspace", "factor", "made")
CONTEXT += ("x", "y", "weight")
ORDER, START, STEP, _RATES, _DECAYS, _COSTS, _PENALTIES, _TOTALS = range(8)
_OUTPUTS, _TURN, _KEYS, _THREAD, _THREADS, _WORKSPACE, _FACTOR, MADE = range(8, 16)

_SIGNATURES = {
    np.dtype("float32"): types.void(types.intp, types.intp, types.float32),
    np.dtype("float64"): types.void(types.intp, types.intp, types.float64),
}
_sources: dict[str, Callable[..., None]] = {}
_compiled: dict[tuple[str, Any], Any] = {}


def address_of(name: str, dtype: Any) -> int:
    """Return the address of an instruction's function for a dtype; it is compiled if it must be."""
    made = _compiled.get((name, dtype))
    if made is None:
        signature, source = _SIGNATURES[dtype], _sources[name]
        try:
            made = numba.cfunc(signature, nopython=True, cache=True, **SETTINGS)(source)
        except RuntimeError:  # no folder that it could write to
            made = numba.cfunc(signature, nopython=True, **SETTINGS)(source)
        _compiled[name, dtype] = made
    address: int = made.address
    return address


def names() -> list[str]:
    """Return the names of all instructions."""
    return list(_sources)


def _instruction(function: Callable[..., None]) -> Callable[..., None]:
    _sources[function.__name__] = function
    return function


@compiled
def integers(place: int, n: int) -> Array:
    """Return the whole numbers at an address."""
    return array_at(place, (n,), np.int64(0))


@compiled
def doubles(place: int, n: int) -> Array:
    """Return the numbers of double precision at an address."""
    return array_at(place, (n,), np.float64(0))


@compiled
def _row(op: int) -> tuple[Array, Array]:
    """Return an instruction's words, as whole numbers and as numbers of double precision."""
    return integers(op, 16), doubles(op, 16)


@compiled
def _entries(place: int, n: int, one: Any) -> Array:
    """Return n numbers of the program's dtype; none for the address 0."""
    return array_at(place, (n if place else 0,), one)


# Data


@_instruction
def gather(op: int, ctx: int, one: Any) -> None:
    """Copy rows of k numbers from the data, in the epoch's order; `flag` is the first row."""
    w, x = integers(op, 16), integers(ctx, 20)
    m, k = w[_M], w[_K]
    rows = integers(x[ORDER] + 8 * (x[START] + w[_FLAG]), m)
    target = array_at(w[_C], (m, k), one)
    for i in range(m):
        given = array_at(x[w[_A]] + rows[i] * k * itemsize(one), (k,), one)
        for j in range(k):
            target[i, j] = given[j]


@_instruction
def gather_labels(op: int, ctx: int, one: Any) -> None:
    """Copy labels, in the epoch's order."""
    w, x = integers(op, 16), integers(ctx, 20)
    m, k = w[_M], w[_K]
    rows = integers(x[ORDER] + 8 * (x[START] + w[_FLAG]), m)
    target = array_at(w[_C], (m, k), np.int64(0))
    for i in range(m):
        given = integers(x[w[_A]] + rows[i] * k * 8, k)
        for j in range(k):
            target[i, j] = given[j]


@_instruction
def copy_out(op: int, ctx: int, one: Any) -> None:
    """Copy the predictions to where they are kept; `flag` is the first row."""
    w, x = integers(op, 16), integers(ctx, 20)
    if x[_OUTPUTS]:
        size = w[_M] * w[_N]
        turn = x[START] - x[_TURN] + w[_FLAG]
        given = array_at(w[_A], (size,), one)
        kept = array_at(x[_OUTPUTS] + turn * w[_N] * itemsize(one), (size,), one)
        for i in range(size):
            kept[i] = given[i]


# Products


@_instruction
def product(op: int, ctx: int, one: Any) -> None:
    """c = a b, of (m, k) and (k, n)."""
    w, x = integers(op, 16), integers(ctx, 20)
    a, b, c = matrix(w[_A], w[_K]), matrix(w[_B], w[_N]), matrix(w[_C], w[_N])
    blas_product((w[_M], w[_N], w[_K]), a, b, c, x[_WORKSPACE], one)


@_instruction
def product_transposed(op: int, ctx: int, one: Any) -> None:
    """c = a b', of (m, k) and (n, k)."""
    w, x = integers(op, 16), integers(ctx, 20)
    a, b, c = matrix(w[_A], w[_K]), transpose(matrix(w[_B], w[_K])), matrix(w[_C], w[_N])
    blas_product((w[_M], w[_N], w[_K]), a, b, c, x[_WORKSPACE], one)


@_instruction
def product_over_batch(op: int, ctx: int, one: Any) -> None:
    """c = a' b, of (k, m) in rows of `pitch`, and (k, n)."""
    w, x = integers(op, 16), integers(ctx, 20)
    a, b, c = transpose(matrix(w[_A], w[_PITCH])), matrix(w[_B], w[_N]), matrix(w[_C], w[_N])
    blas_product((w[_M], w[_N], w[_K]), a, b, c, x[_WORKSPACE], one)


# Row by row


@_instruction
def add_bias(op: int, ctx: int, one: Any) -> None:
    """a += b for each row; then max(a, 0), if `flag`."""
    w = integers(op, 16)
    z, bias = array_at(w[_A], (w[_M], w[_N]), one), array_at(w[_B], (w[_N],), one)
    loops.add_bias(z, bias, w[_FLAG] != 0)


@_instruction
def add(op: int, ctx: int, one: Any) -> None:
    """c = a + b."""
    w = integers(op, 16)
    n = w[_M] * w[_N]
    a, b, c = array_at(w[_A], (n,), one), array_at(w[_B], (n,), one), array_at(w[_C], (n,), one)
    for i in range(n):
        c[i] = a[i] + b[i]


@_instruction
def multiply(op: int, ctx: int, one: Any) -> None:
    """c = a * b."""
    w = integers(op, 16)
    n = w[_M] * w[_N]
    a, b, c = array_at(w[_A], (n,), one), array_at(w[_B], (n,), one), array_at(w[_C], (n,), one)
    for i in range(n):
        c[i] = a[i] * b[i]


@_instruction
def dropout(op: int, ctx: int, one: Any) -> None:
    """c = a * d with a mask d; `flag` is the first row, and k the mask's number among `e`."""
    w, f = _row(op)
    x = integers(ctx, 20)
    n = w[_M] * w[_N]
    key = array_at(x[_KEYS], (1 << 60,), np.uint64(0))[x[STEP] * w[_E] + w[_K]]
    given, result = array_at(w[_A], (n,), one), array_at(w[_C], (n,), one)
    mask = array_at(w[_D], (n,), one)
    loops.drop(given, w[_FLAG] * w[_N], key, np.uint64(w[_LIMIT]), f[_P], result, mask)


def _activation(kind: int) -> Callable[..., None]:
    def activation(op: int, ctx: int, one: Any) -> None:
        w, f = _row(op)
        n = w[_M] * w[_N]
        h = array_at(w[_C], (n,), one)
        if w[_A] != w[_C]:
            x = array_at(w[_A], (n,), one)
            for i in range(n):
                h[i] = x[i]
        if kind <= loops.SIGMOID:
            loops.activate(kind, h)
        else:
            loops.activate_otherwise(kind, type(one)(f[_P]), h)

    return activation


def _slope(kind: int) -> Callable[..., None]:
    def slope(op: int, ctx: int, one: Any) -> None:
        w, f = _row(op)
        n = w[_M] * w[_N]
        grad, saved = array_at(w[_A], (n,), one), array_at(w[_B], (n,), one)
        result = array_at(w[_C], (n,), one)
        if kind <= loops.SIGMOID:
            loops.times_slope(kind, grad, saved, result)
        else:
            loops.times_slope_otherwise(kind, type(one)(f[_P]), grad, saved, result)

    return slope


@_instruction
def slope_and_sums(op: int, ctx: int, one: Any) -> None:
    """c = a * h'(b), d its column sums; `flag` is the activation, one of the first ones."""
    w = integers(op, 16)
    shape = w[_M], w[_N]
    grad, saved, result = (
        array_at(w[_A], shape, one),
        array_at(w[_B], shape, one),
        array_at(w[_C], shape, one),
    )
    loops.times_slope_and_sums(w[_FLAG], grad, saved, result, array_at(w[_D], (w[_N],), one))


@_instruction
def column_sums(op: int, ctx: int, one: Any) -> None:
    """d = the sums of the columns of a."""
    w = integers(op, 16)
    a, sums = array_at(w[_A], (w[_M], w[_N]), one), array_at(w[_D], (w[_N],), one)
    sums[:] = 0
    for i in range(w[_M]):
        for j in range(w[_N]):
            sums[j] += a[i, j]


@_instruction
def softmax(op: int, ctx: int, one: Any) -> None:
    """c = softmax of each row of a."""
    w = integers(op, 16)
    a, c = array_at(w[_A], (w[_M], w[_N]), one), array_at(w[_C], (w[_M], w[_N]), one)
    loops.subtract_largest(a, c)
    loops.exponentiate(array_at(w[_C], (w[_M] * w[_N],), one))
    for i in range(w[_M]):
        total = type(one)(0)
        for j in range(w[_N]):
            total += c[i, j]
        for j in range(w[_N]):
            c[i, j] /= total


@_instruction
def softmax_slope(op: int, ctx: int, one: Any) -> None:
    """c = b (a - sum of a b) for each row: dJ/dx of softmax, from a = dJ/dh and b = h."""
    w = integers(op, 16)
    grad, h = array_at(w[_A], (w[_M], w[_N]), one), array_at(w[_B], (w[_M], w[_N]), one)
    result = array_at(w[_C], (w[_M], w[_N]), one)
    for i in range(w[_M]):
        total = type(one)(0)
        for j in range(w[_N]):
            total += grad[i, j] * h[i, j]
        for j in range(w[_N]):
            result[i, j] = h[i, j] * (grad[i, j] - total)


@_instruction
def log_softmax(op: int, ctx: int, one: Any) -> None:
    """c = log softmax of each row of a."""
    w = integers(op, 16)
    a, c = array_at(w[_A], (w[_M], w[_N]), one), array_at(w[_C], (w[_M], w[_N]), one)
    loops.subtract_largest(a, c)
    for i in range(w[_M]):
        total = type(one)(0)
        for j in range(w[_N]):
            total += np.exp(c[i, j])
        less = np.log(total)
        for j in range(w[_N]):
            c[i, j] -= less


@_instruction
def log_softmax_slope(op: int, ctx: int, one: Any) -> None:
    """c = a - e^b * (sum of a) for each row: dJ/dx of log softmax, from a = dJ/dh and b = h."""
    w = integers(op, 16)
    grad, h = array_at(w[_A], (w[_M], w[_N]), one), array_at(w[_B], (w[_M], w[_N]), one)
    result = array_at(w[_C], (w[_M], w[_N]), one)
    for i in range(w[_M]):
        total = type(one)(0)
        for j in range(w[_N]):
            total += grad[i, j]
        for j in range(w[_N]):
            result[i, j] = grad[i, j] - np.exp(h[i, j]) * total


# Losses: a is the prediction, b the target, c the gradient; d the scales of the rows, or 0 for p.


@compiled
def _put_cost(ctx: int, cost: float) -> None:
    """Write the thread's part of the step's cost."""
    x = integers(ctx, 20)
    doubles(x[_COSTS], (x[STEP] + 1) * x[_THREADS])[x[STEP] * x[_THREADS] + x[_THREAD]] = cost


@compiled
def _scale_of(w: Array, f: Array) -> float:
    """Return what multiplies every loss: 1 where each row has a scale of its own."""
    return 1.0 if w[_D] else f[_P]


@_instruction
def loss_softmax_labels(op: int, ctx: int, one: Any) -> None:
    """Softmax cross-entropy of labels."""
    w, f = _row(op)
    logits, grad = array_at(w[_A], (w[_M], w[_N]), one), array_at(w[_C], (w[_M], w[_N]), one)
    labels, weights = integers(w[_B], w[_M]), _entries(w[_D], w[_M], one)
    cost = loops.shift(logits, labels, weights, grad)
    loops.exponentiate(array_at(w[_C], (w[_M] * w[_N],), one))
    _put_cost(ctx, loops.softmax(grad, labels, weights, _scale_of(w, f), cost))


@_instruction
def loss_softmax_soft(op: int, ctx: int, one: Any) -> None:
    """Softmax cross-entropy of targets that are a share of each class, and need not sum to 1."""
    w, f = _row(op)
    shape, of = (w[_M], w[_N]), type(one)
    logits, target = array_at(w[_A], shape, one), array_at(w[_B], shape, one)
    grad, weights = array_at(w[_C], shape, one), _entries(w[_D], w[_M], one)
    loops.subtract_largest(logits, grad)
    scale, cost = of(_scale_of(w, f)), 0.0
    for i in range(w[_M]):
        own = scale * weights[i] if weights.size else scale
        mass, total, product = of(0), of(0), of(0)
        for j in range(w[_N]):
            mass += target[i, j]
            product += target[i, j] * grad[i, j]
        for j in range(w[_N]):
            grad[i, j] = np.exp(grad[i, j])
            total += grad[i, j]
        cost += own * (mass * np.log(total) - product)
        factor = own * mass / total
        for j in range(w[_N]):
            grad[i, j] = factor * grad[i, j] - own * target[i, j]
    _put_cost(ctx, cost)


@_instruction
def loss_binary(op: int, ctx: int, one: Any) -> None:
    """Binary cross-entropy of logits."""
    w, f = _row(op)
    size = w[_M] * w[_N]
    weights = _entries(w[_D], w[_M], one)
    if not weights.size:
        z, y = array_at(w[_A], (size,), one), array_at(w[_B], (size,), one)
        cost = loops.binary_cross_entropy(z, y, f[_P], array_at(w[_C], (size,), one))
        _put_cost(ctx, cost)
        return
    cost, skipped = 0.0, w[_N] * itemsize(one)
    for i in range(w[_M]):
        z, y = (
            array_at(w[_A] + i * skipped, (w[_N],), one),
            array_at(w[_B] + i * skipped, (w[_N],), one),
        )
        grad = array_at(w[_C] + i * skipped, (w[_N],), one)
        cost += loops.binary_cross_entropy(z, y, float(weights[i]), grad)
    _put_cost(ctx, cost)


@_instruction
def loss_squared(op: int, ctx: int, one: Any) -> None:
    """Half the squared error."""
    w, f = _row(op)
    shape, of = (w[_M], w[_N]), type(one)
    prediction, target = array_at(w[_A], shape, one), array_at(w[_B], shape, one)
    grad, weights = array_at(w[_C], shape, one), _entries(w[_D], w[_M], one)
    scale, cost = of(_scale_of(w, f)), 0.0
    for i in range(w[_M]):
        own = scale * weights[i] if weights.size else scale
        total = of(0)
        for j in range(w[_N]):
            error = prediction[i, j] - target[i, j]
            total += error * error
            grad[i, j] = own * error
        cost += 0.5 * own * total
    _put_cost(ctx, cost)


@_instruction
def loss_cross_entropy(op: int, ctx: int, one: Any) -> None:
    """Cross-entropy of probabilities, which are first brought into [q, 1]."""
    w, f = _row(op)
    shape, of = (w[_M], w[_N]), type(one)
    prediction, target = array_at(w[_A], shape, one), array_at(w[_B], shape, one)
    grad, weights = array_at(w[_C], shape, one), _entries(w[_D], w[_M], one)
    scale, least, cost = of(_scale_of(w, f)), of(f[_Q]), 0.0
    for i in range(w[_M]):
        own = scale * weights[i] if weights.size else scale
        for j in range(w[_N]):
            p = prediction[i, j]
            p = least if p < least else (one if p > one else p)
            cost -= own * target[i, j] * np.log(p)
            grad[i, j] = -own * (target[i, j] / p)
    _put_cost(ctx, cost)


@_instruction
def loss_binary_probabilities(op: int, ctx: int, one: Any) -> None:
    """Binary cross-entropy of probabilities, which are first brought into [q, 1 - q]."""
    w, f = _row(op)
    shape, of = (w[_M], w[_N]), type(one)
    prediction, target = array_at(w[_A], shape, one), array_at(w[_B], shape, one)
    grad, weights = array_at(w[_C], shape, one), _entries(w[_D], w[_M], one)
    scale, least, most, cost = of(_scale_of(w, f)), of(f[_Q]), of(1.0 - f[_Q]), 0.0
    for i in range(w[_M]):
        own = scale * weights[i] if weights.size else scale
        for j in range(w[_N]):
            h, y = prediction[i, j], target[i, j]
            h = least if h < least else (most if h > most else h)
            cost -= own * (y * np.log(h) + (one - y) * np.log1p(-h))
            grad[i, j] = own * ((h - y) / (h * (one - h)))
    _put_cost(ctx, cost)


@_instruction
def soft_labels(op: int, ctx: int, one: Any) -> None:
    """c = rows for the labels b, smoothed by p and weighted by class, d; NaN out of range."""
    w, f = _row(op)
    labels, rows = integers(w[_B], w[_M]), array_at(w[_C], (w[_M], w[_N]), one)
    classes, of = _entries(w[_D], w[_N], one), type(one)
    low = of(f[_P] / w[_N])
    high = of(1.0 - f[_P]) + low
    for i in range(w[_M]):
        label = labels[i]
        valid = 0 <= label < w[_N]
        for j in range(w[_N]):
            y = (high if j == label else low) if valid else of(math.nan)
            rows[i, j] = y * classes[j] if classes.size else y


@_instruction
def soft_targets(op: int, ctx: int, one: Any) -> None:
    """c = the targets b, smoothed by p and weighted by class, d."""
    w, f = _row(op)
    given, rows = array_at(w[_B], (w[_M], w[_N]), one), array_at(w[_C], (w[_M], w[_N]), one)
    classes, of = _entries(w[_D], w[_N], one), type(one)
    kept, low = of(1.0 - f[_P]), of(f[_P] / w[_N])
    for i in range(w[_M]):
        for j in range(w[_N]):
            y = given[i, j] * kept + low if f[_P] != 0.0 else given[i, j]
            rows[i, j] = y * classes[j] if classes.size else y


@_instruction
def mass_of_labels(op: int, ctx: int, one: Any) -> None:
    """c = the weights d of the classes of the labels a; the nearest class where one is unknown."""
    w = integers(op, 16)
    labels, classes = integers(w[_A], w[_M]), array_at(w[_D], (w[_N],), one)
    mass = array_at(w[_C], (w[_M],), one)
    for i in range(w[_M]):
        mass[i] = classes[min(max(labels[i], 0), w[_N] - 1)]


@_instruction
def mass_of_targets(op: int, ctx: int, one: Any) -> None:
    """c = the sums of the targets a times the weights d of the classes."""
    w = integers(op, 16)
    target, classes = array_at(w[_A], (w[_M], w[_N]), one), array_at(w[_D], (w[_N],), one)
    mass = array_at(w[_C], (w[_M],), one)
    for i in range(w[_M]):
        mass[i] = 0
        for j in range(w[_N]):
            mass[i] += target[i, j] * classes[j]


@_instruction
def mean_scale(op: int, ctx: int, one: Any) -> None:
    """c = what multiplies the loss of each sample in a mean, from weights a and masses b."""
    w, x = integers(op, 16), integers(ctx, 20)
    weights, masses = _entries(w[_A], w[_M], one), _entries(w[_B], w[_M], one)
    scale, total = array_at(w[_C], (w[_M],), one), 0.0
    for i in range(w[_M]):
        counted = weights[i] if weights.size else one
        total += counted * masses[i] if masses.size else counted
    if x[_THREAD] == 0 and x[_TOTALS]:
        doubles(x[_TOTALS], x[STEP] + 1)[x[STEP]] = total
    total = total if total != 0.0 else 1.0  # no weight at all: 0 / 1, not 0 / 0
    for i in range(w[_M]):
        scale[i] = (weights[i] if weights.size else one) / total


# Updates: a is the value, b the gradient; d says whether weight decay applies.


@_instruction
def sgd(op: int, ctx: int, one: Any) -> None:
    """Update m numbers by SGD: velocity c, momentum p, clipped to +-q; `flag` is Nesterov's."""
    w, f = _row(op)
    x, m = integers(ctx, 20), w[_M]
    rate, decay = doubles(x[_RATES], x[STEP] + 1)[x[STEP]], 0.0
    if w[_D]:
        decay = doubles(x[_DECAYS], x[STEP] + 1)[x[STEP]]
    factor = doubles(ctx, 20)[_FACTOR] if w[_E] else 1.0
    value, grad, velocity = (
        array_at(w[_A], (m,), one),
        array_at(w[_B], (m,), one),
        array_at(w[_C], (m,), one),
    )
    loops.descend(value, grad, velocity, rate, f[_P], w[_FLAG] != 0, decay, f[_Q], factor)


@_instruction
def adam(op: int, ctx: int, one: Any) -> None:
    """Update m numbers by Adam: moments c and e, betas p and q, epsilon r, clipped to +-s."""
    w, f = _row(op)
    x, m = integers(ctx, 20), w[_M]
    rate, decay = doubles(x[_RATES], x[STEP] + 1)[x[STEP]], 0.0
    if w[_D]:
        decay = doubles(x[_DECAYS], x[STEP] + 1)[x[STEP]]
    factor = doubles(ctx, 20)[_FACTOR] if w[_FLAG] else 1.0
    value, grad = array_at(w[_A], (m,), one), array_at(w[_B], (m,), one)
    first, second = array_at(w[_C], (m,), one), array_at(w[_E], (m,), one)
    loops.descend_by_moments(
        value, grad, first, second, rate, f[_P], f[_Q], f[_R], decay, f[_S], factor
    )


@_instruction
def penalty(op: int, ctx: int, one: Any) -> None:
    """Add half the weight decay times the sum of squares of a to the step's penalty."""
    w, x = integers(op, 16), integers(ctx, 20)
    decay = doubles(x[_DECAYS], x[STEP] + 1)[x[STEP]]
    if decay != 0.0:
        value, squares = array_at(w[_A], (w[_M],), one), type(one)(0)
        for i in range(w[_M]):
            squares += value[i] * value[i]
        place = x[STEP] * x[_THREADS] + x[_THREAD]
        doubles(x[_PENALTIES], place + 1)[place] += 0.5 * decay * squares


@_instruction
def squared_norm(op: int, ctx: int, one: Any) -> None:
    """Add the sum of squares of a, clipped to +-p, to the one at d; `flag`: begin anew."""
    w, f = _row(op)
    grad, limit, squares = array_at(w[_A], (w[_M],), one), type(one)(f[_P]), type(one)(0)
    for i in range(w[_M]):
        g = grad[i]
        g = limit if g > limit else (-limit if g < -limit else g)
        squares += g * g
    total = doubles(w[_D], 1)
    total[0] = squares if w[_FLAG] else total[0] + squares


@_instruction
def clip_factor(op: int, ctx: int, one: Any) -> None:
    """Work out what shrinks all gradients to the norm p, from the sums of all threads at d."""
    w, f = _row(op)
    x, total = integers(ctx, 20), 0.0
    sums = doubles(w[_D], x[_THREADS])
    for i in range(x[_THREADS]):
        total += sums[i]
    norm = math.sqrt(total)
    # 1 where the norm is below, and NaN where it is NaN.
    doubles(ctx, 20)[_FACTOR] = f[_P] / (f[_P] if norm < f[_P] else norm)


@_instruction
def accumulate(op: int, ctx: int, one: Any) -> None:
    """c += a, of m numbers."""
    w = integers(op, 16)
    a, c = array_at(w[_A], (w[_M],), one), array_at(w[_C], (w[_M],), one)
    for i in range(w[_M]):
        c[i] += a[i]


@_instruction
def add_up(op: int, ctx: int, one: Any) -> None:
    """c = the sums over the threads of m of the n numbers that each has at a, from `flag` on."""
    w, x = integers(op, 16), integers(ctx, 20)
    parts = array_at(w[_A], (x[_THREADS], w[_N]), one)
    c = array_at(w[_C], (w[_M],), one)
    for j in range(w[_M]):
        c[j] = parts[0, w[_FLAG] + j]
    for thread in range(1, x[_THREADS]):
        for j in range(w[_M]):
            c[j] += parts[thread, w[_FLAG] + j]


#: Activations entry by entry: their numbers, by the kernel that their formula names.
KINDS = {
    "relu": loops.RELU,
    "tanh": loops.TANH,
    "sigmoid": loops.SIGMOID,
    "leaky_relu": loops.LEAKY_RELU,
    "elu": loops.ELU,
    "silu": loops.SILU,
    "gelu": loops.GELU,
    "gelu_tanh": loops.GELU_TANH,
    "softplus": loops.SOFTPLUS,
}
for _name, _kind in KINDS.items():
    _sources[f"activation_{_name}"] = _activation(_kind)
    _sources[f"slope_{_name}"] = _slope(_kind)
