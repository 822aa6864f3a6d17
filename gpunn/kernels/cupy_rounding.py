"""Factors of products, rounded to bfloat16 on the device."""

from __future__ import annotations

import cupy
import numpy as np

from gpunn._typing import Array
from gpunn.kernels.cuda.grids import over_entries
from gpunn.kernels.cupy_launch import cuda_kernel

_LINE = 64  # entries: the second factor begins at a multiple of 128 bytes, which cuBLAS likes


def round_factors(x: Array, y: Array) -> tuple[Array, int, int]:
    """Round two float32 arrays to bfloat16, in one launch on the current device.

    Neither is cached: any array may be written to between two products, and nobody is told.

    Parameters
    ----------
    x, y : array
        Not empty; the entries of each lie one after another, in any order.

    Returns
    -------
    tuple
        An array that holds both results, and where each of them begins. The entries are in the
        order in which those of x and y lie in memory.
    """
    start = -(-x.size // _LINE) * _LINE
    rounded = cupy.ndarray(start + y.size, np.uint16)
    left = rounded.data.ptr
    right = left + 2 * start
    (blocks, _), threads = over_entries(max(x.size, y.size))
    kernel = cuda_kernel("bfloat16", "round_factors", None)
    kernel((blocks, 2), threads, x.data.ptr, left, x.size, y.data.ptr, right, y.size)
    return rounded, left, right
