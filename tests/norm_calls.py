"""Normalisation in plain NumPy, and calls of its kernels; a part of the table of kernels."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.kernels.norm import RowNorm


def standardized(x: Any, axes: tuple[int, ...], epsilon: float, centred: bool) -> tuple[Any, ...]:
    """Return mean, scale and x_hat."""
    mean = x.mean(axis=axes, keepdims=True) if centred else np.zeros((1,) * x.ndim)
    scale = 1 / np.sqrt(((x - mean) ** 2).mean(axis=axes, keepdims=True) + epsilon)
    return mean + 0 * scale, scale, (x - mean) * scale


class PlainNorms:
    """Each kernel of normalisation, as plain as can be, in float64."""

    def row_norm(self, x: Any, gain: Any, bias: Any, norm: RowNorm) -> Any:
        rows = x.reshape(norm.view(x.shape))
        mean, scale, x_hat = standardized(rows, (1, 3), norm.epsilon, norm.centred)
        y = x_hat.reshape(x.shape) * gain + (0 if bias is None else bias)
        statistics = np.stack([mean, scale], axis=-1).reshape(norm.statistics_shape(x.shape))
        return y, statistics

    def row_norm_backward(
        self, grad: Any, x: Any, statistics: Any, gain: Any, norm: Any, into: Any, through: bool
    ) -> Any:
        view = norm.view(x.shape)
        mean, scale = statistics.reshape(view[0], 1, view[2], 1, 2).transpose(4, 0, 1, 2, 3)
        x_hat = (x.reshape(view) - mean) * scale
        g = (gain * grad).reshape(view)
        less = g.mean(axis=(1, 3), keepdims=True) if norm.centred else 0.0
        along = (g * x_hat).mean(axis=(1, 3), keepdims=True)
        grad_x = (scale * (g - less - x_hat * along)).reshape(x.shape)
        return (grad_x if through else None), self._sums(grad, x_hat.reshape(x.shape), into)

    def batch_norm(self, x: Any, gain: Any, bias: Any, epsilon: float) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        mean, scale, x_hat = standardized(rows, (0,), epsilon, centred=True)
        statistics = np.stack([mean[0], scale[0], rows.var(axis=0, ddof=1)])
        return x_hat.reshape(x.shape) * gain + bias, statistics

    def fixed_norm(self, x: Any, gain: Any, bias: Any, running: Any, epsilon: float) -> Any:
        mean, scale = running[0], 1 / np.sqrt(running[1] + epsilon)
        return (x - mean) * scale * gain + bias, np.stack([mean, scale])

    def batch_norm_backward(
        self, grad: Any, x: Any, statistics: Any, gain: Any, into: Any, fixed: bool, through: bool
    ) -> Any:
        mean, scale = statistics[:2]
        x_hat, axes = (x - mean) * scale, tuple(range(x.ndim - 1))
        g = gain * grad
        left = g - g.mean(axis=axes) - x_hat * (g * x_hat).mean(axis=axes)
        grad_x = scale * (g if fixed else left)
        return (grad_x if through else None), self._sums(grad, x_hat, into)

    def channel_moments(self, x: Any) -> Any:
        rows = x.reshape(-1, x.shape[-1])
        mean = rows.sum(axis=0) / max(1, len(rows))
        return mean, ((rows - mean) ** 2).sum(axis=0)

    def joint_norm_backward(self, grad: Any, x: Any, statistics: Any, gain: Any, means: Any) -> Any:
        mean, scale = statistics
        return gain * scale * (grad - means[1] - (x - mean) * scale * means[0])

    def track(self, running: Any, statistics: Any, momentum: float) -> None:
        for kept, batch in zip(running, (statistics[0], statistics[2]), strict=True):
            kept[...] = (1 - momentum) * kept + momentum * batch

    def prelu(self, x: Any, slope: Any) -> Any:
        return np.where(x > 0, x, slope * x)

    def prelu_backward(self, grad: Any, x: Any, slope: Any, into: Any, through: bool) -> Any:
        grad_x = np.where(x > 0, grad, slope * grad) if through else None
        each = np.where(x > 0, 0.0, grad * x).reshape(-1, x.shape[-1])
        total = each.sum(axis=0) if len(slope) > 1 or x.shape[-1] == 1 else [each.sum()]
        return grad_x, [np.asarray(total)] * len(into)

    @staticmethod
    def _sums(grad: Any, x_hat: Any, into: Any) -> Any:
        channels = grad.shape[-1]
        both = [(part.reshape(-1, channels)).sum(axis=0) for part in (grad * x_hat, grad)]
        return both[: len(into)]


def norm_calls(x: Any, n: int, p: int) -> dict[str, list[tuple[Any, ...]]]:
    """Return the arguments of several calls; `x` draws an array of a shape."""
    groups = next(g for g in (3, 5, 2, 1) if p % g == 0)
    rows = [
        ((n, p), RowNorm(1, 1, centred=True, epsilon=1e-3)),
        ((n, 3, p), RowNorm(1, 1, centred=False, epsilon=0.1)),
        ((n, 2, 2, p), RowNorm(4, groups, centred=True, epsilon=1e-3)),
    ]
    forward, backward = [], []
    for shape, norm in rows:
        given = x(*shape)
        forward += [(given, x(p), x(p) if norm.centred else None, norm)]
        _, statistics = PlainNorms().row_norm(given, x(p), None, norm)
        for into, through in (([None, None], True), ([None], True), ([], True), ([None], False)):
            grad = 1.0 + given + 0.5 * x(*shape)  # sums of which do not cancel
            backward += [(grad, given, statistics, x(p), norm, into, {"through": through})]
    batches = [x(n, p), x(n, 2, 2, p)] if n > 1 else [x(2 * n, 3, p)]
    statistics = [
        (given, np.stack([x(p), 1 + x(p) ** 2, x(p) ** 2])) for given in (*batches, x(n, p))
    ]
    return {
        "row_norm": forward,
        "row_norm_backward": backward,
        "batch_norm": [(given, x(p), x(p), 0.01) for given in batches if n],
        "fixed_norm": [(x(n, 3, p), x(p), x(p), [x(p), x(p) ** 2], 0.01)],
        "batch_norm_backward": [
            (1.0 + x(*given.shape), given, kept, x(p), into, {"fixed": fixed, "through": through})
            for given, kept in statistics
            for into in ([None, None], [None], [])
            for fixed, through in ((False, True), (True, True), (False, False))
            if n
        ],
        "prelu": [(x(n, 3, p), x(slopes)) for slopes in (1, p)],
        "prelu_backward": [
            (x(n, 2, p) ** 2, x(n, 2, p), x(slopes), into, {"through": through})
            for slopes in (1, p)
            for into, through in (([None], True), ([], True), ([None], False))
        ],
        "channel_moments": [(given,) for given in (*batches, x(n, p))],
        "joint_norm_backward": [
            (x(n, 3, p), x(n, 3, p), x(2, p), x(p), x(2, p)),
        ],
        "track": [([x(p), x(p) ** 2], statistics[0][1], 0.25)],
    }
