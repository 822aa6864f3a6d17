"""Whether the processes of the other ranks of this machine are still there."""

from __future__ import annotations

import os
import select
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

#: So long after its process has gone, what a rank has sent may still be on the way, in seconds.
_GRACE_S = 0.5


class Lives:
    """Watches the processes of those ranks that are on this machine.

    A process that is killed, or ends by ``os._exit``, says nothing to MPI. Linux tells whoever has
    opened a descriptor of it. Processes of other machines are left to the launcher.

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
        """Return the ranks whose processes have been gone for longer than messages take."""
        now = time.monotonic()
        if self._ranks:
            for descriptor, _ in self._poll.poll(0):
                self._poll.unregister(descriptor)
                os.close(descriptor)
                self._gone[self._ranks.pop(descriptor)] = now
        return [rank for rank, since in self._gone.items() if now - since > _GRACE_S]


def _machine() -> str:
    """Return what processes have in common that know each other by number."""
    with suppress(OSError):
        return f"{socket.gethostname()} {Path('/proc/self/ns/pid').readlink()}"
    return f"{socket.gethostname()} {os.getpid()}"  # nobody else's
