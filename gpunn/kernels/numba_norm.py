"""Kernels of normalisation for NumPy's arrays, compiled by numba; see `numba_`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpunn._typing import Array
from gpunn.kernels import loops_norm
from gpunn.kernels.norm import NormKernels, RowNorm

_DTYPES = (np.dtype("float32"), np.dtype("float64"))


class NumbaNorms(NormKernels):
    """The kernels of normalisation in few passes; other arrays go to the reference."""

    def row_norm(
        self, x: Array, gain: Array, bias: Array | None, norm: RowNorm
    ) -> tuple[Array, Array]:
        """Return y and the statistics of each sample."""
        if not _served(x, gain, gain if bias is None else bias):
            return super().row_norm(x, gain, bias, norm)
        y, statistics = np.empty_like(x), np.empty(norm.statistics_shape(x.shape), x.dtype)
        rows, parts = _views(x, norm)
        loops_norm.row_norm(
            x.reshape(rows),
            gain,
            gain[:0] if bias is None else bias,
            y.reshape(rows),
            statistics.reshape(parts),
            norm.groups,
            norm.centred,
            norm.epsilon,
        )
        return y, statistics

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
        """Return dJ/dx and the gradients of gain and bias."""
        if not _served(grad, x, statistics, gain):
            return super().row_norm_backward(grad, x, statistics, gain, norm, into, through=through)
        rows, parts = _views(x, norm)
        given = grad.reshape(rows), x.reshape(rows), statistics.reshape(parts)
        sums, result = np.zeros((len(into), x.shape[-1]), x.dtype), None
        if into:
            loops_norm.add_row_norm_sums(*given, norm.groups, sums)
        if through:
            result = np.empty_like(x)
            into_rows = result.reshape(rows)
            loops_norm.row_norm_backward(*given, gain, into_rows, norm.groups, norm.centred)
        return result, _written_sums(sums, into)

    def batch_norm(self, x: Array, gain: Array, bias: Array, epsilon: float) -> tuple[Array, Array]:
        """Return y and the statistics of the channels."""
        if not _served(x, gain, bias):
            return super().batch_norm(x, gain, bias, epsilon)
        y, rows = np.empty_like(x), x.reshape(-1, x.shape[-1])
        n, channels = rows.shape
        moments, statistics = np.empty((1, 2, channels)), np.empty((3, channels), x.dtype)
        loops_norm.batch_moments(rows, np.empty(channels, x.dtype), moments[0])
        loops_norm.batch_statistics(moments, n, 1, statistics, epsilon)
        loops_norm.scale_columns(rows, statistics, gain, bias, y.reshape(rows.shape))
        return y, statistics

    def fixed_norm(
        self, x: Array, gain: Array, bias: Array, running: tuple[Array, Array], epsilon: float
    ) -> tuple[Array, Array]:
        """Return y, and mean and scale."""
        if not _served(x, gain, bias, *running):
            return super().fixed_norm(x, gain, bias, running, epsilon)
        y, rows = np.empty_like(x), x.reshape(-1, x.shape[-1])
        statistics = np.empty((2, x.shape[-1]), x.dtype)
        loops_norm.fixed_statistics(*running, statistics, epsilon)
        loops_norm.scale_columns(rows, statistics, gain, bias, y.reshape(rows.shape))
        return y, statistics

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
        """Return dJ/dx and the gradients of gain and bias."""
        if fixed or not _served(grad, x, statistics, gain):
            settings = {"fixed": fixed, "through": through}
            return super().batch_norm_backward(grad, x, statistics, gain, into, **settings)
        rows = x.reshape(-1, x.shape[-1])
        given, sums = grad.reshape(rows.shape), np.empty((2, rows.shape[1]))
        loops_norm.batch_norm_sums(given, rows, statistics, sums)
        result = None
        if through:
            result = np.empty_like(x)
            means = sums / rows.shape[0]
            means[0] *= statistics[1]
            loops_norm.batch_norm_backward(
                given, rows, statistics, gain, means.astype(x.dtype), result.reshape(rows.shape)
            )
        return result, _written_sums(sums.astype(x.dtype), into)


def _views(x: Array, norm: RowNorm) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return the loops' shapes of x, (rows, positions, channels), and of the statistics."""
    rows, positions, groups, _ = norm.view(x.shape)
    return (rows, positions, x.shape[-1]), (rows, groups, 2)


def _served(x: Array, *others: Array) -> bool:
    """Return whether the loops serve these arrays: not empty, the same dtype, in C order."""
    dtype = x.dtype
    if dtype not in _DTYPES or not x.size:
        return False
    for array in (x, *others):
        flags = array.flags
        if array.dtype != dtype or not (flags.c_contiguous and flags.aligned):
            return False
    return True


def _written_sums(sums: Array, into: Sequence[Array | None]) -> list[Array]:
    """Return the rows of `sums`, each written to its item of `into` if that is an array."""
    results = []
    for total, place in zip(sums, into, strict=False):
        if place is not None:
            place[...] = total
        results.append(total if place is None else place)
    return results
