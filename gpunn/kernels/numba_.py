"""Kernels for NumPy's arrays that numba compiles: each of them one pass over memory, in one call.

They serve float32 and float64, contiguous and writable; everything else, and every kernel that is
not here, is NumPy's. `bench/kernels.py` shows what each gains. They run on one thread: the threads
of BLAS wait on the other cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

from gpunn._typing import Array
from gpunn.kernels.generic import Formula
from gpunn.kernels.numpy_ import NumpyKernels
from gpunn.layers.activation import ReLU, Sigmoid, Tanh

_F = TypeVar("_F", bound=Callable[..., Any])

_DTYPES = (np.dtype("float32"), np.dtype("float64"))

#: Sums may be reordered, and products and sums joined; NaN and infinity mean what they mean.
_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

#: So few exponentials are quicker one by one than in passes of NumPy's wide ones.
_FEW_EXPONENTIALS = 200

#: From so many entries on, one pass pays for the look at its arrays.
_MANY = 4096

#: The slopes that are computed from h, by number.
_SLOPES: dict[type, int] = {ReLU: 0, Tanh: 1, Sigmoid: 2}


class NumbaKernels(NumpyKernels):
    """The kernels that pay for being compiled; the others are NumPy's."""

    def bias_activation(
        self, z: Array, bias: Array | None, formula: Formula
    ) -> tuple[Array, Array]:
        """Return h and what its gradient needs; with ReLU in the same pass as the bias."""
        if bias is None or not _alike(z, bias):
            return super().bias_activation(z, bias, formula)
        relu = type(formula) is ReLU
        _add_bias(z, bias, relu)
        if relu:
            return z, z
        h = formula.function(self.xp, z)
        return h, (h if formula.saves_output else z)

    def activation_backward(self, grad: Array, saved: Array, formula: Formula) -> Array:
        """Return dJ/dx of ReLU, tanh and the logistic function in one pass."""
        slope = _SLOPES.get(type(formula))
        if slope is None or grad.size < _MANY or not _alike(grad, saved):
            return super().activation_backward(grad, saved, formula)
        result = np.empty_like(grad)
        _times_slope(slope, grad.ravel(), saved.ravel(), result.ravel())
        return result

    def bias_activation_backward(
        self, grad: Array, saved: Array, formula: Formula, into: Array | None = None
    ) -> tuple[Array, Array]:
        """Return dJ/dz and the bias's gradient, its column sums, from the same pass."""
        slope = _SLOPES.get(type(formula))
        if slope is None or not _alike(grad, saved):
            return super().bias_activation_backward(grad, saved, formula, into)
        sums = np.empty(grad.shape[1], grad.dtype) if into is None else into
        if not _alike(grad, sums):
            return super().bias_activation_backward(grad, saved, formula, into)
        result = np.empty_like(grad)
        _times_slope_and_sums(slope, grad, saved, result, sums)
        return result, sums

    def dropout(self, x: Array, key: int, rate: float) -> tuple[Array, Array]:
        """Return x times a mask, and the mask; see `splitmix64`."""
        if not _alike(x, x):
            return super().dropout(x, key, rate)
        result, mask = np.empty_like(x), np.empty_like(x)
        limit = np.uint64(round(rate * 2**32))
        kept = 1.0 / (1.0 - rate)
        _drop(x.ravel(), np.uint64(key), limit, kept, result.ravel(), mask.ravel())
        return result, mask

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, scale: Any, *, summed: bool = False
    ) -> tuple[Array, Array]:
        """Return the cost and its gradient; the exponentials are NumPy's, which are wide."""
        served = summed and type(scale) is float and _alike(logits, logits)
        if not (served and labels.dtype == np.int64 and labels.flags.carray and logits.size):
            return super().softmax_cross_entropy(logits, labels, scale, summed=summed)
        grad = np.empty_like(logits)
        cost = _shift(logits, labels, grad)
        np.exp(grad, out=grad)
        return logits.dtype.type(_softmax(grad, labels, scale, cost)), grad

    def sigmoid_binary_cross_entropy(
        self, logits: Array, target: Array, scale: Any, *, summed: bool = False
    ) -> tuple[Array, Array]:
        """Return the cost and its gradient, for few outputs."""
        served = summed and type(scale) is float and logits.size <= _FEW_EXPONENTIALS
        if not (served and _alike(logits, target)):
            return super().sigmoid_binary_cross_entropy(logits, target, scale, summed=summed)
        grad = np.empty_like(logits)
        cost = _binary_cross_entropy(logits.ravel(), target.ravel(), scale, grad.ravel())
        return logits.dtype.type(cost), grad

    def squared_error(
        self, prediction: Array, target: Array, scale: Any, *, summed: bool = False
    ) -> tuple[Array, Array]:
        """Return the cost and its gradient."""
        if not (summed and type(scale) is float and _alike(prediction, target)):
            return super().squared_error(prediction, target, scale, summed=summed)
        grad = np.empty_like(prediction)
        cost = _squared_error(prediction.ravel(), target.ravel(), scale, grad.ravel())
        return prediction.dtype.type(cost), grad

    def sgd(
        self,
        values: list[Array],
        grads: list[Array],
        velocities: list[Array],
        *,
        learning_rate: float,
        momentum: float,
        nesterov: bool,
        decays: list[float],
        clip_norm: float | None,
        clip_value: float | None,
    ) -> None:
        """Update each value and its velocity in one pass, after those for the norm if it is asked.

        A gradient may come from anywhere, and need not be alike.
        """
        served = all(map(_alike, values, grads))
        if not served or (velocities and not all(map(_alike, values, velocities))):
            super().sgd(
                values,
                grads,
                velocities,
                learning_rate=learning_rate,
                momentum=momentum,
                nesterov=nesterov,
                decays=decays,
                clip_norm=clip_norm,
                clip_value=clip_value,
            )
            return
        clips = self._clips(grads, clip_norm, clip_value)
        if not velocities:
            velocities, momentum = values, 0.0  # nobody looks at them
        for value, grad, velocity, decay in zip(values, grads, velocities, decays, strict=True):
            arrays = value.ravel(), grad.ravel(), velocity.ravel()
            _descend(*arrays, learning_rate, momentum, nesterov, decay, *clips)

    def adam(
        self,
        values: list[Array],
        grads: list[Array],
        firsts: list[Array],
        seconds: list[Array],
        *,
        rate: float,
        beta_1: float,
        beta_2: float,
        epsilon: float,
        decays: list[float],
        clip_norm: float | None,
        clip_value: float | None,
    ) -> None:
        """Update each value and its moments in one pass, after those for the norm."""
        if not all(all(map(_alike, values, others)) for others in (grads, firsts, seconds)):
            super().adam(
                values,
                grads,
                firsts,
                seconds,
                rate=rate,
                beta_1=beta_1,
                beta_2=beta_2,
                epsilon=epsilon,
                decays=decays,
                clip_norm=clip_norm,
                clip_value=clip_value,
            )
            return
        clips = self._clips(grads, clip_norm, clip_value)
        for i, decay in enumerate(decays):
            arrays = values[i].ravel(), grads[i].ravel(), firsts[i].ravel(), seconds[i].ravel()
            _descend_by_moments(*arrays, rate, beta_1, beta_2, epsilon, decay, *clips)

    def _clips(
        self, grads: list[Array], clip_norm: float | None, clip_value: float | None
    ) -> tuple[float, float]:
        """Return what each entry is brought into, and by what all are multiplied then."""
        limit = math.inf if clip_value is None else float(clip_value)
        if clip_norm is None:
            return limit, 1.0
        if clip_value is not None:
            grads = [self.clip(grad, -limit, limit) for grad in grads]
        norm = float(self.gradient_norm(grads))
        return limit, clip_norm / max(norm, clip_norm)  # 1, or NaN if the norm is: it comes first


