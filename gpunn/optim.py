"""Stochastic gradient descent."""

from __future__ import annotations

import math
from collections.abc import Iterable

from gpunn._typing import Array
from gpunn.backend import backend_of, scope_of
from gpunn.errors import DeviceError, SettingError
from gpunn.kernels import kernels
from gpunn.memory import size_of
from gpunn.parameter import Parameter
from gpunn.schedules import Constant, Schedule, as_schedule


class Optimizer:
    """What all optimizers share: the parameters, the learning rate and the count of updates.

    Parameters
    ----------
    parameters : iterable of Parameter
        What to update; ``model.parameters()``. The optimizer keeps arrays beside them, on the
        same device: move the model first, then build the optimizer.
    learning_rate : float or schedule
        alpha; a number above 0, or a function of the number of updates made so far (see
        `gpunn.schedules`).
    """

    def __init__(self, parameters: Iterable[Parameter], learning_rate: float | Schedule) -> None:
        name = type(self).__name__
        if hasattr(parameters, "parameters"):
            raise SettingError(f"{name}: got a model; pass its parameters, model.parameters()")
        self.parameters = list(parameters)
        for i, parameter in enumerate(self.parameters):
            if not isinstance(parameter, Parameter):
                raise SettingError(
                    f"{name}: expected model.parameters(), got {type(parameter).__name__} "
                    f"at position {i}"
                )
        if not self.parameters:
            raise SettingError(f"{name}: there is nothing to train; pass model.parameters()")
        if len({id(parameter) for parameter in self.parameters}) != len(self.parameters):
            raise SettingError(f"{name}: a parameter was given twice")
        self.schedule = as_schedule(learning_rate)
        self.steps = 0
        self._places = [backend_of(parameter.value) for parameter in self.parameters]
        self._values = [parameter.value for parameter in self.parameters]

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update."""
        return float(self.schedule(self.steps))

    def step(self) -> None:
        """Update every parameter that has a gradient, in place, and clear the gradients.

        The next backward pass starts from none. To add up the gradients of several batches, run
        backward for each of them before one `step`.
        """
        held = []
        for i, parameter in enumerate(self.parameters):
            if parameter.value is not self._values[i]:
                self.check_places()  # somebody gave it a new array
            if parameter.grad is not None:
                held.append(i)
        if held:
            self._update(held)
        for parameter in self.parameters:
            parameter.grad = None
        self.steps += 1

    def penalty(self) -> Array | None:
        """Return what weight decay adds to the cost, 0-d on the device; None without any."""
        return None

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def reset(self) -> None:
        """Forget the gradients, and what has been kept of earlier ones."""
        self.clear()

    def state_bytes(self) -> int:
        """Return the size of what is kept beside the parameters, in bytes."""
        return 0

    def check_places(self) -> None:
        """Check that no parameter has moved since the optimizer was built.

        Raises
        ------
        DeviceError
            If one has.
        """
        for parameter, place in zip(self.parameters, self._places, strict=True):
            now = backend_of(parameter.value)
            if now != place:
                raise DeviceError(
                    f"{type(self).__name__} was built when the parameters were on {place}, and "
                    f"they are on {now} now; build the optimizer after model.to({str(now)!r})"
                )
        self._values = [parameter.value for parameter in self.parameters]

    def _update(self, held: list[int]) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define _update(held)")


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
        super().__init__(parameters, learning_rate)
        if not 0 <= momentum < 1:
            raise SettingError(f"SGD: momentum must be in [0, 1), got {momentum!r}")
        if nesterov and not momentum:
            raise SettingError("SGD: nesterov=True needs momentum above 0")
        if not 0 <= weight_decay < math.inf:
            raise SettingError(f"SGD: weight_decay must be at least 0, got {weight_decay!r}")
        for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if limit is not None and not 0 < limit < math.inf:
                raise SettingError(f"SGD: {name} must be above 0 or None, got {limit!r}")
        self.momentum = float(momentum)
        self.nesterov = bool(nesterov)
        self.weight_decay = float(weight_decay)
        self.clip_norm = None if clip_norm is None else float(clip_norm)
        self.clip_value = None if clip_value is None else float(clip_value)
        self._decays = [self.weight_decay if p.decay else 0.0 for p in self.parameters]
        self._velocities: list[Array] = [_zeros_like(p.value) for p in self.parameters if momentum]

    def reset(self) -> None:
        """Forget the gradients, and set the velocities to zero."""
        super().reset()
        for velocity in self._velocities:
            with scope_of(velocity):
                velocity[...] = 0.0

    def state_bytes(self) -> int:
        """Return the size of the velocities, in bytes."""
        return sum(size_of(velocity) for velocity in self._velocities)

    def penalty(self) -> Array | None:
        r"""Return :math:`\frac\lambda2 \|W\|^2`, 0-d on the device; None without weight decay."""
        values = [p.value for p in self.parameters if p.decay]
        if not self.weight_decay or not values:
            return None
        with scope_of(values[0]):
            xp = kernels(values[0]).xp
            return 0.5 * self.weight_decay * sum(xp.sum(value * value) for value in values)

    def _update(self, held: list[int]) -> None:
        parameters = [self.parameters[i] for i in held]
        first = parameters[0].value
        kernels(first).sgd(
            [p.value for p in parameters],
            [p.grad for p in parameters],
            [self._velocities[i] for i in held] if self._velocities else [],
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            decays=[self._decays[i] for i in held],
            clip_norm=self.clip_norm,
            clip_value=self.clip_value,
        )

    def __repr__(self) -> str:
        """Return the optimizer's settings."""
        constant = type(self.schedule) is Constant
        shown = {"learning_rate": self.learning_rate if constant else self.schedule}
        defaults = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
        defaults |= {"clip_norm": None, "clip_value": None}  # type: ignore[dict-item]
        shown |= {k: getattr(self, k) for k, d in defaults.items() if getattr(self, k) != d}
        return f"SGD({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _zeros_like(x: Array) -> Array:
    with scope_of(x):
        return kernels(x).xp.zeros_like(x)
