"""Checks of values on the host, where reading them does not wait for a device."""

from __future__ import annotations

import math

import numpy as np

from gpunn._typing import Array

#: Tolerance for the sum of a distribution: float16 rounds each entry by up to 5e-4 of its value.
ROUNDING = 1e-3


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


def are_signs(x: Array) -> bool:
    """Return whether all entries are 0 or 1, or all are -1 or 1."""
    ones = abs(x) == 1
    return bool(ones.all() or ((ones & (x > 0)) | (x == 0)).all())


def are_distributions(x: Array) -> bool:
    """Return whether no entry is negative and each row adds up to 1, to rounding."""
    if not lies_within(x, 0.0, math.inf):
        return False
    return bool((abs(x.sum(axis=1, dtype=np.float64) - 1.0) <= ROUNDING).all())
