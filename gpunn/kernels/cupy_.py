"""Kernels for CuPy: a training step in as few launches as its data flow allows.

A launch costs the host a microsecond or two, and launches take up most of a small network's step.
The CUDA sources are in `gpunn/kernels/cuda/`. They serve float32 and float64; other dtypes go to
the reference. Nothing here waits for the device or reads a value back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import cupy
import numpy as np

from gpunn._typing import Array, Namespace
from gpunn.arrays.backend import Backend
from gpunn.arrays.streams import keep
from gpunn.kernels.blocks import copy_to_one_block
from gpunn.kernels.cell import Cell
from gpunn.kernels.cublas import product
from gpunn.kernels.cuda import FORMULAS, REAL
from gpunn.kernels.cuda.grids import PACK, over_columns, over_entries, over_rows
from gpunn.kernels.cupy_convolution import CupyConvolutions
from gpunn.kernels.cupy_device import (
    on_device_of_first,
    on_device_of_items,
    served,
)
from gpunn.kernels.cupy_launch import (
    activation_kernel,
    cuda_kernel,
    have_rows,
    launch_gather,
    launch_update,
)
from gpunn.kernels.cupy_losses import CupyLossKernels
from gpunn.kernels.cupy_norm import CupyNorms
from gpunn.kernels.cupy_sequences import CupySequences
from gpunn.kernels.declared import kernel_of
from gpunn.kernels.formulas import ActivationFormula
from gpunn.kernels.rules import Fused
from gpunn.kernels.update import Update


class CupyKernels(CupyConvolutions, CupyNorms, CupySequences, CupyLossKernels):
    """The kernels with a CUDA source; arguments that they do not serve go to the reference."""

    def __init__(self, xp: Namespace) -> None:
        super().__init__(xp)
        self._ones: dict[tuple[int, Any, int], Array] = {}  # only added to: threads share it

    # Layers

    def product(self, x: Array, y: Array, into: Array | None = None) -> Array:
        """Return x @ y, by cuBLAS on the device of x."""
        return product(x, y, into)

    @on_device_of_first
    def activation(self, x: Array, formula: ActivationFormula) -> Array:
        """Return f(x), in one launch."""
        known = _served_formula(formula, x)
        if known is None:
            return super().activation(x, formula)
        name, a = known
        x = cupy.ascontiguousarray(x)
        h = cupy.ndarray(x.shape, x.dtype)
        kernel = activation_kernel("activation", x.dtype, name)
        kernel(*over_entries(x.size), x.data.ptr, h.data.ptr, x.size, a)
        return h

    @on_device_of_first
    def bias_activation(
        self, z: Array, bias: Array | None, formula: ActivationFormula
    ) -> tuple[Array, Array]:
        """Return f(z + bias) and the array that its gradient needs, in one launch."""
        known = _served_formula(formula, z, z if bias is None else bias)
        if known is None or not z.flags.c_contiguous:
            return super().bias_activation(z, bias, formula)
        name, a = known
        if name == "identity" and bias is None:
            return z, z
        bias = None if bias is None else cupy.ascontiguousarray(bias)
        biases = 0 if bias is None else bias.data.ptr
        h = z if formula.saves_output else cupy.ndarray(z.shape, z.dtype)
        n, p = z.shape
        kernel = activation_kernel("bias_activation", z.dtype, name)
        kernel(*over_rows(n, -(-p // PACK)), z.data.ptr, biases, h.data.ptr, n, p, a)
        return h, (h if formula.saves_output else z)

    @on_device_of_first
    def activation_backward(self, grad: Array, saved: Array, formula: ActivationFormula) -> Array:
        """Return dJ/dx for h = f(x), in one launch; the identity needs none."""
        known = _served_formula(formula, grad, saved)
        if known is None:
            return super().activation_backward(grad, saved, formula)
        name, a = known
        if name == "identity":
            return grad
        grad, saved = cupy.ascontiguousarray(grad), cupy.ascontiguousarray(saved)
        result = cupy.ndarray(grad.shape, grad.dtype)
        kernel = activation_kernel("activation_backward", grad.dtype, name)
        pointers = grad.data.ptr, saved.data.ptr, result.data.ptr
        kernel(*over_entries(grad.size), *pointers, grad.size, a)
        return result

    @on_device_of_first
    def bias_activation_backward(
        self, grad: Array, saved: Array, formula: ActivationFormula, into: Array | None = None
    ) -> tuple[Array, Array]:
        """Return dJ/dz and the bias's gradient: one launch for few rows, else also a product."""
        known = _served_formula(formula, grad, saved)
        name, a = known or ("", 0.0)
        launch = None if name in ("", "identity") else over_columns(*grad.shape)
        if launch is None:
            if name != "identity":
                grad = self.activation_backward(grad, saved, formula)
            return grad, self.column_sums(grad, into)
        n, p = grad.shape
        grad, saved = cupy.ascontiguousarray(grad), cupy.ascontiguousarray(saved)
        result = cupy.ndarray(grad.shape, grad.dtype)
        sums = cupy.ndarray(p, grad.dtype) if into is None else into
        kernel = activation_kernel("activation_backward_sums", grad.dtype, name)
        pointers = grad.data.ptr, saved.data.ptr, result.data.ptr, sums.data.ptr
        kernel(*launch, *pointers, n, p, a)
        return result, sums

    @on_device_of_first
    def column_sums(self, x: Array, into: Array | None = None) -> Array:
        """Return the column sums as the product of a row of ones and x: one call of cuBLAS.

        A sum has no factors to round, whatever the precision of products.
        """
        if x.size == 0 or x.dtype not in REAL:
            return super().column_sums(x, into)
        return product(self._row_of_ones(x), x, into, "float32")

    @on_device_of_first
    def dropout(self, x: Array, key: Any, rate: float) -> tuple[Array, Array]:
        """Return x times its mask, and the mask, in one launch."""
        if x.dtype not in REAL or x.size == 0:
            return super().dropout(x, key, rate)
        x = cupy.ascontiguousarray(x)
        y, mask = cupy.ndarray(x.shape, x.dtype), cupy.ndarray(x.shape, x.dtype)
        kernel = cuda_kernel("dropout", "dropout", x.dtype)
        pointers = x.data.ptr, y.data.ptr, mask.data.ptr
        keys = (0, key.array.data.ptr) if isinstance(key, Cell) else (int(key), 0)
        threshold, kept = round(rate * 2**32), 1.0 / (1.0 - rate)
        kernel(*over_entries(x.size), *pointers, x.size, *keys, threshold, kept)
        return y, mask

    # Optimizers

    @on_device_of_items
    def copy_to_blocks(self, arrays: list[Array]) -> tuple[list[Array], list[Array]]:
        """Copy arrays into one block, each aligned as if CuPy had allocated it."""
        return copy_to_one_block(arrays, cupy.zeros, 512)

    def _update_fused(self, rule: Fused, update: Update) -> bool:
        """Update all arrays in one launch; `clip_norm` takes another."""
        return launch_update(rule, update)

    # Data

    @on_device_of_items
    def gather(self, arrays: Sequence[Array], indices: Array) -> list[Array]:
        """Return the rows of all arrays at `indices`, in one launch."""
        if not have_rows(arrays) or indices.size == 0:
            return super().gather(arrays, indices)
        indices = cupy.ascontiguousarray(indices, dtype=np.int64)
        return launch_gather(arrays, indices, indices.size)

    def _row_of_ones(self, like: Array) -> Array:
        """Return a row with a one for each row of `like`, cut from a longer cached row."""
        n, dtype, index = key = like.shape[0], like.dtype, like.data.device_id
        ones = self._ones.get(key)
        if ones is None:
            length = max(4096, 1 << (n - 1).bit_length())
            whole = length, dtype, index
            if whole not in self._ones:
                make = partial(cupy.ones, length, dtype)
                self._ones.setdefault(whole, keep(Backend("cupy", index), make))
            ones = self._ones.setdefault(key, self._ones[whole][:n])
        return ones


def _served_formula(formula: ActivationFormula, *arrays: Array) -> tuple[str, float] | None:
    """Return the name and parameter of a formula in activation.cu; None if it cannot be used."""
    kernel = kernel_of(formula)
    if kernel not in FORMULAS or not served(*arrays):
        return None
    name, parameter = FORMULAS[kernel]
    return name, 0.0 if parameter is None else float(getattr(formula, parameter))
