"""Checks of values on the host, where reading them does not wait for a device."""

from __future__ import annotations

import math

import numpy as np

from gpunn._typing import Array


def is_on_host(x: Array) -> bool:
    """Return whether an array is in host memory: a NumPy array or scalar."""
    return isinstance(x, (np.ndarray, np.generic))  # reductions return scalars, not 0-d arrays


def has_nan(x: Array) -> bool:
    """Return whether any entry is NaN; fast for scalars."""
    differs = x != x  # noqa: PLR0124 (NaN alone differs from itself)
    return bool(differs.any() if x.ndim else differs)


def lies_within(x: Array, lowest: float, highest: float) -> bool:
    """Return whether all entries are in [lowest, highest], without temporaries; False for NaN."""
    if not x.size:
        return True
    if not lowest <= float(np.minimum.reduce(x, None)):
        return False
    return highest == math.inf or float(np.maximum.reduce(x, None)) <= highest
