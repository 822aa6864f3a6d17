"""Kernels of convolutions and pooling for CuPy; the source is `gpunn/kernels/cuda/convolution.cu`.

A convolution unrolls images into a workspace, with a row of all inputs under the filter for each
output pixel, and is then a product, by cuBLAS. The workspace has a bounded size: larger batches are
processed a few images at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import cupy
import numpy as np

from gpunn._typing import Array
from gpunn.kernels.convolution import ConvolutionKernels, groups_of
from gpunn.kernels.cublas import product
from gpunn.kernels.cuda import INDICES
from gpunn.kernels.cuda.grids import over_rows
from gpunn.kernels.cupy_device import on_device_of_first, served
from gpunn.kernels.cupy_launch import Struct, Table, cuda_kernel
from gpunn.kernels.pooling import PoolingKernels, index_dtype
from gpunn.kernels.window import Window

#: Maximum size of a workspace in bytes, unless a single image needs more.
WORKSPACE = 1 << 26

_FIELDS = ("h", "w", "out_h", "out_w", "size_h", "size_w", "down", "across", "gap_h", "gap_w")
_WINDOW = Struct(dict.fromkeys([*_FIELDS, "top", "left"], 1))  # as in convolution.cu


class CupyConvolutions(ConvolutionKernels, PoolingKernels):
    """The kernels with a CUDA source; arguments that they do not serve go to the reference."""

    @on_device_of_first
    def convolution(self, x: Array, weight: Array, window: Window) -> Array:
        """Return z, by a launch and a product for each piece of the batch and group of channels."""
        if not served(x, weight):
            return super().convolution(x, weight, window)
        x = cupy.ascontiguousarray(x)
        z = cupy.ndarray((x.shape[0], *window.output, weight.shape[3]), x.dtype)
        for images, columns in _pieces(x, window):
            for inputs, outputs in groups_of(weight, window):
                factors = (
                    _unrolled(x[images], inputs, window, columns),
                    _matrix(weight[..., outputs]),
                )
                _write_product(*factors, z[images], outputs)
        return z

    @on_device_of_first
    def convolution_input_grad(self, grad: Array, weight: Array, window: Window) -> Array:
        """Return dJ/dx, by a product and a launch for each piece and group."""
        if not served(grad, weight):
            return super().convolution_input_grad(grad, weight, window)
        grad = cupy.ascontiguousarray(grad)
        x = cupy.ndarray(
            (grad.shape[0], *window.image, weight.shape[2] * window.groups), grad.dtype
        )
        if _is_product(window):
            return product(_matrix(grad), _matrix(weight).T, _matrix(x)).reshape(x.shape)
        for images, columns in _pieces(x, window):
            here = x[images]
            for inputs, outputs in groups_of(weight, window):
                rows = _matrix(grad[images][..., outputs])
                product(rows, _matrix(weight[..., outputs]).T, columns[: len(rows)])
                kernel = cuda_kernel("convolution", "fold", x.dtype, INDEX=INDICES["uint8"])
                width, pixels = inputs.stop - inputs.start, here.size // x.shape[3]
                sizes = pixels, x.shape[3], inputs.start, width
                launch, table = over_rows(pixels, width), _table(window)
                kernel(*launch, table.address, columns.data.ptr, here.data.ptr, *sizes)
        return x

    @on_device_of_first
    def convolution_weight_grad(
        self, x: Array, grad: Array, window: Window, into: Array | None = None
    ) -> Array:
        """Return dJ/dW, by a launch and a product for each piece and group."""
        shape = (*window.size, x.shape[3] // window.groups, grad.shape[3])
        if not served(x, grad) or not (into is None or into.flags.c_contiguous):
            return super().convolution_weight_grad(x, grad, window, into)
        x, grad = cupy.ascontiguousarray(x), cupy.ascontiguousarray(grad)
        weight = cupy.ndarray(shape, x.dtype) if into is None else into
        for images, columns in _pieces(x, window):
            for inputs, outputs in groups_of(weight, window):
                unrolled = _unrolled(x[images], inputs, window, columns)
                factors = unrolled.T, _matrix(grad[images][..., outputs])
                if images.start:
                    weight[..., outputs] += product(*factors).reshape(weight[..., outputs].shape)
                else:
                    _write_product(*factors, weight, outputs)
        return weight

    def convolution_workspace(self, window: Window, channels: int, n: int, itemsize: int) -> int:
        """Return the bytes of the unrolled pixels."""
        return unrolled_bytes(window, channels, n, itemsize)

    @on_device_of_first
    def max_pool(self, x: Array, window: Window) -> tuple[Array, Array]:
        """Return the largest entries and their positions, in one launch; as `average_pool`."""
        if not served(x) or window.dilation != (1, 1):
            return super().max_pool(x, window)
        x, shape = cupy.ascontiguousarray(x), (x.shape[0], *window.output, x.shape[3])
        y, where = cupy.ndarray(shape, x.dtype), cupy.ndarray(shape, index_dtype(np, window))
        _launch("max_pool", window, (x, y, where), y)
        return y, where

    @on_device_of_first
    def max_pool_backward(self, grad: Array, where: Array, window: Window) -> Array:
        """Return dJ/dx, in one launch; as `average_pool`."""
        if not served(grad) or window.dilation != (1, 1):
            return super().max_pool_backward(grad, where, window)
        grad, where = cupy.ascontiguousarray(grad), cupy.ascontiguousarray(where)
        x = cupy.ndarray((grad.shape[0], *window.image, grad.shape[3]), grad.dtype)
        _launch("max_pool_backward", window, (grad, where, x), x)
        return x

    @on_device_of_first
    def average_pool(self, x: Array, window: Window, *, count_padding: bool) -> Array:
        """Return the means, in one launch; dilated windows go to the reference."""
        if not served(x) or window.dilation != (1, 1):
            return super().average_pool(x, window, count_padding=count_padding)
        x = cupy.ascontiguousarray(x)
        y = cupy.ndarray((x.shape[0], *window.output, x.shape[3]), x.dtype)
        _launch("average_pool", window, (x, y), y, int(count_padding))
        return y

    @on_device_of_first
    def average_pool_backward(self, grad: Array, window: Window, *, count_padding: bool) -> Array:
        """Return dJ/dx, in one launch; dilated windows go to the reference."""
        if not served(grad) or window.dilation != (1, 1):
            return super().average_pool_backward(grad, window, count_padding=count_padding)
        grad = cupy.ascontiguousarray(grad)
        x = cupy.ndarray((grad.shape[0], *window.image, grad.shape[3]), grad.dtype)
        _launch("average_pool_backward", window, (grad, x), x, int(count_padding))
        return x


def unrolled_bytes(window: Window, channels: int, n: int, itemsize: int) -> int:
    """Return the size of the workspace for convolutions of n images."""
    if _is_product(window):
        return 0
    image_bytes = math.prod(window.output) * _entries(window, channels) * itemsize
    return image_bytes * min(n, max(1, WORKSPACE // max(1, image_bytes)))


def _is_product(window: Window) -> bool:
    """Return whether the convolution is a product of the pixels, without unrolling."""
    return window.is_pixel and window.groups == 1


def _entries(window: Window, channels: int) -> int:
    """Return the number of inputs under a filter."""
    return math.prod(window.size) * (channels // window.groups)


def _pieces(x: Array, window: Window) -> Iterator[tuple[slice, Array]]:
    """Yield slices of the batch, and the workspace for their unrolled pixels."""
    n, channels = x.shape[0], x.shape[3]
    entries, pixels = _entries(window, channels), math.prod(window.output)
    size = unrolled_bytes(window, channels, n, x.dtype.itemsize)
    columns = cupy.ndarray((size // (entries * x.dtype.itemsize), entries), x.dtype)
    at_once = len(columns) // pixels or n
    for first in range(0, n, at_once):
        yield slice(first, min(n, first + at_once)), columns


def _unrolled(x: Array, inputs: slice, window: Window, columns: Array) -> Array:
    """Return the inputs under the filter in a group's channels, with a row per output pixel."""
    if _is_product(window):
        return _matrix(x)
    rows, entries = x.shape[0] * math.prod(window.output), columns.shape[1]
    kernel = cuda_kernel("convolution", "unroll", x.dtype, INDEX=INDICES["uint8"])
    sizes = rows, x.shape[3], inputs.start, inputs.stop - inputs.start
    launch, table = over_rows(rows, entries), _table(window)
    kernel(*launch, table.address, x.data.ptr, columns.data.ptr, *sizes)
    return columns[:rows]


