"""The arrays and numbers of a parameter update, in one record."""

from __future__ import annotations

from typing import Any, NamedTuple

from gpunn._typing import Array


class _Arrays(NamedTuple):
    values: list[Array]
    grads: list[Array]
    states: list[list[Array]]
    decays: list[float]


class Slots(_Arrays):
    """The arrays of an update: item i of each list belongs to parameter (or block) i.

    Attributes
    ----------
    values, grads : list of array
        theta and its gradient; an update may overwrite the gradients.
    states : list of list of array
        The optimizer's state: one list for each kind, such as the velocities.
    decays : list of float
        The weight decay lambda; 0 for parameters that it does not apply to.
    prepared : object
        A kernel's cache for its next call. The kernel checks that the arrays are unchanged.
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
        Added to the divisor, by rules that divide.
    decay_factor : float
        The factor of the decays.
    decoupled : bool
        Whether decay shrinks the value itself before the step; otherwise decay times the value is
        added to the gradient.
    present : array (3,), optional
        `step_size`, `decay_factor` and `epsilon` on the device, which replace these fields in
        captured steps; only fused kernels on a GPU read it.
    copies : WeightCopies, optional
        Copies of the values in bfloat16, for captured steps. A kernel that writes them sets their
        `are_written`.
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
