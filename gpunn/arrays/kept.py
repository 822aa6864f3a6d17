"""Arrays that are made once, kept, and read by any thread on any stream."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from gpunn._typing import Array
from gpunn.arrays.backend import Backend


def keep(place: Backend, make: Callable[[], Array]) -> Array:
    """Make an array that any thread may use on any stream of its device, from now on.

    On a GPU, other streams know neither when it is filled nor when it is let go. So this waits once
    until it is filled, and its memory is the driver's own: that of a pool would go to the next
    array of the stream that made it, while others may still read it.

    Parameters
    ----------
    place : Backend
        Where the array is.
    make : function
        Makes it, on the current device and stream.
    """
    if place.package != "cupy":
        return make()
    cupy = importlib.import_module("cupy")
    with place.scope(), cupy.cuda.using_allocator(_from_the_driver):
        array = make()
        cupy.cuda.get_current_stream().synchronize()
    return array


def _from_the_driver(size: int) -> Any:
    """Allocate memory whose release waits until nothing reads it any more."""
    cuda = importlib.import_module("cupy").cuda
    try:
        memory = cuda.Memory(size)
    except cuda.runtime.CUDARuntimeError:  # the pool may hold what is free
        importlib.import_module("cupy").get_default_memory_pool().free_all_blocks()
        memory = cuda.Memory(size)
    return cuda.MemoryPointer(memory, 0)
