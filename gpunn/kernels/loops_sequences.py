"""The loops of attention and embeddings that numba compiles, over arrays in C order."""

from __future__ import annotations

import math
from typing import Any

from gpunn._typing import Array
from gpunn.kernels.loops import exponentiate
from gpunn.kernels.native import compiled


@compiled
def look_up(indices: Array, table: Array, result: Array) -> None:
    """Write the row of the table for each index; NaN if an index is out of range."""
    for i in range(indices.size):
        row = indices[i]
        if 0 <= row < table.shape[0]:
            result[i, :] = table[row]
        else:
            result[i, :] = math.nan


@compiled
def add_by_row(indices: Array, grad: Array, first: int, sums: Array) -> None:
    """Write the sum of the rows of `grad` for each index, from `first` on."""
    sums[:] = 0
    for i in range(indices.size):
        row = indices[i] - first
        if 0 <= row < sums.shape[0]:
            for j in range(sums.shape[1]):
                sums[row, j] += grad[i, j]


@compiled
def softmax_of_scores(scores: Array, first: int, causal: Any, scale: Any) -> None:
    """Overwrite each row with the softmax of `scale` times the row.

    With `causal`, row i uses its first ``first + i + 1`` entries only; the others are not read, and
    are set to 0.
    """
    one = scores.dtype.type(1)
    for i in range(scores.shape[0]):
        n = min(first + i + 1, scores.shape[1]) if causal else scores.shape[1]
        row = scores[i, :n]
        top = row[0]
        for j in range(1, n):
            top = max(top, row[j])
        if top == -math.inf:  # by overflow: like a query that may see no key
            scores[i, :] = 0
            continue
        for j in range(n):
            row[j] = scale * (row[j] - top)
        exponentiate(row)
        total = scores.dtype.type(0)
        for j in range(n):
            total += row[j]
        factor = one / total
        for j in range(n):
            row[j] *= factor
        scores[i, n:] = 0


@compiled
def slope_of_scores(weights: Array, grads: Array, scale: Any) -> None:
    """Overwrite dJ/dP with `scale` times dJ/dS: for each row P (dJ/dP - sum of P dJ/dP)."""
    for i in range(grads.shape[0]):
        total = grads.dtype.type(0)
        for j in range(grads.shape[1]):
            total += weights[i, j] * grads[i, j]
        for j in range(grads.shape[1]):
            grads[i, j] = scale * (weights[i, j] * (grads[i, j] - total))
