"""Sums over MPI that go on while a program does something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain
from typing import Any

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of, scope_of
from gpunn.errors import DistributedError

#: From an array, and a function that lends memory, to the requests of a sum; each is made when the
#: one before is complete.
Requests = Callable[[Array, Callable[[Array, int], Array]], Iterator[Any]]


class Background:
    """The sums that have been started and are not complete, oldest first.

    MPI matches what ranks do on a communicator by its order. A sum takes two requests, and which
    rank sees the first complete when is a matter of luck. So each of the two kinds has a
    communicator of its own, and a sum makes no request before the older ones have made theirs.

    Parameters
    ----------
    requests : function
        Makes those of a sum in memory that MPI can read.
    wait : function
        Waits for something that has a method `Test`, as requests do.
    compare : function
        Checks that all ranks have come to an operation, of that name and on such an array.
    cuda_aware : bool
        Whether MPI can read the memory of GPUs.
    """

    def __init__(
        self,
        requests: Requests,
        wait: Callable[[Any], None],
        compare: Callable[[str, Array], None],
        *,
        cuda_aware: bool,
    ) -> None:
        self._requests, self._cuda_aware = requests, cuda_aware
        self.wait, self.compare = wait, compare
        self._sums: list[MPISum] = []
        self._free: dict[tuple[Any, ...], list[Any]] = {}
        self._streams: dict[int, Any] = {}

    def start(self, array: Array) -> MPISum:
        """Start the sum of an array in C order."""
        place = backend_of(array)
        if place is None or place.package == "numpy":
            started = MPISum(self, array)
        else:
            with scope_of(array):
                started = self._start_on_device(array)
        started.requests = chain(started.requests, self._requests(started.memory, started.lend))
        self._sums.append(started)
        self.advance()
        return started

    def advance(self) -> None:
        """Let all sums go on as far as they can."""
        furthest = float("inf")
        for each in self._sums:
            each.go_on(furthest)
            furthest = each.n_made
        while self._sums and self._sums[0].is_complete:
            self._sums.pop(0)

    def take(self, kind: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Return memory of a kind, from an earlier sum if there is any."""
        free = self._free.setdefault(kind, [])
        return free.pop() if free else make()

    def give(self, kind: tuple[Any, ...], memory: Any) -> None:
        """Take memory back for later sums."""
        self._free[kind].append(memory)

    def _start_on_device(self, array: Array) -> MPISum:
        """Return the sum of an array of CuPy's, on a stream beside the current one."""
        import cupy  # noqa: PLC0415 (it is there)
        import cupyx  # noqa: PLC0415

        stream = self._streams.get(array.device.id)
        if stream is None:
            stream = self._streams[array.device.id] = cupy.cuda.Stream(non_blocking=True)
        stream.wait_event(cupy.cuda.get_current_stream().record())
        started = MPISum(self, array, stream)
        if not self._cuda_aware:
            kind = "pinned", int(array.size), str(array.dtype)
            memory = self.take(kind, lambda: cupyx.empty_pinned(kind[1], array.dtype))
            started.lent.append((kind, memory))
            started.memory = memory.reshape(array.shape)
            array.get(out=started.memory, stream=stream, blocking=False)
        started.requests = iter([_Reached(stream.record())])
        return started


class MPISum:
    """A sum that has been started; see `gpunn.distributed.communicator.StartedSum`.

    Attributes
    ----------
    memory : array
        What MPI reads and writes: the array, or a copy on the host.
    requests : iterator
        Those that are still to be made.
    n_made : float
        How many have been made; infinite once all are complete.
    is_complete : bool
        Whether all are.
    lent : list of (tuple, array)
        Memory to give back.
    """

    def __init__(self, background: Background, array: Array, stream: Any = None) -> None:
        self._background, self._array, self._stream = background, array, stream
        self.memory = array
        self.requests: Iterator[Any] = iter(())
        self.n_made = 0.0
        self.is_complete = False
        self.lent: list[tuple[tuple[Any, ...], Any]] = []
        self._last: Any = None
        self._has_failed = False

    def advance(self) -> None:
        """Let it go on, and the older ones."""
        self._background.advance()

    def wait(self) -> None:
        """Return when the array is the sum; on a GPU, for what the current stream does next.

        Ranks that do different things are found here: nothing is compared when a sum is started.
        """
        self._background.compare("the end of a sum", self._array)
        self._background.wait(self)
        if self._stream is not None:
            with scope_of(self._array):
                self._come_back()
        for kind, memory in self.lent:
            self._background.give(kind, memory)
        self.lent.clear()

    def Test(self) -> bool:  # noqa: N802 (MPI's name)
        """Return whether it is complete, as a request of MPI does."""
        self._background.advance()
        return self.is_complete

    def go_on(self, furthest: float) -> None:
        """Make the requests that can be made, no more than `furthest`."""
        while not self.is_complete and (self._last is None or self._last.Test()):
            if self.n_made >= furthest:
                return
            if self._has_failed:  # its iterator would say that nothing is left
                raise DistributedError("an error has ended a sum that was under way")
            self._has_failed = True
            with self._stream or nullcontext():
                self._last = next(self.requests, None)
            self._has_failed = False
            self.n_made += 1
            if self._last is None:
                self.is_complete, self.n_made = True, float("inf")

    def lend(self, own: Array, times: int) -> Array:
        """Return memory for so many arrays like this, until the sum is complete."""
        kind = int(own.size), str(own.dtype), type(own).__name__, times
        memory = self._background.take(kind, lambda: own.repeat(times))
        self.lent.append((kind, memory))
        return memory

    def _come_back(self) -> None:
        """Copy the sum to the device, and let the current stream wait for that."""
        import cupy  # noqa: PLC0415 (it is there)

        if self.memory is not self._array:
            self._array.set(self.memory, stream=self._stream)
        cupy.cuda.get_current_stream().wait_event(self._stream.record())


class _Reached:
    """What a stream had to do when an event was recorded, as a request."""

    def __init__(self, event: Any) -> None:
        self._event = event

    def Test(self) -> bool:  # noqa: N802 (MPI's name)
        return bool(self._event.done)
