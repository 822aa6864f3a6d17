"""Processes that meet at an address, without MPI, as `torchrun` starts them."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from gpunn._typing import Array
from gpunn.arrays.libraries import INSTALL_CUPY, require
from gpunn.distributed.communicator import Connected, Done
from gpunn.errors import DistributedError, SettingError

#: Launchers without MPI tell each process who it is, and where rank 0 is, by these environment
#: variables.
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

#: So long the processes wait for each other at the address, and between two looks, in seconds.
_LIMIT_S, _PAUSE_S = 300.0, 0.05


def is_launched() -> bool:
    """Return whether a launcher has set all of the variables."""
    return all(name in os.environ for name in VARIABLES)


class Meeting:
    """Where processes meet: CuPy's store, which rank 0 keeps in a process of its own.

    Whoever reaches the port can read and write there, so it is for a network that is trusted.

    Attributes
    ----------
    rank, size : int
        ``RANK`` and ``WORLD_SIZE``.
    address : str
        ``MASTER_ADDR``.
    port : int
        ``CUPYX_DISTRIBUTED_PORT`` if it is set, else ``MASTER_PORT``, or the next one if torchrun
        itself listens there.

    Raises
    ------
    SettingError
        If they are no numbers, or out of range.
    """

    def __init__(self) -> None:
        self.rank, self.size = _number("RANK"), _number("WORLD_SIZE")
        if not 0 <= self.rank < self.size:
            raise SettingError(
                f"NCCLCommunicator: RANK must be from 0 to WORLD_SIZE - 1, got RANK={self.rank} "
                f"and WORLD_SIZE={self.size}; set them for each process"
            )
        self.address = os.environ["MASTER_ADDR"]
        taken = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        own = "CUPYX_DISTRIBUTED_PORT"
        self.port = _number(own) if own in os.environ else _number("MASTER_PORT") + taken

    def share(self, content: bytes) -> bytes:
        """Return what rank 0 gives, on every rank: up to 200 bytes.

        Raises
        ------
        DistributedError
            If the others do not come.
        """
        store = require("cupyx.distributed._store", INSTALL_CUPY)
        there = store.TCPStoreProxy(self.address, self.port)
        if self.rank > 0:
            content = self._found(there, "gpunn")
            there[f"gpunn {self.rank}"] = b"has it"
            return content
        kept = store.TCPStore(self.size)
        kept.run(self.address, self.port)
        try:
            there["gpunn"] = content
            for rank in range(1, self.size):
                self._found(there, f"gpunn {rank}")
        finally:
            kept.stop()
        return content

    def _found(self, there: Any, name: str) -> bytes:
        """Return what is kept under a name, as soon as it is there."""
        begun = time.monotonic()
        while True:
            try:
                return bytes(there[name])
            except (RuntimeError, OSError) as error:  # the store is not there, or has no such name
                if time.monotonic() - begun > _LIMIT_S:
                    raise DistributedError(
                        f"rank {self.rank} of {self.size} has waited for the others at "
                        f"{self.address}, port {self.port}, for {_LIMIT_S:g} s; start all of them, "
                        "and see that they reach MASTER_ADDR and MASTER_PORT"
                    ) from error
            time.sleep(_PAUSE_S)


class Device(Protocol):
    """What sums arrays of a GPU."""

    rank: int
    size: int

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite an array by that of the rank `root`."""

    def allreduce(self, array: Array) -> None:
        """Overwrite an array by the sum."""


class ThroughDevice(Connected):
    """Sends NumPy's arrays by way of the GPU, where there is nothing else to send them.

    Parameters
    ----------
    device : Device
    """

    def __init__(self, device: Device) -> None:
        self.rank, self.size = device.rank, device.size
        self._device = device

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite an array on every rank by that of the rank `root`."""
        copy = _library().asarray(array)
        self._device.broadcast(copy, root)
        copy.get(out=array)

    def allreduce(self, array: Array) -> None:
        """Overwrite an array on every rank by the sum over all ranks."""
        copy = _library().asarray(array)
        self._device.allreduce(copy)
        copy.get(out=array)

    def start_allreduce(self, array: Array) -> Done:
        """Do so at once: such arrays are small."""
        self.allreduce(array)
        return Done()

    def barrier(self) -> None:
        """Wait until all ranks have come here."""
        one = _library().ones(1, "float32")
        self._device.allreduce(one)
        one.get()

    def doing(self, what: str) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return a context that does nothing: nothing is compared."""
        return nullcontext()


def _library() -> Any:
    return require("cupy", INSTALL_CUPY)


def _number(name: str) -> int:
    text = os.environ[name]
    if not text.isascii() or not text.isdigit():
        raise SettingError(
            f"NCCLCommunicator: expected a number in the environment variable {name}, got {text!r}"
        )
    return int(text)
