"""Kernels of normalisation, in functions of the standard.

Each scales its input to a mean of 0 and a variance of 1, x_hat = (x - mean) scale with scale =
1 / sqrt(variance + epsilon), and then returns y = gain x_hat + bias. They differ in the axes of the
mean. With g = gain dJ/dy, and means over the same entries, the gradient is

    dJ/dx = scale (g - mean(g) - x_hat mean(g x_hat)).

The variance is computed from x - mean, not from squares of x, which would cancel. Sums are double
precision, since a library may add up many float32 numbers one after another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from gpunn._typing import Array, Namespace, Shape


class RowNorm(NamedTuple):
    """How a sample is divided into parts that are normalised separately.

    Attributes
    ----------
    positions : int
        The rows of C channels in a part: 1, or all rows of a sample. Channels are the last axis.
    groups : int
        The number of groups of neighbouring channels; each group is a separate part.
    centred : bool
        Whether to subtract the mean; otherwise it is taken as 0.
    epsilon : float
    """

    positions: int
    groups: int
    centred: bool
    epsilon: float

    def view(self, shape: Shape) -> tuple[int, int, int, int]:
        """Return the shape as (rows, positions, groups, channels in a group)."""
        channels = shape[-1]
        rows = math.prod(shape[:-1]) // self.positions
        return rows, self.positions, self.groups, channels // self.groups

    def statistics_shape(self, shape: Shape) -> tuple[int, int, int]:
        """Return the shape of the statistics: a mean and a scale for each part of a sample."""
        return shape[0], math.prod(shape[1:-1]) // self.positions * self.groups, 2


class NormKernels:
    """The kernels of normalisation; a mixin of `gpunn.kernels.Kernels`."""

    xp: Namespace

    def row_norm(
        self, x: Array, gain: Array, bias: Array | None, norm: RowNorm
    ) -> tuple[Array, Array]:
        """Return y, and the mean and scale of each part of a sample (N, parts, 2).

        `gain` and `bias` are (C,); a bias of None is 0.
        """
        xp = self.xp
        rows = xp.reshape(x, norm.view(x.shape))
        mean, _, scale, x_hat = _standardized(xp, rows, (1, 3), norm.epsilon, centred=norm.centred)
        y = xp.reshape(x_hat, x.shape) * gain
        if bias is not None:
            y += bias
        shape = norm.statistics_shape(x.shape)
        statistics = xp.stack([xp.reshape(row, shape[:2]) for row in (mean, scale)], axis=2)
        return y, statistics

    def row_norm_backward(  # noqa: PLR0917 (what the forward pass saved, and two gradients)
        self,
        grad: Array,
        x: Array,
        statistics: Array,
        gain: Array,
        norm: RowNorm,
        into: Sequence[Array | None],
        *,
        through: bool,
    ) -> tuple[Array | None, list[Array]]:
        """Return dJ/dx, None if not `through`; and dJ/d gain and dJ/d bias, written `into`.

        `into` has an item for each gradient to compute: none, the gain's, or both.
        """
        xp = self.xp
        view, axes = norm.view(x.shape), (1, 3)
        mean, scale = (xp.reshape(statistics[:, :, i], (view[0], 1, view[2], 1)) for i in range(2))
        x_hat = (xp.reshape(x, view) - mean) * scale
        sums = _gradients(xp, grad, xp.reshape(x_hat, grad.shape), into)
        if not through:
            return None, sums
        g = xp.reshape(grad * gain, view)
        result = _input_grad(xp, g, x_hat, scale, axes, centred=norm.centred)
        return xp.reshape(result, x.shape), sums

    def batch_norm(self, x: Array, gain: Array, bias: Array, epsilon: float) -> tuple[Array, Array]:
        """Return y, normalised over all axes but the last; and the channels' statistics (3, C).

        These are the mean, the scale, and the variance with divisor n - 1, over n > 1 entries.
        """
        xp = self.xp
        rows = xp.reshape(x, _rows(x))
        mean, variance, scale, x_hat = _standardized(xp, rows, 0, epsilon, centred=True)
        n = rows.shape[0]
        statistics = xp.concat([mean, scale, variance * (n / (n - 1))])
        return xp.reshape(x_hat, x.shape) * gain + bias, statistics

    def fixed_norm(
        self, x: Array, gain: Array, bias: Array, running: tuple[Array, Array], epsilon: float
    ) -> tuple[Array, Array]:
        """Return y for the mean and variance in `running`, (C,) each; and mean and scale (2, C)."""
        xp, (mean, variance) = self.xp, running
        scale = 1.0 / xp.sqrt(variance + epsilon)
        return (x - mean) * scale * gain + bias, xp.stack([mean, scale])

    def batch_norm_backward(
        self,
        grad: Array,
        x: Array,
        statistics: Array,
        gain: Array,
        into: Sequence[Array | None],
        *,
        fixed: bool,
        through: bool,
    ) -> tuple[Array | None, list[Array]]:
        """Return dJ/dx, None if not `through`; and dJ/d gain and dJ/d bias, written `into`.

        See `row_norm_backward`; if `fixed`, the statistics do not depend on x.
        """
        xp = self.xp
        mean, scale = statistics[0, :], statistics[1, :]
        x_hat = (x - mean) * scale
        sums = _gradients(xp, grad, x_hat, into)
        if not through:
            return None, sums
        if fixed:
            return grad * (gain * scale), sums
        g, x_hat = (xp.reshape(part, _rows(x)) for part in (grad * gain, x_hat))
        return xp.reshape(_input_grad(xp, g, x_hat, scale, 0, centred=True), x.shape), sums

    def channel_moments(self, x: Array) -> tuple[Array, Array]:
        """Return the mean of each channel, and the sum of squared deviations; 0 without entries.

        They are over all axes but the last, (C,) each.
        """
        xp = self.xp
        rows = xp.astype(xp.reshape(x, _rows(x)), xp.float64)
        mean = xp.sum(rows, axis=0) / max(1, rows.shape[0])
        squares = xp.sum((rows - mean) ** 2, axis=0)
        return xp.astype(mean, x.dtype, copy=False), xp.astype(squares, x.dtype, copy=False)

    def joint_norm_backward(
        self, grad: Array, x: Array, statistics: Array, gain: Array, means: Array
    ) -> Array:
        """Return dJ/dx of a batch norm whose statistics include entries of other processes.

        `means` (2, C) are the means of grad x_hat and of grad over all entries.
        """
        mean, scale = statistics[0, :], statistics[1, :]
        x_hat = (x - mean) * scale
        return (grad - means[1, :] - x_hat * means[0, :]) * (gain * scale)

    def track(self, running: tuple[Array, Array], statistics: Array, momentum: float) -> None:
        """Move a running mean and variance towards those of a batch, in place.

        r += momentum (s - r), with the first and the last row of the statistics of `batch_norm`.
        """
        for kept, row in zip(running, (0, 2), strict=True):
            kept += momentum * (statistics[row, :] - kept)


def _rows(x: Array) -> tuple[int, int]:
    """Return the shape of x with all axes but the last merged."""
    return math.prod(x.shape[:-1]), x.shape[-1]


def _standardized(
    xp: Namespace, x: Array, axes: int | tuple[int, ...], epsilon: float, *, centred: bool
) -> tuple[Array, Array, Array, Array]:
    """Return mean, variance and scale over some axes, which are kept, and (x - mean) scale."""
    mean = None
    if centred:
        mean = _mean(xp, x, axes)
        x = x - mean
    variance = _mean(xp, x * x, axes)
    scale = 1.0 / xp.sqrt(variance + epsilon)
    return (xp.zeros_like(scale) if mean is None else mean), variance, scale, x * scale


def _mean(xp: Namespace, x: Array, axes: int | tuple[int, ...]) -> Array:
    """Return the mean over some axes, which are kept."""
    count = math.prod(x.shape[axis] for axis in ((axes,) if isinstance(axes, int) else axes))
    # Converting first takes memory, but a fraction of the time of a sum that converts.
    total = xp.sum(xp.astype(x, xp.float64, copy=False), axis=axes, keepdims=True)
    return xp.astype(total / count, x.dtype, copy=False)


def _input_grad(
    xp: Namespace,
    g: Array,
    x_hat: Array,
    scale: Array,
    axes: int | tuple[int, ...],
    *,
    centred: bool,
) -> Array:
    """Return scale (g - mean(g) - x_hat mean(g x_hat))."""
    result = g - x_hat * _mean(xp, g * x_hat, axes)
    if centred:
        result -= _mean(xp, g, axes)
    result *= scale
    return result


def _gradients(
    xp: Namespace, grad: Array, x_hat: Array, into: Sequence[Array | None]
) -> list[Array]:
    """Return the gradients of gain and bias: sums over all axes but the last."""
    if not into:
        return []
    both = (xp.reshape(part, _rows(grad)) for part in (grad * x_hat, grad)[: len(into)])
    sums = [xp.sum(xp.astype(part, xp.float64, copy=False), axis=0) for part in both]
    totals = [xp.astype(total, grad.dtype, copy=False) for total in sums]
    for total, place in zip(totals, into, strict=True):
        if place is not None:
            place[...] = total
    return [t if place is None else place for t, place in zip(totals, into, strict=True)]
