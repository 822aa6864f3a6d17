"""Kernels of convolutions and max pooling for NumPy's arrays that numba compiles."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.kernels import loops_convolution, loops_pooling
from gpunn.kernels.convolution import ConvolutionKernels
from gpunn.kernels.loops_convolution import Layout, layout_of
from gpunn.kernels.pooling import PoolingKernels, index_dtype
from gpunn.kernels.window import Window

_DTYPES = (np.dtype("float32"), np.dtype("float64"))


class NumbaConvolutions(ConvolutionKernels, PoolingKernels):
    """The kernels for arrays in C order; other arrays go to the reference."""

    def convolution(self, x: Array, weight: Array, window: Window) -> Array:
        """Return z, summed up in tiles."""
        if not _served(x, weight):
            return super().convolution(x, weight, window)
        layout = layout_of(window, x.shape[3], weight.shape[3], x.itemsize)
        z = np.empty((x.shape[0], *window.output, weight.shape[3]), x.dtype)
        scratch, one = _scratch(layout, x)
        places = _address(weight), 0, 0, _address(z), _address(scratch)
        loops_convolution.convolve(_address(x), len(x), layout.numbers, *places, one)
        return z

    def convolution_input_grad(self, grad: Array, weight: Array, window: Window) -> Array:
        """Return dJ/dx, summed up in tiles."""
        if not _served(grad, weight):
            return super().convolution_input_grad(grad, weight, window)
        channels = weight.shape[2] * window.groups
        layout = layout_of(window, channels, grad.shape[3], grad.itemsize)
        x = np.empty((grad.shape[0], *window.image, channels), grad.dtype)
        scratch, one = _scratch(layout, x)
        places = _address(weight), _address(x), _address(scratch)
        loops_convolution.convolve_back(_address(grad), len(grad), layout.numbers, *places, one)
        return x

    def convolution_weight_grad(
        self, x: Array, grad: Array, window: Window, into: Array | None = None
    ) -> Array:
        """Return dJ/dW, summed up in tiles."""
        shape = (*window.size, x.shape[3] // window.groups, grad.shape[3])
        weight = np.empty(shape, grad.dtype) if into is None else into
        if not _served(x, grad, weight) or not weight.flags.writeable:
            return super().convolution_weight_grad(x, grad, window, into)
        layout = layout_of(window, x.shape[3], grad.shape[3], x.itemsize)
        scratch, one = _scratch(layout, x)
        places = _address(weight), _address(scratch)
        given = _address(x), _address(grad), len(x)
        loops_convolution.correlate(*given, layout.numbers, *places, one)
        return weight

    def max_pool(self, x: Array, window: Window) -> tuple[Array, Array]:
        """Return the largest entries and their positions, in one pass."""
        if not _served(x):
            return super().max_pool(x, window)
        layout = layout_of(window._replace(groups=x.shape[3]), x.shape[3], x.shape[3], x.itemsize)
        y = np.empty((x.shape[0], *window.output, x.shape[3]), x.dtype)
        where = np.empty(y.shape, index_dtype(np, window))
        scratch, one = _scratch(layout, x)
        places = _address(y), _address(where), _address(scratch)
        loops_pooling.max_pool(
            _address(x), len(x), layout.numbers, *places, one, where.dtype.type(0)
        )
        return y, where

    def max_pool_backward(self, grad: Array, where: Array, window: Window) -> Array:
        """Return dJ/dx, in one pass."""
        if not (_served(grad) and where.flags.c_contiguous):
            return super().max_pool_backward(grad, where, window)
        channels = grad.shape[3]
        layout = layout_of(window._replace(groups=channels), channels, channels, grad.itemsize)
        x = np.empty((grad.shape[0], *window.image, channels), grad.dtype)
        scratch, one = _scratch(layout, x)
        given, places = (_address(grad), _address(where), len(x)), (_address(x), _address(scratch))
        loops_pooling.max_pool_backward(*given, layout.numbers, *places, one, where.dtype.type(0))
        return x


def _served(*arrays: Array) -> bool:
    """Return whether arrays have the same served dtype, and are in C order and aligned."""
    dtype = arrays[0].dtype
    return dtype in _DTYPES and all(
        x.dtype == dtype and x.flags.c_contiguous and x.flags.aligned for x in arrays
    )


def _scratch(layout: Layout, like: Array) -> tuple[Array, Any]:
    """Return memory for the loops, and 1 in the arrays' dtype."""
    return np.empty(layout.scratch // 8 + 1, np.int64), like.dtype.type(1)


def _address(x: Array) -> int:
    address: int = x.ctypes.data
    return address
