"""Kernels of PReLU, in functions of the standard."""

from __future__ import annotations

from collections.abc import Sequence

from gpunn._typing import Array, Namespace


class PReLUKernels:
    """The kernels of PReLU; a mixin of `gpunn.kernels.Kernels`."""

    xp: Namespace

    def prelu(self, x: Array, slope: Array) -> Array:
        """Return max(x, 0) + slope * min(x, 0), with a slope per channel (C,) or a single (1,)."""
        return self.xp.maximum(x, 0.0) + slope * self.xp.minimum(x, 0.0)

    def prelu_backward(
        self, grad: Array, x: Array, slope: Array, into: Sequence[Array | None], *, through: bool
    ) -> tuple[Array | None, list[Array]]:
        """Return dJ/dx, None if not `through`; and dJ/d slope if `into` has an item to write to."""
        xp = self.xp
        positive = xp.astype(x > 0, x.dtype)
        result = grad * (positive + (1.0 - positive) * slope) if through else None
        sums = []
        for place in into:
            axes = tuple(range(x.ndim if slope.shape[0] == 1 else x.ndim - 1))
            total = xp.sum(grad * xp.minimum(x, 0.0), axis=axes, dtype=xp.float64)
            total = xp.reshape(xp.astype(total, x.dtype, copy=False), slope.shape)
            if place is not None:
                place[...] = total
            sums.append(total if place is None else place)
        return result, sums
