"""Choose how processes communicate: MPI, NCCL, or not at all."""

from __future__ import annotations

from typing import Any

from gpunn.arrays.checks import one_of
from gpunn.distributed import mpi, tcp
from gpunn.distributed.communicator import Communicator, SingleProcess
from gpunn.distributed.mpi import MPICommunicator
from gpunn.distributed.nccl import NCCLCommunicator

#: Communicators created without settings, by name: a process has one of each.
_made: dict[str, Communicator] = {}


def get_communicator(name: str = "auto", **settings: Any) -> Communicator:
    """Return the communicator of this process and those started with it.

    Without settings it is the same object each time.

    Parameters
    ----------
    name : {"auto", "single", "mpi", "nccl"}, default "auto"
        "auto": "mpi" if an MPI launcher has started this process (``mpiexec -n 2 python ...``);
        else "nccl" if ``RANK``, ``WORLD_SIZE`` above 1, ``MASTER_ADDR`` and ``MASTER_PORT`` are set
        (``torchrun --nproc-per-node 2 train.py``); else "single". "nccl": one process per GPU;
        CuPy arrays are sent by NCCL, NumPy arrays by MPI or, without MPI, through the GPU.
    **settings
        Parameters of `MPICommunicator` or `NCCLCommunicator`.

    Raises
    ------
    BackendUnavailableError
        If a package is missing; the message says what to install.

    Examples
    --------
    >>> import gpunn as gn
    >>> gn.get_communicator("single")
    SingleProcess()
    """
    one_of("get_communicator", "name", name, ("auto", "single", "mpi", "nccl"))
    if name == "auto":
        name = _choose_name()
    if name == "single":
        return SingleProcess()
    if settings:
        return _make(name, settings)
    if name not in _made:
        _made[name] = _make(name, {})
    return _made[name]


def _choose_name() -> str:
    """Return the name of the communicator that suits the launcher of this process."""
    if mpi.is_launched():
        return "mpi"
    return "nccl" if tcp.is_launched() and tcp.Meeting().size > 1 else "single"


def _make(name: str, settings: dict[str, Any]) -> Communicator:
    return MPICommunicator(**settings) if name == "mpi" else NCCLCommunicator(**settings)
