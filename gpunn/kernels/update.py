"""What an update of parameters reads and writes, in one record."""

from __future__ import annotations

from typing import NamedTuple

from gpunn._typing import Array


class Slots(NamedTuple):
    """The arrays of an update: item i of each list belongs to parameter, or block, i.

    Attributes
    ----------
    values, grads : list of array
        theta and its gradient; an update may overwrite the gradients.
    states : list of list of array
        What an optimizer keeps between updates: one list for each kind, such as the velocities.
    decays : list of float
        The weight decay lambda; 0 for parameters that it does not apply to.
    """

    values: list[Array]
    grads: list[Array]
    states: list[list[Array]]
    decays: list[float]


class Update(NamedTuple):
    """The arrays and numbers of an update.

    Attributes
    ----------
    slots : Slots
    step_size : float
        The factor of the step: alpha, or alpha_t for Adam.
    clip_norm, clip_value : float or None
        Limits for the norm of all gradients and for each entry; entries are clipped first.
    """

    slots: Slots
    step_size: float
    clip_norm: float | None
    clip_value: float | None
