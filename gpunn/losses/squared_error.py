"""The squared error."""

from __future__ import annotations

from typing import Any

from gpunn._typing import Array
from gpunn.kernels import kernels
from gpunn.kernels.formulas import per_row
from gpunn.losses.base import Loss


class MeanSquaredError(Loss):
    r"""Squared error with the factor 1/2: :math:`L = \frac12 \sum_p (\hat y_p - y_p)^2`.

    The gradient is then the error itself, :math:`\partial L/\partial\hat y = \hat y - y`. Other
    libraries omit the factor 1/2, and average over the outputs, while this sums: with P outputs, J
    here is P / 2 times PyTorch's ``MSELoss``.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default "mean"
        See `Loss`.

    Notes
    -----
    *Shapes*: prediction (N, P); target (N, P), or (N,) where P is 1.
    """

    kernel = "squared_error"

    def per_sample(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return scale * 1/2 sum (prediction - target)^2, and scale * (prediction - target)."""
        error = prediction - target
        losses = 0.5 * kernels(error).xp.sum(error * error, axis=1)
        return scale * losses, per_row(scale) * error
