"""The Poisson loss, for counts."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from gpunn._typing import Array, Shape
from gpunn.arrays.checks import flag
from gpunn.arrays.settings import checked
from gpunn.kernels import kernels
from gpunn.kernels.formulas import per_row
from gpunn.kernels.host import lies_within
from gpunn.losses.base import Loss, Reduction
from gpunn.losses.targets import check_interval


class Poisson(Loss):
    r"""Negative log-likelihood of counts, :math:`L = \sum_p e^{z_p} - y_p z_p`.

    The counts y are assumed to have a Poisson distribution with mean :math:`e^z`: the network
    outputs the logarithm z of the mean, and ends without an activation.
    :math:`\partial L/\partial z = e^z - y`. Half the deviance also has terms that do not depend on
    z,

    .. math:: L = \sum_p e^{z_p} - y_p z_p + y_p \log y_p - y_p \ge 0,

    and is 0 where the mean equals the count. :math:`0 \log 0 = 0`.

    Parameters
    ----------
    deviance : bool, default False
        Whether L is half the deviance. The gradient is the same.
    reduction : {"mean", "sum", "none"}, default "mean"
        See `Loss`.

    Notes
    -----
    *Shapes*: prediction (N, P); target (N, P), or (N,) where P is 1; values of at least 0, of any
    dtype, and not only whole numbers.

    The likelihood's constant :math:`\log y!` is omitted, so L may be negative unless it is half the
    deviance. The formula is that of PyTorch's ``PoissonNLLLoss``, which averages over the outputs;
    this one sums. Keras's ``Poisson`` takes the mean itself, not its logarithm. Half the
    deviance is the loss of scikit-learn's ``PoissonRegressor``, and of its
    ``MLPRegressor(loss="poisson")``.

    Above z = 88.7 in float32 (709.7 in float64) the mean is infinite, and so is L.
    """

    kernel = "poisson"
    outputs = "logarithms of means"
    defaults: ClassVar = {"deviance": False}

    deviance: bool = checked(flag)

    def __init__(self, *, deviance: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        self.deviance = deviance

    def per_sample(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return scale * sum (e^z - y z), and scale * (e^z - y)."""
        xp = kernels(prediction).xp
        mean = xp.exp(prediction)
        terms = mean - target * prediction
        if self.deviance:
            terms += target * xp.log(xp.where(target > 0, target, 1.0)) - target
        return scale * xp.sum(terms, axis=1), per_row(scale) * (mean - target)

    def check_target(self, target: Any, output_shape: Shape) -> None:
        """Check the shape, and that no value is negative."""
        super().check_target(target, output_shape)
        check_interval(repr(self), target, 0.0, math.inf)

    def suspects(self, target: Array, cost: Array) -> bool:  # noqa: ARG002
        """Return whether a target is negative."""
        return not lies_within(target, 0.0, math.inf)
