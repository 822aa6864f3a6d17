"""NCCL, through CuPy: sums that go from GPU to GPU."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of, scope_of
from gpunn.arrays.libraries import INSTALL_CUPY, require
from gpunn.distributed.communicator import Communicator, Connected
from gpunn.distributed.mpi import MPICommunicator
from gpunn.errors import BackendUnavailableError, DTypeError

_REMEDY = 'pip install "gpunn[nccl]" (with CUDA 13: pip install nvidia-nccl-cu13)'

#: NCCL's names of dtypes.
_KINDS = {
    "uint8": "NCCL_UINT8",
    "int64": "NCCL_INT64",
    "float16": "NCCL_FLOAT16",
    "float32": "NCCL_FLOAT32",
    "float64": "NCCL_FLOAT64",
}


class NCCLCommunicator(Connected):
    """One process for each GPU: CuPy's arrays are sent by NCCL, on the current stream.

    Nothing waits for the device. Choose each process's GPU before the first array is made:
    ``gn.use(backend=f"cupy:{local_rank}")``.

    Parameters
    ----------
    host : Communicator, optional
        Sends NumPy's arrays, such as the identifier of the GPUs' communicator; by default an
        `MPICommunicator`.

    Raises
    ------
    BackendUnavailableError
        If CuPy, NCCL or mpi4py is not installed.

    Notes
    -----
    It was tested with a substitute of ``cupy.cuda.nccl``, and never on several GPUs.
    """

    def __init__(self, host: Communicator | None = None) -> None:
        self._nccl = _library()
        self._host = host = MPICommunicator() if host is None else host
        self.rank, self.size = host.rank, host.size
        self._made: Any = None

    @property
    def _comm(self) -> Any:
        """NCCL's communicator, made on the device that is current when it is first needed."""
        if self._made is None:
            identifier = np.zeros(128, np.int64)
            if self.rank == 0:
                identifier[:] = self._nccl.get_unique_id()
            self._host.broadcast(identifier)
            made = self._nccl.NcclCommunicator
            self._made = made(self.size, tuple(identifier.tolist()), self.rank)
        return self._made

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite an array on every rank by that of the rank `root`."""
        if _is_on_host(array):
            self._host.broadcast(array, root)
            return
        with scope_of(array):
            self._comm.bcast(*self._memory(array), root, _stream())

    def allreduce(self, array: Array) -> None:
        """Overwrite an array on every rank by the sum over all ranks."""
        if _is_on_host(array):
            self._host.allreduce(array)
            return
        with scope_of(array):
            place, size, kind = self._memory(array)
            self._comm.allReduce(place, place, size, kind, self._nccl.NCCL_SUM, _stream())

    def barrier(self) -> None:
        """Wait until all ranks have come here; their devices may still be at work."""
        self._host.barrier()

    def doing(self, what: str) -> AbstractContextManager[None]:
        """Return a context in which this rank does what all ranks do; see `Communicator`."""
        return self._host.doing(what)

    def _memory(self, array: Array) -> tuple[int, int, int]:
        """Return the address, the number of entries and NCCL's dtype of an array."""
        name = _KINDS.get(str(array.dtype))
        if name is None or not array.flags.c_contiguous:
            raise DTypeError(
                f"NCCLCommunicator: expected an array in C order, of {', '.join(_KINDS)}; "
                f"got {array.dtype}"
            )
        return int(array.data.ptr), int(array.size), int(getattr(self._nccl, name))


def _library() -> Any:
    """Return CuPy's interface to NCCL.

    Raises
    ------
    BackendUnavailableError
        If there is none.
    """
    require("cupy", INSTALL_CUPY)
    library = require("cupy.cuda.nccl", _REMEDY)
    if not getattr(library, "available", True):
        raise BackendUnavailableError(f"CuPy has found no library of NCCL: {_REMEDY}")
    return library


def _is_on_host(array: Array) -> bool:
    place = backend_of(array)
    return place is None or place.package != "cupy"


def _stream() -> int:
    """Return the address of CuPy's current stream."""
    return int(require("cupy", INSTALL_CUPY).cuda.get_current_stream().ptr)
