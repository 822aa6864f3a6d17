"""Kernels for NumPy's arrays that numba compiles: one pass over memory in one call.

They serve contiguous float32 and float64 arrays, including read-only data; NumPy's kernels serve
other arrays, and compute whatever is not here. `bench/kernels.py` shows what each kernel gains.
They run on one thread, because BLAS's threads occupy the other cores. `gpunn/program/` compiles
whole steps.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np

from gpunn._typing import Array, Namespace
from gpunn.kernels import loops, loops_sequences
from gpunn.kernels.declared import kernel_of
from gpunn.kernels.formulas import ActivationFormula
from gpunn.kernels.loops_losses import (
    BY_OUTPUT,
    by_output,
    parameter_of,
    sequence_cross_entropy,
)
from gpunn.kernels.loops_update import UPDATES
from gpunn.kernels.numba_convolution import NumbaConvolutions
from gpunn.kernels.numba_norm import NumbaNorms
from gpunn.kernels.numpy_ import NumpyKernels
from gpunn.kernels.rules import Fused
from gpunn.kernels.update import Update

with suppress(ImportError):  # SciPy's BLAS must be loaded before `one_thread` lists the libraries
    import scipy.linalg.cython_blas  # noqa: F401

_DTYPES = (np.dtype("float32"), np.dtype("float64"))

#: Up to this many exponentials are faster one by one than by NumPy's vectorized passes.
_FEW_EXPONENTIALS = 200

#: From this many entries on, a single pass makes up for checking the arrays.
_MANY = 4096

#: The codes in `loops` of the derivatives that are computed from h, by kernel name.
_SLOPES: dict[str | None, int] = {
    "relu": loops.RELU,
    "tanh": loops.TANH,
    "sigmoid": loops.SIGMOID,
}


class NumbaKernels(NumbaConvolutions, NumbaNorms, NumpyKernels):
    """The kernels that gain from compilation; the others are NumPy's."""

    compiled = True

    def __init__(self, xp: Namespace) -> None:
        super().__init__(xp)
        self._fused |= dict.fromkeys(BY_OUTPUT, self._loss_by_output)

    def bias_activation(
        self, z: Array, bias: Array | None, formula: ActivationFormula
    ) -> tuple[Array, Array]:
        """Return h and the array that its gradient needs; bias and ReLU are one pass."""
        if bias is None or not _writable(z, bias):
            return super().bias_activation(z, bias, formula)
        relu = kernel_of(formula) == "relu"
        loops.add_bias(z, bias, relu)
        if relu:
            return z, z
        h = formula.function(self.xp, z)
        return h, (h if formula.saves_output else z)

    def activation_backward(self, grad: Array, saved: Array, formula: ActivationFormula) -> Array:
        """Return dJ/dx, for ReLU, tanh and the sigmoid in one pass."""
        slope = _SLOPES.get(kernel_of(formula))
        if slope is None or grad.size < _MANY or not _writable(grad, saved):
            return super().activation_backward(grad, saved, formula)
        result = np.empty_like(grad)
        loops.times_slope(slope, grad.ravel(), saved.ravel(), result.ravel())
        return result

    def bias_activation_backward(
        self, grad: Array, saved: Array, formula: ActivationFormula, into: Array | None = None
    ) -> tuple[Array, Array]:
        """Return dJ/dz and the bias's gradient, in one pass."""
        slope = _SLOPES.get(kernel_of(formula))
        if slope is None or not _writable(grad, saved):
            return super().bias_activation_backward(grad, saved, formula, into)
        sums = np.empty(grad.shape[1], grad.dtype) if into is None else into
        if not _writable(grad, sums):
            return super().bias_activation_backward(grad, saved, formula, into)
        result = np.empty_like(grad)
        loops.times_slope_and_sums(slope, grad, saved, result, sums)
        return result, sums

    def embedding_backward(
        self, indices: Array, grad: Array, table: Array, into: Array | None = None
    ) -> Array:
        """Return the gradient of a table, in one pass over the gradients."""
        sums = np.empty_like(table) if into is None else into
        served = _readable(grad, grad) and _writable(sums, sums) and sums.dtype == grad.dtype
        if not (served and indices.dtype == np.int64 and _in_order(indices)):
            return super().embedding_backward(indices, grad, table, into)
        loops_sequences.add_by_row(
            indices.ravel(), grad.reshape(indices.size, grad.shape[-1]), 0, sums
        )
        return sums

    def dropout(self, x: Array, key: int, rate: float) -> tuple[Array, Array]:
        """Return x times a mask, and the mask, in one pass; see `splitmix64`."""
        if not _readable(x, x):
            return super().dropout(x, key, rate)
        result, mask = np.empty_like(x), np.empty_like(x)
        limit = np.uint64(round(rate * 2**32))
        kept = 1.0 / (1.0 - rate)
        loops.drop(x.ravel(), 0, np.uint64(key), limit, kept, result.ravel(), mask.ravel())
        return result, mask

    def fused_softmax_cross_entropy(
        self, formula: Any, logits: Array, labels: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the cost and its gradient; NumPy computes the exponentials, vectorized."""
        served = summed and type(scale) is float and _writable(logits, logits)
        served = served and labels.dtype == np.int64 and _in_order(labels) and logits.size
        if not (served and formula.takes(labels)):
            return super().fused_softmax_cross_entropy(
                formula, logits, labels, scale, summed=summed
            )
        grad = np.empty_like(logits)
        no_weights = logits[:0, 0]
        cost = loops.shift(logits, labels, no_weights, grad)
        np.exp(grad, out=grad)
        return logits.dtype.type(loops.softmax(grad, labels, no_weights, scale, cost)), grad

    def fused_binary_cross_entropy(
        self, formula: Any, logits: Array, target: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the cost and its gradient, if there are few outputs."""
        served = summed and type(scale) is float and logits.size <= _FEW_EXPONENTIALS
        if not (served and formula.from_logits and _readable(logits, target)):
            return super().fused_binary_cross_entropy(formula, logits, target, scale, summed=summed)
        grad = np.empty_like(logits)
        cost = loops.binary_cross_entropy(logits.ravel(), target.ravel(), scale, grad.ravel())
        return logits.dtype.type(cost), grad

    def fused_squared_error(
        self, formula: Any, prediction: Array, target: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the cost and its gradient."""
        if not (summed and type(scale) is float and _readable(prediction, target)):
            return super().fused_squared_error(formula, prediction, target, scale, summed=summed)
        grad = np.empty_like(prediction)
        cost = loops.squared_error(prediction.ravel(), target.ravel(), scale, grad.ravel())
        return prediction.dtype.type(cost), grad

    def _loss_by_output(
        self, formula: Any, prediction: Array, target: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the cost and its gradient for a loss that is a sum over the outputs."""
        if not (summed and type(scale) is float and _readable(prediction, target)):
            return NotImplemented
        kind, _ = BY_OUTPUT[formula.kernel]
        grad, no_weights = np.empty_like(prediction), prediction[:0, 0]
        arrays = prediction, target, no_weights
        cost = by_output(kind, parameter_of(formula), *arrays, scale, grad)
        return prediction.dtype.type(cost), grad

    def fused_sequence_cross_entropy(
        self, formula: Any, logits: Array, labels: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the cost and its gradient."""
        if not (summed and _readable(logits, logits) and logits.size):
            return NotImplemented
        weights = scale if getattr(scale, "ndim", 0) else logits[:0, 0, 0]
        if not _readable(weights, logits):
            return NotImplemented
        grad = np.empty_like(logits)
        rows = logits.reshape(-1, logits.shape[2]), np.ascontiguousarray(labels, np.int64).ravel()
        settings = formula.ignore_label, formula.label_smoothing
        factor = 1.0 if weights.size else float(scale)
        out = grad.reshape(rows[0].shape)
        cost = sequence_cross_entropy(*rows, *settings, weights, factor, out)
        return logits.dtype.type(cost), grad

    def _update_fused(self, rule: Fused, update: Update) -> bool:
        """Update each value and its states in one pass; `clip_norm` takes another.

        Gradients may come from user code, so their dtype and layout are also checked.
        """
        values, grads, states, decays = update.slots
        if not all(all(map(_writable, values, others)) for others in (grads, *states)):
            return False
        clips = self._clips(grads, update)
        for value, grad, *kept, decay in zip(values, grads, *states, decays, strict=True):
            kernel_states = [value.ravel()] * 3  # not read where the rule has none
            for place, state in zip(rule.places, kept, strict=True):
                kernel_states[place] = state.ravel()
            decay *= update.decay_factor
            shares = (0.0, 1.0 - decay) if update.decoupled else (decay, 1.0)
            common = update.step_size, update.epsilon, *shares, *clips
            arrays = value.ravel(), grad.ravel(), tuple(kernel_states)
            UPDATES[rule.name](*arrays, common, rule.settings)
        return True

    def _clips(self, grads: list[Array], update: Update) -> tuple[float, float]:
        """Return the limit on gradient entries, and the factor that then scales them."""
        limit = math.inf if update.clip_value is None else float(update.clip_value)
        if update.clip_norm is None:
            return limit, 1.0
        if update.clip_value is not None:
            grads = [self.clip(grad, -limit, limit) for grad in grads]
        norm = float(self.gradient_norm(grads))
        # NaN if the norm is NaN, since `max` then returns its first argument.
        return limit, update.clip_norm / max(norm, update.clip_norm)


def _writable(x: Array, y: Array) -> bool:
    """Return whether both have the same served dtype, and are in C order and writable."""
    dtype = x.dtype
    served: bool = dtype in _DTYPES and y.dtype == dtype and x.flags.carray and y.flags.carray
    return served


def _readable(x: Array, y: Array) -> bool:
    """Return whether both have the same served dtype and are in C order; they may be read-only."""
    dtype = x.dtype
    return dtype in _DTYPES and y.dtype == dtype and _in_order(x) and _in_order(y)


def _in_order(x: Array) -> bool:
    """Return whether an array is in C order and aligned; it may be read-only."""
    flags = x.flags
    in_order: bool = flags.carray or (flags.c_contiguous and flags.aligned)
    return in_order
