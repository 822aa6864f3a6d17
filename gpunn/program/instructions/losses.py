"""Instructions of losses.

`a` is the prediction, `b` the target and `c` the gradient; `d` holds a scale for each row, or is 0
if all rows have the scale `p`; `r` is the parameter of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.kernels import loops, loops_losses
from gpunn.kernels.native import array_at, compiled, itemsize
from gpunn.program.instructions.words import (
    COSTS,
    FLAG,
    LIMIT,
    STEP,
    THREAD,
    THREADS,
    TOTALS,
    A,
    B,
    C,
    D,
    K,
    M,
    N,
    P,
    Q,
    R,
    context_of,
    doubles,
    entries,
    instruction,
    integers,
    numbers_of,
    register,
    rows_of,
    words_of,
)


@compiled
def _put_cost(ctx: int, cost: float) -> None:
    """Write the thread's part of the step's cost."""
    x = context_of(ctx)
    doubles(x[COSTS], (x[STEP] + 1) * x[THREADS])[x[STEP] * x[THREADS] + x[THREAD]] = cost


@compiled
def _scale_of(w: Array, f: Array) -> float:
    """Return the common scale of all losses: 1 if each row has its own scale."""
    return 1.0 if w[D] else f[P]


@instruction
def loss_softmax_labels(op: int, ctx: int, one: Any) -> None:
    """Softmax cross-entropy of labels."""
    w, f = words_of(op), numbers_of(op)
    logits, grad = rows_of(w[A], w[M], w[N], one), rows_of(w[C], w[M], w[N], one)
    labels, weights = integers(w[B], w[M]), entries(w[D], w[M], one)
    cost = loops.shift(logits, labels, weights, grad)
    loops.exponentiate(array_at(w[C], (w[M] * w[N],), one))
    _put_cost(ctx, loops.softmax(grad, labels, weights, _scale_of(w, f), cost))


@instruction
def loss_softmax_soft(op: int, ctx: int, one: Any) -> None:
    """Softmax cross-entropy of soft targets, which need not sum to 1.

    If `flag`, subtract the entropy of the targets, to get the divergence of the softmax from them.
    """
    w, f = words_of(op), numbers_of(op)
    shape, of = (w[M], w[N]), type(one)
    logits, target = array_at(w[A], shape, one), array_at(w[B], shape, one)
    grad, weights = array_at(w[C], shape, one), entries(w[D], w[M], one)
    loops.subtract_largest(logits, grad)
    scale, cost = of(_scale_of(w, f)), 0.0
    for i in range(w[M]):
        row_scale = scale * weights[i] if weights.size else scale
        mass, total, product = of(0), of(0), of(0)
        for j in range(w[N]):
            mass += target[i, j]
            product += target[i, j] * grad[i, j]
            if w[FLAG]:
                product -= loops_losses.times_log(target[i, j])
        for j in range(w[N]):
            grad[i, j] = np.exp(grad[i, j])
            total += grad[i, j]
        cost += row_scale * (mass * np.log(total) - product)
        factor = row_scale * mass / total
        for j in range(w[N]):
            grad[i, j] = factor * grad[i, j] - row_scale * target[i, j]
    _put_cost(ctx, cost)


@instruction
def loss_binary(op: int, ctx: int, one: Any) -> None:
    """Binary cross-entropy of logits."""
    w, f = words_of(op), numbers_of(op)
    size = w[M] * w[N]
    weights = entries(w[D], w[M], one)
    if not weights.size:
        z, y = array_at(w[A], (size,), one), array_at(w[B], (size,), one)
        cost = loops.binary_cross_entropy(z, y, f[P], array_at(w[C], (size,), one))
        _put_cost(ctx, cost)
        return
    cost, skipped = 0.0, w[N] * itemsize(one)
    for i in range(w[M]):
        z, y = (
            array_at(w[A] + i * skipped, (w[N],), one),
            array_at(w[B] + i * skipped, (w[N],), one),
        )
        grad = array_at(w[C] + i * skipped, (w[N],), one)
        cost += loops.binary_cross_entropy(z, y, float(weights[i]), grad)
    _put_cost(ctx, cost)


@instruction
def loss_squared(op: int, ctx: int, one: Any) -> None:
    """Half the squared error."""
    w, f = words_of(op), numbers_of(op)
    shape, of = (w[M], w[N]), type(one)
    prediction, target = array_at(w[A], shape, one), array_at(w[B], shape, one)
    grad, weights = array_at(w[C], shape, one), entries(w[D], w[M], one)
    scale, cost = of(_scale_of(w, f)), 0.0
    for i in range(w[M]):
        row_scale = scale * weights[i] if weights.size else scale
        total = of(0)
        for j in range(w[N]):
            error = prediction[i, j] - target[i, j]
            total += error * error
            grad[i, j] = row_scale * error
        cost += 0.5 * row_scale * total
    _put_cost(ctx, cost)


@instruction
def loss_cross_entropy(op: int, ctx: int, one: Any) -> None:
    """Cross-entropy of probabilities, which are first clipped to [q, 1]."""
    w, f = words_of(op), numbers_of(op)
    shape, of = (w[M], w[N]), type(one)
    prediction, target = array_at(w[A], shape, one), array_at(w[B], shape, one)
    grad, weights = array_at(w[C], shape, one), entries(w[D], w[M], one)
    scale, least, cost = of(_scale_of(w, f)), of(f[Q]), 0.0
    for i in range(w[M]):
        row_scale = scale * weights[i] if weights.size else scale
        for j in range(w[N]):
            p = prediction[i, j]
            p = least if p < least else (one if p > one else p)
            cost -= row_scale * target[i, j] * np.log(p)
            grad[i, j] = -row_scale * (target[i, j] / p)
    _put_cost(ctx, cost)


@instruction
def loss_binary_probabilities(op: int, ctx: int, one: Any) -> None:
    """Binary cross-entropy of probabilities, which are first clipped to [q, 1 - q]."""
    w, f = words_of(op), numbers_of(op)
    shape, of = (w[M], w[N]), type(one)
    prediction, target = array_at(w[A], shape, one), array_at(w[B], shape, one)
    grad, weights = array_at(w[C], shape, one), entries(w[D], w[M], one)
    scale, least, most, cost = of(_scale_of(w, f)), of(f[Q]), of(1.0 - f[Q]), 0.0
    for i in range(w[M]):
        row_scale = scale * weights[i] if weights.size else scale
        for j in range(w[N]):
            h, y = prediction[i, j], target[i, j]
            h = least if h < least else (most if h > most else h)
            cost -= row_scale * (y * np.log(h) + (one - y) * np.log1p(-h))
            grad[i, j] = row_scale * ((h - y) / (h * (one - h)))
    _put_cost(ctx, cost)


@instruction
def soft_labels(op: int, ctx: int, one: Any) -> None:
    """C = the labels b as rows, smoothed by p and weighted by class, d; NaN if out of range."""
    w, f = words_of(op), numbers_of(op)
    labels, rows = integers(w[B], w[M]), rows_of(w[C], w[M], w[N], one)
    classes, of = entries(w[D], w[N], one), type(one)
    low = of(f[P] / w[N])
    high = of(1.0 - f[P]) + low
    for i in range(w[M]):
        label = labels[i]
        valid = 0 <= label < w[N]
        for j in range(w[N]):
            y = (high if j == label else low) if valid else of(math.nan)
            rows[i, j] = y * classes[j] if classes.size else y


@instruction
def soft_targets(op: int, ctx: int, one: Any) -> None:
    """C = the targets b, smoothed by p and weighted by class, d."""
    w, f = words_of(op), numbers_of(op)
    given, rows = rows_of(w[B], w[M], w[N], one), rows_of(w[C], w[M], w[N], one)
    classes, of = entries(w[D], w[N], one), type(one)
    kept, low = of(1.0 - f[P]), of(f[P] / w[N])
    for i in range(w[M]):
        for j in range(w[N]):
            y = given[i, j] * kept + low if f[P] != 0.0 else given[i, j]
            rows[i, j] = y * classes[j] if classes.size else y


@instruction
def mass_of_labels(op: int, ctx: int, one: Any) -> None:
    """C = the class weights d of the labels a; a label out of range counts as the nearest class."""
    w = words_of(op)
    labels, classes = integers(w[A], w[M]), array_at(w[D], (w[N],), one)
    mass = array_at(w[C], (w[M],), one)
    for i in range(w[M]):
        mass[i] = classes[min(max(labels[i], 0), w[N] - 1)]


@instruction
def mass_of_targets(op: int, ctx: int, one: Any) -> None:
    """C = the sums of the targets a times the class weights d."""
    w = words_of(op)
    target, classes = rows_of(w[A], w[M], w[N], one), array_at(w[D], (w[N],), one)
    mass = array_at(w[C], (w[M],), one)
    for i in range(w[M]):
        mass[i] = 0
        for j in range(w[N]):
            mass[i] += target[i, j] * classes[j]


@instruction
def mean_scale(op: int, ctx: int, one: Any) -> None:
    """C = the factor of each sample's loss in a mean, from sample weights a and class weights b."""
    w, x = words_of(op), context_of(ctx)
    weights, masses = entries(w[A], w[M], one), entries(w[B], w[M], one)
    scale, total = array_at(w[C], (w[M],), one), 0.0
    for i in range(w[M]):
        counted = weights[i] if weights.size else one
        total += counted * masses[i] if masses.size else counted
    if x[THREAD] == 0 and x[TOTALS]:
        doubles(x[TOTALS], x[STEP] + 1)[x[STEP]] = total
    total = total if total != 0.0 else 1.0  # if all weights are 0: 0 / 1, not 0 / 0
    for i in range(w[M]):
        scale[i] = (weights[i] if weights.size else one) / total


