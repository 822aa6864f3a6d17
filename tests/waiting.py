"""A check that nothing waits for a device, in any order in which its work may run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench.gpu_costs import counting

#: CUDA itself waits now and then: when it loads a kernel, or when it locks memory of the host that
#: CuPy then keeps. What waits on purpose does so every time.
_ATTEMPTS = 4

_SPIN = """extern "C" __global__ void spin(volatile const int* end, long long most) {
    for (long long i = 0; i < most && !*end; i++) {}
}"""


def check_that_nothing_waits(work: Callable[[], object]) -> None:
    """Check that the host waits for nothing while it does the work, which may be done repeatedly.

    Under the emulator its counter says so. A real device is kept busy until the work is queued, and
    must be busy still.
    """
    if counting():
        cudasim = importlib.import_module("cudasim")
        with cudasim.count() as counted:
            work()
        assert counted["syncs"] == 0
        return
    assert any(_returns_while_busy(work) for _ in range(_ATTEMPTS))


def _returns_while_busy(work: Callable[[], object]) -> bool:
    with busy_device() as event:
        work()
        return not event.done


@contextmanager
def busy_device() -> Iterator[Any]:
    """Keep the device busy to the end of the block, but no longer than a few seconds.

    Yields an event that comes when it has ended.
    """
    cupy, cupyx = importlib.import_module("cupy"), importlib.import_module("cupyx")
    end = cupyx.zeros_pinned(1, "int32")  # the device reads it from the host: a microsecond each
    kernel, event = cupy.RawKernel(_SPIN, "spin"), cupy.cuda.Event(disable_timing=True)
    kernel((1,), (1,), (end.ctypes.data, 1))  # compiles it
    cupy.cuda.Device().synchronize()
    kernel((1,), (1,), (end.ctypes.data, 4_000_000))
    event.record()
    try:
        yield event
    finally:
        end[0] = 1
        event.synchronize()
