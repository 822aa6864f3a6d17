"""Loops of losses that numba compiles; those of `BY_OUTPUT` are sums over a sample's outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.kernels import loops
from gpunn.kernels.native import compiled

#: Codes of the losses.
ABSOLUTE_ERROR, HUBER, POISSON, HINGE = range(4)

#: By kernel name: the code, and the name of the loss's parameter, if it has one.
BY_OUTPUT: dict[str, tuple[int, str | None]] = {
    "absolute_error": (ABSOLUTE_ERROR, None),
    "huber": (HUBER, "delta"),
    "poisson": (POISSON, "deviance"),
    "hinge": (HINGE, "squared"),
}


def parameter_of(formula: Any) -> float:
    """Return the parameter of one of these losses; 0 if it has none."""
    _, name = BY_OUTPUT[formula.kernel]
    return 0.0 if name is None else float(getattr(formula, name))


@compiled
def by_output(
    kind: int,
    p: Any,
    prediction: Array,
    target: Array,
    weights: Array,
    scale: Any,
    grad: Array,
) -> float:
    """Write the gradient and return the cost, both weighted by row if there are weights."""
    of = grad.dtype.type
    p, scale, cost = of(p), of(scale), 0.0
    for i in range(prediction.shape[0]):
        row_scale = scale * weights[i] if weights.size else scale
        total = of(0)
        for j in range(prediction.shape[1]):
            x, y = prediction[i, j], target[i, j]
            total += _loss(kind, p, x, y)
            grad[i, j] = row_scale * _slope(kind, p, x, y)
        cost += row_scale * total
    return cost


@compiled
def _loss(kind: int, p: Any, x: Any, y: Any) -> Any:
    """Return the loss of one output. If `kind` is constant, the compiler drops the branches."""
    of = type(x)
    if kind == ABSOLUTE_ERROR:
        return abs(x - y)
    if kind == POISSON:
        rest = times_log(y) - y if p != of(0) else of(0)
        return np.exp(x) - y * x + rest
    if kind == HINGE:
        margin = _margin(_sign(y - of(0.5)), x)
        return margin * margin if p != of(0) else margin
    clipped = _limited(x - y, p)
    return clipped * (x - y - of(0.5) * clipped)


@compiled
def _slope(kind: int, p: Any, x: Any, y: Any) -> Any:
    """Return the derivative of `_loss` with respect to x."""
    of = type(x)
    if kind == ABSOLUTE_ERROR:
        return _sign(x - y)
    if kind == POISSON:
        return np.exp(x) - y
    if kind == HINGE:
        sign = _sign(y - of(0.5))
        margin = _margin(sign, x)
        return -sign * (of(2) * margin if p != of(0) else _sign(margin))
    return _limited(x - y, p)


@compiled
def _margin(sign: Any, x: Any) -> Any:
    """Return max(1 - sign x, 0), the hinge loss; NaN stays NaN."""
    margin = type(x)(1) - sign * x
    return type(x)(0) if margin < type(x)(0) else margin


@compiled
def _sign(x: Any) -> Any:
    """Return -1, 0 or 1; NaN stays NaN."""
    of = type(x)
    return of(1) if x > of(0) else (of(-1) if x < of(0) else x)


@compiled
def _limited(x: Any, p: Any) -> Any:
    """Return x limited to [-p, p]; NaN stays NaN."""
    return p if x > p else (max(x, -p))


@compiled
def cosine_distance(
    epsilon: Any, prediction: Array, target: Array, weights: Array, scale: Any, grad: Array
) -> float:
    """Write the gradient and return the cost, both weighted by row if there are weights."""
    of = grad.dtype.type
    epsilon, scale, cost = of(epsilon), of(scale), 0.0
    for i in range(prediction.shape[0]):
        row_scale = scale * weights[i] if weights.size else scale
        squares, others, cosine = of(0), of(0), of(0)
        for j in range(prediction.shape[1]):
            squares += prediction[i, j] * prediction[i, j]
            others += target[i, j] * target[i, j]
        length, other = np.sqrt(squares), np.sqrt(others)
        norm = epsilon if length < epsilon else length
        other = epsilon if other < epsilon else other
        for j in range(prediction.shape[1]):
            cosine += (prediction[i, j] / norm) * (target[i, j] / other)
        turning = cosine if length > epsilon else of(0)
        cost += row_scale * (of(1) - cosine)
        for j in range(prediction.shape[1]):
            u, v = prediction[i, j] / norm, target[i, j] / other
            grad[i, j] = row_scale * ((turning * u - v) / norm)
    return cost


@compiled
def divergence_of_logarithms(
    prediction: Array, target: Array, weights: Array, scale: Any, grad: Array
) -> float:
    """Write the gradient and return the cost, both weighted by row if there are weights."""
    of = grad.dtype.type
    scale, cost = of(scale), 0.0
    for i in range(prediction.shape[0]):
        row_scale = scale * weights[i] if weights.size else scale
        for j in range(prediction.shape[1]):
            y = target[i, j]
            cost += row_scale * (times_log(y) - y * prediction[i, j])
            grad[i, j] = -row_scale * y
    return cost


@compiled
def times_log(y: Any) -> Any:
    """Return y log y; 0 for 0. NaN stays NaN."""
    return type(y)(0) if y <= type(y)(0) else y * np.log(y)


@compiled
def sequence_cross_entropy(
    logits: Array,
    labels: Array,
    ignored: int,
    smoothing: Any,
    weights: Array,
    scale: Any,
    grad: Array,
) -> float:
    """Write the gradient and return the cost of N sequences of T rows of logits (N T, K).

    `labels` has N T entries; `weights` (N,) of the sequences may be empty.
    """
    of = grad.dtype.type
    rows, classes = grad.shape
    positions = max(1, rows // max(1, weights.size))  # per weight
    low = of(smoothing / classes)
    high, scale, cost = of(1.0 - smoothing), of(scale), 0.0
    loops.subtract_largest(logits, grad)
    for i in range(rows):
        if labels[i] != ignored:
            row_scale = scale * weights[i // positions] if weights.size else scale
            valid = 0 <= labels[i] < classes
            cost -= row_scale * high * (grad[i, labels[i]] if valid else of(math.nan))
            if low != of(0):
                total = of(0)
                for j in range(classes):
                    total += grad[i, j]
                cost -= row_scale * low * total
    loops.exponentiate(grad.reshape(grad.size))
    for i in range(rows):
        row_scale = scale * weights[i // positions] if weights.size else scale
        if labels[i] == ignored:  # its logits do not matter
            row_scale *= of(0)  # NaN stays NaN
            cost += row_scale
            grad[i, :] = row_scale
            continue
        total = of(0)
        for j in range(classes):
            total += grad[i, j]
        cost += row_scale * np.log(total)
        valid = 0 <= labels[i] < classes
        factor = row_scale / total if valid else of(math.nan)
        for j in range(classes):
            grad[i, j] = factor * grad[i, j] - row_scale * (high + low if j == labels[i] else low)
    return cost
