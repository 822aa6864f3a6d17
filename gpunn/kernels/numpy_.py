"""Kernels for NumPy: the same sums with fewer passes over memory and fewer calls.

On small arrays a call costs more than its arithmetic: `np.sum` is a Python function around
`np.add.reduce`, and each temporary is an allocation. `bench/kernels.py` shows what each override
gains; what gains nothing is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpunn._typing import Array, Namespace
from gpunn.kernels.generic import Formula, Kernels
from gpunn.layers.activation import ReLU, Tanh

#: Rows of ones are kept for so many sizes of batches; who uses more sizes makes them anew.
_MOST_SIZES = 16

#: Up to so many classes are summed down a column, term by term; the generic twin sums pairwise.
_FEW_CLASSES = 64

#: A little less than the largest block that glibc's allocator learns from, in bytes.
_LARGE_BLOCK = (32 << 20) - (1 << 16)


class NumpyKernels(Kernels):
    """The kernels that pay for an override; the others are the generic ones."""

    def __init__(self, xp: Namespace) -> None:
        super().__init__(xp)
        self._ones: dict[tuple[int, Any], Array] = {}
        # glibc hands the top of the heap back to the system and faults it in again at every step,
        # until the first large block is freed: from then on it keeps twice as much as that had.
        np.empty(_LARGE_BLOCK, np.uint8)

    def product(self, x: Array, y: Array) -> Array:
        """Return the product by `dot`, which reaches BLAS with fewer checks than `@`."""
        return np.dot(x, y)

    def bias_activation(
        self, z: Array, bias: Array | None, formula: Formula
    ) -> tuple[Array, Array]:
        """Return h and what its gradient needs, in the place of z where NumPy can."""
        if bias is not None:
            z += bias
        in_place = _IN_PLACE.get(type(formula))
        if in_place is None:
            h = formula.function(self.xp, z)
            return h, (h if formula.saves_output else z)
        in_place(z)
        return z, z

    def activation_backward(self, grad: Array, saved: Array, formula: Formula) -> Array:
        """Return dJ/dx; for ReLU the mask is used as it is, not converted first."""
        if type(formula) is ReLU:
            return grad * (saved > 0)
        return formula.gradient(self.xp, grad, saved)

    def column_sums(self, x: Array) -> Array:
        """Return the column sums as the product of a row of ones, which BLAS is quick at."""
        if x.ndim != 2:
            return super().column_sums(x)
        where = (x.shape[0], x.dtype)
        ones = self._ones.get(where)
        if ones is None:
            if len(self._ones) >= _MOST_SIZES:
                self._ones.clear()
            ones = self._ones[where] = np.ones(x.shape[0], x.dtype)
        return ones @ x

    def total(self, x: Array) -> Array:
        """Return the sum of all entries."""
        return np.add.reduce(x, axis=None)

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, scale: Any
    ) -> tuple[Array, Array]:
        """Return the losses and their gradient; the labels index, no rows of ones are made."""
        n, k = logits.shape
        # As unsigned, a negative label is a huge one: a single test finds both.
        fits = n > 0 and k <= _FEW_CLASSES and labels.dtype == np.int64
        if not fits or labels.view(np.uint64).max() >= k:
            return super().softmax_cross_entropy(logits, labels, scale)
        # Classes go down and samples across: NumPy reduces over a long last axis in wide steps,
        # over a short one entry by entry.
        grad = logits.T.copy()
        grad -= np.maximum.reduce(grad, axis=0)
        samples = np.arange(n)
        own = grad[labels, samples]
        np.exp(grad, out=grad)
        total = np.add.reduce(grad, axis=0)
        losses = np.log(total)
        losses -= own
        losses *= scale
        grad *= scale / total
        grad[labels, samples] -= scale
        return losses, grad.T

    def sigmoid_binary_cross_entropy(
        self, logits: Array, target: Array, scale: Any
    ) -> tuple[Array, Array]:
        """Return the losses and their gradient, in the place of temporaries."""
        small = np.exp(-np.abs(logits))
        positive = np.maximum(logits, 0.0)
        grad = np.exp(logits - positive)
        grad /= 1.0 + small
        grad -= target
        grad *= _column(scale)
        positive -= target * logits
        positive += np.log1p(small, out=small)
        losses = np.add.reduce(positive, axis=1)
        losses *= scale
        return losses, grad

    def squared_error(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return the losses and their gradient, the sum of squares without a temporary."""
        grad = prediction - target
        losses = np.einsum("np,np->n", grad, grad)
        losses *= 0.5 * scale
        grad *= _column(scale)
        return losses, grad

    def gather(self, arrays: Sequence[Array], indices: Array) -> list[Array]:
        """Return the rows; "clip" spares a copy, and the indices are in range."""
        return [x.take(indices, axis=0, mode="clip") for x in arrays]


#: The formulas that NumPy computes in the place of their argument.
_IN_PLACE: dict[type[Formula], Callable[[Array], object]] = {
    ReLU: lambda z: np.maximum(z, 0.0, out=z),
    Tanh: lambda z: np.tanh(z, out=z),
}


def _column(scale: Any) -> Any:
    return scale[:, None] if getattr(scale, "ndim", 0) else scale
