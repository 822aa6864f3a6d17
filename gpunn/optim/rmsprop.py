"""RMSprop: steps scaled by a running mean of the gradient's square."""

from __future__ import annotations

from collections.abc import Iterable

from gpunn._typing import Array, Namespace
from gpunn.arrays.checks import flag, number
from gpunn.arrays.settings import checked
from gpunn.nn.parameter import Parameter
from gpunn.optim.base import Optimizer
from gpunn.optim.schedules import Schedule


class RMSprop(Optimizer):
    r"""RMSprop: steps divided by the root of the mean square of recent gradients.

    With the mean v, which starts at 0, and all operations by entry,

    .. math::

        v \leftarrow \beta v + (1 - \beta) g^2, \qquad
        \theta \leftarrow \theta - \alpha \frac{g}{\sqrt v + \epsilon}.

    If `centered`, the root is of the variance :math:`\max(v - m^2, 0)` instead, with the mean
    :math:`m \leftarrow \beta m + (1 - \beta) g`. With momentum :math:`\mu` the quotient, q, enters
    a velocity:

    .. math::

        b \leftarrow \mu b + q, \qquad \theta \leftarrow \theta - \alpha b.

    (The learning rate is outside the velocity here, and inside it in `SGD`.)

    The gradient g is that of the batch, changed by these settings in this order: each entry is
    clipped to :math:`\pm` `clip_value`; all entries are scaled so that the norm of the whole
    gradient is at most `clip_norm`; weight decay is added.

    Parameters
    ----------
    parameters : iterable of Parameter
        ``model.parameters()``, after ``model.to(...)``.
    learning_rate : float or schedule, default 0.01
        alpha, above 0; see `gpunn.schedules`.
    beta : float, default 0.99
        In [0, 1): PyTorch's alpha, Keras's rho.
    momentum : float, default 0.0
        mu, in [0, 1). Changed from 0, the velocities start at 0; changed to 0, they are dropped. In
        both cases values may move to other arrays: read ``parameter.value`` again.
    centered : bool, default False
        Whether to divide by the standard deviation. If it is assigned later, the means start at 0
        or are dropped in the same way.
    epsilon : float, default 1e-8
        Above 0.
    weight_decay : float, default 0.0
        lambda >= 0 of the L2 penalty, as in `SGD`. Biases are exempt (`Parameter.decay`).
    clip_norm : float, optional
        Above 0. The norm stays on the device.
    clip_value : float, optional
        Above 0.

    Notes
    -----
    Formula and defaults are PyTorch's; but PyTorch takes the root of a variance that rounding may
    make negative, which gives NaN where gradients do not change. Keras adds epsilon under the root,
    multiplies by the learning rate inside the velocity, and its defaults are 0.001 for the learning
    rate, 0.9 for rho and 1e-7 for epsilon. scikit-learn has no RMSprop.

    References
    ----------
    Tieleman and Hinton, "Neural networks for machine learning", lecture 6.5, Coursera 2012. Graves,
    "Generating sequences with recurrent neural networks", 2013 (centered, with momentum).

    Examples
    --------
    >>> import gpunn as gn
    >>> model = gn.Dense(2, 1, rng=0)
    >>> gn.RMSprop(model.parameters(), momentum=0.9)
    RMSprop(learning_rate=0.01, momentum=0.9)
    """

    kernel = "rmsprop"

    beta: float = checked(number, "[0, 1)")
    epsilon: float = checked(number, "(0, inf)")

    def __init__(
        self,
        parameters: Iterable[Parameter],
        learning_rate: float | Schedule = 0.01,
        *,
        beta: float = 0.99,
        momentum: float = 0.0,
        centered: bool = False,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        self.beta = beta
        self.epsilon = epsilon
        self._momentum, self._centered = self._check_settings(momentum, centered)
        super().__init__(
            parameters,
            learning_rate,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            n_states=1 + self._centered + bool(self._momentum),
        )

    @property
    def momentum(self) -> float:
        """mu; an assigned value applies from the next update on."""
        return self._momentum

    @momentum.setter
    def momentum(self, momentum: float) -> None:
        momentum, _ = self._check_settings(momentum, self._centered)
        self._set_kind(1 + self._centered, wanted=bool(momentum), present=bool(self._momentum))
        self._momentum = momentum

    @property
    def centered(self) -> bool:
        """Whether to divide by the standard deviation, from the next update on."""
        return self._centered

    @centered.setter
    def centered(self, centered: bool) -> None:
        _, centered = self._check_settings(self._momentum, centered)
        self._set_kind(1, wanted=centered, present=self._centered)
        self._centered = centered

    def _check_settings(self, momentum: float, centered: bool) -> tuple[float, bool]:  # noqa: FBT001
        name = type(self).__name__
        momentum = number(name, "momentum", momentum, "[0, 1)")
        return momentum, flag(name, "centered", centered)

    def update(
        self, xp: Namespace, value: Array, grad: Array, states: list[Array], step_size: float
    ) -> None:
        """Average g^2 in v; theta <- theta - alpha q, q = g / (sqrt(v) + epsilon), or - alpha b."""
        square, *others = states
        square *= self.beta
        square += (1.0 - self.beta) * (grad * grad)
        spread = square
        if self._centered:
            mean = others[0]
            mean *= self.beta
            mean += (1.0 - self.beta) * grad
            spread = xp.maximum(square - mean * mean, 0.0)
        grad /= xp.sqrt(spread) + self.epsilon
        if self._momentum:
            velocity = others[-1]
            velocity *= self._momentum
            velocity += grad
            grad = velocity
        value -= step_size * grad
