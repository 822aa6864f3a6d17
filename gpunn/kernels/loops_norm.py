"""The loops of normalisation that numba compiles, over arrays in C order; see `kernels.norm`.

Means are added up in double precision: a float32 mean of 10,000 would else be off by far more than
its own rounding.
"""

from __future__ import annotations

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.native import compiled


@compiled
def row_norm(
    x: Array,
    gain: Array,
    bias: Array,
    y: Array,
    statistics: Array,
    groups: int,
    centred: bool,
    epsilon: float,
) -> None:
    """Normalise x (R, S, C) into y, each row and group of channels on its own.

    `statistics` (R, groups, 2) gets the mean and the scale; an empty bias is 0.
    """
    of = x.dtype.type
    width = x.shape[2] // groups
    count = x.shape[1] * width
    for r in range(x.shape[0]):
        for g in range(groups):
            first, last = g * width, (g + 1) * width
            total = 0.0
            if centred:
                for s in range(x.shape[1]):
                    for j in range(first, last):
                        total += np.float64(x[r, s, j])
            mean = of(total / count)
            squares = of(0)
            for s in range(x.shape[1]):
                for j in range(first, last):
                    apart = x[r, s, j] - mean
                    squares += apart * apart
            scale = of(1.0 / np.sqrt(np.float64(squares) / count + epsilon))
            statistics[r, g, 0], statistics[r, g, 1] = mean, scale
            for s in range(x.shape[1]):
                for j in range(first, last):
                    y[r, s, j] = (x[r, s, j] - mean) * scale * gain[j]
                if bias.size:
                    for j in range(first, last):
                        y[r, s, j] += bias[j]


@compiled
def row_norm_backward(
    grad: Array,
    x: Array,
    statistics: Array,
    gain: Array,
    result: Array,
    groups: int,
    centred: bool,
) -> None:
    """Write dJ/dx of `row_norm`."""
    of = grad.dtype.type
    width = x.shape[2] // groups
    count = of(x.shape[1] * width)
    for r in range(x.shape[0]):
        for g in range(groups):
            first, last = g * width, (g + 1) * width
            mean, scale = statistics[r, g, 0], statistics[r, g, 1]
            total, along = of(0), of(0)
            for s in range(x.shape[1]):
                for j in range(first, last):
                    h = grad[r, s, j] * gain[j]
                    total += h
                    along += h * (x[r, s, j] - mean)
            less = total / count if centred else of(0)
            share = along * scale * scale / count
            for s in range(x.shape[1]):
                for j in range(first, last):
                    h = grad[r, s, j] * gain[j]
                    result[r, s, j] = scale * (h - less - share * (x[r, s, j] - mean))


@compiled
def add_row_norm_sums(grad: Array, x: Array, statistics: Array, groups: int, sums: Array) -> None:
    """Add the gradients of gain and bias (2, C), or of the gain alone (1, C): sums over rows."""
    width = x.shape[2] // groups
    for r in range(x.shape[0]):
        for g in range(groups):
            mean, scale = statistics[r, g, 0], statistics[r, g, 1]
            for s in range(x.shape[1]):
                for j in range(g * width, (g + 1) * width):
                    sums[0, j] += grad[r, s, j] * ((x[r, s, j] - mean) * scale)
                if sums.shape[0] > 1:
                    for j in range(g * width, (g + 1) * width):
                        sums[1, j] += grad[r, s, j]
