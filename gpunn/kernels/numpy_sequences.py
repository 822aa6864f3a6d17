"""Kernels of layers for sequences, for NumPy's arrays."""

from __future__ import annotations

import math

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.attention import AttentionKernels
from gpunn.kernels.lookup import LookupKernels

#: Maximum number of scores computed together if the weights are not kept.
_SCORES = 1 << 18


class NumpySequences(AttentionKernels, LookupKernels):
    """The kernels that gain from an override."""

    def attention(
        self,
        qkv: Array,
        heads: int,
        *,
        causal: bool = False,
        mask: Array | None = None,
        keep: bool = True,
    ) -> tuple[Array, Array | None]:
        """Return the weighted means and the weights; if not `keep`, a few samples at a time."""
        n, t, _ = qkv.shape
        size = n if keep else max(1, _SCORES // (heads * t * t))
        if size >= n:
            return super().attention(qkv, heads, causal=causal, mask=mask, keep=keep)
        parts = []
        for start in range(0, n, size):
            rows = slice(start, start + size)
            part_mask = None if mask is None else mask[rows]
            part, _ = super().attention(qkv[rows], heads, causal=causal, mask=part_mask, keep=False)
            parts.append(part)
        return np.concatenate(parts), None

    def embedding(self, indices: Array, table: Array) -> Array:
        """Return the rows of a table, with NaN for wrong indices."""
        rows: Array = table.take(indices, axis=0, mode="clip")
        wrong = (indices < 0) | (indices >= table.shape[0])
        if wrong.any():
            rows[wrong] = math.nan
        return rows

    def embedding_backward(
        self, indices: Array, grad: Array, table: Array, into: Array | None = None
    ) -> Array:
        """Return the gradient of a table: sums over runs of rows, sorted by index."""
        flat = indices.ravel()
        valid = np.flatnonzero((flat >= 0) & (flat < table.shape[0]))
        order = valid[flat[valid].argsort(kind="stable")]
        ordered = flat[order]
        sums = np.empty_like(table) if into is None else into
        sums[...] = 0.0
        if order.size:
            starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
            rows = grad.reshape(flat.size, table.shape[1])[order]
            sums[ordered[starts]] = np.add.reduceat(rows, starts, axis=0)
        return sums
