"""CUDA streams: waiting for other streams, and arrays that are ready on all of them.

Work is queued on CuPy's current stream. It is ordered with earlier work on the same stream, but not
with work on any other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, backend_of


def follow_default_stream(place: Backend | None) -> None:
    """Make the current stream of a GPU wait for the work queued on its default stream.

    Models, optimizers and data are often created on the default stream, and used on another. CUDA
    itself ensures this order, except for streams created with ``non_blocking=True``. The host does
    not wait.
    """
    if place is None or place.package != "cupy":
        return
    cuda = importlib.import_module("cupy").cuda
    with place.scope():
        current, default = cuda.get_current_stream(), cuda.Stream.null
        if current.ptr not in (default.ptr, cuda.Stream.ptds.ptr):
            current.wait_event(default.record())


def finish(place: Backend | None) -> None:
    """Wait for the current stream of a GPU, so that its results may be used on any stream."""
    if place is None or place.package != "cupy":
        return
    with place.scope():
        importlib.import_module("cupy").cuda.get_current_stream().synchronize()


def finished(x: Array) -> Array:
    """Wait until an array may be used on any stream, and return it."""
    finish(backend_of(x))
    return x


def keep(place: Backend, make: Callable[[], Array]) -> Array:
    """Create an array that any thread may use on any stream of its device.

    On a GPU, other streams know neither when the array is filled nor when it is freed. So this
    waits once until it is filled, and allocates its memory from the driver: a pool would give freed
    memory to the next array on the creating stream, while other streams may still read it.

    Parameters
    ----------
    place : Backend
        The backend of the array.
    make : function
        Creates the array, on the current device and stream.
    """
    if place.package != "cupy":
        return make()
    cuda = importlib.import_module("cupy").cuda
    with place.scope(), cuda.using_allocator(_from_the_driver):
        return finished(make())


def _from_the_driver(size: int) -> Any:
    """Allocate memory whose release waits until no stream uses it."""
    cuda = importlib.import_module("cupy").cuda
    try:
        memory = cuda.Memory(size)
    except cuda.runtime.CUDARuntimeError:  # the pool may hold the free memory
        importlib.import_module("cupy").get_default_memory_pool().free_all_blocks()
        memory = cuda.Memory(size)
    return cuda.MemoryPointer(memory, 0)
