"""Adagrad: steps scaled by the sum of all squares of the gradient so far."""

from __future__ import annotations

from collections.abc import Iterable

from gpunn._typing import Array, Namespace
from gpunn.arrays.checks import number
from gpunn.arrays.settings import checked
from gpunn.nn.parameter import Parameter
from gpunn.optim.base import Optimizer
from gpunn.optim.schedules import Schedule


class Adagrad(Optimizer):
    r"""Adagrad: adaptive gradient.

    With the sum s, which starts at `initial_sum`, and all operations by entry,

    .. math::

        s \leftarrow s + g^2, \qquad
        \theta \leftarrow \theta - \alpha \frac{g}{\sqrt s + \epsilon}.

    Entries whose gradient is rarely other than 0, such as those of rare features, keep taking large
    steps; all others take ever smaller ones.

    The gradient g is that of the batch, changed by these settings in this order: each entry is
    clipped to :math:`\pm` `clip_value`; all entries are scaled so that the norm of the whole
    gradient is at most `clip_norm`; weight decay is added.

    Parameters
    ----------
    parameters : iterable of Parameter
        ``model.parameters()``, after ``model.to(...)``.
    learning_rate : float or schedule, default 0.01
        alpha, above 0; see `gpunn.schedules`.
    epsilon : float, default 1e-10
        Above 0.
    initial_sum : float, default 0.0
        In [0, 1e38]. A value assigned later takes effect at the next `reset`.
    weight_decay : float, default 0.0
        lambda >= 0 of the L2 penalty, as in `SGD`. Biases are exempt (`Parameter.decay`).
    clip_norm : float, optional
        Above 0. The norm stays on the device.
    clip_value : float, optional
        Above 0.

    Notes
    -----
    Formula and defaults are PyTorch's; its `lr_decay` is the schedule
    ``lambda step: alpha / (1 + step * lr_decay)`` here. Keras adds epsilon under the root, and its
    defaults are 0.001 for the learning rate, 0.1 for `initial_sum` and 1e-7 for epsilon.
    scikit-learn has no Adagrad.

    References
    ----------
    Duchi, Hazan and Singer, "Adaptive subgradient methods for online learning and stochastic
    optimization", JMLR 12, 2011.

    Examples
    --------
    >>> import gpunn as gn
    >>> model = gn.Dense(2, 1, rng=0)
    >>> gn.Adagrad(model.parameters(), initial_sum=0.1)
    Adagrad(learning_rate=0.01, initial_sum=0.1)
    """

    kernel = "adagrad"

    epsilon: float = checked(number, "(0, inf)")
    initial_sum: float = checked(number, "[0, 1e38]")

    def __init__(
        self,
        parameters: Iterable[Parameter],
        learning_rate: float | Schedule = 0.01,
        *,
        epsilon: float = 1e-10,
        initial_sum: float = 0.0,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.initial_sum = initial_sum
        super().__init__(
            parameters,
            learning_rate,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            n_states=1,
        )

    def initial_state(self) -> float:
        """Return the initial value of the sums."""
        return self.initial_sum

    def update(
        self, xp: Namespace, value: Array, grad: Array, states: list[Array], step_size: float
    ) -> None:
        """Add g^2 to s; theta <- theta - alpha g / (sqrt(s) + epsilon)."""
        (total,) = states
        total += grad * grad
        scale = xp.sqrt(total)
        scale += self.epsilon
        grad *= step_size
        grad /= scale
        value -= grad
