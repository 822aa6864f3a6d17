"""Binary cross-entropy, of logits and of probabilities."""

from __future__ import annotations

from typing import Any, ClassVar

from gpunn._typing import Array, Shape
from gpunn.arrays.checks import flag
from gpunn.arrays.settings import checked
from gpunn.kernels import kernels
from gpunn.kernels.formulas import per_row
from gpunn.kernels.host import lies_within
from gpunn.losses.base import Loss, Reduction
from gpunn.losses.targets import check_interval
from gpunn.nn.activation import Sigmoid


class BinaryCrossEntropy(Loss):
    r"""Binary cross-entropy, :math:`L = -\sum_p y_p \log h_p + (1 - y_p) \log(1 - h_p)`.

    The cost of logistic regression, where :math:`h = \sigma(\theta^T x)`, and of several yes-or-no
    answers per sample.

    From logits z, with :math:`h = \sigma(z)`, it is computed as
    :math:`\max(z, 0) - y z + \log(1 + e^{-|z|})`, stable for every finite z;
    :math:`\partial L/\partial z = h - y`.

    From probabilities, h is first clipped to [eps, 1 - eps] with eps the dtype's resolution
    (1.2e-7 in float32), so that an exact 0 or 1 costs at most -log eps, 15.94 in float32 and
    36.04 in float64; :math:`\partial L/\partial h = (h - y) / (h (1 - h))`.

    Parameters
    ----------
    from_logits : bool, default True
        Whether the prediction is z (a last layer without activation) or h (one with sigmoid).
    reduction : {"mean", "sum", "none"}, default "mean"
        See `Loss`.

    Notes
    -----
    *Shapes*: prediction (N, P); target (N, P), or (N,) where P is 1; values in [0, 1], of any
    dtype.
    """

    kernel = "binary_cross_entropy"
    defaults: ClassVar = {"from_logits": True}

    from_logits: bool = checked(flag)

    def __init__(self, *, from_logits: bool = True, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        self.from_logits = from_logits

    def per_sample(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return scale * L, and scale * (h - y) or scale * (h - y) / (h (1 - h))."""
        k = kernels(prediction)
        xp = k.xp
        if self.from_logits:
            z, positive = prediction, xp.maximum(prediction, 0.0)
            small = xp.exp(-xp.abs(z))
            losses = xp.sum(positive - target * z + xp.log1p(small), axis=1)
            grad = xp.exp(z - positive) / (1.0 + small)
            grad -= target
            return scale * losses, per_row(scale) * grad
        eps = float(xp.finfo(prediction.dtype).eps)
        h = k.clip(prediction, eps, 1.0 - eps)
        losses = xp.sum(target * xp.log(h) + (1.0 - target) * xp.log1p(-h), axis=1)
        return -scale * losses, per_row(scale) * ((h - target) / (h * (1.0 - h)))

    def check_target(self, target: Any, output_shape: Shape) -> None:
        """Check the shape, and that the values are in [0, 1]."""
        super().check_target(target, output_shape)
        check_interval(repr(self), target, 0.0, 1.0)

    def suspects(self, target: Array, cost: Array) -> bool:  # noqa: ARG002
        """Return whether a target is outside [0, 1]."""
        return not lies_within(target, 0.0, 1.0)

    def probabilities(self, prediction: Array) -> Array:
        """Return h."""
        return Sigmoid()(prediction) if self.from_logits else prediction
