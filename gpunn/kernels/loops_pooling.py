"""The loops of pooling that numba compiles, over images in C order."""

from __future__ import annotations

import math

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.native import compiled
from gpunn.kernels.window import Window


def numbers_of(window: Window) -> Array:
    """Return a window as whole numbers, in the order in which the loops take them."""
    parts = (window.image, window.output, window.size, window.stride, window.dilation)
    return np.array([*parts, window.before], np.int64).ravel()


@compiled
def max_pool(x: Array, window: Array, y: Array, where: Array) -> None:
    """Write the largest entry of each window, and its number there; NaN is larger than all.

    `window` is what `numbers_of` returns.
    """
    h, w, out_h, out_w, size_h, size_w, down, across, _, _, top, left = window
    least = x.dtype.type(-math.inf)
    for n in range(x.shape[0]):
        for v in range(out_h):
            for u in range(out_w):
                y[n, v, u] = least
                where[n, v, u] = 0
                for i in range(max(0, top - v * down), min(size_h, h + top - v * down)):
                    for j in range(max(0, left - u * across), min(size_w, w + left - u * across)):
                        number = i * size_w + j
                        for c in range(x.shape[3]):
                            here = x[n, v * down + i - top, u * across + j - left, c]
                            best = y[n, v, u, c]
                            if not here <= best and best == best:  # noqa: PLR0124 (NaN alone differs)
                                y[n, v, u, c] = here
                                where[n, v, u, c] = number


@compiled
def max_pool_backward(grad: Array, where: Array, window: Array, x: Array) -> None:
    """Write dJ/dx: each entry of `grad` goes to the pixel that was the largest."""
    h, w, out_h, out_w, _, size_w, down, across, _, _, top, left = window
    x[:] = 0
    for n in range(grad.shape[0]):
        for v in range(out_h):
            for u in range(out_w):
                for c in range(grad.shape[3]):
                    i, j = divmod(int(where[n, v, u, c]), size_w)
                    row, column = v * down + i - top, u * across + j - left
                    if 0 <= row < h and 0 <= column < w:
                        x[n, row, column, c] += grad[n, v, u, c]


@compiled
def average_pool(x: Array, window: Array, count_padding: bool, y: Array) -> None:
    """Write the mean of each window."""
    h, w, out_h, out_w, size_h, size_w, down, across, _, _, top, left = window
    of = x.dtype.type
    for n in range(x.shape[0]):
        for v in range(out_h):
            rows = range(max(0, top - v * down), min(size_h, h + top - v * down))
            for u in range(out_w):
                first, last = max(0, left - u * across), min(size_w, w + left - u * across)
                count = size_h * size_w if count_padding else len(rows) * (last - first)
                y[n, v, u] = 0
                for i in rows:
                    for j in range(first, last):
                        for c in range(x.shape[3]):
                            y[n, v, u, c] += x[n, v * down + i - top, u * across + j - left, c]
                for c in range(x.shape[3]):
                    y[n, v, u, c] /= of(count)


@compiled
def average_pool_backward(grad: Array, window: Array, count_padding: bool, x: Array) -> None:
    """Write dJ/dx: an equal share of each entry of `grad` for all pixels of its window."""
    h, w, out_h, out_w, size_h, size_w, down, across, _, _, top, left = window
    of = x.dtype.type
    x[:] = 0
    for n in range(x.shape[0]):
        for v in range(out_h):
            rows = range(max(0, top - v * down), min(size_h, h + top - v * down))
            for u in range(out_w):
                first, last = max(0, left - u * across), min(size_w, w + left - u * across)
                count = size_h * size_w if count_padding else len(rows) * (last - first)
                for i in rows:
                    for j in range(first, last):
                        for c in range(x.shape[3]):
                            share = grad[n, v, u, c] / of(count)
                            x[n, v * down + i - top, u * across + j - left, c] += share
