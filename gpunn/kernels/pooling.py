"""Pooling: the maximum or the mean of the pixels in a window, channel by channel."""

from __future__ import annotations

import math
from typing import Any

from gpunn._typing import Array, Namespace
from gpunn.kernels.convolution import padded, without_padding, zeros_like
from gpunn.kernels.window import Window

#: Maximum number of a window's entries whose positions fit in a byte.
_MOST_IN_A_BYTE = 256


class PoolingKernels:
    """The kernels of pooling; a mixin of `gpunn.kernels.Kernels`."""

    xp: Namespace

    def max_pool(self, x: Array, window: Window) -> tuple[Array, Array]:
        """Return the largest entry in each window, and its position, counted row by row.

        Of equal entries, the first; NaN is larger than all numbers. Padding is minus infinity.
        """
        xp, x = self.xp, padded(self.xp, x, window, -math.inf)
        (_, _, met), *others = window.entries()
        best = xp.asarray(x[met], copy=True)
        where = xp.zeros_like(best, dtype=index_dtype(xp, window))
        for number, (_, _, met) in enumerate(others, 1):
            here = x[met]
            better = ~(here <= best) & (best == best)  # noqa: PLR0124 (NaN alone differs)
            best = xp.where(better, here, best)
            where = xp.where(better, number, where)
        return best, where

    def max_pool_backward(self, grad: Array, where: Array, window: Window) -> Array:
        """Return dJ/dx: each entry of `grad` goes to the largest pixel of its window."""
        shape = (grad.shape[0], *window.padded, grad.shape[3])
        x = zeros_like(self.xp, grad, shape)
        for number, (_, _, met) in enumerate(window.entries()):
            x[met] += grad * self.xp.astype(where == number, grad.dtype)
        return without_padding(self.xp, x, window)

    def average_pool(self, x: Array, window: Window, *, count_padding: bool) -> Array:
        """Return the mean of each window; padding is counted as zeros or not at all."""
        total = zeros_like(self.xp, x, (x.shape[0], *window.output, x.shape[3]))
        x = padded(self.xp, x, window, 0.0)
        for _, _, met in window.entries():
            total += x[met]
        return total / self._counts(x, window, count_padding=count_padding)

    def average_pool_backward(self, grad: Array, window: Window, *, count_padding: bool) -> Array:
        """Return dJ/dx: all pixels of a window get an equal share of its entry of `grad`."""
        grad = grad / self._counts(grad, window, count_padding=count_padding)
        shape = (grad.shape[0], *window.padded, grad.shape[3])
        x = zeros_like(self.xp, grad, shape)
        for _, _, met in window.entries():
            x[met] += grad
        return without_padding(self.xp, x, window)

    def _counts(self, x: Array, window: Window, *, count_padding: bool) -> Any:
        """Return the number of pixels that each window counts, as a number or (H', W', 1)."""
        if count_padding or window.padded == window.image:
            return float(math.prod(window.size))
        down, across = window.counts()
        counts = [[[float(i * j)] for j in across] for i in down]
        return self.xp.asarray(counts, dtype=x.dtype, device=x.device)


def index_dtype(xp: Namespace, window: Window) -> Any:
    """Return the dtype for positions in a window."""
    return xp.uint8 if math.prod(window.size) <= _MOST_IN_A_BYTE else xp.int32
