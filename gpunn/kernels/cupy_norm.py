"""Kernels of normalisation for CuPy; the CUDA source is `gpunn/kernels/cuda/norm.cu`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy

from gpunn._typing import Array
from gpunn.kernels.cuda.grids import Launch, over_parts, over_tiles
from gpunn.kernels.cupy_device import on_device_of_first, served
from gpunn.kernels.cupy_launch import cuda_kernel
from gpunn.kernels.norm import NormKernels, RowNorm

#: Rows for each thread, and blocks at most, where sums are taken over all rows. What the blocks
#: write is added up by one thread for each channel, or by some.
_ROWS_OF_A_SUM, _BLOCKS_OF_A_SUM = 8, 256


class CupyNorms(NormKernels):
    """The kernels of normalisation with a CUDA source; other arguments go to the reference."""

    @on_device_of_first
    def row_norm(
        self, x: Array, gain: Array, bias: Array | None, norm: RowNorm
    ) -> tuple[Array, Array]:
        """Return y and the statistics of each sample, in one launch."""
        if not served(x, gain, *(() if bias is None else (bias,))):
            return super().row_norm(x, gain, bias, norm)
        x, y = cupy.ascontiguousarray(x), cupy.ndarray(x.shape, x.dtype)
        statistics = cupy.ndarray(norm.statistics_shape(x.shape), x.dtype)
        pointers = _pointers(x, gain, bias, y, statistics)
        sizes = _sizes(x, norm)
        _launch("row_norm", x.dtype, _over_parts(x, norm), *pointers, *sizes, norm.epsilon)
        return y, statistics

    @on_device_of_first
    def row_norm_backward(  # noqa: PLR0917 (as in the reference)
        self,
        grad: Array,
        x: Array,
        statistics: Array,
        gain: Array,
        norm: RowNorm,
        into: Sequence[Array | None],
        *,
        through: bool,
    ) -> tuple[Array | None, list[Array]]:
        """Return dJ/dx in one launch, and the gradients of gain and bias in one or two."""
        if not served(grad, x, gain):
            return super().row_norm_backward(grad, x, statistics, gain, norm, into, through=through)
        grad, x = cupy.ascontiguousarray(grad), cupy.ascontiguousarray(x)
        sums = _sums(grad, x, statistics, (norm.positions, norm.groups), into) if into else []
        if not through:
            return None, sums
        result = cupy.ndarray(x.shape, x.dtype)
        pointers = _pointers(grad, x, statistics, gain, result)
        sizes = _sizes(x, norm)
        _launch("row_norm_backward", x.dtype, _over_parts(x, norm), *pointers, *sizes)
        return result, sums


def _sums(
    grad: Array,
    x: Array,
    statistics: Array,
    samples: tuple[int, int],
    into: Sequence[Array | None],
) -> list[Array]:
    """Return the gradients of gain and bias, as many as `into` has places.

    `samples` are positions and groups of a norm within samples, (0, 1) for one over the batch.
    """
    dtype, channels = x.dtype, x.shape[-1]
    n = x.size // channels
    launch = over_tiles(n, channels, _ROWS_OF_A_SUM, _BLOCKS_OF_A_SUM)
    ranges = launch[0][1]
    sums = [cupy.ndarray(channels, dtype) if place is None else place for place in into]
    parts = sums if ranges == 1 else [cupy.ndarray((ranges, channels), dtype) for _ in sums]
    pointers = _pointers(grad, x, statistics, *_two(parts))
    _launch("norm_sums", dtype, launch, *pointers, n, samples[0], channels, samples[1])
    if ranges > 1:
        pointers = _pointers(*_two(parts), *_two(sums))
        launch = over_tiles(1, channels, 1, channels)
        _launch("norm_totals", dtype, launch, *pointers, ranges, channels)
    return sums


def _two(arrays: list[Array]) -> tuple[Array, Array | None]:
    """Return an array, and a second one if there is one."""
    return arrays[0], arrays[1] if len(arrays) > 1 else None


def _sizes(x: Array, norm: RowNorm) -> tuple[int, int, int, int, int]:
    """Return the number of parts and what a part is, as the kernels take them."""
    rows, positions, groups, _ = norm.view(x.shape)
    return rows * groups, positions, x.shape[-1], groups, int(norm.centred)


def _over_parts(x: Array, norm: RowNorm) -> Launch:
    rows, positions, groups, width = norm.view(x.shape)
    return over_parts(rows * groups, positions * width)


def _pointers(*arrays: Array | None) -> list[int]:
    """Return where arrays are; 0 for None."""
    return [0 if x is None else x.data.ptr for x in arrays]


def _launch(name: str, dtype: Any, launch: Launch, *arguments: float) -> None:
    """Launch a kernel of norm.cu, with room for what its threads add up."""
    _, (lanes, rows) = launch
    shared_bytes = 3 * lanes * rows * dtype.itemsize
    cuda_kernel("norm", name, dtype)(*launch, *arguments, shared_bytes=shared_bytes)
