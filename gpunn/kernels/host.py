"""Looks at values that are at hand: NumPy's arrays, for which nobody waits."""

from __future__ import annotations

import math

import numpy as np

from gpunn._typing import Array


def is_on_host(x: Array) -> bool:
    """Return whether an array is NumPy's."""
    return isinstance(x, (np.ndarray, np.generic))  # reductions return scalars, not 0-d arrays


def has_nan(x: Array) -> bool:
    """Return whether an entry is NaN; of a number, without a call."""
    differs = x != x  # noqa: PLR0124 (NaN alone differs from itself)
    return bool(differs.any() if x.ndim else differs)


def lies_within(x: Array, lowest: float, highest: float) -> bool:
    """Return whether all entries are in [lowest, highest], without temporaries; NaN is not."""
    if not x.size:
        return True
    if not lowest <= float(np.minimum.reduce(x, None)):
        return False
    return highest == math.inf or float(np.maximum.reduce(x, None)) <= highest
