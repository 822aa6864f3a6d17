"""Kernels for NumPy: the same results with fewer passes over memory and fewer calls.

On small arrays a call costs more than its arithmetic: `np.sum` is a Python function around
`np.add.reduce`, and each temporary is an allocation. Only overrides for which `bench/kernels.py`
shows a gain are here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from gpunn._typing import Array, Namespace
from gpunn.kernels.blas import is_small, one_thread
from gpunn.kernels.blocks import copy_to_one_block
from gpunn.kernels.declared import kernel_of
from gpunn.kernels.formulas import ActivationFormula, per_row
from gpunn.kernels.heap import keep_heap
from gpunn.kernels.numpy_sequences import NumpySequences
from gpunn.kernels.reference import Kernels

#: Maximum number of cached constant arrays; when it is exceeded, the cache is emptied.
_MAX_CONSTANTS = 64

#: Maximum number of entries in a constant array, unless a single row has more.
_PIECE = 1 << 14

#: Maximum number of classes to sum one by one, down a column; the reference sums pairwise.
_FEW_CLASSES = 64

# NumPy's operators are faster with a 0-d array than with a Python number.
_ONE = np.ones((), np.int64)
_ZERO, _MINUS_ONE = np.zeros((), np.float32), np.full((), -1.0, np.float32)


class NumpyKernels(NumpySequences, Kernels):
    """The kernels that gain from an override; the others are the reference's."""

    def __init__(self, xp: Namespace) -> None:
        super().__init__(xp)
        self._constants: dict[tuple[Any, ...], Array] = {}

    def keep_memory(self) -> None:
        """Make the C library keep freed memory for the next step."""
        keep_heap()

    def threads(self, batch_size: int, values: Sequence[Array]) -> AbstractContextManager[Any]:
        """Return a context in which BLAS uses one thread if the products are too small for more.

        A second thread gains little there, and if another program keeps its core busy, each product
        has to wait. Without threadpoolctl, BLAS decides.
        """
        self.keep_memory()
        largest = max(value.size for value in values)
        limit = one_thread() if is_small(batch_size * largest) else None
        return super().threads(batch_size, values) if limit is None else limit.hold()

    def product(self, x: Array, y: Array, into: Array | None = None) -> Array:
        """Return x @ y by `dot`, which reaches BLAS with fewer checks."""
        return np.dot(x, y, out=into)

    def bias_activation(
        self, z: Array, bias: Array | None, formula: ActivationFormula
    ) -> tuple[Array, Array]:
        """Return h and the array that its gradient needs; ReLU overwrites z."""
        if bias is not None:
            z += bias
        if kernel_of(formula) == "relu":
            self._relu(z)
            return z, z
        h = formula.function(self.xp, z)
        return h, (h if formula.saves_output else z)

    def activation_backward(self, grad: Array, saved: Array, formula: ActivationFormula) -> Array:
        """Return dJ/dx, for ReLU without a temporary."""
        if kernel_of(formula) != "relu":
            return formula.gradient(self.xp, grad, saved)
        result: Array = (saved > _ZERO).astype(grad.dtype)
        result *= grad
        return result

    def bias_activation_backward(
        self, grad: Array, saved: Array, formula: ActivationFormula, into: Array | None = None
    ) -> tuple[Array, Array]:
        """Return dJ/dz and the bias's gradient."""
        grad = self.activation_backward(grad, saved, formula)
        return grad, np.dot(self._row_of_ones(grad.shape[0], grad.dtype), grad, out=into)

    def column_sums(self, x: Array, into: Array | None = None) -> Array:
        """Return the column sums as the product of a row of ones and x, which is faster."""
        if x.ndim != 2:
            return super().column_sums(x, into)
        return np.dot(self._row_of_ones(x.shape[0], x.dtype), x, out=into)

    def convert(self, x: Array, dtype: Any) -> Array:
        """Return `x` in another dtype."""
        return x.astype(dtype)

    def stack(self, arrays: Sequence[Array]) -> Array:
        """Return the arrays stacked; they may be NumPy scalars, for which `np.stack` is slow."""
        return np.asarray(arrays)

    def total(self, x: Array) -> Array:
        """Return the sum of all entries."""
        return np.add.reduce(x, axis=None)

    def fused_softmax_cross_entropy(
        self, formula: Any, logits: Array, labels: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the losses and their gradient, for few classes, on transposed arrays.

        NumPy's reductions over the last axis are vectorized only if it is long. So rows are classes
        and columns are samples.
        """
        n, k = logits.shape
        if n == 0 or k > _FEW_CLASSES or labels.dtype != np.int64 or not formula.takes(labels):
            return NotImplemented
        table = self._constant(_one_hot_table, (k, k + 2), logits.dtype)
        target = table.take(labels + _ONE, axis=1, mode="clip")
        z = logits.T.copy()
        z -= np.maximum.reduce(z, axis=0)
        grad = np.exp(z)
        z -= np.log(np.dot(self._row_of_ones(k, z.dtype), grad))  # now z is log softmax
        np.exp(z, out=grad)
        grad -= target
        grad *= scale
        if summed and not getattr(scale, "ndim", 0):
            return np.vdot(target, z) * -scale, grad.T
        target *= z
        losses = np.add.reduce(target, axis=0)
        losses *= -scale
        return (np.add.reduce(losses) if summed else losses), grad.T

    def fused_binary_cross_entropy(
        self, formula: Any, logits: Array, target: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the losses and their gradient, with few temporaries.

        With l = log(1 + e^-|z|), the sigmoid is exp(min(z, 0) - l).
        """
        if not formula.from_logits:
            return NotImplemented
        small = np.copysign(logits, _MINUS_ONE)  # -|z|
        log_term = np.log1p(np.exp(small, out=small), out=small)
        losses = np.maximum(logits, _ZERO)
        grad = logits - losses
        grad -= log_term
        np.exp(grad, out=grad)
        grad -= target
        grad *= per_row(scale)
        losses -= target * logits
        losses += log_term
        if summed and not getattr(scale, "ndim", 0):
            return np.add.reduce(losses, axis=None) * scale, grad
        losses = np.add.reduce(losses, axis=1)
        losses *= scale
        return (np.add.reduce(losses) if summed else losses), grad

    def fused_squared_error(
        self,
        formula: Any,  # noqa: ARG002 (as for all losses)
        prediction: Array,
        target: Array,
        scale: Any,
        *,
        summed: bool,
    ) -> Any:
        """Return the losses and their gradient, without a temporary for the squares."""
        grad = prediction - target
        losses = np.einsum("np,np->n", grad, grad)
        losses *= 0.5 * scale
        grad *= per_row(scale)
        return (np.add.reduce(losses) if summed else losses), grad

    def copy_to_blocks(self, arrays: list[Array]) -> tuple[list[Array], list[Array]]:
        """Copy arrays into one block, each at a multiple of 64 bytes."""
        return copy_to_one_block(arrays, np.zeros, 64)

    def sum_of_squares(self, arrays: list[Array]) -> Array:
        """Return the sum of the squares of all entries, by BLAS."""
        return sum(np.vdot(x, x) for x in arrays)

    def gather(self, arrays: Sequence[Array], indices: Array) -> list[Array]:
        """Return the rows; mode "clip" avoids a copy, and the indices are in range."""
        return [x.take(indices, axis=0, mode="clip") for x in arrays]

    def _row_of_ones(self, n: int, dtype: Any) -> Array:
        """Return n ones; cached, since batches come in few sizes."""
        return self._constant(np.ones, n, dtype)

    def _relu(self, z: Array) -> None:
        """Overwrite z with max(z, 0).

        NumPy's maximum of two arrays is several times as fast as of an array and a number.
        """
        if z.ndim != 2:
            np.maximum(z, 0.0, out=z)
            return
        rows = max(1, _PIECE // (z.shape[1] or 1))
        if rows >= z.shape[0]:
            np.maximum(z, self._constant(np.zeros, z.shape, z.dtype), out=z)
            return
        zeros = self._constant(np.zeros, (rows, z.shape[1]), z.dtype)
        for start in range(0, z.shape[0], rows):
            piece = z[start : start + rows]
            np.maximum(piece, zeros[: piece.shape[0]], out=piece)

    def _constant(self, make: Callable[..., Array], shape: Any, dtype: Any) -> Array:
        """Return a constant array from the cache; `make` creates it on the first request."""
        key = (make, shape, dtype)
        constant = self._constants.get(key)
        if constant is None:
            if len(self._constants) >= _MAX_CONSTANTS:
                self._constants.clear()
            constant = self._constants[key] = make(shape, dtype)
        return constant


def _one_hot_table(shape: tuple[int, int], dtype: Any) -> Array:
    """Return one-hot columns: class c in column c + 1, between a first and a last column of NaN."""
    table = np.full(shape, np.nan, dtype)
    table[:, 1:-1] = np.eye(shape[0])
    return table
