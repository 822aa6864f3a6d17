"""Lion: steps of equal size for all entries, in the direction of a sign."""

from __future__ import annotations

from collections.abc import Iterable

from gpunn._typing import Array, Namespace
from gpunn.arrays.checks import number
from gpunn.arrays.settings import checked
from gpunn.nn.parameter import Parameter
from gpunn.optim.base import Optimizer
from gpunn.optim.schedules import Schedule


class Lion(Optimizer):
    r"""Lion: evolved sign momentum.

    With the mean m, which starts at 0, and all operations by entry,

    .. math::

        \theta &\leftarrow (1 - \alpha \lambda) \, \theta, \\
        \theta &\leftarrow \theta
        - \alpha \operatorname{sign}\left(\beta_1 m + (1 - \beta_1) g\right), \qquad
        m \leftarrow \beta_2 m + (1 - \beta_2) g.

    Every entry moves by alpha (or not at all, where the sign is 0), so choose alpha three to ten
    times smaller than for Adam, and weight decay larger by the same factor.

    The gradient g is that of the batch, changed by these settings in this order: each entry is
    clipped to :math:`\pm` `clip_value`; all entries are scaled so that the norm of the whole
    gradient is at most `clip_norm`.

    Parameters
    ----------
    parameters : iterable of Parameter
        ``model.parameters()``, after ``model.to(...)``.
    learning_rate : float or schedule, default 0.0001
        alpha, above 0; see `gpunn.schedules`. The decay follows it.
    beta_1, beta_2 : float, default 0.9 and 0.99
        In [0, 1).
    weight_decay : float, default 0.0
        lambda >= 0. Biases are exempt, and any other parameter whose `Parameter.decay` is false.
        There is no penalty: a history has no ``"cost"``.
    clip_norm : float, optional
        Above 0. The norm stays on the device.
    clip_value : float, optional
        Above 0.

    Notes
    -----
    Formula and defaults are those of the paper's code; PyTorch and scikit-learn have no Lion.
    Keras's has the same formula, and a default learning rate of 0.001.

    References
    ----------
    Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023.

    Examples
    --------
    >>> import gpunn as gn
    >>> model = gn.Dense(2, 1, rng=0)
    >>> gn.Lion(model.parameters(), weight_decay=0.1)
    Lion(learning_rate=0.0001, weight_decay=0.1)
    """

    kernel = "lion"
    decoupled = True

    beta_1: float = checked(number, "[0, 1)")
    beta_2: float = checked(number, "[0, 1)")

    def __init__(
        self,
        parameters: Iterable[Parameter],
        learning_rate: float | Schedule = 1e-4,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        super().__init__(
            parameters,
            learning_rate,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            n_states=1,
        )

    def update(
        self, xp: Namespace, value: Array, grad: Array, states: list[Array], step_size: float
    ) -> None:
        """Theta <- theta - alpha sign(beta_1 m + (1 - beta_1) g); average g in m."""
        (mean,) = states
        direction = self.beta_1 * mean
        direction += (1.0 - self.beta_1) * grad
        mean *= self.beta_2
        mean += (1.0 - self.beta_2) * grad
        value -= step_size * xp.sign(direction)
