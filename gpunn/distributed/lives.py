"""Detect when the process of another rank on this machine is gone."""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

#: How long messages of a rank may still arrive after its process is gone, in seconds.
_GRACE_S = 0.5


class ProcessWatcher:
    """Watches the processes of the other ranks on this machine.

    A process that is killed, or ends by ``os._exit``, does not notify MPI. On Linux, its file
    descriptor (pidfd) shows that it has ended. Processes on other machines are left to the
    launcher.

    Parameters
    ----------
    communicator : mpi4py.MPI.Comm
    """

    def __init__(self, communicator: Any) -> None:
        self._ranks: dict[int, int] = {}
        self._gone: dict[int, float] = {}
        if not hasattr(os, "pidfd_open"):
            return
        self._poll = select.poll()
        here = _machine()
        for rank, (machine, process) in enumerate(communicator.allgather((here, os.getpid()))):
            if machine == here and process != os.getpid():
                with suppress(OSError):  # a system that does not allow it
                    descriptor = os.pidfd_open(process)
                    self._ranks[descriptor] = rank
                    self._poll.register(descriptor, select.POLLIN)

    def gone(self) -> list[int]:
        """Return the ranks whose processes are gone and whose messages have all arrived."""
        now = time.monotonic()
        if self._ranks:
            for descriptor, _ in self._poll.poll(0):
                self._poll.unregister(descriptor)
                os.close(descriptor)
                self._gone[self._ranks.pop(descriptor)] = now
        return [rank for rank, since in self._gone.items() if now - since > _GRACE_S]


def _machine() -> str:
    """Return an identifier shared by the processes that can see each other's process ids."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    return f"{socket.gethostname()} {os.getpid()}"  # no other process has it
