"""What an update of parameters reads and writes: one record, made once and passed whole."""

from __future__ import annotations

from typing import NamedTuple

from gpunn._typing import Array


class Slots(NamedTuple):
    """Arrays that belong together, in lists of the same length.

    Attributes
    ----------
    values, grads : list of array
        theta and g; an update uses the gradients up.
    states : list of list of array
        What is kept from one update to the next: a list for each kind, such as the velocities.
    decays : list of float
        Weight decay's lambda; 0 where it does not apply.
    """

    values: list[Array]
    grads: list[Array]
    states: list[list[Array]]
    decays: list[float]


class Update(NamedTuple):
    """An update: its arrays and its numbers.

    Attributes
    ----------
    slots : Slots
    step_size : float
        What multiplies the step: alpha, or for Adam alpha_t.
    clip_norm, clip_value : float or None
        Limits of the gradient's norm, and before that of each of its entries.
    """

    slots: Slots
    step_size: float
    clip_norm: float | None
    clip_value: float | None
