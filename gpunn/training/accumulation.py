"""Gradient accumulation: the gradients of several batches as those of one."""

from __future__ import annotations

from typing import Any

from gpunn._typing import Array
from gpunn.arrays.backend import scope_of
from gpunn.kernels import kernels
from gpunn.losses.base import Loss
from gpunn.optim.base import Optimizer


class Accumulation:
    r"""Adds up the gradients of several batches before each update, as if they were one.

    Batch b has the cost :math:`J_b`, a mean that divides by the sum of weights :math:`W_b`: the
    number of samples, unless there are weights. All samples together have the cost

    .. math:: J = \frac{\sum_b W_b J_b}{\sum_b W_b},

    so each gradient counts by :math:`W_b`, and their sum is divided by :math:`\sum_b W_b` before
    the update. If costs are sums, gradients are simply added. If the optimizer is parallel, the
    batches are those of all processes (see `gpunn.distributed.data_parallel`).

    Parameters
    ----------
    batches : int
        Batches per update.
    """

    def __init__(self, batches: int) -> None:
        self._batches = batches
        self._n_added = 0
        self._total: Any = None

    def begin(
        self,
        optimizer: Optimizer,
        loss: Loss,
        prediction: Array,
        y: Array,
        sample_weight: Array | None,
    ) -> Any:
        """Begin the backward pass of a batch; return the weight of its gradient.

        The weight is a number or a 0-d array on the device; None means 1. In the last batch of an
        update, the gradients of several processes may be summed during the backward pass.
        """
        if optimizer.parallel is not None and self._n_added == self._batches - 1:
            optimizer.parallel.open()
        self._n_added += 1
        if loss.reduction == "sum":
            return None
        weight = loss.total_weight(prediction, y, sample_weight)
        if weight is None:
            weight = float(prediction.shape[0])
        else:
            weight = kernels(prediction).convert(weight, prediction.dtype)
        self._total = weight if self._total is None else self._total + weight
        return weight

    def step(self, optimizer: Optimizer) -> None:
        """Update if all batches of an update have been added."""
        if self._n_added == self._batches:
            self.finish(optimizer)

    def finish(self, optimizer: Optimizer) -> None:
        """Update with the batches added so far, if any, and start the next group."""
        if not self._n_added:
            return
        total, self._n_added, self._total = self._total, 0, None
        if optimizer.parallel is not None:
            optimizer.parallel.sum(total)
        elif total is not None:
            _divide(optimizer, total)
        optimizer.step()


def _divide(optimizer: Optimizer, total: Any) -> None:
    """Divide gradients in place; by 1 if the total is 0, when all gradients are 0 as well."""
    with scope_of(optimizer.parameters[0].value):
        if isinstance(total, float):
            total = total or 1.0
        else:
            total = total + kernels(total).xp.astype(total == 0, total.dtype)
        for parameter in optimizer.parameters:
            if parameter.grad is not None:
                parameter.grad /= total
