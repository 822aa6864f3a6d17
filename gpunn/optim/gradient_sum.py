"""The gradient over a whole data set, as an update rule that changes no parameter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle, islice

from gpunn._typing import Array, Namespace
from gpunn.arrays.backend import scope_of
from gpunn.nn.parameter import Parameter
from gpunn.optim.base import Optimizer


class GradientSum(Optimizer):
    r"""Adds up the gradients of batches, each times its share, and leaves parameters unchanged.

    .. math:: s \leftarrow s + p_b \, g_b, \qquad \theta \leftarrow \theta.

    Where batch b has the cost :math:`J_b` and the share :math:`p_b` of the data,
    :math:`J = \sum_b p_b J_b`, and after a pass :math:`s = \nabla J`. As an update rule it is
    recorded, compiled and captured like any other, so a full gradient is computed as fast as an
    epoch of training.

    Parameters
    ----------
    parameters : iterable of Parameter
        ``model.parameters()``, after ``model.to(...)``.

    Attributes
    ----------
    shares : sequence of float
        The share of each batch of a pass.
    """

    kernel = "gradient_sum"

    def __init__(self, parameters: Iterable[Parameter]) -> None:
        self.shares: Sequence[float] = (1.0,)
        super().__init__(parameters, 1.0, n_states=1)

    def begin(self) -> None:
        """Begin a pass: set the sums to 0."""
        self.steps = 0
        for block in self.sums():
            with scope_of(block):
                block[...] = 0.0

    def sums(self) -> list[Array]:
        """Return the sums s, in blocks that are laid out like those of the values."""
        (blocks,) = self.blocks().states
        return blocks

    def update(
        self,
        xp: Namespace,  # noqa: ARG002
        value: Array,  # noqa: ARG002
        grad: Array,
        states: list[Array],
        step_size: float,
    ) -> None:
        """S <- s + p g."""
        (total,) = states
        total += step_size * grad

    def step_sizes(self, n: int) -> list[float]:
        """Return the shares of the next n batches."""
        first = self.steps % len(self.shares)
        return list(islice(cycle(self.shares), first, first + n))
