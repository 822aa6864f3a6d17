"""Adam: steps scaled by running means of the gradient and of its square."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gpunn._typing import Array, Namespace
from gpunn.arrays.checks import number
from gpunn.arrays.settings import checked
from gpunn.nn.parameter import Parameter
from gpunn.optim.base import Optimizer
from gpunn.optim.schedules import Schedule


class Adam(Optimizer):
    r"""Adam: adaptive moment estimation.

    With the moments m and v, which start at 0, and all operations by entry,

    .. math::

        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \\
        \theta &\leftarrow \theta - \alpha_t \frac{m}{\sqrt v + \epsilon}, \qquad
        \alpha_t = \alpha \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}.

    The factor of :math:`\alpha` corrects the bias of moments that start at 0; t counts the updates
    since then, from 1, and is the same for all parameters. This is the form at the end of the
    paper's section 2, and scikit-learn's. PyTorch's form, the paper's algorithm 1, also scales
    epsilon by :math:`\sqrt{1 - \beta_2^t}`, which differs where gradients are tiny.

    The gradient g is that of the batch, changed by these settings in this order: each entry is
    clipped to :math:`\pm` `clip_value`; all entries are scaled so that the norm of the whole
    gradient is at most `clip_norm`; weight decay is added.

    Parameters
    ----------
    parameters : iterable of Parameter
        ``model.parameters()``, after ``model.to(...)``.
    learning_rate : float or schedule, default 0.001
        alpha, above 0; see `gpunn.schedules`.
    beta_1, beta_2 : float, default 0.9 and 0.999
        In [0, 1).
    epsilon : float, default 1e-8
        Above 0.
    weight_decay : float, default 0.0
        lambda >= 0 of the L2 penalty :math:`\frac\lambda2 \|W\|^2`, whose gradient
        :math:`\lambda W` is added to g before the moments (coupled, as in PyTorch's Adam and
        scikit-learn's; not AdamW's form). Biases are exempt (`Parameter.decay`). A history's
        ``"loss"`` does not contain the penalty, its ``"cost"`` does.
    clip_norm : float, optional
        Above 0. The norm stays on the device.
    clip_value : float, optional
        Above 0.

    Attributes
    ----------
    updates : int
        Number of updates since the moments were 0: t - 1. (`steps` is not affected by `reset`.)

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015.

    Examples
    --------
    >>> import gpunn as gn
    >>> model = gn.Dense(2, 1, rng=0)
    >>> gn.Adam(model.parameters(), beta_2=0.99)
    Adam(learning_rate=0.001, beta_2=0.99)
    """

    kernel = "adam"

    beta_1: float = checked(number, "[0, 1)")
    beta_2: float = checked(number, "[0, 1)")
    epsilon: float = checked(number, "(0, inf)")

    def __init__(
        self,
        parameters: Iterable[Parameter],
        learning_rate: float | Schedule = 1e-3,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        super().__init__(
            parameters,
            learning_rate,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            n_states=2,
        )
        self.updates = 0

    def reset(self) -> None:
        """Clear the gradients, set both moments to 0, and restart the count of updates."""
        super().reset()
        self.updates = 0

    def update(
        self, xp: Namespace, value: Array, grad: Array, states: list[Array], step_size: float
    ) -> None:
        """Average g in m and g^2 in v; theta <- theta - alpha_t m / (sqrt(v) + epsilon)."""
        first, second = states
        first *= self.beta_1
        first += (1.0 - self.beta_1) * grad
        grad *= grad
        grad *= 1.0 - self.beta_2
        second *= self.beta_2
        second += grad
        scale = xp.sqrt(second)
        scale += self.epsilons(1)[0]
        step = step_size * first
        step /= scale
        value -= step

    def step_sizes(self, n: int) -> list[float]:
        """Return alpha_t of the next n updates."""
        rates, beta_1, beta_2 = super().step_sizes(n), self.beta_1, self.beta_2
        return [  # runs once per step, so without a function call
            rate * (math.sqrt(1.0 - beta_2**t) / (1.0 - beta_1**t))
            for t, rate in enumerate(rates, self.updates + 1)
        ]

    def count_updates(self, n: int) -> None:
        """Count n updates."""
        self.updates += n  # no call in between: an interrupt finds both counted, or neither
        self.steps += n
