"""The hinge loss, a loss on margins."""

from __future__ import annotations

from typing import Any, ClassVar

from gpunn._typing import Array, Shape
from gpunn.arrays.checks import flag
from gpunn.arrays.settings import checked
from gpunn.kernels import kernels
from gpunn.kernels.formulas import per_row
from gpunn.kernels.host import are_signs
from gpunn.losses.base import Loss, Reduction
from gpunn.losses.targets import check_signs


class Hinge(Loss):
    r"""Hinge loss, :math:`L = \sum_p \max(0, m_p)` with :math:`m = 1 - t z`.

    The loss of support vector machines: z is the output for a yes-or-no answer, and
    :math:`t = 1` for yes, -1 for no. An answer that is right by a margin of 1 costs nothing.
    :math:`\partial L/\partial z = -t\,[m > 0]`. Squared, :math:`L = \sum_p \max(0, m_p)^2` and
    :math:`\partial L/\partial z = -2 t \max(0, m)`.

    Parameters
    ----------
    squared : bool, default False
        Whether margins are squared.
    reduction : {"mean", "sum", "none"}, default "mean"
        See `Loss`.

    Notes
    -----
    *Shapes*: prediction (N, P); target (N, P), or (N,) where P is 1; 0 and 1, as everywhere here,
    or -1 and 1, of any dtype.

    scikit-learn's ``SGDClassifier(loss="hinge")`` and ``"squared_hinge"`` are the same. Keras
    averages over the outputs, and this sums. PyTorch's ``HingeEmbeddingLoss`` is another loss.

    Outputs are margins, not logits of probabilities: the answer is yes where z is above 0.
    """

    kernel = "hinge"
    outputs = "margins"
    defaults: ClassVar = {"squared": False}
    #: As with logits, the model ends without an activation, and z above 0 means yes.
    from_logits = True

    squared: bool = checked(flag)

    def __init__(self, *, squared: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        self.squared = squared

    def per_sample(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return scale * sum max(0, m), and scale * -t [m > 0]; or those of the square."""
        xp = kernels(prediction).xp
        sign = xp.sign(target - 0.5)  # of 0 and -1 it is -1
        margin = xp.maximum(1.0 - sign * prediction, 0.0)
        if self.squared:
            losses, slope = margin * margin, 2.0 * margin
        else:
            losses, slope = margin, xp.sign(margin)
        return scale * xp.sum(losses, axis=1), per_row(scale) * (-sign * slope)

    def check_target(self, target: Any, output_shape: Shape) -> None:
        """Check the shape, and that the values are 0 and 1, or -1 and 1."""
        super().check_target(target, output_shape)
        check_signs(repr(self), target)

    def suspects(self, target: Array, cost: Array) -> bool:  # noqa: ARG002
        """Return whether the targets are neither 0 and 1, nor -1 and 1."""
        return not are_signs(target)