def _matrix(x: Array) -> Array:
    """Return x with all axes but the last merged: a view, unless there are gaps between rows."""
    return x.reshape(-1, x.shape[-1])


def _write_product(left: Array, right: Array, result: Array, outputs: slice) -> None:
    """Write a product to some channels of a result, directly if to all channels."""
    if outputs.stop - outputs.start == result.shape[-1]:
        product(left, right, _matrix(result))
    else:
        result[..., outputs] = product(left, right).reshape(result[..., outputs].shape)


def _launch(name: str, window: Window, arrays: tuple[Array, ...], over: Array, *more: int) -> None:
    """Launch a kernel of pooling, with a thread for each entry of one of the arrays."""
    n, channels = over.size // over.shape[3], over.shape[3]
    index = INDICES[index_dtype(np, window).__name__]
    kernel = cuda_kernel("convolution", name, over.dtype, INDEX=index)
    pointers = (x.data.ptr for x in arrays)
    table = _table(window)  # kept alive until the launch, even if the cache drops it
    kernel(*over_rows(n, channels), table.address, *pointers, n, channels, *more)


@lru_cache(maxsize=256)
def _table(window: Window) -> Table:
    """Return a window as a struct for the kernels."""
    numbers = (
        *(*window.image, *window.output, *window.size),
        *(*window.stride, *window.dilation, *window.before),
    )
    table = Table(_WINDOW)
    for name, number in zip([*_FIELDS, "top", "left"], numbers, strict=True):
        table.write(name, [number])
    return table