@compiled
def _operands_of(op: int, one: Any) -> tuple[Array, Array, Array, float, Array]:
    """Return the prediction, the target, the rows' scales, their common scale, and the gradient."""
    w, f = words_of(op), numbers_of(op)
    prediction, target = rows_of(w[A], w[M], w[N], one), rows_of(w[B], w[M], w[N], one)
    weights, grad = entries(w[D], w[M], one), rows_of(w[C], w[M], w[N], one)
    return prediction, target, weights, _scale_of(w, f), grad


@instruction
def loss_cosine(op: int, ctx: int, one: Any) -> None:
    """One minus the cosine of the angle between prediction and target."""
    prediction, target, weights, scale, grad = _operands_of(op, one)
    epsilon = numbers_of(op)[R]
    cost = loops_losses.cosine_distance(epsilon, prediction, target, weights, scale, grad)
    _put_cost(ctx, cost)


@instruction
def loss_logarithms(op: int, ctx: int, one: Any) -> None:
    """The divergence of log probabilities from the targets."""
    prediction, target, weights, scale, grad = _operands_of(op, one)
    cost = loops_losses.divergence_of_logarithms(prediction, target, weights, scale, grad)
    _put_cost(ctx, cost)


@instruction
def loss_sequence(op: int, ctx: int, one: Any) -> None:
    """Softmax cross-entropy at each of k positions; the label `limit` is ignored."""
    w, f = words_of(op), numbers_of(op)
    rows = w[M] * w[K]
    logits, grad = rows_of(w[A], rows, w[N], one), rows_of(w[C], rows, w[N], one)
    labels, weights = integers(w[B], rows), entries(w[D], w[M], one)
    cost = loops_losses.sequence_cross_entropy(
        logits, labels, w[LIMIT], f[R], weights, _scale_of(w, f), grad
    )
    _put_cost(ctx, cost)


@instruction
def count_labels(op: int, ctx: int, one: Any) -> None:
    """C = the number of labels in each row of a that are not `limit`."""
    w = words_of(op)
    labels, mass = integers(w[A], w[M] * w[N]), array_at(w[C], (w[M],), one)
    for i in range(w[M]):
        mass[i] = 0
        for j in range(w[N]):
            mass[i] += one if labels[i * w[N] + j] != w[LIMIT] else type(one)(0)


def _by_output(kind: int) -> Callable[..., None]:
    def loss(op: int, ctx: int, one: Any) -> None:
        prediction, target, weights, scale, grad = _operands_of(op, one)
        p = numbers_of(op)[R]
        cost = loops_losses.by_output(kind, p, prediction, target, weights, scale, grad)
        _put_cost(ctx, cost)

    return loss


for _name, (_kind, _) in loops_losses.BY_OUTPUT.items():
    register(f"loss_{_name}", _by_output(_kind))
