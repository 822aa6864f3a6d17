"""Kernels for NumPy's arrays that numba compiles: each of them one pass over memory, in one call.

They serve float32 and float64, contiguous, and data that may not be written to, too; everything
else, and every kernel that is not here, is NumPy's. `bench/kernels.py` shows what each gains. They
run on one thread: the threads of BLAS wait on the other cores. Where a whole step can be compiled,
`compiled/steps.py` is it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.compiled import loops
from gpunn.kernels.declared import kernel_of
from gpunn.kernels.generic import Formula
from gpunn.kernels.numpy_ import NumpyKernels

with suppress(ImportError):  # a BLAS that must be here before anybody counts the threads of BLAS
    import scipy.linalg.cython_blas  # noqa: F401

_DTYPES = (np.dtype("float32"), np.dtype("float64"))

#: So few exponentials are quicker one by one than in passes of NumPy's wide ones.
_FEW_EXPONENTIALS = 200

#: From so many entries on, one pass pays for the look at its arrays.
_MANY = 4096

#: The slopes that are computed from h: their numbers, by the kernel that a formula names.
_SLOPES: dict[str | None, int] = {
    "relu": loops.RELU,
    "tanh": loops.TANH,
    "sigmoid": loops.SIGMOID,
}


class NumbaKernels(NumpyKernels):
    """The kernels that pay for being compiled; the others are NumPy's."""

    def steps(  # noqa: PLR0917 (see `Kernels`)
        self, model: Any, loss: Any, optimizer: Any, data: Any, batch_size: int, before: Any
    ) -> Any:
        """Return what trains a perceptron in compiled steps, if it is one."""
        serve = _perceptrons()
        return serve and serve(model, loss, optimizer, data, batch_size, before)

    def bias_activation(
        self, z: Array, bias: Array | None, formula: Formula
    ) -> tuple[Array, Array]:
        """Return h and what its gradient needs; with ReLU in the same pass as the bias."""
        if bias is None or not _alike(z, bias):
            return super().bias_activation(z, bias, formula)
        relu = kernel_of(formula) == "relu"
        loops.add_bias(z, bias, relu)
        if relu:
            return z, z
        h = formula.function(self.xp, z)
        return h, (h if formula.saves_output else z)

    def activation_backward(self, grad: Array, saved: Array, formula: Formula) -> Array:
        """Return dJ/dx of ReLU, tanh and the logistic function in one pass."""
        slope = _SLOPES.get(kernel_of(formula))
        if slope is None or grad.size < _MANY or not _alike(grad, saved):
            return super().activation_backward(grad, saved, formula)
        result = np.empty_like(grad)
        loops.times_slope(slope, grad.ravel(), saved.ravel(), result.ravel())
        return result

    def bias_activation_backward(
        self, grad: Array, saved: Array, formula: Formula, into: Array | None = None
    ) -> tuple[Array, Array]:
        """Return dJ/dz and the bias's gradient, its column sums, from the same pass."""
        slope = _SLOPES.get(kernel_of(formula))
        if slope is None or not _alike(grad, saved):
            return super().bias_activation_backward(grad, saved, formula, into)
        sums = np.empty(grad.shape[1], grad.dtype) if into is None else into
        if not _alike(grad, sums):
            return super().bias_activation_backward(grad, saved, formula, into)
        result = np.empty_like(grad)
        loops.times_slope_and_sums(slope, grad, saved, result, sums)
        return result, sums

    def dropout(self, x: Array, key: int, rate: float) -> tuple[Array, Array]:
        """Return x times a mask, and the mask; see `splitmix64`."""
        if not _readable(x, x):
            return super().dropout(x, key, rate)
        result, mask = np.empty_like(x), np.empty_like(x)
        limit = np.uint64(round(rate * 2**32))
        kept = 1.0 / (1.0 - rate)
        loops.drop(x.ravel(), np.uint64(key), limit, kept, result.ravel(), mask.ravel())
        return result, mask

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, scale: Any, *, summed: bool = False
    ) -> tuple[Array, Array]:
        """Return the cost and its gradient; the exponentials are NumPy's, which are wide."""
        served = summed and type(scale) is float and _alike(logits, logits)
        if not (served and labels.dtype == np.int64 and _in_order(labels) and logits.size):
            return super().softmax_cross_entropy(logits, labels, scale, summed=summed)
        grad = np.empty_like(logits)
        cost = loops.shift(logits, labels, grad)
        np.exp(grad, out=grad)
        return logits.dtype.type(loops.softmax(grad, labels, scale, cost)), grad

    def sigmoid_binary_cross_entropy(
        self, logits: Array, target: Array, scale: Any, *, summed: bool = False
    ) -> tuple[Array, Array]:
        """Return the cost and its gradient, for few outputs."""
        served = summed and type(scale) is float and logits.size <= _FEW_EXPONENTIALS
        if not (served and _readable(logits, target)):
            return super().sigmoid_binary_cross_entropy(logits, target, scale, summed=summed)
        grad = np.empty_like(logits)
        cost = loops.binary_cross_entropy(logits.ravel(), target.ravel(), scale, grad.ravel())
        return logits.dtype.type(cost), grad

    def squared_error(
        self, prediction: Array, target: Array, scale: Any, *, summed: bool = False
    ) -> tuple[Array, Array]:
        """Return the cost and its gradient."""
        if not (summed and type(scale) is float and _readable(prediction, target)):
            return super().squared_error(prediction, target, scale, summed=summed)
        grad = np.empty_like(prediction)
        cost = loops.squared_error(prediction.ravel(), target.ravel(), scale, grad.ravel())
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
            loops.descend(*arrays, learning_rate, momentum, nesterov, decay, *clips)

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
            loops.descend_by_moments(*arrays, rate, beta_1, beta_2, epsilon, decay, *clips)

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


@cache
def _perceptrons() -> Callable[..., Any] | None:
    """Return `serve`; None without SciPy, whose BLAS it needs."""
    try:
        from gpunn.kernels.compiled.perceptron import serve  # noqa: PLC0415 (imports layers)
    except ImportError as error:
        logging.getLogger("gpunn").info("steps are not compiled: %s", error)
        return None
    return serve


def _alike(x: Array, y: Array) -> bool:
    """Return whether both are of the one or the other dtype, writable, and lie as C has them."""
    dtype = x.dtype
    alike: bool = dtype in _DTYPES and y.dtype == dtype and x.flags.carray and y.flags.carray
    return alike


def _readable(x: Array, y: Array) -> bool:
    """Return what `_alike` does, of arrays that nothing is written to, such as rows of data."""
    dtype = x.dtype
    return dtype in _DTYPES and y.dtype == dtype and _in_order(x) and _in_order(y)


def _in_order(x: Array) -> bool:
    """Return whether an array lies as C has it; it may refuse to be written to."""
    flags = x.flags
    in_order: bool = flags.carray or (flags.c_contiguous and flags.aligned)
    return in_order
