"""The loops of PReLU that numba compiles, over matrices in C order."""

from __future__ import annotations

from gpunn._typing import Array
from gpunn.kernels.native import compiled


@compiled
def prelu(x: Array, slope: Array, h: Array) -> None:
    """Write max(x, 0) + slope min(x, 0), with a slope per column or a single slope."""
    zero, single = x.dtype.type(0), slope.size == 1
    for i in range(x.shape[0]):
        if single:
            for j in range(x.shape[1]):
                h[i, j] = slope[0] * x[i, j] if x[i, j] < zero else x[i, j]
        else:
            for j in range(x.shape[1]):
                h[i, j] = slope[j] * x[i, j] if x[i, j] < zero else x[i, j]


@compiled
def prelu_backward(grad: Array, x: Array, slope: Array, result: Array) -> None:
    """Write dJ/dx."""
    zero, one, single = x.dtype.type(0), x.dtype.type(1), slope.size == 1
    for i in range(x.shape[0]):
        if single:
            for j in range(x.shape[1]):
                result[i, j] = grad[i, j] * (one if x[i, j] > zero else slope[0])
        else:
            for j in range(x.shape[1]):
                result[i, j] = grad[i, j] * (one if x[i, j] > zero else slope[j])


@compiled
def prelu_sums(grad: Array, x: Array, sums: Array) -> None:
    """Write the sums of grad min(x, 0), for each column or over all entries."""
    zero, single = x.dtype.type(0), sums.size == 1
    sums[:] = 0
    for i in range(x.shape[0]):
        if single:
            total = zero
            for j in range(x.shape[1]):
                total += grad[i, j] * min(x[i, j], zero)
            sums[0] += total
        else:
            for j in range(x.shape[1]):
                sums[j] += grad[i, j] * min(x[i, j], zero)
