"""The base class of optimizers: parameters, settings and the count of updates."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, ClassVar

from gpunn._typing import Array, Namespace
from gpunn.arrays.backend import scope_of
from gpunn.arrays.checks import optional_number, shown
from gpunn.arrays.settings import checked
from gpunn.errors import SettingError
from gpunn.kernels import kernels
from gpunn.kernels.declared import Declaration, declare
from gpunn.kernels.update import Slots, Update
from gpunn.nn.parameter import Parameter
from gpunn.optim.holder import ParameterHolder
from gpunn.optim.parameters import check_grads
from gpunn.optim.schedules import Constant, Schedule, as_schedule
from gpunn.optim.state import Stateful


class Optimizer(ParameterHolder, Stateful):
    """The base class of optimizers.

    A subclass defines `update`: how parameters change, given a gradient g. The gradient is that of
    the batch, changed by these settings in this order: each entry is clipped to +-`clip_value`; all
    entries are scaled so that the norm of the whole gradient is at most `clip_norm`; weight decay
    is added.

    Building an optimizer moves the values into one contiguous block of memory, and reserves another
    for their gradients, so that a network is updated like a single array (see `gpunn.optim.arena`).
    So read ``parameter.value`` again afterwards.

    The settings, from the learning rate on, may be assigned later. They are then checked in the
    same way, and apply from the next update on.

    Parameters
    ----------
    parameters : iterable of Parameter
        The parameters to update: ``model.parameters()``. The states are on the same device, so move
        the model before building the optimizer.
    learning_rate : float or schedule
        alpha; a number above 0, or a function of the number of updates made so far (see
        `gpunn.schedules`).
    weight_decay : float, default 0.0
        lambda >= 0 of the L2 penalty, for the parameters whose `decay` is true.
    clip_norm, clip_value : float, optional
        Above 0.
    n_states : int, default 0
        The number of arrays kept for each parameter between updates, each of its shape.
    """

    #: The fused kernel that implements `update`. Not inherited: each class body names its own.
    kernel: ClassVar[str | None] = None
    #: Whether steps with it can be recorded. Not inherited.
    records: ClassVar[bool] = False
    #: Whether weight decay is subtracted from the values, rather than added to their gradients.
    decoupled: ClassVar[bool] = False
    _declared: ClassVar[Declaration]

    #: The function from the number of updates to the learning rate.
    schedule: Schedule = checked(as_schedule)
    clip_norm: float | None = checked(optional_number, "(0, inf)")
    clip_value: float | None = checked(optional_number, "(0, inf)")
    #: The number added to the divisor in rules that divide.
    epsilon: float = 0.0

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
        self.steps = 0
        self._separates_decaying = self.decoupled  # also in steps that are not recorded
        super().__init__(parameters, weight_decay, n_states)

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update.

        An assigned number stays fixed; an assigned schedule continues from the number of updates.
        """
        return self._rate(self.steps)

    @learning_rate.setter
    def learning_rate(self, learning_rate: float | Schedule) -> None:
        self.schedule = as_schedule(type(self).__name__, "learning_rate", learning_rate)

    def step(self) -> None:
        """Update every parameter that has a gradient, in place, and clear the gradients.

        To sum the gradients of several batches, run backward for each of them before one `step`.
        """
        if self.parallel is not None:
            self.parallel.check_averaged()
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
        if self.average is not None:
            self.average.follow(self.averaged())
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

        A subclass defines it with functions of the array API standard, `xp`. `step_size` is the
        next of `step_sizes`: alpha, unless the subclass overrides that as well.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update")

    def step_sizes(self, n: int) -> list[float]:
        """Return the factors of the next n steps: the learning rates."""
        return self.learning_rates(n)

    def epsilons(self, n: int) -> list[float]:
        """Return the numbers that the next n steps add to divisors, in rules that divide."""
        return [self.epsilon] * n

    def learning_rates(self, n: int) -> list[float]:
        """Return the learning rates of the next n steps."""
        if type(self.schedule) is Constant:
            return [self.schedule.learning_rate] * n
        return [self._rate(step) for step in range(self.steps, self.steps + n)]

    def _rate(self, step: int) -> float:
        """Return the learning rate of a step; the schedule may return an array scalar."""
        rate = self.schedule(step)
        if not isinstance(rate, Real) and getattr(rate, "shape", None) != ():
            raise SettingError(
                f"{type(self).__name__}: learning_rate, if it is a function, must return a number, "
                f"got {shown(rate)} for step {step}"
            )
        return float(rate)

    def numbers(self, decays: Sequence[float]) -> tuple[Sequence[float], ...]:
        """Return the numbers that change from step to step, for steps of given weight decays.

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

    def update_by(self, present: Array, slots: Slots | None = None, copies: Any = None) -> None:
        """Update as `step` does, but with numbers on the device, for captured steps.

        Gradients are kept, and updates are not counted. Only for optimizers with a fused kernel.

        Parameters
        ----------
        present : array (3,)
            The next of `numbers`.
        slots : Slots, optional
            Other arrays to update.
        copies : WeightCopies, optional
            Copies of the values, which most kernels write as well.
        """
        if slots is None:
            arena, pairs = self._arena, zip(self.parameters, self._arena.grads, strict=True)
            in_place = all(parameter.grad is grad for parameter, grad in pairs)
            slots = arena.blocks(1.0) if in_place else arena.present_slots(self.parameters, 1.0)
            averaged = None if self.average is None else self.averaged()
        else:
            averaged = Slots(slots.values, slots.grads, [], [0.0] * len(slots.values))
        clips, decoupled = (self.clip_norm, self.clip_value), self.decoupled
        update = Update(slots, 0.0, *clips, decoupled=decoupled, present=present, copies=copies)
        kernels(slots.values[0]).update(self, update)
        if self.average is not None:
            self.average.follow(averaged)

    def count_updates(self, n: int) -> None:
        """Count n updates."""
        self.steps += n

    def penalty(self) -> Array | None:
        r"""Return :math:`\frac\lambda2 \|W\|^2`, 0-d on the device; None without weight decay.

        Decoupled decay is not the gradient of a penalty: None.
        """
        if not self.weight_decay or self.decoupled:
            return None
        squares = self.sum_of_squares()
        if squares is None:
            return None
        with scope_of(squares):
            return 0.5 * self.weight_decay * squares

    def _update(self, slots: Slots) -> None:
        """Update these arrays by one call of a kernel."""
        (step_size,), (factor,), (epsilon,) = self.numbers([1.0])
        clips = self.clip_norm, self.clip_value
        update = Update(slots, step_size, *clips, epsilon, factor, self.decoupled)
        kernels(slots.values[0]).update(self, update)

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