def _alike(x: Array, y: Array) -> bool:
    """Return whether both arrays are of the one or the other dtype, and lie as C has them."""
    dtype = x.dtype
    alike: bool = dtype in _DTYPES and y.dtype == dtype and x.flags.carray and y.flags.carray
    return alike


def _compiled(function: _F) -> _F:
    """Return the function, to be compiled at its first call and kept in a file for the next run."""
    settings: Any = {"nogil": True, "error_model": "numpy", "fastmath": _FASTMATH}
    try:
        made: _F = numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # no folder that it could write to
        made = numba.njit(**settings)(function)
    return made


@_compiled
def _add_bias(z: Array, bias: Array, relu: bool) -> None:
    """Add the bias to each row; then take max(z, 0), if asked. NaN stays NaN."""
    zero = z.dtype.type(0)
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            h = z[i, j] + bias[j]
            z[i, j] = zero if relu and h < zero else h


@_compiled
def _slope(kind: int, h: Any) -> Any:
    """Return dh/dz. Where `kind` stays the same in a loop, the compiler takes the branch out."""
    zero, one = type(h)(0), type(h)(1)
    if kind == 0:
        return one if h > zero else zero
    return (one - h * h) if kind == 1 else h * (one - h)


@_compiled
def _times_slope(kind: int, grad: Array, saved: Array, result: Array) -> None:
    """Write dJ/dz."""
    for i in range(grad.size):
        result[i] = grad[i] * _slope(kind, saved[i])


@_compiled
def _times_slope_and_sums(kind: int, grad: Array, saved: Array, result: Array, sums: Array) -> None:
    """Write dJ/dz and its column sums."""
    sums[:] = 0
    for i in range(grad.shape[0]):
        for j in range(grad.shape[1]):
            g = grad[i, j] * _slope(kind, saved[i, j])
            result[i, j] = g
            sums[j] += g


