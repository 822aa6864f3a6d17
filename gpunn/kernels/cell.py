"""Numbers that kernels read on the device as they run, not on the host when they are launched."""

from __future__ import annotations

from typing import NamedTuple

from gpunn._typing import Array


class Cell(NamedTuple):
    """A number of a captured step that changes from replay to replay.

    Attributes
    ----------
    array : array (1,)
        The number, on the device.
    """

    array: Array
