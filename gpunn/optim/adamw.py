"""AdamW: Adam with weight decay decoupled from the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gpunn.nn.parameter import Parameter
from gpunn.optim.adam import Adam
from gpunn.optim.schedules import Schedule


class AdamW(Adam):
    r"""Adam with decoupled weight decay.

    With the moments m and v, which start at 0, and all operations by entry,

    .. math::

        \theta &\leftarrow (1 - \alpha \lambda) \, \theta, \\
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \\
        \theta &\leftarrow \theta - \alpha \frac{\hat m}{\sqrt{\hat v} + \epsilon}
        = \theta - \alpha_t \frac{m}{\sqrt v + \epsilon_t}, \qquad
        \hat m = \frac m {1 - \beta_1^t}, \quad \hat v = \frac v {1 - \beta_2^t}, \\
        \alpha_t &= \alpha \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}, \qquad
        \epsilon_t = \epsilon \sqrt{1 - \beta_2^t}.

    t counts the updates since the moments were 0, from 1. The decay does not pass through the
    moments, so all weights shrink at the same rate, however large their gradients are.

    The gradient g is that of the batch, changed by these settings in this order: each entry is
    clipped to :math:`\pm` `clip_value`; all entries are scaled so that the norm of the whole
    gradient is at most `clip_norm`.

    Parameters
    ----------
    parameters : iterable of Parameter
        ``model.parameters()``, after ``model.to(...)``.
    learning_rate : float or schedule, default 0.001
        alpha, above 0; see `gpunn.schedules`. The decay follows it.
    beta_1, beta_2 : float, default 0.9 and 0.999
        In [0, 1).
    epsilon : float, default 1e-8
        Above 0.
    weight_decay : float, default 0.01
        lambda >= 0. Biases are exempt, and any other parameter whose `Parameter.decay` is false.
        There is no penalty: a history has no ``"cost"``.
    clip_norm : float, optional
        Above 0. The norm stays on the device.
    clip_value : float, optional
        Above 0.

    Notes
    -----
    Formula and defaults are PyTorch's, where biases decay as well. Keras adds epsilon to the
    uncorrected root, as `Adam` does here, and its defaults are 1e-7 for epsilon and 0.004 for
    weight decay. scikit-learn has no AdamW.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019.

    Examples
    --------
    >>> import gpunn as gn
    >>> model = gn.Dense(2, 1, rng=0)
    >>> gn.AdamW(model.parameters(), weight_decay=0.1)
    AdamW(learning_rate=0.001, weight_decay=0.1)
    """

    kernel = "adam"
    decoupled = True

    def __init__(
        self,
        parameters: Iterable[Parameter],
        learning_rate: float | Schedule = 1e-3,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        super().__init__(
            parameters,
            learning_rate,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
        )

    def epsilons(self, n: int) -> list[float]:
        """Return epsilon_t of the next n updates."""
        steps = range(self.updates + 1, self.updates + n + 1)
        return [self.epsilon * math.sqrt(1.0 - self.beta_2**t) for t in steps]
