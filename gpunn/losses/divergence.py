"""The Kullback-Leibler divergence."""

from __future__ import annotations

from typing import Any, ClassVar

from gpunn._typing import Array, Shape
from gpunn.arrays.checks import flag
from gpunn.arrays.settings import checked
from gpunn.kernels import kernels
from gpunn.kernels.formulas import per_row
from gpunn.kernels.host import are_distributions
from gpunn.losses.base import Loss, Reduction
from gpunn.losses.targets import check_distributions
from gpunn.nn.activation import Softmax


class KLDivergence(Loss):
    r"""Kullback-Leibler divergence, :math:`L = \sum_k y_k (\log y_k - \log p_k)`.

    It measures how far the network's distribution p is from the distribution y, such as that of
    another network; it is 0 where they are equal, and never negative. :math:`0 \log 0 = 0`.

    From logits z, with :math:`p = \mathrm{softmax}(z)`, it is stable for every finite z, and
    :math:`\partial L/\partial z = p - y`, as for `SoftmaxCrossEntropy`, whose L is larger by the
    entropy of y. From logarithms :math:`x = \log p`, :math:`\partial L/\partial x = -y`.

    Parameters
    ----------
    from_logits : bool, default True
        Whether the prediction is z (a last layer without activation) or log p (one with
        `LogSoftmax`).
    reduction : {"mean", "sum", "none"}, default "mean"
        See `Loss`.

    Notes
    -----
    *Shapes*: prediction (N, K); target (N, K), where each row is a distribution: not negative, with
    sum 1.

    PyTorch's ``KLDivLoss`` takes log p. With ``reduction="batchmean"`` it is the same; its
    "mean" also divides by the number of classes. Keras's takes p itself.

    References
    ----------
    S. Kullback and R. A. Leibler, "On information and sufficiency", Annals of Mathematical
    Statistics 22(1), 1951.
    """

    kernel = "kl_divergence"
    outputs = "logits or logarithms of probabilities"
    defaults: ClassVar = {"from_logits": True}

    from_logits: bool = checked(flag)

    def __init__(self, *, from_logits: bool = True, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        self.from_logits = from_logits

    def per_sample(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return scale * sum y (log y - log p), and scale * (p sum y - y) or scale * -y."""
        xp = kernels(prediction).xp
        log_p, grad = prediction, -target
        if self.from_logits:
            shifted = prediction - xp.max(prediction, axis=1, keepdims=True)
            exponentials = xp.exp(shifted)
            total = xp.sum(exponentials, axis=1, keepdims=True)
            log_p = shifted - xp.log(total)
            grad = exponentials * (xp.sum(target, axis=1, keepdims=True) / total) - target
        log_y = xp.log(xp.where(target > 0, target, 1.0))  # 0 where y is 0: 0 log 0 = 0
        losses = xp.sum(target * (log_y - log_p), axis=1)
        return scale * losses, per_row(scale) * grad

    def check_target(self, target: Any, output_shape: Shape) -> None:
        """Check the shape, and that each row is a distribution."""
        super().check_target(target, output_shape)
        check_distributions(repr(self), target)

    def suspects(self, target: Array, cost: Array) -> bool:  # noqa: ARG002
        """Return whether a row of the target is not a distribution."""
        return not are_distributions(target)

    def probabilities(self, prediction: Array) -> Array:
        """Return p."""
        return Softmax()(prediction) if self.from_logits else kernels(prediction).xp.exp(prediction)
