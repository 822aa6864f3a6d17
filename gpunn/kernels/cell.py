"""Numbers that kernels read from the device when they run, not from the host when launched."""

from __future__ import annotations

from typing import NamedTuple

from gpunn._typing import Array


class Cell(NamedTuple):
    """Stands for a number that changes from step to step, in a step that is captured once.

    Attributes
    ----------
    array : array (1,)
        Where the number is, on the device.
    """

    array: Array
