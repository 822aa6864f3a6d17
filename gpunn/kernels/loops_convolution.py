"""The loops of convolutions that numba compiles, over images in C order.

`place` holds a `Window` as whole numbers, see `numbers_of`.
"""

from __future__ import annotations

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.native import compiled
from gpunn.kernels.window import Window


def numbers_of(window: Window) -> Array:
    """Return a window as whole numbers, in the order in which the loops take them."""
    parts = (window.image, window.output, window.size, window.stride, window.dilation)
    return np.array([*parts, window.before], np.int64).ravel()


@compiled
def unroll(x: Array, window: Array, first: int, group: int, columns: Array) -> None:
    """Write the pixels that the filter meets, a row of entries for each output pixel.

    Parameters
    ----------
    x : array (N, H, W, C)
    window : array
        See `numbers_of`.
    first : int
        The first row of pixels, of all images' outputs one below the other.
    group : int
        Which of the groups of channels to take.
    columns : array (rows, W', h, w, C / groups)
        What is written, for so many rows of pixels.
    """
    h, w, out_h, out_w, size_h, size_w, down, across, gap_h, gap_w, top, left = window
    channels = columns.shape[4]
    skipped = group * channels
    for r in range(columns.shape[0]):
        n, y = divmod(first + r, out_h)
        for i in range(size_h):
            source = y * down + i * gap_h - top
            if source < 0 or source >= h:
                columns[r, :, i] = 0
                continue
            for v in range(out_w):
                for j in range(size_w):
                    u = v * across + j * gap_w - left
                    if 0 <= u < w:
                        for c in range(channels):
                            columns[r, v, i, j, c] = x[n, source, u, skipped + c]
                    else:
                        for c in range(channels):
                            columns[r, v, i, j, c] = 0


@compiled
def fold(columns: Array, window: Array, first: int, group: int, x: Array) -> None:
    """Add the entries of `columns` to the pixels that `unroll` takes them from."""
    h, w, out_h, out_w, size_h, size_w, down, across, gap_h, gap_w, top, left = window
    channels = columns.shape[4]
    skipped = group * channels
    for r in range(columns.shape[0]):
        n, y = divmod(first + r, out_h)
        for i in range(size_h):
            target = y * down + i * gap_h - top
            if target < 0 or target >= h:
                continue
            for v in range(out_w):
                for j in range(size_w):
                    u = v * across + j * gap_w - left
                    if 0 <= u < w:
                        for c in range(channels):
                            x[n, target, u, skipped + c] += columns[r, v, i, j, c]
