"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable

from gpunn._typing import Array, Namespace
from gpunn.arrays.checks import flag, number
from gpunn.errors import SettingError
from gpunn.nn.parameter import Parameter
from gpunn.optim.base import Optimizer
from gpunn.optim.schedules import Schedule


class SGD(Optimizer):
    r"""Stochastic gradient descent, :math:`\theta \leftarrow \theta - \alpha \nabla J(\theta)`.

    With momentum :math:`\mu`,

    .. math:: v \leftarrow \mu v - \alpha g, \qquad \theta \leftarrow \theta + v,

    and with Nesterov's look-ahead :math:`\theta \leftarrow \theta + \mu v - \alpha g` for the new
    v. The learning rate is inside v (as in scikit-learn; in PyTorch it is outside, which makes a
    difference when the rate changes).

    The gradient g is that of the batch, changed by these settings in this order: each entry is
    clipped to :math:`\pm` `clip_value`; all entries are scaled so that the norm of the whole
    gradient is at most `clip_norm`; weight decay is added.

    Parameters
    ----------
    parameters : iterable of Parameter
        ``model.parameters()``, after ``model.to(...)``.
    learning_rate : float or schedule, default 0.01
        alpha, above 0; see `gpunn.schedules`.
    momentum : float, default 0.0
        mu, in [0, 1).
    nesterov : bool, default False
        Whether to look ahead; needs momentum.
    weight_decay : float, default 0.0
        lambda >= 0 of the L2 penalty :math:`\frac\lambda2 \|W\|^2`, whose gradient
        :math:`\lambda W` is added to g before momentum (coupled, as in PyTorch's and
        scikit-learn's SGD; not AdamW's form). Biases are exempt (`Parameter.decay`). A
        history's ``"loss"`` does not contain the penalty, its ``"cost"`` does.
    clip_norm : float, optional
        Above 0. The norm stays on the device.
    clip_value : float, optional
        Above 0.

    References
    ----------
    Sutskever et al., "On the importance of initialization and momentum in deep learning",
    ICML 2013.

    Examples
    --------
    >>> import gpunn as gn
    >>> model = gn.Dense(2, 1, rng=0)
    >>> gn.SGD(model.parameters(), learning_rate=0.1, momentum=0.9)
    SGD(learning_rate=0.1, momentum=0.9)
    """

    kernel = "sgd"

    def __init__(
        self,
        parameters: Iterable[Parameter],
        learning_rate: float | Schedule = 0.01,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        self._momentum, self._nesterov = self._check_settings(momentum, nesterov)
        super().__init__(
            parameters,
            learning_rate,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            n_states=1 if self._momentum else 0,
        )

    @property
    def momentum(self) -> float:
        """mu; an assigned value applies from the next update on.

        If it was 0, the velocities start at 0; if it becomes 0, they are dropped. In both cases
        values may move to other arrays: read ``parameter.value`` again.
        """
        return self._momentum

    @momentum.setter
    def momentum(self, momentum: float) -> None:
        momentum, _ = self._check_settings(momentum, self._nesterov)
        if bool(momentum) != bool(self._momentum):
            self.check_places()
            self._allocate_states(1 if momentum else 0)
        self._momentum = momentum

    @property
    def nesterov(self) -> bool:
        """Whether to look ahead, from the next update on."""
        return self._nesterov

    @nesterov.setter
    def nesterov(self, nesterov: bool) -> None:
        _, self._nesterov = self._check_settings(self._momentum, nesterov)

    def _check_settings(self, momentum: float, nesterov: bool) -> tuple[float, bool]:  # noqa: FBT001
        name = type(self).__name__
        momentum = number(name, "momentum", momentum, "[0, 1)")
        nesterov = flag(name, "nesterov", nesterov)
        if nesterov and not momentum:
            raise SettingError(f"{name}: nesterov=True needs momentum above 0")
        return momentum, nesterov

    def update(
        self,
        xp: Namespace,  # noqa: ARG002
        value: Array,
        grad: Array,
        states: list[Array],
        step_size: float,
    ) -> None:
        """V <- mu v - alpha g; theta <- theta + v, with look-ahead theta + mu v - alpha g."""
        grad *= step_size
        if not states:
            value -= grad
            return
        (velocity,) = states
        velocity *= self._momentum
        velocity -= grad
        value += self._momentum * velocity - grad if self._nesterov else velocity
