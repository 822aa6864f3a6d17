"""The memory of an optimizer: contiguous blocks of values, gradients and states."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of, scope_of
from gpunn.arrays.memory import entries_between
from gpunn.kernels import kernels
from gpunn.kernels.update import Slots
from gpunn.nn.parameter import Parameter


class Arena:
    """Blocks of memory for parameters, so that one kernel call updates many of them.

    There is a block for each dtype and device, or two if `separate_decaying`: one for parameters
    with weight decay and one for the others. The values move into the blocks, each parameter gets a
    buffer for its gradient, and the states are copied. If the library's slices are not views, each
    array is a block of its own.

    Parameters
    ----------
    parameters : sequence of Parameter
    states : list of list of array
        For each kind of state, one array per parameter.
    averages : list of array or None
        The running average of each parameter's value, if there is one.
    separate_decaying : bool
        Whether parameters with weight decay get separate blocks.

    Attributes
    ----------
    values, grads : list of array
        One per parameter: its value, and the buffer for its gradient.
    states : list of list of array
    averages : list of array or None
    averaged_blocks : Slots or None
        Blocks of the averages, with those of the values in place of gradients.
    decays : list of bool
        Whether weight decay applies to each parameter.
    block_decays : list of bool
        Whether weight decay applies to each block.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        states: list[list[Array]],
        averages: list[Array] | None = None,
        *,
        separate_decaying: bool,
    ) -> None:
        self.decays = [parameter.decay for parameter in parameters]
        self.block_decays: list[bool] = []
        self._block_members: list[list[int]] = []
        # Blocks of values, gradients, each kind of state, averages; and views into them by
        # parameter.
        own = [*states, *([] if averages is None else [averages])]
        blocks: list[list[Array]] = [[] for _ in range(2 + len(own))]
        views: list[dict[int, Array]] = [{} for _ in blocks]
        for (_, dtype, decays), members in _group(parameters, separate_decaying).items():
            values = [parameters[i].value for i in members]
            k = kernels(values[0])
            with scope_of(values[0]):
                kept = [[k.convert(array[i], dtype) for i in members] for array in own]
                for arrays, kind, view in zip([values, values, *kept], blocks, views, strict=True):
                    new_blocks, copies = k.copy_to_blocks(arrays)
                    kind.extend(new_blocks)
                    view.update(zip(members, copies, strict=True))
            n_blocks = len(blocks[0]) - len(self.block_decays)
            self.block_decays += [decays] * n_blocks
            self._block_members += [members] if n_blocks == 1 else [[i] for i in members]
        self._value_blocks, self._grad_blocks, *self._state_blocks = blocks
        self.values, self.grads, *self.states = (
            [view[i] for i in range(len(parameters))] for view in views
        )
        self.averages: list[Array] | None = None
        self.averaged_blocks: Slots | None = None
        if averages is not None:
            self.averages, sums = self.states.pop(), self._state_blocks.pop()
            self.averaged_blocks = Slots(sums, self._value_blocks, [], [0.0] * len(sums))
        for parameter, value, grad in zip(parameters, self.values, self.grads, strict=True):
            parameter.value = value
            parameter.set_grad_buffer(grad)

    def blocks(self, weight_decay: float) -> Slots:
        """Return the arrays of an update of all parameters, block by block."""
        decays = [weight_decay if applies else 0.0 for applies in self.block_decays]
        return Slots(self._value_blocks, self._grad_blocks, self._state_blocks, decays)

    def slots(self, weight_decay: float) -> Slots:
        """Return the arrays of an update of all parameters, one by one.

        They are the arena's own lists, the same objects in every call.
        """
        decays = [weight_decay if applies else 0.0 for applies in self.decays]
        return Slots(self.values, self.grads, self.states, decays)

    def present_slots(self, parameters: Sequence[Parameter], weight_decay: float) -> Slots:
        """Return the arrays of an update of the parameters that have a gradient, one by one."""
        held = [i for i, parameter in enumerate(parameters) if parameter.grad is not None]
        return Slots(
            [self.values[i] for i in held],
            [parameters[i].grad for i in held],
            [[state[i] for i in held] for state in self.states],
            [weight_decay if self.decays[i] else 0.0 for i in held],
        )

    def grad_blocks(self) -> list[tuple[Array, dict[int, int]]]:
        """Return each block of gradients, with the offset of each parameter's, by number.

        For libraries whose slices are views.
        """
        pairs = zip(self._grad_blocks, self._block_members, strict=True)
        return [
            (block, {i: entries_between(block, self.grads[i]) for i in members})
            for block, members in pairs
        ]

    def gather_grads(self, parameters: Sequence[Parameter], members: Iterable[int]) -> None:
        """Copy the gradients of some parameters, by number, to their buffers; zeros for none."""
        for i in members:
            parameter, place = parameters[i], self.grads[i]
            grad = parameter.grad
            if grad is place:
                continue
            with scope_of(place):
                place[...] = 0.0 if grad is None else grad
            if grad is not None:
                parameter.grad = place

    def holds_values(self, parameters: Sequence[Parameter]) -> bool:
        """Return whether the parameters' values are still the arena's."""
        pairs = zip(parameters, self.values, strict=True)
        return all(parameter.value is value for parameter, value in pairs)


def _group(
    parameters: Sequence[Parameter],
    separate_decaying: bool,  # noqa: FBT001
) -> dict[tuple[Any, Any, bool], list[int]]:
    """Return the indices of parameters that share blocks: of equal device, dtype and decay."""
    groups: dict[tuple[Any, Any, bool], list[int]] = {}
    for i, parameter in enumerate(parameters):
        decays = separate_decaying and parameter.decay
        key = backend_of(parameter.value), parameter.value.dtype, decays
        groups.setdefault(key, []).append(i)
    return groups
