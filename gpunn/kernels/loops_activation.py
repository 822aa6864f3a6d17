"""More activation loops, compiled by numba; see `activation_kinds` for the codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.loops import reduced
from gpunn.kernels.native import compiled

SELU, CELU, MISH, SOFTSIGN, LOG_SIGMOID = range(10, 15)
HARDTANH, RELU6, HARDSIGMOID, HARDSWISH, SOFTSHRINK = range(15, 20)

#: For SELU: the slope above 0, and alpha times it, the slope at 0 from below.
_SCALE, _LEFT = 1.0507009873554805, 1.0507009873554805 * 1.6732632423543772
_SIXTH = 1.0 / 6.0


@compiled
def activate_smooth(kind: int, p: Any, x: Array) -> None:
    """Overwrite x with a smooth activation of x, with parameter p if it has one."""
    of = x.dtype.type
    zero, one, two = of(0), of(1), of(2)
    if kind == SELU:
        for i in range(x.size):
            less, scale = reduced(min(x[i], zero))
            left = of(_LEFT) * (scale * less + (scale - one))
            x[i] = of(_SCALE) * max(x[i], zero) + left
    elif kind == CELU:
        for i in range(x.size):
            less, scale = reduced(min(x[i], zero) / p)
            x[i] = max(x[i], zero) + p * (scale * less + (scale - one))
    elif kind == MISH:
        for i in range(x.size):
            w, v = _halves(x[i])
            above = w * (w + two * v)
            x[i] = x[i] * (above / (above + two * v * v))
    elif kind == SOFTSIGN:
        for i in range(x.size):
            x[i] = x[i] / (one + abs(x[i]))
    elif kind == LOG_SIGMOID:
        for i in range(x.size):
            less, scale = reduced(-abs(x[i]))
            x[i] = min(x[i], zero) - np.log1p(scale * less + scale)


@compiled
def activate_hard(kind: int, p: Any, x: Array) -> None:
    """Overwrite x with a piecewise polynomial activation of x; NaN stays NaN."""
    of = x.dtype.type
    zero = of(0)
    if kind == HARDTANH:
        for i in range(x.size):
            x[i] = _clipped(x[i], -p, p)
    elif kind == RELU6:
        for i in range(x.size):
            x[i] = _clipped(x[i], zero, of(6))
    elif kind == HARDSIGMOID:
        for i in range(x.size):
            x[i] = _clipped(x[i] + of(3), zero, of(6)) / of(6)
    elif kind == HARDSWISH:
        for i in range(x.size):
            x[i] = x[i] * _clipped(x[i] + of(3), zero, of(6)) / of(6)
    elif kind == SOFTSHRINK:
        for i in range(x.size):
            x[i] = x[i] - _clipped(x[i], -p, p)


@compiled
def times_slope_smooth(kind: int, p: Any, grad: Array, saved: Array, result: Array) -> None:
    """Write dJ/dx from x, or for the log of the sigmoid from h."""
    of = grad.dtype.type
    zero, one, two = of(0), of(1), of(2)
    if kind == SELU:
        for i in range(grad.size):
            less, scale = reduced(min(saved[i], zero))
            slope = of(_SCALE) if saved[i] > zero else of(_LEFT) * (scale * less + scale)
            result[i] = grad[i] * slope
    elif kind == CELU:
        for i in range(grad.size):
            less, scale = reduced(min(saved[i], zero) / p)
            result[i] = grad[i] * (scale * less + scale)
    elif kind == MISH:
        for i in range(grad.size):
            w, v = _halves(saved[i])
            above, rest = w * (w + two * v), two * v * v
            below, both = above + rest, w + v
            slope = above * below * both + saved[i] * rest * (below + above) * w
            result[i] = grad[i] * (slope / (below * below * both))
    elif kind == SOFTSIGN:
        for i in range(grad.size):
            share = one / (one + abs(saved[i]))
            result[i] = grad[i] * (share * share)
    elif kind == LOG_SIGMOID:
        for i in range(grad.size):
            less, scale = reduced(saved[i])
            result[i] = -grad[i] * (scale * less + (scale - one))


@compiled
def times_slope_hard(kind: int, p: Any, grad: Array, saved: Array, result: Array) -> None:
    """Write dJ/dx from h, or for Hardswish from x."""
    of = grad.dtype.type
    zero, one = of(0), of(1)
    if kind == HARDTANH:
        for i in range(grad.size):
            result[i] = grad[i] * (one if abs(saved[i]) < p else zero)
    elif kind == RELU6:
        for i in range(grad.size):
            result[i] = grad[i] * (one if abs(saved[i] - of(3)) < of(3) else zero)
    elif kind == HARDSIGMOID:
        for i in range(grad.size):
            result[i] = grad[i] * (of(_SIXTH) if zero < saved[i] < one else zero)
    elif kind == HARDSWISH:
        for i in range(grad.size):
            x = saved[i]
            slope = x * of(_SIXTH) if abs(x) < of(3) else zero
            result[i] = grad[i] * (_clipped(x + of(3), zero, of(6)) / of(6) + slope)
    elif kind == SOFTSHRINK:
        for i in range(grad.size):
            result[i] = grad[i] * (one if abs(saved[i]) > zero else zero)


@compiled
def _clipped(x: Any, lowest: Any, highest: Any) -> Any:
    """Return x limited to an interval; NaN stays NaN."""
    return lowest if x < lowest else (highest if x > highest else x)


@compiled
def _halves(x: Any) -> tuple[Any, Any]:
    """Return min(e^x, 1) and min(e^-x, 1)."""
    less, scale = reduced(-abs(x))
    small, one = scale * less + scale, type(x)(1)
    return (small, one) if x < type(x)(0) else (one, small)
