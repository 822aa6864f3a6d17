"""What an optimizer is: it updates parameters from their gradients, all at once."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Set
from itertools import compress
from typing import Any, ClassVar, TypeVar

from gpunn._typing import Array, Namespace
from gpunn.arrays.backend import Backend, backend_of, get_backend, scope_of
from gpunn.arrays.checks import number, optional_number, whole_number
from gpunn.arrays.facts import size_of
from gpunn.arrays.settings import checked
from gpunn.errors import DeviceError, SettingError
from gpunn.kernels import kernels
from gpunn.kernels.declared import Declaration, declare
from gpunn.kernels.update import Slots, Update
from gpunn.nn.parameter import Parameter
from gpunn.optim.schedules import Constant, Schedule, as_schedule

_Self = TypeVar("_Self", bound="Optimizer")


class Optimizer:
    """What all optimizers share: the parameters, the settings of g and the count of updates.

    A subclass defines `update`: what it makes of g. That is the gradient of the batch; then, in
    this order and if asked for: each entry clipped to +-`clip_value`; all entries scaled down
    together so that the norm of the whole gradient is at most `clip_norm`; weight decay added.

    Where the library of the arrays knows views, building an optimizer moves the values side by
    side into one block of memory, and makes room for their gradients in another: the update of a
    network is then the update of one array. So read ``parameter.value`` anew afterwards.

    The settings, from the learning rate on, may be set later as attributes; they are checked then,
    too, and hold from the next update on.

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
    clip_norm, clip_value : float, optional
        Above 0.
    n_states : int, default 0
        How many arrays of the shape of each parameter are kept from one update to the next.
    """

    #: The fused kernel that serves `update`; a subclass says so in its own body, or has none.
    kernel: ClassVar[str | None] = None
    #: Whether steps with it can be recorded; likewise.
    records: ClassVar[bool] = False
    _declared: ClassVar[Declaration]

    #: What part of a model it trains; `gpunn.training.freezing` keeps it here from step to step.
    part: Any = None
    #: The function from the number of updates to the learning rate.
    schedule: Schedule = checked(as_schedule)
    clip_norm: float | None = checked(optional_number, "(0, inf)")
    clip_value: float | None = checked(optional_number, "(0, inf)")

    #: Whether what decays lies apart, even while the weight decay is 0.
    _apart: bool = False
    _blocks: Slots
    _states: list[list[Array]]

    def __init_subclass__(cls, **settings: Any) -> None:
        """Note which rule the kernel stands for, if the class names one."""
        super().__init_subclass__(**settings)
        cls._declared = declare(cls, ("update",))

    def __init__(
        self,
        parameters: Iterable[Parameter],
        learning_rate: float | Schedule,
        *,
        weight_decay: float = 0.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        n_states: int = 0,
    ) -> None:
        self.learning_rate = learning_rate
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.parameters = _as_list(type(self).__name__, parameters)
        self._weight_decay = self._checked_decay(weight_decay)
        self.steps = 0
        self._places = [backend_of(parameter.value) for parameter in self.parameters]
        self._keep(whole_number(type(self).__name__, "n_states", n_states, 0))

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update.

        A number that is set here stays; a schedule goes on with the count of all updates.
        """
        return float(self.schedule(self.steps))

    @learning_rate.setter
    def learning_rate(self, learning_rate: float | Schedule) -> None:
        self.schedule = as_schedule(type(self).__name__, "learning_rate", learning_rate)

    @property
    def weight_decay(self) -> float:
        """lambda; one that is set here applies from the next update on.

        Where it was 0, what decays may move into a block of its own: read ``parameter.value`` anew.
        """
        return self._weight_decay

    @weight_decay.setter
    def weight_decay(self, weight_decay: float) -> None:
        decay = self._checked_decay(weight_decay)
        if decay and not any(self._decaying):
            self.check_places()
            self._weight_decay = decay
            self._lay_out(self._states)
        else:
            self._weight_decay = decay
            self._blocks.decays[:] = self._decays(self._decaying)

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
        if slots.values:
            self.count_updates(1)
        else:
            self.steps += 1

    def update(
        self, xp: Namespace, value: Array, grad: Array, states: list[Array], step_size: float
    ) -> None:
        """Update a value and what is kept beside it, in place; the gradient g is used up.

        What a subclass defines, in the functions of the standard, `xp`. `step_size` is the next of
        `step_sizes`: alpha, if the subclass does not say otherwise.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update")

    def step_sizes(self, n: int) -> list[float]:
        """Return what multiplies the next n steps: the learning rates."""
        if type(self.schedule) is Constant:
            return [self.schedule.learning_rate] * n
        return [float(self.schedule(step)) for step in range(self.steps, self.steps + n)]

    def slots(self) -> Slots | None:
        """Return what belongs to each parameter, for compiled training.

        The gradients are the places that they would go to, and the decays are 1 where weight decay
        applies, whatever it is. None if a parameter has a gradient already, or an array that it was
        given later. Follow it by `count_updates`.
        """
        pairs = zip(self.parameters, self._values, strict=True)
        if any(
            parameter.value is not value or parameter.grad is not None for parameter, value in pairs
        ):
            return None
        decays = [float(applies) for applies in self._decay_applies]
        return Slots(self._values, self._rooms, self._states, decays)

    def blocks(self) -> Slots:
        """Return what `slots` does, block by block: each holds the arrays of many parameters.

        What decays lies apart only if anything decays, or after `lay_decaying_apart`.
        """
        values, grads, states, _ = self._blocks
        return Slots(values, grads, states, [float(decays) for decays in self._decaying])

    def lay_decaying_apart(self) -> None:
        """Put what weight decay applies to into blocks of its own, though there may be none yet."""
        if not self._apart:
            self._apart = True
            if not any(self._decaying):
                self.check_places()
                self._lay_out(self._states)

    def count_updates(self, n: int) -> None:
        """Count n updates."""
        self.steps += n

    def penalty(self) -> Array | None:
        r"""Return :math:`\frac\lambda2 \|W\|^2`, 0-d on the device; None without weight decay."""
        if not self.weight_decay:
            return None
        pairs = zip(self.parameters, self._values, strict=True)
        if all(parameter.value is value for parameter, value in pairs):
            values = list(compress(self._blocks.values, self._decaying))
        else:  # somebody gave one a new array
            values = [parameter.value for parameter in self.parameters if parameter.decay]
        if not values:
            return None
        with scope_of(values[0]):
            return 0.5 * self.weight_decay * kernels(values[0]).sum_of_squares(values)

    def clear(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def reset(self) -> None:
        """Forget the gradients, and what has been kept of earlier ones.

        The blocks are made anew: what lies between the arrays in them may have become NaN.
        """
        self.clear()
        self._lay_out([[_zeros_like(x) for x in state] for state in self._states])

    def state_bytes(self) -> int:
        """Return the size of what is kept beside the parameters, in bytes."""
        return sum(size_of(x) for state in self._states for x in state)

    def to(self: _Self, backend: str | Backend) -> _Self:
        """Move the parameters and all that is kept beside them; return the optimizer itself.

        Parameters
        ----------
        backend : str or Backend
            Where to, as for `get_backend`. Values arrive bit for bit, and training goes on there.
        """
        target = get_backend(backend)
        for parameter in self.parameters:
            parameter.move(target)
        self._places = [target] * len(self.parameters)
        self._lay_out([[target.asarray(x) for x in state] for state in self._states])
        return self

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
                    f"they are on {now} now; build the optimizer after model.to({str(now)!r}), or "
                    f"move both with optimizer.to({str(now)!r})"
                )

    def _keep(self, n_states: int) -> None:
        """Keep so many arrays for each parameter from one update to the next; they start at 0."""
        self._lay_out([[_zeros_like(p.value) for p in self.parameters] for _ in range(n_states)])

    def _update(self, slots: Slots) -> None:
        """Update these arrays, by one kernel call where there is one."""
        (step_size,) = self.step_sizes(1)
        update = Update(slots, step_size, self.clip_norm, self.clip_value)
        kernels(slots.values[0]).update(self, update)

    def _checked_decay(self, weight_decay: float) -> float:
        return number(type(self).__name__, "weight_decay", weight_decay, "[0, inf)")

    def _decays(self, decaying: Iterable[bool]) -> list[float]:
        """Return the weight decay of arrays, of which it is known whether it applies to them."""
        return [self._weight_decay if decays else 0.0 for decays in decaying]

    def _separate(self) -> Slots:
        """Return the parameters that have a gradient, each for itself."""
        held = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        return Slots(
            [self._values[i] for i in held],
            [self.parameters[i].grad for i in held],
            [[state[i] for i in held] for state in self._states],
            self._decays(self._decay_applies[i] for i in held),
        )

    def _lay_out(self, states: list[list[Array]]) -> None:
        """Put the values, the room for gradients, and each kind of state, side by side in memory.

        `self._blocks` is what an update of all parameters works on; the other lists are views of
        it, one a parameter. What decays lies apart from what does not, if anything decays now.
        """
        self._decay_applies = [parameter.decay for parameter in self.parameters]
        alike: dict[Any, list[int]] = {}
        for i, (parameter, place) in enumerate(zip(self.parameters, self._places, strict=True)):
            decays = (self._apart or bool(self._weight_decay)) and parameter.decay
            kind = (place, parameter.value.dtype, decays)
            alike.setdefault(kind, []).append(i)
        views: list[dict[int, Array]] = [{} for _ in range(2 + len(states))]
        blocks: list[list[Array]] = [[] for _ in views]
        self._decaying: list[bool] = []
        for (_, dtype, decays), members in alike.items():
            values = [self.parameters[i].value for i in members]
            k = kernels(values[0])
            with scope_of(values[0]):
                kept = [[k.convert(state[i], dtype) for i in members] for state in states]
                for arrays, own, view in zip([values, values, *kept], blocks, views, strict=True):
                    whole, parts = k.lay_out(arrays)
                    own.extend(whole)
                    view.update(zip(members, parts, strict=True))
            self._decaying += [decays] * (len(blocks[0]) - len(self._decaying))
        self._blocks = Slots(blocks[0], blocks[1], blocks[2:], self._decays(self._decaying))
        self._values, self._rooms, *self._states = (
            [view[i] for i in range(len(self.parameters))] for view in views
        )
        for parameter, value, room in zip(self.parameters, self._values, self._rooms, strict=True):
            parameter.value = value
            parameter.give_room(room)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is kept in a pickle, where arrays are no longer views of others."""
        views = ("_blocks", "_decaying", "_values", "_rooms", "part")
        return {k: v for k, v in vars(self).items() if k not in views}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what a pickle has kept."""
        vars(self).update(state)
        self._lay_out(self._states)

    def __repr__(self) -> str:
        """Return the learning rate, and the settings that are not the defaults."""
        constant = type(self.schedule) is Constant
        shown: dict[str, Any] = {"learning_rate": self.learning_rate if constant else self.schedule}
        for name, setting in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, setting.default)
            if setting.kind is setting.KEYWORD_ONLY and value != setting.default:
                shown[name] = value
        settings = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        return f"{type(self).__name__}({settings})"


def _as_list(owner: str, parameters: Any) -> list[Parameter]:
    """Return the parameters, if that is what they are."""
    if isinstance(parameters, Parameter):
        raise SettingError(f"{owner}: got a Parameter; pass a list, [parameter]")
    if hasattr(parameters, "parameters"):
        raise SettingError(f"{owner}: got a model; pass its parameters, model.parameters()")
    if isinstance(parameters, Mapping):
        kind = type(parameters).__name__
        raise SettingError(f"{owner}: got a {kind}; pass its values, or model.parameters()")
    if isinstance(parameters, Set):
        kind = type(parameters).__name__
        raise SettingError(f"{owner}: parameters must be in an order, got {kind}; pass a list")
    if not isinstance(parameters, Iterable):
        kind = type(parameters).__name__
        raise SettingError(f"{owner}: expected model.parameters(), got {kind}")
    listed = list(parameters)
    for i, parameter in enumerate(listed):
        if not isinstance(parameter, Parameter):
            kind = type(parameter).__name__
            raise SettingError(f"{owner}: expected model.parameters(), got {kind} at position {i}")
    if not listed:
        raise SettingError(f"{owner}: there is nothing to train; pass model.parameters()")
    if len({id(parameter) for parameter in listed}) != len(listed):
        raise SettingError(f"{owner}: a parameter was given twice")
    return listed


def _zeros_like(x: Array) -> Array:
    with scope_of(x):
        return kernels(x).xp.zeros_like(x)
