"""What processes that train together say to each other, and which engine carries it."""

from __future__ import annotations

import os
from typing import Any, Protocol, runtime_checkable

from gpunn._typing import Array
from gpunn.arrays.checks import one_of

#: Launchers of MPI tell each process its rank in one of these environment variables.
_RANKS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


@runtime_checkable
class Communicator(Protocol):
    """A group of processes that run the same program, each with a rank from 0 to `size` - 1.

    All of them call the same methods in the same order, with arrays of the same shape and dtype.

    Attributes
    ----------
    rank, size : int
        The number of this process, and how many there are.
    """

    rank: int
    size: int

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite an array, in place and on every rank, by that of the rank `root`."""

    def allreduce(self, array: Array) -> None:
        """Overwrite an array, in place and on every rank, by the sum over all ranks.

        Every rank gets the same bits.
        """

    def barrier(self) -> None:
        """Wait until all ranks have come here."""


class SingleProcess:
    """The communicator of a process that is alone. Nothing has to be sent.

    Examples
    --------
    >>> from gpunn.distributed.communicator import SingleProcess
    >>> communicator = SingleProcess()
    >>> communicator.rank, communicator.size
    (0, 1)
    """

    rank = 0
    size = 1

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Leave the array as it is."""

    def allreduce(self, array: Array) -> None:
        """Leave the array as it is: it is the sum."""

    def barrier(self) -> None:
        """Return at once."""

    def __repr__(self) -> str:
        """Return the expression that makes it."""
        return "SingleProcess()"


def get_communicator(name: str = "auto", **settings: Any) -> Communicator:
    """Return the communicator of the processes that this one was started with.

    Parameters
    ----------
    name : {"auto", "single", "mpi", "nccl"}, default "auto"
        "auto": MPI if a launcher of MPI has started this process (``mpiexec -n 2 python ...``),
        else a single process. "nccl": one process a GPU, CuPy's arrays by NCCL and NumPy's by MPI.
    **settings
        Those of `MPICommunicator` or `NCCLCommunicator`.

    Raises
    ------
    BackendUnavailableError
        If what it needs is not installed; the message says what to install.

    Examples
    --------
    >>> import gpunn as gn
    >>> gn.get_communicator("single")
    SingleProcess()
    """
    one_of("get_communicator", "name", name, ("auto", "single", "mpi", "nccl"))
    if name == "auto":
        name = "mpi" if any(variable in os.environ for variable in _RANKS) else "single"
    if name == "single":
        return SingleProcess()
    if name == "mpi":
        from gpunn.distributed.mpi import MPICommunicator  # noqa: PLC0415 (most never need it)

        return MPICommunicator(**settings)
    from gpunn.distributed.nccl import NCCLCommunicator  # noqa: PLC0415

    return NCCLCommunicator(**settings)
