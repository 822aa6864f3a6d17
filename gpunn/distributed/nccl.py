"""Communication between GPUs by NCCL, through CuPy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of, scope_of
from gpunn.arrays.libraries import INSTALL_CUPY, require
from gpunn.distributed import tcp
from gpunn.distributed.communicator import Communicator, Connected, StartedSum
from gpunn.distributed.mpi import MPICommunicator, is_launched
from gpunn.errors import BackendUnavailableError, DTypeError

_REMEDY = "pip install nvidia-nccl-cu12 (with CUDA 13: nvidia-nccl-cu13)"

#: NCCL's names for dtypes.
_KINDS = {
    "uint8": "NCCL_UINT8",
    "int64": "NCCL_INT64",
    "float16": "NCCL_FLOAT16",
    "float32": "NCCL_FLOAT32",
    "float64": "NCCL_FLOAT64",
}

#: The length of the identifier of an NCCL communicator.
_ID_BYTES = 128


class NCCLCommunicator(Connected):
    """One process per GPU: CuPy arrays are sent by NCCL, on the current stream.

    Nothing waits for the device. Choose each process's GPU before creating the first array:
    ``gn.use(backend=f"cupy:{local_rank}")``.

    Parameters
    ----------
    host : Communicator, optional
        Sends NumPy arrays, and the identifier of the NCCL communicator. By default an
        `MPICommunicator`, unless the environment has ``RANK``, ``WORLD_SIZE``, ``MASTER_ADDR`` and
        ``MASTER_PORT``, as set by `torchrun`, and no MPI launcher has started the process: then
        rank 0 hands out the identifier at that address, and NumPy arrays go through the GPU.

    Raises
    ------
    BackendUnavailableError
        If CuPy, NCCL or mpi4py is not installed.

    Notes
    -----
    With an `MPICommunicator` as host, the ranks compare what they are about to do, as they do under
    MPI alone; with another host, or none, they do not.

    Tested with a stand-in for ``cupy.cuda.nccl``, never on several GPUs.
    """

    def __init__(self, host: Communicator | None = None) -> None:
        self._nccl = _library()
        self._cached_comm: Any = None
        self._compare = _no_comparison
        self._stream: Any = None
        if host is None and tcp.is_launched() and not is_launched():
            meeting = tcp.Meeting()
            self.rank, self.size = meeting.rank, meeting.size
            self._share: Callable[[bytes], bytes] = meeting.share
            self._host: Communicator = tcp.ThroughDevice(self)
            return
        self._host = host = MPICommunicator() if host is None else host
        self._share = partial(_share_by, host)
        self.rank, self.size = host.rank, host.size
        if isinstance(host, MPICommunicator):
            self._compare = host.compare

    @property
    def _comm(self) -> Any:
        """The NCCL communicator, created on the device that is current at its first use."""
        if self._cached_comm is None:
            identifier = self._nccl.get_unique_id() if self.rank == 0 else bytes(_ID_BYTES)
            create = self._nccl.NcclCommunicator
            self._cached_comm = create(self.size, self._share(identifier), self.rank)
        return self._cached_comm

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite an array on every rank with that of rank `root`."""
        if _is_on_host(array):
            self._host.broadcast(array, root)
            return
        self._compare(f"a broadcast by rank {root}", array)
        with scope_of(array):
            self._comm.bcast(*self._memory(array), root, _stream())

    def allreduce(self, array: Array) -> None:
        """Overwrite an array on every rank with the sum over all ranks."""
        if _is_on_host(array):
            self._host.allreduce(array)
            return
        self._compare("a sum", array)
        with scope_of(array):
            self._sum(array)

    def start_allreduce(self, array: Array) -> StartedSum:
        """Start a sum over all ranks on a stream of its own; see `Communicator`."""
        if _is_on_host(array):
            return self._host.start_allreduce(array)
        with scope_of(array):
            stream = self._stream_beside()
            stream.wait_event(_current().record())
            with stream:
                self._sum(array)
            return NCCLSum(stream.record())

    def barrier(self) -> None:
        """Wait until all ranks have reached this call; their devices may still be at work."""
        self._host.barrier()

    def doing(self, what: str) -> AbstractContextManager[None]:
        """Return a context for a call that all ranks are in; see `Communicator`."""
        return self._host.doing(what)

    def _stream_beside(self) -> Any:
        """Return the stream on which started sums run."""
        if self._stream is None:
            self._stream = require("cupy", INSTALL_CUPY).cuda.Stream(non_blocking=True)
        return self._stream

    def _sum(self, array: Array) -> None:
        """Sum over all ranks, on the current stream."""
        place, size, kind = self._memory(array)
        self._comm.allReduce(place, place, size, kind, self._nccl.NCCL_SUM, _stream())

    def _memory(self, array: Array) -> tuple[int, int, int]:
        """Return the address, the number of entries and NCCL's dtype of an array."""
        name = _KINDS.get(str(array.dtype))
        if name is None or not array.flags.c_contiguous:
            raise DTypeError(
                f"NCCLCommunicator: expected an array in C order, of {', '.join(_KINDS)}; "
                f"got {array.dtype}"
            )
        return int(array.data.ptr), int(array.size), int(getattr(self._nccl, name))


def _share_by(host: Communicator, content: bytes) -> bytes:
    """Return rank 0's bytes; all ranks pass the same length."""
    numbers = np.frombuffer(content, np.uint8).copy()
    host.broadcast(numbers)
    return numbers.tobytes()


def _no_comparison(operation: str, array: Array | None = None) -> None:
    """Compare nothing."""


class NCCLSum:
    """A sum that runs beside the current stream, without the program's help."""

    def __init__(self, complete: Any) -> None:
        self._complete = complete

    def advance(self) -> None:
        """Do nothing: the device advances by itself."""

    def wait(self) -> None:
        """Make the current stream wait for the sum."""
        _current().wait_event(self._complete)


def _library() -> Any:
    """Return CuPy's interface to NCCL.

    Raises
    ------
    BackendUnavailableError
        If CuPy or NCCL is not available.
    """
    require("cupy", INSTALL_CUPY)
    library = require("cupy.cuda.nccl", _REMEDY)
    if not getattr(library, "available", True):
        raise BackendUnavailableError(f"CuPy has not found the NCCL library: {_REMEDY}")
    return library


def _is_on_host(array: Array) -> bool:
    place = backend_of(array)
    return place is None or place.package != "cupy"


def _current() -> Any:
    """Return CuPy's current stream."""
    return require("cupy", INSTALL_CUPY).cuda.get_current_stream()


def _stream() -> int:
    """Return the address of CuPy's current stream."""
    return int(_current().ptr)
