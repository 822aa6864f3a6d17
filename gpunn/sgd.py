"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable

from gpunn.errors import SettingError
from gpunn.kernels import kernels
from gpunn.optim import Optimizer, Slots
from gpunn.parameter import Parameter
from gpunn.schedules import Schedule


class SGD(Optimizer):
    r"""Stochastic gradient descent, :math:`\theta \leftarrow \theta - \alpha \nabla J(\theta)`.

    With momentum :math:`\mu`,

    .. math:: v \leftarrow \mu v - \alpha g, \qquad \theta \leftarrow \theta + v,

    and with Nesterov's look-ahead :math:`\theta \leftarrow \theta + \mu v - \alpha g` for the new
    v. The learning rate is inside v (as in scikit-learn; in PyTorch it is outside, which differs
    when the rate changes).

    The gradient g is that of the batch; then, in this order and if asked for: each entry clipped
    to :math:`\pm` `clip_value`; all entries scaled down together so that the norm of the whole
    gradient is at most `clip_norm`; weight decay added.

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
        scikit-learn's SGD; not AdamW's form). Biases are left out (`Parameter.decay`). A
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
        if not 0 <= momentum < 1:
            raise SettingError(f"SGD: momentum must be in [0, 1), got {momentum!r}")
        if nesterov and not momentum:
            raise SettingError("SGD: nesterov=True needs momentum above 0")
        super().__init__(
            parameters,
            learning_rate,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            clip_value=clip_value,
            n_states=1 if momentum else 0,
        )
        self.momentum = float(momentum)
        self.nesterov = bool(nesterov)

    def _update(self, slots: Slots) -> None:
        kernels(slots.values[0]).sgd(
            slots.values,
            slots.grads,
            slots.states[0] if self.momentum else [],
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            decays=slots.decays,
            clip_norm=self.clip_norm,
            clip_value=self.clip_value,
        )
