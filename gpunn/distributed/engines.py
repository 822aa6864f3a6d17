"""Which engine carries what processes say to each other."""

from __future__ import annotations

import os
from typing import Any

from gpunn.arrays.checks import one_of
from gpunn.distributed.communicator import Communicator, SingleProcess
from gpunn.distributed.mpi import MPICommunicator
from gpunn.distributed.nccl import NCCLCommunicator

#: What was made without settings: all of a process share its channels.
_made: dict[str, Communicator] = {}

#: Launchers of MPI tell each process its rank in one of these environment variables.
RANKS = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def get_communicator(name: str = "auto", **settings: Any) -> Communicator:
    """Return the communicator of the processes that this one was started with.

    Without settings it is the same object each time.

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
        name = "mpi" if any(variable in os.environ for variable in RANKS) else "single"
    if name == "single":
        return SingleProcess()
    if settings:
        return _make(name, settings)
    if name not in _made:
        _made[name] = _make(name, {})
    return _made[name]


def _make(name: str, settings: dict[str, Any]) -> Communicator:
    return MPICommunicator(**settings) if name == "mpi" else NCCLCommunicator(**settings)
