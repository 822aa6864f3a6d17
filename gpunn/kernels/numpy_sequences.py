"""Kernels of layers for sequences, for NumPy's arrays."""

from __future__ import annotations

import math

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.lookup import LookupKernels


class NumpySequences(LookupKernels):
    """The kernels for which an override pays."""

    def embedding(self, indices: Array, table: Array) -> Array:
        """Return the rows of a table; those of wrong indices are overwritten."""
        rows: Array = table.take(indices, axis=0, mode="clip")
        wrong = (indices < 0) | (indices >= table.shape[0])
        if wrong.any():
            rows[wrong] = math.nan
        return rows

    def embedding_backward(
        self, indices: Array, grad: Array, table: Array, into: Array | None = None
    ) -> Array:
        """Return the gradient of a table: sums over stretches of the rows, sorted by index."""
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
