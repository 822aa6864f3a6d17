"""Losses that are robust to outliers: the absolute error and Huber's loss."""

from __future__ import annotations

from typing import Any, ClassVar

from gpunn._typing import Array
from gpunn.arrays.checks import number
from gpunn.arrays.settings import checked
from gpunn.kernels import kernels
from gpunn.kernels.formulas import per_row
from gpunn.losses.base import Loss, Reduction


class MeanAbsoluteError(Loss):
    r"""Absolute error, :math:`L = \sum_p |\hat y_p - y_p|`.

    The gradient is its sign, :math:`\partial L/\partial\hat y = \mathrm{sign}(\hat y - y)`, and 0
    where the prediction is exact. The best constant prediction is the median.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default "mean"
        See `Loss`.

    Notes
    -----
    *Shapes*: prediction (N, P); target (N, P), or (N,) where P is 1.

    PyTorch's ``L1Loss``, Keras and scikit-learn average over the outputs, and this sums: with P
    outputs, J here is P times theirs.
    """

    kernel = "absolute_error"

    def per_sample(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return scale * sum abs(prediction - target), and scale * sign(prediction - target)."""
        xp = kernels(prediction).xp
        error = prediction - target
        return scale * xp.sum(xp.abs(error), axis=1), per_row(scale) * xp.sign(error)


class Huber(Loss):
    r"""Huber's loss: the squared error of small errors, the absolute error of large ones.

    With :math:`e = \hat y - y` and its clipped form :math:`c = \max(-\delta, \min(e, \delta))`,

    .. math:: L = \sum_p c_p (e_p - c_p / 2) =
        \sum_p \begin{cases} e_p^2 / 2 & |e_p| \le \delta \\
                             \delta (|e_p| - \delta / 2) & \text{else} \end{cases}

    and :math:`\partial L/\partial\hat y = c`: the gradient of the squared error, limited to delta
    for outliers.

    Parameters
    ----------
    delta : float, default 1.0
        Above 0: where the loss turns from a parabola into a line.
    reduction : {"mean", "sum", "none"}, default "mean"
        See `Loss`.

    Notes
    -----
    *Shapes*: prediction (N, P); target (N, P), or (N,) where P is 1.

    The formula is that of PyTorch's ``HuberLoss`` and of Keras, which average over the outputs;
    this one sums. PyTorch's ``SmoothL1Loss(beta=delta)`` is this divided by delta.

    References
    ----------
    P. J. Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics
    35(1), 1964.
    """

    kernel = "huber"
    defaults: ClassVar = {"delta": 1.0}

    delta: float = checked(number, "(0, inf)")

    def __init__(self, delta: float = 1.0, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        self.delta = delta

    def per_sample(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return scale * sum c (e - c / 2), and scale * c."""
        k = kernels(prediction)
        error = prediction - target
        clipped = k.clip(error, -self.delta, self.delta)
        losses = k.xp.sum(clipped * (error - 0.5 * clipped), axis=1)
        return scale * losses, per_row(scale) * clipped
