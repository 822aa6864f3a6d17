"""The results of recorded steps."""

from __future__ import annotations

from typing import NamedTuple

from gpunn._typing import Array


class StepResults(NamedTuple):
    """The results of some consecutive steps of an epoch.

    Attributes
    ----------
    rows : slice
        Their turns in the epoch's order.
    costs : array (S,)
        J of each step before its update.
    penalties : array (S,) or None
        Half the weight decay times the sum of squares, if requested.
    totals : array (S,) or None
        The divisor of each batch's mean, unless it is the number of samples.
    outputs : array or None
        The network's outputs before the updates, a row for each turn, if requested.
    targets : array or None
        The targets of these rows; None if the caller has to take them from the data.
    """

    rows: slice
    costs: Array
    penalties: Array | None
    totals: Array | None
    outputs: Array | None
    targets: Array | None = None
