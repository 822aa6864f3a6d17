"""Stochastic gradient descent."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from gpunn._typing import Array
from gpunn.backend import backend_of, scope_of
from gpunn.errors import DeviceError, SettingError
from gpunn.kernels import kernels
from gpunn.memory import size_of
from gpunn.parameter import Parameter
from gpunn.schedules import Constant, Schedule, as_schedule


class Slots(NamedTuple):
    """What an update reads and writes: lists of arrays of the same lengths.

    Attributes
    ----------
    values, grads : list of array
        theta and g; the latter are used up.
    states : list of list of array
        What is kept from one update to the next: a list for each kind, such as the velocities.
    decays : list of float
        Weight decay's lambda; 0 where it does not apply.
    """

    values: list[Array]
    grads: list[Array]
    states: list[list[Array]]
    decays: list[float]


class Optimizer:
    """What all optimizers share: the parameters, the learning rate and the count of updates.

    Where the library of the arrays knows views, building an optimizer moves the values side by
    side into one block of memory, and makes room for their gradients in another: the update of a
    network is then the update of one array. So read ``parameter.value`` anew afterwards.

    Parameters
    ----------
    parameters : iterable of Parameter
        What to update; ``model.parameters()``. The optimizer keeps arrays beside them, on the
        same device: move the model first, then build the optimizer.
    learning_rate : float or schedule
        alpha; a number above 0, or a function of the number of updates made so far (see
        `gpunn.schedules`).
    weight_decay : float, default 0.0
        lambda >= 0 of the L2 penalty, for the parameters whose `decay` is true.
    n_states : int, default 0
        How many arrays of the shape of each parameter are kept from one update to the next.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        learning_rate: float | Schedule,
        *,
        weight_decay: float = 0.0,
        n_states: int = 0,
    ) -> None:
        name = type(self).__name__
        if not 0 <= weight_decay < math.inf:
            raise SettingError(f"{name}: weight_decay must be at least 0, got {weight_decay!r}")
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
        self.weight_decay = float(weight_decay)
        self.steps = 0
        self._places = [backend_of(parameter.value) for parameter in self.parameters]
        zeros = [[_zeros_like(p.value) for p in self.parameters] for _ in range(n_states)]
        self._lay_out(zeros)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update."""
        return float(self.schedule(self.steps))

    def step(self) -> None:
        """Update every parameter that has a gradient, in place, and clear the gradients.

        The next backward pass starts from none. To add up the gradients of several batches, run
        backward for each of them before one `step`.
        """
        slots: Slots | None = self._blocks
        for parameter, value, room in zip(self.parameters, self._values, self._rooms, strict=True):
            if parameter.value is not value:  # somebody gave it a new array
                self.check_places()
                self._lay_out(self._states)
                slots = None
                break
            if parameter.grad is not room:
                slots = None
        slots = slots or self._separate()
        if slots.values:
            self._update(slots)
        for parameter in self.parameters:
            parameter.grad = None
        self.steps += 1

    def penalty(self) -> Array | None:
        r"""Return :math:`\frac\lambda2 \|W\|^2`, 0-d on the device; None without weight decay."""
        values = [p.value for p in self.parameters if p.decay]
        if not self.weight_decay or not values:
            return None
        with scope_of(values[0]):
            xp = kernels(values[0]).xp
            return 0.5 * self.weight_decay * sum(xp.sum(value * value) for value in values)

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def reset(self) -> None:
        """Forget the gradients, and what has been kept of earlier ones."""
        self.clear()
        for state in self._states:
            for x in state:
                with scope_of(x):
                    x[...] = 0.0

    def state_bytes(self) -> int:
        """Return the size of what is kept beside the parameters, in bytes."""
        return sum(size_of(x) for state in self._states for x in state)

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

    def _update(self, slots: Slots) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define _update(slots)")

    def _decay(self, parameter: Parameter) -> float:
        return self.weight_decay if parameter.decay else 0.0

    def _separate(self) -> Slots:
        """Return the parameters that have a gradient, each for itself."""
        held = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        return Slots(
            [self._values[i] for i in held],
            [self.parameters[i].grad for i in held],
            [[state[i] for i in held] for state in self._states],
            [self._decay(self.parameters[i]) for i in held],
        )

    def _lay_out(self, states: list[list[Array]]) -> None:
        """Put the values, the room for gradients, and each kind of state, side by side in memory.

        `self._blocks` is what an update of all parameters works on; the other lists are views of
        it, one a parameter.
        """
        alike: dict[Any, list[int]] = {}
        for i, (parameter, place) in enumerate(zip(self.parameters, self._places, strict=True)):
            kind = (place, parameter.value.dtype, self._decay(parameter))
            alike.setdefault(kind, []).append(i)
        views: list[dict[int, Array]] = [{} for _ in range(2 + len(states))]
        blocks: list[list[Array]] = [[] for _ in views]
        decays: list[float] = []
        for (_, dtype, decay), members in alike.items():
            values = [self.parameters[i].value for i in members]
            k = kernels(values[0])
            with scope_of(values[0]):
                kept = [[k.convert(state[i], dtype) for i in members] for state in states]
                for arrays, own, view in zip([values, values, *kept], blocks, views, strict=True):
                    whole, parts = k.lay_out(arrays)
                    own.extend(whole)
                    view.update(zip(members, parts, strict=True))
            decays += [decay] * (len(blocks[0]) - len(decays))
        self._blocks = Slots(blocks[0], blocks[1], blocks[2:], decays)
        self._values, self._rooms, *self._states = (
            [view[i] for i in range(len(self.parameters))] for view in views
        )
        for parameter, value, room in zip(self.parameters, self._values, self._rooms, strict=True):
            parameter.value = value
            parameter.give_room(room)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is kept in a pickle, where arrays are no longer views of others."""
        return {k: v for k, v in vars(self).items() if k not in ("_blocks", "_values", "_rooms")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what a pickle has kept."""
        vars(self).update(state)
        self._lay_out(self._states)


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
        for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value)):
            if limit is not None and not 0 < limit < math.inf:
                raise SettingError(f"SGD: {name} must be above 0 or None, got {limit!r}")
        super().__init__(
            parameters, learning_rate, weight_decay=weight_decay, n_states=1 if momentum else 0
        )
        self.momentum = float(momentum)
        self.nesterov = bool(nesterov)
        self.clip_norm = None if clip_norm is None else float(clip_norm)
        self.clip_value = None if clip_value is None else float(clip_value)

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
