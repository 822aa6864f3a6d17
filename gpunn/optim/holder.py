"""An optimizer's parameters, and the arrays it keeps beside them, in blocks of memory."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import compress
from typing import Any, TypeVar

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, backend_of, get_backend, scope_of
from gpunn.arrays.capacity import memory_for
from gpunn.arrays.checks import number, whole_number
from gpunn.arrays.facts import size_of
from gpunn.arrays.portable import Portable, nearest
from gpunn.errors import DeviceError
from gpunn.kernels import kernels
from gpunn.kernels.update import Slots
from gpunn.nn.parameter import Parameter, all_or_none, next_serial
from gpunn.optim.arena import Arena
from gpunn.optim.parameters import as_list, check_alike

_Self = TypeVar("_Self", bound="ParameterHolder")


#: The largest number of arrays that an optimizer keeps for each parameter.
_MOST_STATES = 99


class ParameterHolder:
    """The base class of `Optimizer`: where parameters and states are, and which of them decay.

    Parameters
    ----------
    parameters : iterable of Parameter
    weight_decay : float
        lambda >= 0.
    n_states : int
        The number of arrays kept for each parameter, each of its shape.
    """

    #: The part of a model that the optimizer trains, cached here by `gpunn.training.freezing`.
    part: Any = None
    #: Whether parameters with weight decay have separate blocks even while it is 0.
    _separates_decaying: bool = False
    #: The `gpunn.optim.average.WeightAverage` of the weights, if there is one.
    average: Any = None
    #: The `gpunn.distributed.data_parallel.DataParallel` that sums the gradients over processes, if
    #: there are several.
    parallel: Any = None
    _arena: Arena
    _blocks: Slots

    def __init__(self, parameters: Iterable[Parameter], weight_decay: float, n_states: int) -> None:
        name = type(self).__name__
        self.parameters = as_list(name, parameters)
        self._weight_decay = self._checked_decay(weight_decay)
        #: The order in which it was built, relative to parameters.
        self.serial = next_serial()
        self._places = [backend_of(parameter.value) for parameter in self.parameters]
        check_alike(name, self._places)
        self._allocate_states(whole_number(name, "n_states", n_states, 0, _MOST_STATES))

    @property
    def weight_decay(self) -> float:
        """lambda; an assigned value applies from the next update on.

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

    def slots(self) -> Slots | None:
        """Return the arrays of each parameter, for recorded steps; None if they are not in place.

        The gradients are the buffers that will hold them. The decays are 1 where weight decay
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
        """Return the same arrays as `slots`, in blocks that each hold many parameters.

        While weight decay is 0, a block may mix parameters that it applies to with others, unless
        `separate_decaying` was called.
        """
        return self._arena.blocks(1.0)

    def grad_blocks(self) -> list[tuple[Array, dict[int, int]]]:
        """Return the blocks of gradients, with offsets; see `Arena.grad_blocks`."""
        return self._arena.grad_blocks()

    def gather_grads(self, members: Iterable[int]) -> None:
        """Copy the gradients of some parameters, by number, to their blocks; zeros for none."""
        self._arena.gather_grads(self.parameters, members)

    def has_in_place(self, members: Iterable[int]) -> bool:
        """Return whether the gradients of some parameters are in their blocks."""
        return all(self.parameters[i].grad is self._arena.grads[i] for i in members)

    def take_grads(self, members: Iterable[int]) -> None:
        """Set the gradients of some parameters to those in their blocks."""
        for i in members:
            self.parameters[i].grad = self._arena.grads[i]

    def separate_decaying(self) -> None:
        """Give parameters with weight decay separate blocks, even while it is 0."""
        if self._separates_decaying:
            return
        if not any(self._arena.block_decays):
            self.check_places()
            self._lay_out(self._states, separate=True)
        self._separates_decaying = True

    def sum_of_squares(self) -> Array | None:
        """Return the sum of squares of decaying parameters, 0-d on the device; None without any."""
        if self._arena.holds_values(self.parameters):
            values = list(compress(self._blocks.values, self._arena.block_decays))
        else:  # the user has assigned a new array
            values = [parameter.value for parameter in self.parameters if parameter.decay]
        if not values:
            return None
        with scope_of(values[0]):
            return kernels(values[0]).sum_of_squares(values)

    def clear(self) -> None:
        """Clear the gradients; abandon their sum over processes if it has begun."""
        if self.parallel is not None:
            self.parallel.abandon()
        for parameter in self.parameters:
            parameter.grad = None

    def reset(self) -> None:
        """Clear the gradients, set the states to their initial values, and restart an average.

        The memory is laid out again, because gaps between arrays may contain NaN by now.
        """
        self.clear()
        self._lay_out([[self._initial(x) for x in state] for state in self._states])
        if self.average is not None:
            self.average.restart()

    def initial_state(self) -> float:
        """Return the initial value of all entries of the states."""
        return 0.0

    def state_bytes(self) -> int:
        """Return the size of the states and of the average, if any, in bytes."""
        return sum(size_of(x) for kind in (*self._states, self.averages()) for x in kind)

    def averages(self) -> list[Array]:
        """Return the sums of the average, one per parameter; empty without an average."""
        return self._arena.averages or []

    def averaged(self, *, in_blocks: bool = True) -> Slots:
        """Return the sums of the average as values, and the weights as gradients.

        Empty without an average.
        """
        arena = self._arena
        if arena.averaged_blocks is None or arena.averages is None:
            return Slots([], [], [], [])
        if in_blocks:
            return arena.averaged_blocks
        return Slots(arena.averages, arena.values, [], [0.0] * len(arena.values))

    def clear_averages(self) -> None:
        """Set the sums of the average to 0."""
        for block in self.averaged().values:
            with scope_of(block):
                block[...] = 0.0

    def keep_average(self, average: Any) -> None:
        """Keep the sums of an average, starting at 0."""
        self.check_places()
        sums = [_zeros_like(parameter.value) for parameter in self.parameters]
        self._lay_out(self._states, averages=sums)
        self.average = average

    def to(self: _Self, backend: str | Backend) -> _Self:
        """Move the parameters and the states; return the optimizer itself.

        Buffers, such as the statistics of `BatchNorm`, are the model's: call ``model.to(...)`` as
        well.

        Parameters
        ----------
        backend : str or Backend
            The target, as for `get_backend`. Values arrive bit for bit, and training continues
            there.

        Raises
        ------
        DeviceMemoryError
            If there is too little memory; parameters and states are then unchanged.
        """
        target = get_backend(backend)
        owner = f"{type(self).__name__}.to"
        advice = "free other memory on the device"
        with all_or_none(self.parameters), memory_for(owner, target, advice):
            for parameter in self.parameters:
                parameter.move(target)
            states, averages = (
                [[target.asarray(x) for x in kind] for kind in kinds]
                for kinds in (self._states, [self.averages()])
            )
            self._lay_out(states, averages=averages[0] if self.average is not None else None)
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
                    f"{type(self).__name__} was built when the parameters were on {place}, and now "
                    f"they are on {now}; build the optimizer after model.to({str(now)!r}), or "
                    f"move both with optimizer.to({str(now)!r})"
                )

    def _allocate_states(self, n_states: int) -> None:
        """Keep `n_states` arrays for each parameter between updates, with initial values."""
        place = self._places[0]
        assert place is not None  # noqa: S101 (parameters hold arrays)
        advice = "use a smaller model, or free other memory on the device"
        with memory_for(f"{type(self).__name__}, of its blocks", place, advice):
            self._lay_out(
                [[self._initial(p.value) for p in self.parameters] for _ in range(n_states)]
            )

    def _set_kind(self, i: int, *, wanted: bool, present: bool) -> None:
        """Add or drop the states of kind number i; keep those of all other kinds."""
        if wanted == present:
            return
        self.check_places()
        more = [[self._initial(p.value) for p in self.parameters]] * wanted
        states = self._states
        self._lay_out([*states[:i], *more, *states[i + present :]])

    def _initial(self, x: Array) -> Array:
        """Return the initial state for a value like x."""
        with scope_of(x):
            return kernels(x).xp.full_like(x, self.initial_state())

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
        averages: list[Array] | None = None,
    ) -> None:
        """Move the parameters, and copies of these states and averages, into a new arena.

        A new weight decay applies from here on; without `averages`, the current ones are copied. If
        there is too little memory, nothing changes.
        """
        if averages is None and self.average is not None:
            averages = self.averages()
        decay = self._weight_decay if weight_decay is None else weight_decay
        separate = separate or self._separates_decaying or bool(decay)
        self._arena = Arena(self.parameters, states, averages, separate_decaying=separate)
        self._weight_decay = decay
        self._blocks = self._arena.blocks(decay)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a pickle, without the blocks, since pickling breaks views."""
        blocks = ("_arena", "_blocks", "part")
        state = {name: value for name, value in vars(self).items() if name not in blocks}
        kinds = self._states if self.average is None else [*self._states, self.averages()]
        return state | {"_states": [[Portable(x) for x in kind] for kind in kinds]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state from a pickle, and lay out the memory again."""
        vars(self).update({name: value for name, value in state.items() if name != "_states"})
        self.serial = next_serial()
        self._places = [nearest(str(place)) for place in self._places]
        parameters, states = self.parameters, state["_states"]
        kinds = [
            [_beside(p, x.array) for p, x in zip(parameters, kept, strict=True)] for kept in states
        ]
        averages = None if self.average is None else kinds.pop()
        self._lay_out(kinds, averages=averages)


def _beside(parameter: Parameter, x: Array) -> Array:
    """Return x on the parameter's device, which may have changed without the optimizer."""
    place = backend_of(parameter.value)
    assert place is not None  # noqa: S101 (parameters hold arrays)
    return place.asarray(x)


def _zeros_like(x: Array) -> Array:
    with scope_of(x):
        return kernels(x).xp.zeros_like(x)
