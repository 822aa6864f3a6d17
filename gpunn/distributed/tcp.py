"""Rendezvous of processes at a TCP address, without MPI, as `torchrun` starts them."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from gpunn._typing import Array
from gpunn.arrays.libraries import INSTALL_CUPY, require
from gpunn.distributed.communicator import Connected, Done
from gpunn.errors import DistributedError, SettingError

#: Launchers without MPI give each process its rank, the number of processes, and rank 0's address
#: in these environment variables.
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

#: How long processes wait for each other at the address, and between two attempts, in seconds.
_LIMIT_S, _PAUSE_S = 300.0, 0.05


def is_launched() -> bool:
    """Return whether a launcher has set all of the variables."""
    return all(name in os.environ for name in VARIABLES)


class Meeting:
    """Rendezvous in CuPy's TCP store, which rank 0 runs in a separate process.

    Anyone who can reach the port can read and write the store: use it on a trusted network only.

    Attributes
    ----------
    rank, size : int
        ``RANK`` and ``WORLD_SIZE``.
    address : str
        ``MASTER_ADDR``.
    port : int
        ``CUPYX_DISTRIBUTED_PORT`` if set, else ``MASTER_PORT``, or the next port if torchrun itself
        listens there.

    Raises
    ------
    SettingError
        If an environment variable is not a number, or is out of range.
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
        """Return rank 0's bytes, up to 200, on every rank.

        Raises
        ------
        DistributedError
            If another rank does not appear in time.
        """
        module = require("cupyx.distributed._store", INSTALL_CUPY)
        store = module.TCPStoreProxy(self.address, self.port)
        if self.rank > 0:
            content = self._wait_for(store, "gpunn")
            store[f"gpunn {self.rank}"] = b"has it"
            return content
        server = module.TCPStore(self.size)
        server.run(self.address, self.port)
        try:
            store["gpunn"] = content
            for rank in range(1, self.size):
                self._wait_for(store, f"gpunn {rank}")
        finally:
            server.stop()
        return content

    def _wait_for(self, store: Any, name: str) -> bytes:
        """Return the value of a name, as soon as it is in the store."""
        begun = time.monotonic()
        while True:
            try:
                return bytes(store[name])
            except (RuntimeError, OSError) as error:  # the store is not there, or has no such name
                if time.monotonic() - begun > _LIMIT_S:
                    raise DistributedError(
                        f"rank {self.rank} of {self.size} has waited for the others at "
                        f"{self.address}, port {self.port}, for {_LIMIT_S:g} s; start all of them, "
                        "and check that they can reach MASTER_ADDR and MASTER_PORT"
                    ) from error
            time.sleep(_PAUSE_S)


class Device(Protocol):
    """A communicator for GPU arrays."""

    rank: int
    size: int

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite an array with that of rank `root`."""

    def allreduce(self, array: Array) -> None:
        """Overwrite an array with the sum over all ranks."""


class ThroughDevice(Connected):
    """Sends NumPy arrays through the GPU, where nothing else can send them.

    Parameters
    ----------
    device : Device
    """

    def __init__(self, device: Device) -> None:
        self.rank, self.size = device.rank, device.size
        self._device = device

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite an array on every rank with that of rank `root`."""
        copy = _library().asarray(array)
        self._device.broadcast(copy, root)
        copy.get(out=array)

    def allreduce(self, array: Array) -> None:
        """Overwrite an array on every rank with the sum over all ranks."""
        copy = _library().asarray(array)
        self._device.allreduce(copy)
        copy.get(out=array)

    def start_allreduce(self, array: Array) -> Done:
        """Sum at once: such arrays are small."""
        self.allreduce(array)
        return Done()

    def barrier(self) -> None:
        """Wait until all ranks have reached this call."""
        one = _library().ones(1, "float32")
        self._device.allreduce(one)
        one.get()

    def doing(self, what: str) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return a context that does nothing: operations are not compared."""
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
