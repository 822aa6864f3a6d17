"""The cosine distance, a loss on directions."""

from __future__ import annotations

from typing import Any, ClassVar

from gpunn._typing import Array
from gpunn.arrays.checks import number
from gpunn.arrays.settings import checked
from gpunn.kernels import kernels
from gpunn.kernels.formulas import per_row
from gpunn.losses.base import Loss, Reduction


class CosineDistance(Loss):
    r"""One minus the cosine of the angle between prediction and target, :math:`L = 1 - c`.

    With :math:`u = \hat y / n`, :math:`n = \max(|\hat y|, \epsilon)` and v likewise for the target,

    .. math:: c = \sum_p u_p v_p, \qquad
        \frac{\partial L}{\partial\hat y} = \frac{c\,u\,[\,|\hat y| > \epsilon\,] - v}{n}

    L is between 0, where both point the same way, and 2; lengths do not matter. A target of zeros
    has no direction: L is 1, and the gradient 0.

    Parameters
    ----------
    epsilon : float, default 1e-8
        Above 0: vectors shorter than this are not scaled to length 1.
    reduction : {"mean", "sum", "none"}, default "mean"
        See `Loss`.

    Notes
    -----
    *Shapes*: prediction (N, P); target (N, P).

    The cosine is that of PyTorch's ``cosine_similarity``; ``CosineEmbeddingLoss``, for positive
    pairs, adds 1e-12 to the squares of the lengths instead. Keras's ``CosineSimilarity`` is the
    negative cosine.
    """

    kernel = "cosine_distance"
    defaults: ClassVar = {"epsilon": 1e-8}

    epsilon: float = checked(number, "(0, inf)")

    def __init__(self, *, epsilon: float = 1e-8, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        self.epsilon = epsilon

    def per_sample(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return scale * (1 - c), and scale * (c u [length > epsilon] - v) / n."""
        xp = kernels(prediction).xp
        length, norm = self._norms(prediction)
        u, v = prediction / norm, target / self._norms(target)[1]
        cosine = xp.sum(u * v, axis=1, keepdims=True)
        turning = cosine * xp.astype(length > self.epsilon, prediction.dtype)
        grad = (turning * u - v) / norm
        return scale * (1.0 - cosine[:, 0]), per_row(scale) * grad

    def _norms(self, x: Array) -> tuple[Array, Array]:
        """Return the length of each row, and the maximum of it and epsilon, both (N, 1)."""
        xp = kernels(x).xp
        length = xp.sqrt(xp.sum(x * x, axis=1, keepdims=True))
        return length, xp.maximum(length, self.epsilon)
