"""The loops that numba compiles, over arrays in C order."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.native import compiled, power_of_two

#: Codes of activations. For the first row, the gradient and its column sums can be one pass.
RELU, TANH, SIGMOID, IDENTITY = range(4)
LEAKY_RELU, ELU, SILU, GELU, GELU_TANH, SOFTPLUS = range(4, 10)

#: For GELU: sqrt(1/2), 1 / sqrt(2 pi), and the constants of its tanh form.
_ROOT_HALF, _DENSITY = math.sqrt(0.5), 1.0 / math.sqrt(2.0 * math.pi)
_GELU_C, _GELU_B = math.sqrt(2.0 / math.pi), 0.044715

_LOG2_E = 1.4426950408889634
#: log 2 as a sum of two numbers, for float32 and for float64. The first has few bits, so that its
#: multiples are exact.
_LOG_2 = ((0.693359375, -2.12194440054690583e-4), (0.6931471803691238, 1.9082149292705877e-10))
#: Below these exponents, results are negligible, and soon subnormal, which is slow.
_LOWEST = (-87.0, -708.0)
#: 1 / k!, from k = 13 down to 2.
_TERMS = tuple(1.0 / math.factorial(k) for k in range(13, 1, -1))


@compiled
def add_bias(z: Array, bias: Array, relu: bool) -> None:
    """Add the bias to each row, in place; with `relu`, also take max(z, 0). NaN stays NaN."""
    zero = z.dtype.type(0)
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            h = z[i, j] + bias[j]
            z[i, j] = zero if relu and h < zero else h


@compiled
def activate(kind: int, x: Array) -> None:
    """Overwrite x with max(x, 0), tanh x or the sigmoid of x.

    In place, because the compiler would have to assume that two arrays overlap.
    """
    zero, one, two = x.dtype.type(0), x.dtype.type(1), x.dtype.type(2)
    if kind == RELU:
        for i in range(x.size):
            x[i] = zero if x[i] < zero else x[i]
    elif kind == TANH:
        for i in range(x.size):
            less, scale = reduced(-two * abs(x[i]))
            small = scale * less + (scale - one)  # e^(-2|x|) - 1, to the last digits
            x[i] = math.copysign(small / (small + two), x[i])
    elif kind == SIGMOID:
        for i in range(x.size):
            x[i] = _sigmoid(x[i])


@compiled
def activate_otherwise(kind: int, p: Any, x: Array) -> None:
    """Overwrite x with another activation of x, with parameter p if it has one."""
    of = x.dtype.type
    zero, one, half = of(0), of(1), of(0.5)
    if kind == LEAKY_RELU:
        for i in range(x.size):
            x[i] = max(x[i], p * x[i])
    elif kind == ELU:
        for i in range(x.size):
            less, scale = reduced(min(x[i], zero))
            x[i] = max(x[i], zero) + p * (scale * less + (scale - one))
    elif kind == SILU:
        for i in range(x.size):
            x[i] = x[i] * _sigmoid(x[i])
    elif kind == GELU:
        for i in range(x.size):
            x[i] = x[i] * (half * math.erfc(-x[i] * of(_ROOT_HALF)))
    elif kind == GELU_TANH:
        for i in range(x.size):
            x[i] = x[i] * _sigmoid(of(2 * _GELU_C) * (x[i] + of(_GELU_B) * (x[i] * x[i] * x[i])))
    elif kind == SOFTPLUS:
        for i in range(x.size):
            less, scale = reduced(-abs(x[i]))
            x[i] = max(x[i], zero) + np.log1p(scale * less + scale)


@compiled
def _sigmoid(x: Any) -> Any:
    """Return the sigmoid of x, without overflow."""
    less, scale = reduced(-abs(x))
    small = scale * less + scale
    return (type(x)(1) if x >= type(x)(0) else small) / (type(x)(1) + small)


@compiled
def exponentiate(x: Array) -> None:
    """Overwrite x, whose entries are at most 0, with e^x."""
    for i in range(x.size):
        less, scale = reduced(x[i])
        x[i] = scale * less + scale


@partial(compiled, fastmath={"contract"})  # the order of the subtractions matters
def reduced(x: Any) -> Any:
    """Return e^r - 1 and 2^n for x = n log 2 + r, where x is at most 0 and r is small.

    NaN stays NaN. There are no branches and calls, so that loops over it are vectorized.
    """
    of = type(x)
    double = of(1) + of(2.0**-40) > of(1)
    parts = _LOG_2[1] if double else _LOG_2[0]
    lowest = of(_LOWEST[1] if double else _LOWEST[0])
    x = lowest if x < lowest else x
    n = np.floor(x * of(_LOG2_E) + of(0.5))
    n = n if n <= of(0) else of(0)  # not NaN
    r = x - n * of(parts[0]) - n * of(parts[1])
    total = of(0)
    for term in _TERMS:
        total = total * r + of(term)
    return r + r * r * total, power_of_two(n)


@compiled
def _slope(kind: int, h: Any) -> Any:
    """Return dh/dz. If `kind` is constant in a loop, the compiler moves the branch out of it."""
    zero, one = type(h)(0), type(h)(1)
    if kind == RELU:
        return one if h > zero else zero
    if kind == IDENTITY:
        return one
    return (one - h * h) if kind == TANH else h * (one - h)


@compiled
def times_slope(kind: int, grad: Array, saved: Array, result: Array) -> None:
    """Write dJ/dz."""
    for i in range(grad.size):
        result[i] = grad[i] * _slope(kind, saved[i])


@compiled
def times_slope_otherwise(kind: int, p: Any, grad: Array, saved: Array, result: Array) -> None:
    """Write dJ/dx for another activation, from h, or for SiLU and GELU from x."""
    of = grad.dtype.type
    zero, one, half, two = of(0), of(1), of(0.5), of(2)
    if kind == LEAKY_RELU:
        for i in range(grad.size):
            result[i] = grad[i] * (one if saved[i] > zero else p)
    elif kind == ELU:
        for i in range(grad.size):
            result[i] = grad[i] * (one if saved[i] > zero else saved[i] + p)
    elif kind == SILU:
        for i in range(grad.size):
            s = _sigmoid(saved[i])
            result[i] = grad[i] * (s * (one + saved[i] * (one - s)))
    elif kind == GELU:
        for i in range(grad.size):
            x = saved[i]
            density = np.exp(-half * x * x) * of(_DENSITY)
            result[i] = grad[i] * (half * math.erfc(-x * of(_ROOT_HALF)) + x * density)
    elif kind == GELU_TANH:
        for i in range(grad.size):
            x = saved[i]
            s = _sigmoid(of(2 * _GELU_C) * (x + of(_GELU_B) * (x * x * x)))
            density = two * s * (one - s) * (of(_GELU_C) * (one + of(3 * _GELU_B) * (x * x)))
            result[i] = grad[i] * (s + x * density)
    elif kind == SOFTPLUS:
        for i in range(grad.size):
            less, scale = reduced(-saved[i])
            result[i] = -grad[i] * (scale * less + (scale - one))


@compiled
def times_slope_and_sums(kind: int, grad: Array, saved: Array, result: Array, sums: Array) -> None:
    """Write dJ/dz and its column sums."""
    sums[:] = 0
    for i in range(grad.shape[0]):
        for j in range(grad.shape[1]):
            g = grad[i, j] * _slope(kind, saved[i, j])
            result[i, j] = g
            sums[j] += g


@compiled
def drop(
    x: Array, start: int, key: Any, least: Any, kept: float, result: Array, mask: Array
) -> None:
    """Write the mask and x times the mask, where x begins at entry `start` of the whole array.

    All integers here are unsigned: a signed one would turn the others into floats.
    """
    zero, one = x.dtype.type(0), x.dtype.type(kept)
    for i in range(x.size):
        bits = np.uint64(start + i + 1) * np.uint64(0x9E3779B97F4A7C15) + key
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
        m = one if (bits >> np.uint64(32)) >= least else zero
        mask[i] = m
        result[i] = x[i] * m


@compiled
def shift(logits: Array, labels: Array, weights: Array, result: Array) -> float:
    """Subtract each row's largest entry; return minus the sum of the results at the labels.

    The sum is weighted if there are weights.
    """
    cost = 0.0
    for i in range(logits.shape[0]):
        top = logits[i, 0]
        for j in range(1, logits.shape[1]):
            top = max(top, logits[i, j])
        for j in range(logits.shape[1]):
            result[i, j] = logits[i, j] - top
        label = labels[i]
        loss = -result[i, label] if 0 <= label < logits.shape[1] else math.nan
        cost += weights[i] * loss if weights.size else loss
    return cost


@compiled
def softmax(grad: Array, labels: Array, weights: Array, scale: float, cost: float) -> float:
    """Turn exponentials into scale * (softmax - onehot); return scale * (cost + log sums)."""
    of = grad.dtype.type
    for i in range(grad.shape[0]):
        total = of(0)
        for j in range(grad.shape[1]):
            total += grad[i, j]
        weight = weights[i] if weights.size else of(1)
        cost += weight * np.log(total)
        label = labels[i]
        valid = 0 <= label < grad.shape[1]
        row_scale = of(scale) * weight
        factor = row_scale / total if valid else of(math.nan)
        for j in range(grad.shape[1]):
            grad[i, j] *= factor
        if valid:
            grad[i, label] -= row_scale
    return scale * cost


@compiled
def subtract_largest(logits: Array, result: Array) -> None:
    """Subtract each row's largest entry."""
    for i in range(logits.shape[0]):
        top = logits[i, 0]
        for j in range(1, logits.shape[1]):
            top = max(top, logits[i, j])
        for j in range(logits.shape[1]):
            result[i, j] = logits[i, j] - top


@compiled
def binary_cross_entropy(logits: Array, target: Array, scale: float, grad: Array) -> float:
    """Write scale * (sigmoid(z) - y) and return the cost, without overflow."""
    zero, one, factor = grad.dtype.type(0), grad.dtype.type(1), grad.dtype.type(scale)
    cost = 0.0
    for i in range(grad.size):
        z, y = logits[i], target[i]
        small = np.exp(-abs(z))
        cost += max(z, zero) - y * z + np.log1p(small)
        grad[i] = factor * ((one if z >= zero else small) / (one + small) - y)
    return scale * cost


@compiled
def squared_error(prediction: Array, target: Array, scale: float, grad: Array) -> float:
    """Write scale * (prediction - target) and return the cost."""
    factor = grad.dtype.type(scale)
    cost = 0.0
    for i in range(grad.size):
        error = prediction[i] - target[i]
        cost += error * error
        grad[i] = factor * error
    return 0.5 * scale * cost
