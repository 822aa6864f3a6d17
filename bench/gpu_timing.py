"""Times on a GPU: between two events on the stream that did the work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

from timing import Spread, spread  # before NumPy: it sets the BLAS environment

Work = Callable[[], object]


class Timed(NamedTuple):
    """Seconds of one measurement: until the work was done, and until it was queued."""

    done: float
    queued: float


class Clock:
    """Times work on the current device, with a pair of events on its default stream."""

    def __init__(self, cupy: Any) -> None:
        self._cuda = cupy.cuda
        self._start, self._stop = cupy.cuda.Event(), cupy.cuda.Event()
        a, out = cupy.zeros((4096, 4096), cupy.float32), cupy.empty((4096, 4096), cupy.float32)
        self._product = lambda: cupy.matmul(a, a, out=out)
        self._products = 1

    def __call__(self, work: Work) -> Timed:
        """Return how long the work took, host and device together, starting from an idle device."""
        self._cuda.Device().synchronize()
        self._start.record()
        start = time.perf_counter()
        work()
        queued = time.perf_counter() - start
        self._stop.record()
        return Timed(self._elapsed(), queued)

    def device_only(self, work: Work) -> float:
        """Return the seconds that the device took, which the host cannot lengthen.

        The work is queued while the device is busy with large products, so that no operation waits
        for its launch. There are more of them each time that they end too soon.
        """
        while True:
            self._cuda.Device().synchronize()
            for _ in range(self._products):
                self._product()
            self._start.record()
            work()
            self._stop.record()
            in_time = not self._start.done
            seconds = self._elapsed()
            if in_time or self._products >= 64:
                return seconds
            self._products *= 2

    def _elapsed(self) -> float:
        self._stop.synchronize()
        seconds: float = self._cuda.get_elapsed_time(self._start, self._stop) / 1e3
        return seconds


class NoClock(Clock):
    """Runs work without timing it, for checks of everything else; each takes one second."""

    def __init__(self) -> None:
        pass

    def __call__(self, work: Work) -> Timed:
        """Run the work."""
        work()
        return Timed(1.0, 1.0)

    def device_only(self, work: Work) -> float:
        """Run the work."""
        return self(work).done


def host_clock(work: Work) -> Timed:
    """Return how long the work took on the CPU."""
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return Timed(seconds, seconds)


def device_time(clock: Clock, work: Work, rounds: int, repeats: int = 1) -> Spread:
    """Return the device's seconds for one call, from several in a row, after a warm-up."""

    def several() -> None:
        for _ in range(repeats):
            work()

    several()
    return spread([clock.device_only(several) / repeats for _ in range(rounds)])
