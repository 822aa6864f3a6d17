"""What recorded steps leave behind."""

from __future__ import annotations

from typing import NamedTuple

from gpunn._typing import Array


class StepResults(NamedTuple):
    """The results of some consecutive steps of an epoch.

    Attributes
    ----------
    rows : slice
        Which turns of the epoch's order they took.
    costs : array (S,)
        J of each step before its update.
    penalties : array (S,) or None
        Half the weight decay times the sum of squares, if it was asked for.
    totals : array (S,) or None
        What the mean of each batch divides by, if that is not the number of samples.
    outputs : array or None
        The network's outputs before the updates, a row for each turn, if they were asked for.
    targets : array or None
        The targets of these rows; None if they are still to be taken from the data.
    """

    rows: slice
    costs: Array
    penalties: Array | None
    totals: Array | None
    outputs: Array | None
    targets: Array | None = None
