"""What an update of parameters reads and writes, in one record."""

from __future__ import annotations

from typing import Any, NamedTuple

from gpunn._typing import Array


class _Arrays(NamedTuple):
    values: list[Array]
    grads: list[Array]
    states: list[list[Array]]
    decays: list[float]


class Slots(_Arrays):
    """The arrays of an update: item i of each list belongs to parameter, or block, i.

    Attributes
    ----------
    values, grads : list of array
        theta and its gradient; an update may overwrite the gradients.
    states : list of list of array
        What an optimizer keeps between updates: one list for each kind, such as the velocities.
    decays : list of float
        The weight decay lambda; 0 for parameters that it does not apply to.
    prepared : object
        What a kernel has made of them for its next call. It checks that they are still the same.
    """

    prepared: Any = None


class Update(NamedTuple):
    """The arrays and numbers of an update.

    Attributes
    ----------
    slots : Slots
    step_size : float
        The factor of the step: alpha, or alpha_t for Adam.
    clip_norm, clip_value : float or None
        Limits for the norm of all gradients and for each entry; entries are clipped first.
    epsilon : float
        What rules that divide add to the divisor.
    decay_factor : float
        What multiplies the decays.
    decoupled : bool
        Whether the decay is taken from the value itself, before the step; else it is added, times
        the value, to the gradient.
    present : array (3,), optional
        On the device, in the place of these: `step_size`, `decay_factor` and `epsilon`. For steps
        that are captured; only fused kernels on a GPU read it.
    copies : WeightCopies, optional
        Copies of the values in bfloat16, for steps that are captured. A kernel that writes them,
        too, says so there.
    """

    slots: Slots
    step_size: float
    clip_norm: float | None
    clip_value: float | None
    epsilon: float = 0.0
    decay_factor: float = 1.0
    decoupled: bool = False
    present: Array | None = None
    copies: Any = None
