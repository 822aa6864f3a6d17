"""The sizes of what kernels add up, since a sum that cancels rounds as its terms do."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.plain import Plain

#: Kernels that add up products of their arguments, each with its sign.
LINEAR = (
    "average_pool",
    "average_pool_backward",
    "column_sums",
    "convolution",
    "convolution_input_grad",
    "convolution_weight_grad",
    "embedding_backward",
    "max_pool_backward",
    "positions_backward",
    "product",
    "total",
)


class Sizes:
    """The other kernels that add up what may cancel: each term by its size, in float64."""

    def bias_activation_backward(self, grad: Any, saved: Any, formula: Any) -> Any:
        # A slope may be a difference of numbers of about 1, as 1 - h**2 is, and rounds as they do.
        grad = abs(Plain().activation_backward(grad, saved, formula)) + abs(grad)
        return np.full_like(grad, grad.max(initial=0.0)), grad.sum(axis=0)

    def row_norm_backward(
        self, grad: Any, x: Any, statistics: Any, gain: Any, norm: Any, into: Any, through: bool
    ) -> Any:
        view, axes = norm.view(x.shape), (1, 3)
        mean, scale = statistics.reshape(view[0], 1, view[2], 1, 2).transpose(4, 0, 1, 2, 3)
        x_hat = (abs(x).reshape(view) + abs(mean)) * abs(scale)
        g = abs(gain * grad).reshape(view)
        sizes = g + g.mean(axis=axes, keepdims=True)
        sizes += x_hat * (g * x_hat).mean(axis=axes, keepdims=True)
        grad_x = (abs(scale) * sizes).reshape(x.shape) if through else None
        return grad_x, self._sums(grad, x_hat.reshape(x.shape), into)

    def batch_norm_backward(
        self, grad: Any, x: Any, statistics: Any, gain: Any, into: Any, fixed: bool, through: bool
    ) -> Any:
        mean, scale = statistics[:2]
        x_hat, axes = (abs(x) + abs(mean)) * abs(scale), tuple(range(x.ndim - 1))
        g = abs(gain * grad)
        sizes = g if fixed else g + g.mean(axis=axes) + x_hat * (g * x_hat).mean(axis=axes)
        return (abs(scale) * sizes if through else None), self._sums(grad, x_hat, into)

    @staticmethod
    def _sums(grad: Any, x_hat: Any, into: Any) -> Any:
        channels = grad.shape[-1]
        both = [part.reshape(-1, channels).sum(axis=0) for part in (abs(grad) * x_hat, abs(grad))]
        return both[: len(into)]
