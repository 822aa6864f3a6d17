"""Kernels that look up rows of a table by their index."""

from __future__ import annotations

import math

from gpunn._typing import Array, Namespace


class LookupKernels:
    """Rows of a table at given indices, and the gradient of the table."""

    xp: Namespace

    def embedding(self, indices: Array, table: Array) -> Array:
        """Return the rows of `table` (V, C) at `indices` (...), integers, as (..., C).

        An index outside [0, V) gives a row of NaN, so that the mistake shows in the loss.
        """
        xp = self.xp
        indices = xp.astype(indices, xp.int64, copy=False)
        last = table.shape[0] - 1
        valid = (indices >= 0) & (indices <= last)
        nearest = xp.where(valid, indices, xp.zeros_like(indices))
        rows = xp.take(table, xp.reshape(nearest, (math.prod(indices.shape),)), axis=0)
        rows = xp.reshape(rows, (*indices.shape, table.shape[1]))
        return xp.where(valid[..., None], rows, math.nan)

    def embedding_backward(
        self, indices: Array, grad: Array, table: Array, into: Array | None = None
    ) -> Array:
        """Return dJ/d table (written `into`): row v is the sum of `grad` (..., C) where index = v.

        Indices outside [0, V) are ignored. Each sum is in the order of the indices, so the result
        is reproducible.
        """
        xp = self.xp
        places = math.prod(indices.shape)
        flat = xp.astype(xp.reshape(indices, (places,)), xp.int64, copy=False)
        rows = xp.arange(table.shape[0], dtype=xp.int64, device=table.device)
        one_hot = xp.astype(rows[:, None] == flat[None, :], grad.dtype)
        sums = one_hot @ xp.reshape(grad, (places, table.shape[1]))
        if into is None:
            return sums
        into[...] = sums
        return into

    def add_positions(self, x: Array, table: Array) -> Array:
        """Return x (N, T, C) plus the first T rows of `table` (L, C)."""
        return x + table[: x.shape[1], ...][None, ...]

    def positions_backward(self, grad: Array, table: Array, into: Array | None = None) -> Array:
        """Return dJ/d table (written `into`): sums of `grad` over the batch; unused rows are 0."""
        sums = self.xp.zeros_like(table) if into is None else into
        length = grad.shape[1]
        sums[:length, ...] = self.xp.sum(grad, axis=0)
        sums[length:, ...] = 0.0
        return sums
