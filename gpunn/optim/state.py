"""The state of an optimizer between updates, as numbers and arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpunn._typing import Array
from gpunn.arrays.checks import whole_number
from gpunn.arrays.state import (
    all_or_nothing,
    attributes_of,
    check_arrays,
    check_kind,
    check_names,
    set_attributes,
    write_arrays,
)
from gpunn.errors import StateError
from gpunn.nn.parameter import Parameter
from gpunn.optim.arena import Arena
from gpunn.optim.schedules import Schedule, load_schedule_state, schedule_state

#: Attributes that refer to memory, or are handled separately.
ELSEWHERE = frozenset(
    {"parameters", "serial", "part", "average", "parallel", "_schedule", "_places", "_arena"}
    | {"_blocks", "_separates_decaying"}
)


class Stateful:
    """The part of an optimizer that returns its state, and restores one."""

    parameters: list[Parameter]
    schedule: Schedule
    average: Any
    _arena: Arena

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer, without the weights.

        Returns
        -------
        dict
            ``"kind"`` is the class; ``"settings"`` the settings and counts; ``"schedule"`` the
            learning rate's state; ``"states"`` the arrays by ``"<parameter>.<kind>"``, both
            counted from 0; ``"average"`` the state of a `WeightAverage`, or None. The arrays are
            the optimizer's own: copy or write them before the next update.

        Raises
        ------
        StateError
            If a subclass has an attribute that is not a number, and does not define its state.
        """
        return {
            "kind": type(self).__name__,
            "settings": attributes_of(self, known=ELSEWHERE),
            "schedule": schedule_state(self.schedule),
            "states": self._named_states(),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state, on the device where the parameters are.

        This includes the settings, but not the parameters' values.

        Raises
        ------
        StateError
            If the state is from an optimizer of another class, or of other parameters. Nothing has
            changed then.
        """
        name = type(self).__name__
        check_kind(name, self, state)
        check_names(name, state, ("kind", "settings", "schedule", "states", "average"))
        check_names(name, state["settings"], attributes_of(self, known=ELSEWHERE))
        if (state["average"] is None) != (self.average is None):
            has, lacks = ("the state has", "this optimizer has")[:: 1 if state["average"] else -1]
            raise StateError(
                f"{name}.load_state_dict: {has} a WeightAverage and {lacks} none; both must have "
                "one, or neither"
            )
        with all_or_nothing(self):
            self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        """Restore a state of this class."""
        whole_number(type(self).__name__, "steps", state["settings"]["steps"], 0)
        set_attributes(self, state["settings"])
        load_schedule_state(self.schedule, state["schedule"])
        held = self._named_states()
        check_arrays(type(self).__name__, state["states"], held)
        write_arrays(state["states"], held)
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _named_states(self) -> dict[str, Array]:
        kinds = enumerate(self._arena.states)
        return {f"{i}.{kind}": x for kind, arrays in kinds for i, x in enumerate(arrays)}
