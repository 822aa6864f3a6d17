"""Sums over MPI that run while the program does something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import chain
from typing import Any

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of, scope_of
from gpunn.errors import DistributedError

#: Takes an array and a function that lends memory, and yields the requests of a sum; each is made
#: once the previous one is complete.
Requests = Callable[[Array, Callable[[Array, int], Array]], Iterator[Any]]


class Background:
    """The sums that have been started and are not complete, oldest first.

    MPI matches the operations of a communicator by their order on each rank. A sum takes two
    requests, and the ranks see the first one complete at different times. So each of the two kinds
    has a communicator of its own, and a sum makes a request only after all older sums have made
    theirs.

    Parameters
    ----------
    requests : function
        Makes the requests of a sum, in memory that MPI can read.
    wait : function
        Waits for an object with a method `Test`, such as a request.
    compare : function
        Checks that all ranks have reached the operation of a given name, on the same kind of array.
    cuda_aware : bool
        Whether MPI can read GPU memory.
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
        """Advance all sums as far as possible."""
        limit = float("inf")
        for each in self._sums:
            each.make_requests(limit)
            limit = each.n_made
        while self._sums and self._sums[0].is_complete:
            self._sums.pop(0)

    def take(self, kind: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """Return memory of a kind: that of an earlier sum, or new."""
        free = self._free.setdefault(kind, [])
        return free.pop() if free else make()

    def give(self, kind: tuple[Any, ...], memory: Any) -> None:
        """Take memory back for later sums."""
        self._free[kind].append(memory)

    def _start_on_device(self, array: Array) -> MPISum:
        """Return the sum of a CuPy array, on a stream beside the current one."""
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
        started.requests = iter([_EventRequest(stream.record())])
        return started


class MPISum:
    """A sum that has been started; see `gpunn.distributed.communicator.StartedSum`.

    Attributes
    ----------
    memory : array
        What MPI reads and writes: the array, or a copy of it on the host.
    requests : iterator
        The requests still to be made.
    n_made : float
        The number of requests made; infinite once all are complete.
    is_complete : bool
        Whether all requests are complete.
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
        """Advance this sum, and all others under way."""
        self._background.advance()

    def wait(self) -> None:
        """Wait until the array holds the sum; on a GPU, the current stream waits.

        Ranks that do different things are detected here: nothing is compared when a sum starts.
        """
        self._background.compare("the end of a sum", self._array)
        self._background.wait(self)
        if self._stream is not None:
            with scope_of(self._array):
                self._copy_back()
        for kind, memory in self.lent:
            self._background.give(kind, memory)
        self.lent.clear()

    def Test(self) -> bool:  # noqa: N802 (MPI's name)
        """Return whether the sum is complete, as an MPI request does."""
        self._background.advance()
        return self.is_complete

    def make_requests(self, limit: float) -> None:
        """Make the requests that can be made now, up to `limit` in all."""
        while not self.is_complete and (self._last is None or self._last.Test()):
            if self.n_made >= limit:
                return
            if self._has_failed:  # the exhausted iterator would look like a complete sum
                raise DistributedError("an error has ended a sum that was under way")
            self._has_failed = True
            with self._stream or nullcontext():
                self._last = next(self.requests, None)
            self._has_failed = False
            self.n_made += 1
            if self._last is None:
                self.is_complete, self.n_made = True, float("inf")

    def lend(self, own: Array, times: int) -> Array:
        """Return memory for `times` arrays like `own`, until the sum is complete."""
        kind = int(own.size), str(own.dtype), type(own).__name__, times
        memory = self._background.take(kind, lambda: own.repeat(times))
        self.lent.append((kind, memory))
        return memory

    def _copy_back(self) -> None:
        """Copy the sum to the device, and make the current stream wait for the copy."""
        import cupy  # noqa: PLC0415 (it is there)

        if self.memory is not self._array:
            self._array.set(self.memory, stream=self._stream)
        cupy.cuda.get_current_stream().wait_event(self._stream.record())


class _EventRequest:
    """A CUDA event in the form of an MPI request: complete once the stream has reached it."""

    def __init__(self, event: Any) -> None:
        self._event = event

    def Test(self) -> bool:  # noqa: N802 (MPI's name)
        return bool(self._event.done)
