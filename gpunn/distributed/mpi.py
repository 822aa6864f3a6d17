"""Communication by MPI, through mpi4py."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import accumulate, count
from typing import Any, NoReturn

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of, scope_of
from gpunn.arrays.checks import number
from gpunn.arrays.libraries import require
from gpunn.distributed.background import Background, MPISum
from gpunn.distributed.communicator import Connected
from gpunn.distributed.notices import Notices
from gpunn.distributed.roll_call import RollCall
from gpunn.errors import DistributedError, DTypeError

_REMEDY = "pip install mpi4py"
_NO_LIBRARY = f"{_REMEDY}, and an MPI library: pip install mpich, or that of the cluster"

#: Polls of a request between two checks of the clock and of the notices from other ranks.
_POLLS_BETWEEN = 64
#: Polls before the process offers its core to others: many where each rank has a core, for it may
#: take long to get it back.
_POLLS_AWAKE, _POLLS_CROWDED = 1 << 16, 64


#: MPI launchers give each process its rank in one of these environment variables.
RANKS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def is_launched() -> bool:
    """Return whether an MPI launcher has started this process."""
    return any(name in os.environ for name in RANKS)


class MPICommunicator(Connected):
    """The processes started by `mpiexec`, `srun` or another MPI launcher.

    Before each operation the ranks compare what they are about to do (`RollCall`). Different calls,
    and an error that one rank alone has caught, raise a `DistributedError` on all.

    A rank that ends, by an error or otherwise, notifies the others: ranks that wait for it raise a
    `DistributedError` that names it and says why it ended. After an uncaught error, a rank prints
    its traceback and ends all ranks. If one is killed, the launcher notices and ends the others; on
    Linux, so do the ranks on the same machine.

    Parameters
    ----------
    communicator : mpi4py.MPI.Comm, optional
        A group of the processes; all by default. It is duplicated.
    cuda_aware : bool, default False
        Whether the MPI library was built to read GPU memory. Otherwise CuPy arrays go through
        pinned host memory.
    timeout_s : float, default 1800
        How long to wait for other ranks, above 0, in seconds. Allow for ranks with a longer batch,
        or that write a checkpoint: the limit is meant for ranks that hang.

    Raises
    ------
    BackendUnavailableError
        If mpi4py or an MPI library is not installed.
    """

    def __init__(
        self, communicator: Any = None, *, cuda_aware: bool = False, timeout_s: float = 1800.0
    ) -> None:
        self._timeout_s = number("MPICommunicator", "timeout_s", timeout_s, "(0, inf)")
        require("mpi4py", _REMEDY)
        self._mpi = require("mpi4py.MPI", _NO_LIBRARY)
        world = self._mpi.COMM_WORLD if communicator is None else communicator
        self._comm = world.Dup()
        self.rank, self.size = int(self._comm.Get_rank()), int(self._comm.Get_size())
        self._cuda_aware = cuda_aware
        self._parts: dict[tuple[Any, ...], Any] = {}
        self._staged: dict[tuple[int, str], Any] = {}
        here = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        crowded = here.Get_size() > _cores()
        here.Free()
        self._polls_awake = _POLLS_CROWDED if crowded else _POLLS_AWAKE
        self._notices = Notices(self._mpi, self._comm.Dup())
        self._roll_call = RollCall(self._comm.Dup(), self._notices)
        #: Why this rank can no longer communicate with the others; empty if it can.
        self._broken = ""
        adding, gathering = self._comm.Dup(), self._comm.Dup()
        requests = partial(self._requests, adding=adding, gathering=gathering)
        self._background = Background(requests, self._wait, self.compare, cuda_aware=cuda_aware)

    def doing(self, what: str) -> AbstractContextManager[None]:
        """Return a context for a call that all ranks are in; see `Communicator`."""
        return self._roll_call.doing(what)

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite an array on every rank with that of rank `root`."""
        self.compare(f"a broadcast by rank {root}", array)
        self._through_host(array, lambda data: self._wait(self._comm.Ibcast(data, root=root)))

    def allreduce(self, array: Array) -> None:
        """Overwrite an array on every rank with the sum over all ranks.

        Each rank adds up one part, for all ranks. MPI's own Allreduce may add in a different order
        on each rank, so results may differ in the last bits.
        """
        self.compare("a sum", array)
        self._through_host(array, self._sum)

    def start_allreduce(self, array: Array) -> MPISum:
        """Start a sum over all ranks, of an array in C order; see `Communicator`.

        It advances when the program calls MPI, for this sum or any other.
        """
        self._check_unbroken()
        _check_library(array)
        return self._background.start(array)

    def barrier(self) -> None:
        """Wait until all ranks have reached this call."""
        self.compare("a barrier")
        self._wait(self._comm.Ibarrier())

    def compare(self, operation: str, array: Array | None = None) -> None:
        """Check that all ranks are at the same operation, on arrays of the same size and dtype.

        Raises
        ------
        DistributedError
            On every rank.
        """
        self._check_unbroken()
        if self.size > 1:
            self._roll_call.begin(operation, array)
            self._wait(self._roll_call)
            self._broken = self._roll_call.difference()
            if self._broken:
                raise DistributedError(f"rank {self.rank} of {self.size}: {self._broken}")

    def _check_unbroken(self) -> None:
        if self._broken:
            raise DistributedError(
                f"rank {self.rank} of {self.size} no longer talks with the others, since "
                f"{self._broken}"
            )

    def _sum(self, data: Array) -> None:
        """Sum over all ranks, in memory that MPI can read."""
        for request in self._requests(
            data, self._part_like, adding=self._comm, gathering=self._comm
        ):
            self._wait(request)

    def _requests(
        self, data: Array, lend: Callable[[Array, int], Array], *, adding: Any, gathering: Any
    ) -> Iterator[Any]:
        """Make the requests of a sum, each once the previous one is complete.

        They use two communicators, and memory that `lend` returns.
        """
        flat = data.reshape(-1)
        each, rest = divmod(flat.size, self.size)
        counts = [each + (rank < rest) for rank in range(self.size)]
        starts = [0, *accumulate(counts)][:-1]
        own = flat[starts[self.rank] : starts[self.rank] + counts[self.rank]]
        if flat.dtype == "float16":  # MPI has no such type: send it as integers
            flat, n = flat.view("uint16"), self.size
            parts = lend(own, n)
            _settle(parts)
            place = [own.size] * n, [own.size * rank for rank in range(n)]
            yield adding.Ialltoallv([flat, (counts, starts)], [parts.view("uint16"), place])
            own[...] = parts.reshape(n, -1).astype("float32").sum(axis=0)  # in the ranks' order
        else:
            part = lend(own, 1)
            _settle(part)
            yield adding.Ireduce_scatter(flat, part, counts)
            own[...] = part
        _settle(flat)
        yield gathering.Iallgatherv(self._mpi.IN_PLACE, [flat, (counts, starts)])

    def _through_host(self, array: Array, operation: Callable[[Array], None]) -> None:
        """Apply an operation to the memory of an array, or to a copy of it on the host."""
        package = _check_library(array)
        if not array.flags.c_contiguous:
            with scope_of(array):
                in_order = array.copy()
                self._through_host(in_order, operation)
                array[...] = in_order
            return
        if package == "numpy":
            operation(array)
            return
        with scope_of(array):
            stream = _stream_of(array)
            if self._cuda_aware:
                stream.synchronize()
                operation(array)
                return
            staged = self._stage_for(array)
            array.get(out=staged, stream=stream, blocking=True)
            operation(staged)
            array.set(staged, stream=stream)
            stream.synchronize()  # the next call may write to the same memory

    def _stage_for(self, array: Array) -> Any:
        """Return pinned host memory with the shape of an array."""
        import cupyx  # noqa: PLC0415 (as above)

        key = int(array.size), str(array.dtype)
        if key not in self._staged:
            self._staged[key] = cupyx.empty_pinned(array.size, array.dtype)
        return self._staged[key].reshape(array.shape)

    def _part_like(self, own: Array, times: int) -> Array:
        """Return memory for `times` arrays like `own`, which later sums of such arrays reuse."""
        key = int(own.size), str(own.dtype), type(own).__name__, times
        if key not in self._parts:
            self._parts[key] = own.repeat(times)
        return self._parts[key]

    def _wait(self, request: Any) -> None:
        """Wait for a request, while checking whether a rank has ended."""
        try:
            self._poll(request)
        except BaseException as error:  # the others are in the middle of an operation
            self._broken = str(error) or type(error).__name__
            raise

    def _poll(self, request: Any) -> None:
        begun = 0.0
        for polls in count(1):
            if request.Test():
                self._notices.n_completed += 1
                return
            if polls % _POLLS_BETWEEN:
                continue
            self._notices.check()
            now = time.monotonic()
            begun = begun or now
            if now - begun > self._timeout_s:
                self._give_up()
            if polls > self._polls_awake:
                time.sleep(0)

    def _give_up(self) -> NoReturn:
        raise DistributedError(
            f"rank {self.rank} of {self.size} has waited for the others for {self._timeout_s:g} s; "
            "one of them hangs, or the ranks make different calls (if they only need more time: "
            "get_communicator(timeout_s=...))"
        )


def _check_library(array: Array) -> str:
    """Return the package of an array; refuse an array that MPI cannot send."""
    place = backend_of(array)
    if place is None or place.package not in ("numpy", "cupy"):
        raise DTypeError(
            f"MPICommunicator: expected a NumPy or CuPy array, got {type(array).__name__}"
        )
    return place.package


def _cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _settle(array: Array) -> None:
    """Wait until a device has written an array: MPI knows nothing of streams."""
    if not isinstance(array, np.ndarray):
        _stream_of(array).synchronize()


def _stream_of(_: Array) -> Any:
    """Return CuPy's current stream."""
    import cupy  # noqa: PLC0415 (it is there)

    return cupy.cuda.get_current_stream()
