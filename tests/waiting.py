"""A check that nothing waits for a device, in any order in which its work may run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def host_never_waits() -> Iterator[None]:
    """Check that the host waits for nothing in the block.

    Under the emulator its counter says so. A real device is kept busy by what comes before the
    block, and must still be so at its end.
    """
    try:
        cudasim = importlib.import_module("cudasim")
    except ImportError:
        pass
    else:
        with cudasim.count() as counted:
            yield
        assert counted["syncs"] == 0
        return
    busy = _keep_busy()
    yield
    assert not busy.done


def _keep_busy() -> object:
    """Queue some 50 ms of work; return an event that comes after it."""
    cupy = importlib.import_module("cupy")
    kernel = cupy.RawKernel(
        """extern "C" __global__ void spin(float* x, long long n) {
            float y = *x;
            for (long long i = 0; i < n; i++) y = 0.5f * y + 1.0f;
            *x = y;
        }""",
        "spin",
    )
    x = cupy.zeros(1, "float32")
    kernel((1,), (1,), (x, 1))  # compiled before it counts
    kernel((1,), (1,), (x, 20_000_000))
    event = cupy.cuda.Event(disable_timing=True)
    event.record()
    return event
