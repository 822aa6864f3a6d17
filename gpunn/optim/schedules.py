"""Learning-rate schedules: functions of the number of updates so far.

The unit is the update (step), the optimizer's own count. For epochs, multiply by the loader's
length: ``Cosine(0.1, steps=30 * len(loader))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from inspect import signature
from numbers import Real
from typing import Any, TypeAlias

from gpunn.arrays.checks import is_whole, number, shown, whole_number
from gpunn.arrays.state import attributes_of, check_kind, check_names, set_attributes
from gpunn.errors import SettingError, StateError
from gpunn.optim.patience import Patience

#: A function from the number of updates so far to the learning rate of the next update.
Schedule: TypeAlias = Callable[[int], float]


class Constant:
    r"""A constant learning rate, :math:`\alpha(t) = \alpha`.

    Parameters
    ----------
    learning_rate : float
        alpha, above 0.
    """

    def __init__(self, learning_rate: float) -> None:
        name = type(self).__name__
        self.learning_rate = number(name, "learning_rate", learning_rate, "(0, inf)")

    def __call__(self, step: int) -> float:  # noqa: ARG002
        """Return the learning rate of update `step`, counted from 0."""
        return self.learning_rate

    def state_dict(self) -> dict[str, Any]:
        """Return the settings, and anything observed, by name."""
        return _own_state(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        _load_own_state(self, state)

    def __repr__(self) -> str:
        """Return the expression that creates this schedule."""
        given = ", ".join(
            f"{name}={value!r}" for name, value in vars(self).items() if name[0] != "_"
        )
        return f"{type(self).__name__}({given})"


class StepDecay(Constant):
    r"""A drop every few updates, :math:`\alpha(t) = \alpha f^{\lfloor t / k \rfloor}`.

    Parameters
    ----------
    learning_rate : float
        alpha, above 0.
    every : int
        k, the number of updates between drops, at least 1.
    factor : float, default 0.1
        f, in (0, 1].
    """

    def __init__(self, learning_rate: float, *, every: int, factor: float = 0.1) -> None:
        super().__init__(learning_rate)
        self.every = whole_number(type(self).__name__, "every", every)
        self.factor = number(type(self).__name__, "factor", factor, "(0, 1]")

    def __call__(self, step: int) -> float:
        """Return the learning rate of update `step`, counted from 0."""
        return self.learning_rate * float(self.factor ** (step // self.every))


class ExponentialDecay(Constant):
    r"""A steady decay, :math:`\alpha(t) = \alpha f^{t / T}`.

    Parameters
    ----------
    learning_rate : float
        alpha, above 0.
    factor : float
        f, in (0, 1]: T updates multiply the learning rate by it.
    steps : int, default 1
        T, at least 1.
    """

    def __init__(self, learning_rate: float, *, factor: float, steps: int = 1) -> None:
        super().__init__(learning_rate)
        self.factor = number(type(self).__name__, "factor", factor, "(0, 1]")
        self.steps = whole_number(type(self).__name__, "steps", steps)

    def __call__(self, step: int) -> float:
        """Return the learning rate of update `step`, counted from 0."""
        return self.learning_rate * float(self.factor ** (step / self.steps))


class Cosine(Constant):
    r"""Half a cosine, from alpha down to `final`; then constant.

    .. math:: \alpha(t) = f + \frac{\alpha - f}{2} (1 + \cos(\pi \min(t / T, 1)))

    Parameters
    ----------
    learning_rate : float
        alpha, above 0.
    steps : int
        T, the number of updates to reach `final`, at least 1.
    final : float, default 0.0
        f, in [0, alpha].

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017.
    """

    def __init__(self, learning_rate: float, *, steps: int, final: float = 0.0) -> None:
        super().__init__(learning_rate)
        self.steps = whole_number(type(self).__name__, "steps", steps)
        self.final = number(type(self).__name__, "final", final, f"[0, {self.learning_rate}]")

    def __call__(self, step: int) -> float:
        """Return the learning rate of update `step`, counted from 0."""
        progress = min(step / self.steps, 1.0)
        return self.final + 0.5 * (self.learning_rate - self.final) * (
            1.0 + math.cos(math.pi * progress)
        )


class WarmUp:
    r"""Rise linearly over the first updates, then follow another schedule.

    With :math:`\alpha_1` the schedule that follows, :math:`\alpha(t) = \alpha_1(0)\, (t + 1) / T`
    for t < T, then :math:`\alpha_1(t - T)`.

    Parameters
    ----------
    steps : int
        T, the number of updates until the full learning rate, at least 1.
    after : float or schedule
        The schedule that follows; a number stands for a constant one.

    References
    ----------
    Goyal et al., "Accurate, large minibatch SGD", arXiv:1706.02677, 2017.
    """

    def __init__(self, steps: int, after: float | Schedule) -> None:
        self.steps = whole_number("WarmUp", "steps", steps)
        self.after = as_schedule("WarmUp", "after", after)

    def __call__(self, step: int) -> float:
        """Return the learning rate of update `step`, counted from 0."""
        if step < self.steps:
            return self.after(0) * (step + 1) / self.steps
        return self.after(step - self.steps)

    def observe(self, loss: float) -> None:
        """Pass an epoch's loss on to the schedule that follows."""
        observe(self.after, loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the settings, and the state of the schedule that follows."""
        return _own_state(self, "after") | {"after": schedule_state(self.after)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        rest = dict(state)
        load_schedule_state(self.after, rest.pop("after", {}))
        _load_own_state(self, rest, "after")

    def __repr__(self) -> str:
        """Return the expression that creates this schedule."""
        return f"WarmUp({self.steps}, {self.after!r})"


class ReduceOnPlateau(Constant):
    """Multiply the learning rate by `factor` when the loss has stopped falling.

    After each epoch the trainer reports the number that early stopping monitors; without early
    stopping, the validation loss if there is one, or else the training loss. A metric for which
    higher is better is reported with its sign reversed. In a loop of your own, call `observe`.

    Parameters
    ----------
    learning_rate : float
        The initial learning rate, above 0.
    factor : float, default 0.5
        In (0, 1).
    patience : int, default 5
        Number of epochs without improvement before a drop, at least 1.
    tolerance : float, default 1e-4
        By how much a loss must be below the best one to count as an improvement, at least 0.
    minimum : float, default 0.0
        A lower bound on the learning rate.
    """

    def __init__(
        self,
        learning_rate: float,
        *,
        factor: float = 0.5,
        patience: int = 5,
        tolerance: float = 1e-4,
        minimum: float = 0.0,
    ) -> None:
        super().__init__(learning_rate)
        name = type(self).__name__
        self.factor = number(name, "factor", factor, "(0, 1)")
        self.patience = whole_number(name, "patience", patience)
        self.tolerance = number(name, "tolerance", tolerance, "[0, inf)")
        self.minimum = number(name, "minimum", minimum, f"[0, {self.learning_rate}]")
        self._so_far = Patience()

    def observe(self, loss: float) -> None:
        """Record an epoch's loss, or any other number that should fall."""
        if not isinstance(loss, Real) and getattr(loss, "ndim", None) != 0:
            raise SettingError(
                f"{type(self).__name__}.observe: loss must be a number, got {shown(loss)}"
            )
        self._so_far.observe(loss, self.tolerance)
        if self._so_far.waited >= self.patience:
            self.learning_rate = max(self.learning_rate * self.factor, self.minimum)
            self._so_far.waited = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the settings, the best loss, and the number of epochs since then."""
        counted = {"best": self._so_far.best, "waited": self._so_far.waited}
        return _own_state(self, "_so_far") | counted

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state."""
        rest = dict(state)
        check_names(type(self).__name__, rest, self.state_dict())
        best, waited = rest.pop("best"), rest.pop("waited")
        if not isinstance(best, float) or math.isnan(best) or not is_whole(waited) or waited < 0:
            raise StateError(
                f"{type(self).__name__}.load_state_dict: best must be a number and waited a whole "
                f"number of at least 0, got {shown(best)} and {shown(waited)}"
            )
        so_far = Patience(best, waited)
        _load_own_state(self, rest, "_so_far")
        self._so_far = so_far


def schedule_state(schedule: Schedule) -> dict[str, Any]:
    """Return the state of a schedule; for a plain function, only that it is one."""
    own = getattr(schedule, "state_dict", None)
    return dict(own()) if own is not None else _own_state(schedule)


def load_schedule_state(schedule: Schedule, state: Any) -> None:
    """Restore the state of a schedule."""
    own = getattr(schedule, "load_state_dict", None)
    if own is not None:
        own(state)
    else:
        _load_own_state(schedule, state)


def _own_state(schedule: Any, *known: str) -> dict[str, Any]:
    """Return the class and the plain attributes of a schedule, except those in `known`."""
    return {"kind": type(schedule).__name__, **attributes_of(schedule, known=known)}


def _load_own_state(schedule: Any, state: Any, *known: str) -> None:
    """Set the attributes that `_own_state` returned."""
    check_kind("Schedule", schedule, state)
    check_names(type(schedule).__name__, state, _own_state(schedule, *known))
    if type(schedule).__module__ == __name__:  # attributes of other classes have no known range
        _check_ranges(schedule, state)
    set_attributes(schedule, {k: value for k, value in state.items() if k != "kind"})


def _check_ranges(schedule: Any, state: Mapping[str, Any]) -> None:
    """Check the settings in a state as the constructor does."""
    kind = type(schedule)
    settings = {
        name: state.get(name, getattr(schedule, name)) for name in signature(kind).parameters
    }
    try:
        kind(**settings)
    except SettingError as error:
        raise StateError(f"{kind.__name__}.load_state_dict: {error}") from error


def observe(schedule: Schedule, loss: float) -> None:
    """Report an epoch's loss to a schedule, if it has a method `observe`.

    For a number that should rise, pass its negative.
    """
    method = getattr(schedule, "observe", None)
    if method is not None:
        method(loss)


def as_schedule(owner: str, name: str, value: Any) -> Schedule:
    """Return a schedule unchanged, and a number as a constant schedule.

    Raises
    ------
    SettingError
        If it is neither. The error names `owner`, whose setting it is.
    """
    if isinstance(value, type):
        kind = value.__name__
        raise SettingError(f"{owner}: {name} is the class {kind}; pass an instance, {kind}(...)")
    return value if callable(value) else Constant(number(owner, name, value, "(0, inf)"))
