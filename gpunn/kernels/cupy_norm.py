"""Kernels of normalisation for CuPy; the CUDA source is `gpunn/kernels/cuda/norm.cu`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy

from gpunn._typing import Array
from gpunn.kernels.cuda.grids import PACK, Launch, over_entries, over_parts, over_tiles
from gpunn.kernels.cupy_device import on_device_of_first, served
from gpunn.kernels.cupy_launch import cuda_kernel
from gpunn.kernels.norm import NormKernels, RowNorm
from gpunn.kernels.prelu import PReLUKernels

#: Rows per thread and maximum blocks in sums over all rows. One or more threads per channel then
#: add up the blocks' sums.
_ROWS_OF_A_SUM, _BLOCKS_OF_A_SUM = 8, 256
#: The same for kernels that write every entry. Each block first adds up the sums' blocks.
_ROWS_OF_A_THREAD, _MAX_BLOCKS = 8, 2048


class CupyNorms(NormKernels, PReLUKernels):
    """The kernels with a CUDA source; arguments that they do not serve go to the reference."""

    @on_device_of_first
    def row_norm(
        self, x: Array, gain: Array, bias: Array | None, norm: RowNorm
    ) -> tuple[Array, Array]:
        """Return y and the statistics of each sample, in one launch."""
        if not _served((x,), gain, *(() if bias is None else (bias,))):
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
        if not _served((grad, x), gain, statistics):
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

    @on_device_of_first
    def batch_norm(self, x: Array, gain: Array, bias: Array, epsilon: float) -> tuple[Array, Array]:
        """Return y and the statistics of the channels, in two launches."""
        if not _served((x,), gain, bias):
            return super().batch_norm(x, gain, bias, epsilon)
        x, n, channels, sums, rows = _by_columns(x)
        means, squares = _parts(sums, channels, x.dtype)
        sizes = n, channels
        _launch("batch_norm_parts", x.dtype, sums, *_pointers(x, means, squares), *sizes)
        y, statistics = cupy.ndarray(x.shape, x.dtype), cupy.ndarray((3, channels), x.dtype)
        pointers = _pointers(x, gain, bias, means, squares, y, statistics)
        _launch("batch_norm", x.dtype, rows, *pointers, *sizes, len(means), epsilon)
        return y, statistics

    @on_device_of_first
    def fixed_norm(
        self, x: Array, gain: Array, bias: Array, running: tuple[Array, Array], epsilon: float
    ) -> tuple[Array, Array]:
        """Return y, and mean and scale, in one launch."""
        if not _served((x,), gain, bias, *running):
            return super().fixed_norm(x, gain, bias, running, epsilon)
        x, n, channels, _, rows = _by_columns(x)
        y, statistics = cupy.ndarray(x.shape, x.dtype), cupy.ndarray((2, channels), x.dtype)
        pointers = _pointers(x, gain, bias, *running, y, statistics)
        _launch("fixed_norm", x.dtype, rows, *pointers, n, channels, epsilon)
        return y, statistics

    @on_device_of_first
    def batch_norm_backward(
        self,
        grad: Array,
        x: Array,
        statistics: Array,
        gain: Array,
        into: Sequence[Array | None],
        *,
        fixed: bool,
        through: bool,
    ) -> tuple[Array | None, list[Array]]:
        """Return dJ/dx and the gradients of gain and bias, in two launches."""
        if not _served((grad, x), gain, statistics):
            settings = {"fixed": fixed, "through": through}
            return super().batch_norm_backward(grad, x, statistics, gain, into, **settings)
        grad, (x, n, channels, launch, rows) = cupy.ascontiguousarray(grad), _by_columns(x)
        if not through:
            return None, _sums(grad, x, statistics, (0, 1), into) if into else []
        result = cupy.ndarray(x.shape, x.dtype)
        parts = _parts(launch, channels, x.dtype)
        pointers = _pointers(grad, x, statistics, *parts)
        _launch("norm_sums", x.dtype, launch, *pointers, n, 0, channels, 1)
        sums = [cupy.ndarray(channels, x.dtype) if place is None else place for place in into]
        pointers = _pointers(grad, x, statistics, gain, *parts, *_padded_pair(sums), result)
        sizes = n, channels, len(parts[0]), int(fixed)
        _launch("batch_norm_backward", x.dtype, rows, *pointers, *sizes)
        return result, sums

    def track(self, running: tuple[Array, Array], statistics: Array, momentum: float) -> None:
        """Move a running mean and variance towards those of a batch, in one launch."""
        if not _served((), statistics, *running):
            super().track(running, statistics, momentum)
            return
        channels = statistics.shape[1]
        with statistics.device:
            pointers = _pointers(*running, statistics)
            launch = over_entries(PACK * channels)
            _launch("track", statistics.dtype, launch, *pointers, channels, momentum)

    @on_device_of_first
    def prelu(self, x: Array, slope: Array) -> Array:
        """Return h, in one launch."""
        if not _served((x,), slope):
            return super().prelu(x, slope)
        x, n, channels, _, rows = _by_columns(x)
        h = cupy.ndarray(x.shape, x.dtype)
        step = int(slope.size > 1)
        _launch("prelu", x.dtype, rows, *_pointers(x, slope, h), n, channels, step)
        return h

    @on_device_of_first
    def prelu_backward(
        self, grad: Array, x: Array, slope: Array, into: Sequence[Array | None], *, through: bool
    ) -> tuple[Array | None, list[Array]]:
        """Return dJ/dx in one launch, and the gradient of the slope in one more."""
        if not _served((grad, x), slope):
            return super().prelu_backward(grad, x, slope, into, through=through)
        grad, (x, n, channels, launch, rows) = cupy.ascontiguousarray(grad), _by_columns(x)
        result = cupy.ndarray(x.shape, x.dtype) if through else None
        launch = launch if into else rows
        parts = cupy.ndarray((launch[0][1] if into else 0, channels), x.dtype)
        pointers = _pointers(grad, x, slope, result, parts if into else None)
        step = int(slope.size > 1)
        _launch("prelu_backward", x.dtype, launch, *pointers, n, channels, step)
        sums = [cupy.ndarray(slope.shape, x.dtype) if place is None else place for place in into]
        for total in sums:  # for a single slope, the parts of all channels are summed
            pointers, width = _pointers(parts, None, total, None), total.size
            launch = over_tiles(1, width, 1, width)
            _launch("norm_totals", x.dtype, launch, *pointers, parts.size // width, width)
        return result, sums


def _served(moved: tuple[Array, ...], *others: Array) -> bool:
    """Return whether the kernels serve these arrays; those in `moved` may have any layout."""
    return served(*moved, *others) and all(other.flags.c_contiguous for other in others)


def _by_columns(x: Array) -> tuple[Array, int, int, Launch, Launch]:
    """Return x in C order, its rows and channels, and launches for sums and for all entries."""
    channels = x.shape[-1]
    n = x.size // channels
    sums = over_tiles(n, channels, _ROWS_OF_A_SUM, _BLOCKS_OF_A_SUM)
    rows = over_tiles(n, channels, _ROWS_OF_A_THREAD, _MAX_BLOCKS)
    return cupy.ascontiguousarray(x), n, channels, sums, rows


def _parts(launch: Launch, channels: int, dtype: Any) -> tuple[Array, Array]:
    """Return arrays for two numbers per channel from each range of rows."""
    ranges = launch[0][1]
    return cupy.ndarray((ranges, channels), dtype), cupy.ndarray((ranges, channels), dtype)


def _sums(
    grad: Array,
    x: Array,
    statistics: Array,
    samples: tuple[int, int],
    into: Sequence[Array | None],
) -> list[Array]:
    """Return the gradients of gain and bias, as many as `into` has items.

    `samples` holds the positions and groups of a norm within samples; (0, 1) for batch norm.
    """
    dtype, channels = x.dtype, x.shape[-1]
    n = x.size // channels
    launch = over_tiles(n, channels, _ROWS_OF_A_SUM, _BLOCKS_OF_A_SUM)
    ranges = launch[0][1]
    sums = [cupy.ndarray(channels, dtype) if place is None else place for place in into]
    parts = sums if ranges == 1 else [cupy.ndarray((ranges, channels), dtype) for _ in sums]
    pointers = _pointers(grad, x, statistics, *_padded_pair(parts))
    _launch("norm_sums", dtype, launch, *pointers, n, samples[0], channels, samples[1])
    if ranges > 1:
        pointers = _pointers(*_padded_pair(parts), *_padded_pair(sums))
        launch = over_tiles(1, channels, 1, channels)
        _launch("norm_totals", dtype, launch, *pointers, ranges, channels)
    return sums


def _padded_pair(arrays: list[Array]) -> tuple[Array | None, Array | None]:
    """Return up to two arrays, padded with None to a pair."""
    first, second, *_ = [*arrays, None, None]
    return first, second


def _sizes(x: Array, norm: RowNorm) -> tuple[int, int, int, int, int]:
    """Return the kernels' arguments for the number of parts and the layout of a part."""
    rows, positions, groups, _ = norm.view(x.shape)
    return rows * groups, positions, x.shape[-1], groups, int(norm.centred)


def _over_parts(x: Array, norm: RowNorm) -> Launch:
    rows, positions, groups, width = norm.view(x.shape)
    return over_parts(rows * groups, positions * width)


def _pointers(*arrays: Array | None) -> list[int]:
    """Return the addresses of arrays; 0 for None."""
    return [0 if x is None else x.data.ptr for x in arrays]


def _launch(name: str, dtype: Any, launch: Launch, *arguments: float) -> None:
    """Launch a kernel of norm.cu, with shared memory for its sums."""
    _, (lanes, rows) = launch
    shared_bytes = 3 * lanes * rows * dtype.itemsize
    cuda_kernel("norm", name, dtype)(*launch, *arguments, shared_bytes=shared_bytes)
