"""The memory of arrays: copies, read-only views, overlaps."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of
from gpunn.errors import DTypeError


def copy_of(x: Array) -> Array:
    """Return a copy of an array, on the same device.

    Raises
    ------
    DTypeError
        If it is not an array of a known library.
    """
    backend = backend_of(x)
    if backend is None:
        raise DTypeError(f"expected an array of a known library, got {type(x).__name__}")
    with backend.scope():
        return backend.xp.asarray(x, copy=True)


def read_only(x: Any) -> Any:
    """Return a read-only view of a NumPy array; anything else unchanged."""
    if not isinstance(x, np.ndarray) or not x.flags.writeable:
        return x
    view = x.view()
    view.flags.writeable = False
    return view


def may_overlap(x: Array, y: Array) -> bool:
    """Return whether two arrays may share memory; no values are read."""
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return np.may_share_memory(x, y)
    place = backend_of(x)
    if place != backend_of(y):
        return False
    if place is not None and place.package == "cupy":
        return bool(importlib.import_module("cupy").may_share_memory(x, y))
    return True  # other libraries offer no such check


def entries_between(block: Array, view: Array) -> int:
    """Return the offset, in entries, of a view in an array.

    For NumPy and CuPy arrays.
    """
    one, other = (
        x.__array_interface__["data"][0] if isinstance(x, np.ndarray) else x.data.ptr
        for x in (block, view)
    )
    return (int(other) - int(one)) // int(block.dtype.itemsize)