@_compiled
def _drop(x: Array, key: Any, least: Any, kept: float, result: Array, mask: Array) -> None:
    """Write the mask and x times it. An integer that is not unsigned would make floats of them."""
    zero, one = x.dtype.type(0), x.dtype.type(kept)
    for i in range(x.size):
        bits = np.uint64(i + 1) * np.uint64(0x9E3779B97F4A7C15) + key
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
        m = one if (bits >> np.uint64(32)) >= least else zero
        mask[i] = m
        result[i] = x[i] * m


@_compiled
def _shift(logits: Array, labels: Array, result: Array) -> float:
    """Write each row less its largest; return minus the sum of what stands at the labels."""
    cost = 0.0
    for i in range(logits.shape[0]):
        top = logits[i, 0]
        for j in range(1, logits.shape[1]):
            top = max(top, logits[i, j])
        for j in range(logits.shape[1]):
            result[i, j] = logits[i, j] - top
        label = labels[i]
        cost -= result[i, label] if 0 <= label < logits.shape[1] else math.nan
    return cost


@_compiled
def _softmax(grad: Array, labels: Array, scale: float, cost: float) -> float:
    """Make exponentials scale * (softmax - onehot); return scale * (cost + logs of their sums)."""
    of = grad.dtype.type
    for i in range(grad.shape[0]):
        total = of(0)
        for j in range(grad.shape[1]):
            total += grad[i, j]
        cost += np.log(total)
        label = labels[i]
        valid = 0 <= label < grad.shape[1]
        factor = of(scale) / total if valid else of(math.nan)
        for j in range(grad.shape[1]):
            grad[i, j] *= factor
        if valid:
            grad[i, label] -= of(scale)
    return scale * cost


@_compiled
def _binary_cross_entropy(logits: Array, target: Array, scale: float, grad: Array) -> float:
    """Write scale * (sigmoid(z) - y), return the cost; nothing overflows."""
    zero, one, factor = grad.dtype.type(0), grad.dtype.type(1), grad.dtype.type(scale)
    cost = 0.0
    for i in range(grad.size):
        z, y = logits[i], target[i]
        small = np.exp(-abs(z))
        cost += max(z, zero) - y * z + np.log1p(small)
        grad[i] = factor * ((one if z >= zero else small) / (one + small) - y)
    return scale * cost


@_compiled
def _squared_error(prediction: Array, target: Array, scale: float, grad: Array) -> float:
    """Write scale * (prediction - target), return the cost."""
    factor = grad.dtype.type(scale)
    cost = 0.0
    for i in range(grad.size):
        error = prediction[i] - target[i]
        cost += error * error
        grad[i] = factor * error
    return 0.5 * scale * cost


@_compiled
def _regular(grad: Any, value: Any, decay: Any, limit: Any, factor: Any) -> Any:
    """Return what an update takes for the gradient: clipped, then decayed. NaN stays NaN."""
    grad = factor * (limit if grad > limit else (-limit if grad < -limit else grad))
    return grad + decay * value if decay != 0 else grad  # 0 times infinity is NaN


@_compiled
def _descend(
    value: Array,
    grad: Array,
    velocity: Array,
    rate: float,
    momentum: float,
    nesterov: bool,
    decay: float,
    limit: float,
    factor: float,
) -> None:
    """Update a value, and its velocity if there is momentum; see `Kernels.sgd`."""
    of = value.dtype.type
    rate, mu, decay, limit, factor = of(rate), of(momentum), of(decay), of(limit), of(factor)
    for i in range(value.size):
        step = rate * _regular(grad[i], value[i], decay, limit, factor)
        if momentum == 0.0:
            value[i] -= step
        else:
            v = mu * velocity[i] - step
            velocity[i] = v
            value[i] += mu * v - step if nesterov else v


@_compiled
def _descend_by_moments(
    value: Array,
    grad: Array,
    first: Array,
    second: Array,
    rate: float,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    decay: float,
    limit: float,
    factor: float,
) -> None:
    """Update a value and its moments; see `Kernels.adam`."""
    of = value.dtype.type
    rate, epsilon, decay, limit, factor = of(rate), of(epsilon), of(decay), of(limit), of(factor)
    kept_1, new_1, kept_2, new_2 = of(beta_1), of(1 - beta_1), of(beta_2), of(1 - beta_2)
    for i in range(value.size):
        g = _regular(grad[i], value[i], decay, limit, factor)
        m = kept_1 * first[i] + new_1 * g
        v = kept_2 * second[i] + new_2 * (g * g)
        first[i] = m
        second[i] = v
        value[i] -= rate * m / (np.sqrt(v) + epsilon)
