"""Choose the device that a CuPy kernel runs on, and check which arrays the kernels serve."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import cupy

from gpunn._typing import Array
from gpunn.kernels.cuda import REAL

_Method = TypeVar("_Method", bound=Callable[..., Any])

_get_device = cupy.cuda.runtime.getDevice  # looked up once, since every kernel calls it


def on_device_of_first(method: _Method) -> _Method:
    """Make a kernel run on the device of its first argument, an array.

    A launch on another device would read memory that it cannot reach. CUDA would then refuse all
    further work of the process on that device.
    """

    @wraps(method)
    def on_its_device(self: Any, x: Any, *rest: Any, **settings: Any) -> Any:
        if x.data.device_id == _get_device():
            return method(self, x, *rest, **settings)
        with x.device:
            return method(self, x, *rest, **settings)

    return cast("_Method", on_its_device)


def on_device_of_items(method: _Method) -> _Method:
    """Make a kernel run on the device of the arrays in its first argument, a list."""

    @wraps(method)
    def on_its_device(self: Any, arrays: Any, *rest: Any, **settings: Any) -> Any:
        with arrays[0].device:
            return method(self, arrays, *rest, **settings)

    return cast("_Method", on_its_device)


def on_device_of_second(method: _Method) -> _Method:
    """Make a kernel run on the device of its second argument, an array."""

    @wraps(method)
    def on_its_device(self: Any, formula: Any, x: Any, *rest: Any, **settings: Any) -> Any:
        if x.data.device_id == _get_device():
            return method(self, formula, x, *rest, **settings)
        with x.device:
            return method(self, formula, x, *rest, **settings)

    return cast("_Method", on_its_device)


def as_arrays(scale: Any) -> tuple[Array, ...]:
    """Return a scale that is an array as a tuple of one, and () for a number."""
    return (scale,) if hasattr(scale, "shape") else ()


def served(*arrays: Array) -> bool:
    """Return whether the kernels serve these arrays: not empty, all float32 or all float64."""
    dtype = arrays[0].dtype
    if dtype not in REAL or not arrays[0].size:
        return False
    for x in arrays:  # noqa: SIM110 (a generator costs more)
        if x.dtype != dtype:
            return False
    return True
