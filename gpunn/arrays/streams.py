"""CUDA streams: what work waits for, and what is ready on all of them.

Work is queued on CuPy's current stream. It is in order with what the same stream did before, and
with nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, backend_of


def follow_default_stream(place: Backend | None) -> None:
    """Let the current stream of a GPU begin after what its default stream has queued.

    A model, an optimizer and data are often made on the default stream, and used on another. CUDA
    itself keeps streams in this order, except those that are made with ``non_blocking=True``. The
    host does not wait.
    """
    if place is None or place.package != "cupy":
        return
    cuda = importlib.import_module("cupy").cuda
    with place.scope():
        current, default = cuda.get_current_stream(), cuda.Stream.null
        if current.ptr not in (default.ptr, cuda.Stream.ptds.ptr):
            current.wait_event(default.record())


def finish(place: Backend | None) -> None:
    """Wait for the current stream of a GPU: what it has made may be used on any stream."""
    if place is None or place.package != "cupy":
        return
    with place.scope():
        importlib.import_module("cupy").cuda.get_current_stream().synchronize()


def finished(x: Array) -> Array:
    """Return an array that may be used on any stream, which this waits for."""
    finish(backend_of(x))
    return x


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
    cuda = importlib.import_module("cupy").cuda
    with place.scope(), cuda.using_allocator(_from_the_driver):
        return finished(make())


def _from_the_driver(size: int) -> Any:
    """Allocate memory whose release waits until nothing reads it any more."""
    cuda = importlib.import_module("cupy").cuda
    try:
        memory = cuda.Memory(size)
    except cuda.runtime.CUDARuntimeError:  # the pool may hold what is free
        importlib.import_module("cupy").get_default_memory_pool().free_all_blocks()
        memory = cuda.Memory(size)
    return cuda.MemoryPointer(memory, 0)
