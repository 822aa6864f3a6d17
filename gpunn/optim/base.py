"""The base of the optimizers: parameters, settings and the count of updates."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any, ClassVar, TypeVar

from gpunn._typing import Array, Namespace
from gpunn.arrays.backend import Backend, backend_of, get_backend, scope_of
from gpunn.arrays.capacity import memory_for
from gpunn.arrays.checks import number, optional_number, whole_number
from gpunn.arrays.facts import size_of
from gpunn.arrays.portable import Portable, nearest
from gpunn.arrays.settings import checked
from gpunn.errors import DeviceError
from gpunn.kernels import kernels
from gpunn.kernels.declared import Declaration, declare
from gpunn.kernels.update import Slots, Update
from gpunn.nn.parameter import Parameter, all_or_none, next_serial
from gpunn.optim.arena import Arena
from gpunn.optim.parameters import as_list, check_alike, check_grads
from gpunn.optim.schedules import Constant, Schedule, as_schedule

_Self = TypeVar("_Self", bound="Optimizer")


class Optimizer:
    """The base of the optimizers.

    A subclass defines `update`: how parameters change, given a gradient g. That is the gradient of
    the batch, changed by these settings in this order: each entry is clipped to +-`clip_value`; all
    entries are scaled so that the norm of the whole gradient is at most `clip_norm`; weight decay
    is added.

    Building an optimizer moves the values side by side into one block of memory, and reserves
    another block for their gradients, so that a network is updated like a single array (see
    `gpunn.optim.arena`). So read ``parameter.value`` again afterwards.

    The settings, from the learning rate on, may be assigned later. They are checked then, too, and
    apply from the next update on.

    Parameters
    ----------
    parameters : iterable of Parameter
        What to update: ``model.parameters()``. The states are on the same device, so move the
        model before building the optimizer.
    learning_rate : float or schedule
        alpha; a number above 0, or a function of the number of updates made so far (see
        `gpunn.schedules`).
    weight_decay : float, default 0.0
        lambda >= 0 of the L2 penalty, for the parameters whose `decay` is true.
    clip_norm, clip_value : float, optional
        Above 0.
    n_states : int, default 0
        How many arrays are kept for each parameter between updates, each of its shape.
    """

    #: The fused kernel that serves `update`. Not inherited: each class body names its own.
    kernel: ClassVar[str | None] = None
    #: Whether steps with it can be recorded. Not inherited, either.
    records: ClassVar[bool] = False
    #: Whether weight decay is taken from the values, and not added to their gradients.
    decoupled: ClassVar[bool] = False
    _declared: ClassVar[Declaration]

    #: The part of a model that it trains, cached here by `gpunn.training.freezing`.
    part: Any = None
    #: The function from the number of updates to the learning rate.
    schedule: Schedule = checked(as_schedule)
    clip_norm: float | None = checked(optional_number, "(0, inf)")
    clip_value: float | None = checked(optional_number, "(0, inf)")
    #: What rules that divide add to the divisor.
    epsilon: float = 0.0

    #: Whether parameters with weight decay have blocks of their own even while it is 0.
    _separates_decaying: bool = False
    _arena: Arena
    _blocks: Slots

    def __init_subclass__(cls, **settings: Any) -> None:
        """Note the declarations of the class; see `gpunn.kernels.declared`."""
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
        self.parameters = as_list(type(self).__name__, parameters)
        self._weight_decay = self._checked_decay(weight_decay)
        self.steps = 0
        #: When it was built, relative to parameters.
        self.serial = next_serial()
        self._places = [backend_of(parameter.value) for parameter in self.parameters]
        check_alike(type(self).__name__, self._places)
        self._keep(whole_number(type(self).__name__, "n_states", n_states, 0))

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update.

        An assigned number stays; an assigned schedule continues with the count of all updates.
        """
        return float(self.schedule(self.steps))

    @learning_rate.setter
    def learning_rate(self, learning_rate: float | Schedule) -> None:
        self.schedule = as_schedule(type(self).__name__, "learning_rate", learning_rate)

    @property
    def weight_decay(self) -> float:
        """lambda; an assigned one applies from the next update on.

        If it was 0, values may move to other arrays: read ``parameter.value`` again.
        """
        return self._weight_decay

    @weight_decay.setter
    def weight_decay(self, weight_decay: float) -> None:
        decay = self._checked_decay(weight_decay)
        if decay == self._weight_decay:
            return
        if decay and not any(self._arena.block_decays):
            self.check_places()
            self._lay_out(self._states, decay)
        else:
            self._weight_decay = decay
            self._blocks = self._arena.blocks(decay)

    def step(self) -> None:
        """Update every parameter that has a gradient, in place, and clear the gradients.

        To sum the gradients of several batches, run backward for each of them before one `step`.
        """
        slots: Slots | None = self._blocks
        arena = self._arena
        for parameter, value, grad in zip(self.parameters, arena.values, arena.grads, strict=True):
            if parameter.value is not value:  # the user has assigned a new array
                self.check_places()
                self._lay_out(self._states)
                slots = None
                break
            if parameter.grad is not grad:
                slots = None
        if slots is None:
            check_grads(type(self).__name__, self.parameters, self._places)
            slots = self._arena.present_slots(self.parameters, self._weight_decay)
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
        """Update a value and its states in place; the gradient g may be overwritten.

        A subclass defines it, in the functions of the standard, `xp`. `step_size` is the next of
        `step_sizes`: alpha, unless the subclass overrides that, too.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update")

    def step_sizes(self, n: int) -> list[float]:
        """Return the factors of the next n steps: the learning rates."""
        return self.learning_rates(n)

    def epsilons(self, n: int) -> list[float]:
        """Return what the next n steps add to the divisors of rules that divide."""
        return [self.epsilon] * n

    def learning_rates(self, n: int) -> list[float]:
        """Return the learning rates of the next n steps."""
        if type(self.schedule) is Constant:
            return [self.schedule.learning_rate] * n
        return [float(self.schedule(step)) for step in range(self.steps, self.steps + n)]

    def numbers(self, decays: Sequence[float]) -> tuple[Sequence[float], ...]:
        """Return what changes from step to step, for the next steps, given their weight decays.

        Returns
        -------
        tuple of three sequences of float
            The step sizes, the decays (times the learning rates if decoupled) and the epsilons.
        """
        n = len(decays)
        if self.decoupled:
            rates = self.learning_rates(n)
            decays = [rate * decay for rate, decay in zip(rates, decays, strict=True)]
        return self.step_sizes(n), decays, self.epsilons(n)

    def slots(self) -> Slots | None:
        """Return the arrays of each parameter, for recorded steps; None if they are not in place.

        The gradients are the places where they will be written. The decays are 1 where weight decay
        applies, and 0 elsewhere. After updating these arrays, call `count_updates`.

        Returns
        -------
        Slots or None
            None if a parameter already has a gradient, or was assigned another array.
        """
        if any(parameter.grad is not None for parameter in self.parameters):
            return None
        return self._arena.slots(1.0) if self._arena.holds_values(self.parameters) else None

    def blocks(self) -> Slots:
        """Return the same arrays as `slots`, as blocks, each of which holds many parameters.

        Without weight decay a block may hold parameters to which it applies together with others,
        unless `separate_decaying` was called.
        """
        return self._arena.blocks(1.0)

    def separate_decaying(self) -> None:
        """Give parameters with weight decay blocks of their own, even while it is 0."""
        if self._separates_decaying:
            return
        if not any(self._arena.block_decays):
            self.check_places()
            self._lay_out(self._states, separate=True)
        self._separates_decaying = True

    def update_by(self, present: Array, slots: Slots | None = None, copies: Any = None) -> None:
        """Update as `step` does, by numbers on the device, for a step that is captured.

        Gradients stay, and nothing is counted. Only optimizers with a fused kernel can do it.

        Parameters
        ----------
        present : array (3,)
            The next of `numbers`.
        slots : Slots, optional
            Other arrays to update.
        copies : WeightCopies, optional
            Copies of the values; most kernels write them, too.
        """
        if slots is None:
            arena, pairs = self._arena, zip(self.parameters, self._arena.grads, strict=True)
            in_place = all(parameter.grad is grad for parameter, grad in pairs)
            slots = arena.blocks(1.0) if in_place else arena.present_slots(self.parameters, 1.0)
        clips, decoupled = (self.clip_norm, self.clip_value), self.decoupled
        update = Update(slots, 0.0, *clips, decoupled=decoupled, present=present, copies=copies)
        kernels(slots.values[0]).update(self, update)

    def count_updates(self, n: int) -> None:
        """Count n updates."""
        self.steps += n

    def penalty(self) -> Array | None:
        r"""Return :math:`\frac\lambda2 \|W\|^2`, 0-d on the device; None without weight decay.

        Decoupled decay is no gradient of a penalty, so it has none.
        """
        if not self.weight_decay or self.decoupled:
            return None
        squares = self.sum_of_squares()
        if squares is None:
            return None
        with scope_of(squares):
            return 0.5 * self.weight_decay * squares

    def sum_of_squares(self) -> Array | None:
        """Return the sum of squares of what decays, 0-d on the device; None if nothing does."""
        if self._arena.holds_values(self.parameters):
            values = list(compress(self._blocks.values, self._arena.block_decays))
        else:  # the user has assigned a new array
            values = [parameter.value for parameter in self.parameters if parameter.decay]
        if not values:
            return None
        with scope_of(values[0]):
            return kernels(values[0]).sum_of_squares(values)

    def clear(self) -> None:
        """Clear the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def reset(self) -> None:
        """Clear the gradients, and set the states to 0.

        The memory is laid out again, because the gaps between arrays may have become NaN.
        """
        self.clear()
        self._lay_out([[_zeros_like(x) for x in state] for state in self._states])

    def state_bytes(self) -> int:
        """Return the size of the states, in bytes."""
        return sum(size_of(x) for state in self._states for x in state)

    def to(self: _Self, backend: str | Backend) -> _Self:
        """Move the parameters and the states; return the optimizer itself.

        Parameters
        ----------
        backend : str or Backend
            Where to, as for `get_backend`. Values arrive bit for bit, and training goes on there.

        Raises
        ------
        DeviceMemoryError
            If there is too little memory; parameters and states are where they were.
        """
        target = get_backend(backend)
        speaker = f"{type(self).__name__}.to"
        with all_or_none(self.parameters), memory_for(speaker, target, "free what else is there"):
            for parameter in self.parameters:
                parameter.move(target)
            self._lay_out([[target.asarray(x) for x in state] for state in self._states])
        self._places = [target] * len(self.parameters)
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
        """Keep `n_states` arrays for each parameter between updates; they start at 0."""
        place = self._places[0]
        assert place is not None  # noqa: S101 (parameters hold arrays)
        advice = "take a smaller model, or free what else is there"
        with memory_for(f"{type(self).__name__}, of its blocks", place, advice):
            self._lay_out(
                [[_zeros_like(p.value) for p in self.parameters] for _ in range(n_states)]
            )

    def _update(self, slots: Slots) -> None:
        """Update these arrays by one call of a kernel."""
        (step_size,), (factor,), (epsilon,) = self.numbers([1.0])
        clips = self.clip_norm, self.clip_value
        update = Update(slots, step_size, *clips, epsilon, factor, self.decoupled)
        kernels(slots.values[0]).update(self, update)

    def _checked_decay(self, weight_decay: float) -> float:
        return number(type(self).__name__, "weight_decay", weight_decay, "[0, inf)")

    @property
    def _states(self) -> list[list[Array]]:
        return self._arena.states

    def _lay_out(
        self,
        states: list[list[Array]],
        weight_decay: float | None = None,
        *,
        separate: bool = False,
    ) -> None:
        """Move the parameters, and copies of these states, into a new arena.

        A new weight decay counts from here on. If the memory does not suffice, nothing changes.
        """
        decay = self._weight_decay if weight_decay is None else weight_decay
        separate = separate or self._separates_decaying or bool(decay)
        self._arena = Arena(self.parameters, states, separate_decaying=separate)
        self._weight_decay = decay
        self._blocks = self._arena.blocks(decay)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a pickle: without the blocks, since views do not survive it."""
        blocks = ("_arena", "_blocks", "part")
        state = {name: value for name, value in vars(self).items() if name not in blocks}
        return state | {"_states": [[Portable(x) for x in state] for state in self._states]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state from a pickle, and lay out the memory again."""
        vars(self).update({name: value for name, value in state.items() if name != "_states"})
        self.serial = next_serial()
        self._places = [nearest(str(place)) for place in self._places]
        parameters, states = self.parameters, state["_states"]
        self._lay_out(
            [
                [_beside(p, x.array) for p, x in zip(parameters, kept, strict=True)]
                for kept in states
            ]
        )

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


def _beside(parameter: Parameter, x: Array) -> Array:
    """Return x on the parameter's device; it may have moved without the optimizer."""
    place = backend_of(parameter.value)
    assert place is not None  # noqa: S101 (parameters hold arrays)
    return place.asarray(x)


def _zeros_like(x: Array) -> Array:
    with scope_of(x):
        return kernels(x).xp.zeros_like(x)
