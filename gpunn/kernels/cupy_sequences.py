"""Kernels of layers for sequences, for CuPy; their sources are attention.cu and lookup.cu."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import cupy
import numpy as np

from gpunn._typing import Array
from gpunn.kernels.attention import AttentionKernels
from gpunn.kernels.columns import ColumnKernels
from gpunn.kernels.cublas_batched import batched_product
from gpunn.kernels.cublas_handle import loaded_library
from gpunn.kernels.cuda.grids import THREADS, Launch, over_rows
from gpunn.kernels.cupy_device import on_device_of_first, on_device_of_items, served
from gpunn.kernels.cupy_launch import cuda_kernel
from gpunn.kernels.lookup import LookupKernels

#: The maximum rows of a table per block, and the number of blocks from which a block takes more
#: than one row.
_MOST_ROWS, _MANY_BLOCKS = 64, 512


class CupySequences(AttentionKernels, ColumnKernels, LookupKernels):
    """The kernels of sequences with a CUDA source; other arguments go to the reference."""

    @on_device_of_first
    def attention(
        self,
        qkv: Array,
        heads: int,
        *,
        causal: bool = False,
        mask: Array | None = None,
        keep: bool = True,
    ) -> tuple[Array, Array | None]:
        """Return the weighted means and the weights, in three launches and two calls of cuBLAS."""
        if not served(qkv) or loaded_library() is None:
            return super().attention(qkv, heads, causal=causal, mask=mask, keep=keep)
        n, t, width = qkv.shape
        d = width // (3 * heads)
        q, k, v = _split(qkv, heads, 3)
        weights = batched_product(q, k, y_transposed=True)
        mask = None if mask is None else cupy.ascontiguousarray(mask)
        allowed = (0, 0) if mask is None else (mask.data.ptr, mask.ndim - 2)
        sizes = n, heads, t
        _launch_by_row(
            "softmax_of_scores", weights, weights.data.ptr, *allowed, int(causal), d**-0.5, *sizes
        )
        context = _merge(batched_product(weights, v), qkv.shape[:2], heads, 1)
        return context, weights.reshape(n, heads, t, t) if keep else None

    @on_device_of_first
    def attention_backward(
        self, grad: Array, qkv: Array, weights: Array, *, causal: bool = False
    ) -> Array:
        """Return dJ/d qkv, in four launches and four calls of cuBLAS."""
        if not served(grad, qkv, weights) or loaded_library() is None:
            return super().attention_backward(grad, qkv, weights, causal=causal)
        n, heads, t, _ = weights.shape
        q, k, v = _split(qkv, heads, 3)
        (grad,) = _split(grad, heads, 1)
        weights = cupy.ascontiguousarray(weights).reshape(n * heads, t, t)
        result = cupy.ndarray((3, *q.shape), q.dtype)
        batched_product(weights, grad, result[2], x_transposed=True)
        grads = batched_product(grad, v, y_transposed=True)
        pointers = weights.data.ptr, grads.data.ptr
        _launch_by_row("slope_of_scores", grads, *pointers, q.shape[-1] ** -0.5, n * heads * t, t)
        batched_product(grads, k, result[0])
        batched_product(grads, q, result[1], x_transposed=True)
        return _merge(result, (n, t), heads, 3)

    @on_device_of_first
    def embedding(self, indices: Array, table: Array) -> Array:
        """Return the rows of a table, in one launch."""
        if not served(table) or not indices.size:
            return super().embedding(indices, table)
        indices, table = _as_int64(indices), cupy.ascontiguousarray(table)
        rows, width = table.shape
        result = cupy.ndarray((*indices.shape, width), table.dtype)
        pointers = indices.data.ptr, table.data.ptr, result.data.ptr
        kernel = cuda_kernel("lookup", "embedding", table.dtype)
        kernel(*over_rows(indices.size, width), *pointers, indices.size, rows, width)
        return result

    @on_device_of_first
    def embedding_backward(
        self, indices: Array, grad: Array, table: Array, into: Array | None = None
    ) -> Array:
        """Return the gradient of a table, in one launch, each block of which reads all indices."""
        if not served(grad, table) or not indices.size:
            return super().embedding_backward(indices, grad, table, into)
        indices, grad = _as_int64(indices), cupy.ascontiguousarray(grad)
        rows, width = table.shape
        sums = cupy.ndarray(table.shape, grad.dtype) if into is None else into
        of_block = max(1, min(_MOST_ROWS, rows // _MANY_BLOCKS))
        launch = (-(-rows // of_block), 1), (THREADS, 1)
        pointers = indices.data.ptr, grad.data.ptr, sums.data.ptr
        kernel = cuda_kernel("lookup", "embedding_backward", grad.dtype)
        kernel(*launch, *pointers, indices.size, rows, width, of_block)
        return sums

    @on_device_of_items
    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """Return the arrays joined, in one launch per array.

        CuPy's own function uploads their addresses, which a captured step cannot do.
        """
        stops = list(accumulate(x.shape[-1] for x in arrays))
        result = cupy.ndarray((*arrays[0].shape[:-1], stops[-1]), arrays[0].dtype)
        for x, stop in zip(arrays, stops, strict=True):
            result[..., stop - x.shape[-1] : stop] = x
        return result

    @on_device_of_first
    def positions_backward(self, grad: Array, table: Array, into: Array | None = None) -> Array:
        """Return the sums over the batch, by one call of cuBLAS if all positions are present."""
        n, length, width = grad.shape
        if length != table.shape[0] or not served(grad, table):
            return super().positions_backward(grad, table, into)
        sums = cupy.ndarray(table.shape, grad.dtype) if into is None else into
        kernels: Any = self
        kernels.column_sums(grad.reshape(n, length * width), sums.reshape(length * width))
        return sums


def _as_int64(indices: Array) -> Array:
    return cupy.ascontiguousarray(indices, dtype=np.int64)


def _split(x: Array, heads: int, parts: int) -> Array:
    """Return x (N, T, parts H d) as (parts, N H, T, d), in one launch."""
    n, t, width = x.shape
    d = width // (parts * heads)
    result = cupy.ndarray((parts, n * heads, t, d), x.dtype)
    _launch_heads("split_heads", cupy.ascontiguousarray(x), result, (n, t, heads, d, parts))
    return result


def _merge(x: Array, shape: tuple[int, int], heads: int, parts: int) -> Array:
    """Return x (parts, N H, T, d) as (N, T, parts H d), in one launch; the inverse of `_split`."""
    (n, t), d = shape, x.shape[-1]
    result = cupy.ndarray((n, t, parts * heads * d), x.dtype)
    _launch_heads("merge_heads", x, result, (n, t, heads, d, parts))
    return result


def _launch_heads(name: str, x: Array, result: Array, sizes: tuple[int, ...]) -> None:
    n, t, heads, d, parts = sizes
    launch = over_rows(n * t, parts * heads * d)
    cuda_kernel("attention", name, x.dtype)(*launch, x.data.ptr, result.data.ptr, *sizes)


def _launch_by_row(name: str, scores: Array, *arguments: float) -> None:
    """Launch a kernel with several threads for each row of scores (B, T, T)."""
    batch, t, _ = scores.shape
    grid, block = _over_scores(batch * t, t)
    shared = block[0] * block[1] * scores.dtype.itemsize
    cuda_kernel("attention", name, scores.dtype)(grid, block, *arguments, shared_bytes=shared)


def _over_scores(rows: int, t: int) -> Launch:
    """Return a launch for rows of t scores, with a few scores per thread."""
    lanes = min(THREADS, max(1, 1 << (-(-t // 4) - 1).bit_length()))
    of_block = max(1, 128 // lanes)
    return (-(-rows // of_block), 1), (lanes, of_block)
