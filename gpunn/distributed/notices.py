"""How ranks of MPI hear that another one has ended, so that nobody waits for it in vain."""

from __future__ import annotations

import atexit
import sys
import time
from typing import Any

from gpunn.errors import DistributedError

#: Those of this process, one of each communicator.
_all: list[Notices] = []

#: How long a rank that has failed leaves the others to say what they heard, in seconds.
_LAST_WORDS_S = 1.0


class Notices:
    """Tells all other ranks when this one ends, and hears from them.

    Parameters
    ----------
    mpi : module
        ``mpi4py.MPI``.
    communicator : mpi4py.MPI.Comm
        Used for nothing else.
    """

    def __init__(self, mpi: Any, communicator: Any) -> None:
        self._mpi, self._comm = mpi, communicator
        self._rank, self._size = communicator.Get_rank(), communicator.Get_size()
        #: How many operations this rank has completed.
        self.done = 0
        self._heard: dict[int, tuple[int, str]] = {}
        self._sent: list[Any] = []
        if self._size > 1:
            if not _all:
                atexit.register(_end_all)
            _all.append(self)
            self._hook, sys.excepthook = sys.excepthook, self._fail

    def check(self) -> None:
        """Raise if another rank has ended that has not taken part in the present operation.

        A rank that has completed it may end before the others do.

        Raises
        ------
        DistributedError
            Names it, and why it ended.
        """
        while self._comm.Iprobe():
            self._receive()
        for rank, (done, text) in self._heard.items():
            if done <= self.done:
                raise DistributedError(
                    f"rank {self._rank} of {self._size} waits for rank {rank}, which {text}"
                )

    def _receive(self) -> None:
        status = self._mpi.Status()
        notice = self._comm.recv(status=status)
        self._heard[status.Get_source()] = notice

    def _tell(self, text: str) -> None:
        """Tell all other ranks, unless they have been told."""
        if not self._sent:
            others = (rank for rank in range(self._size) if rank != self._rank)
            notice = self.done, text
            self._sent = [self._comm.isend(notice, dest=rank) for rank in others]

    def _fail(self, kind: Any, error: Any, traceback: Any) -> None:
        """Report an error that nobody has caught, and end all ranks."""
        self._hook(kind, error, traceback)
        self._tell(f"has failed: {kind.__name__}: {error}")
        print(  # noqa: T201 (the last that is heard of it)
            f"gpunn: rank {self._rank} of {self._size} has failed, and ends the others",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(_LAST_WORDS_S)
        self._comm.Abort(1)

    def tell_of_end(self) -> None:
        """Tell all other ranks that this one has ended."""
        if not self._mpi.Is_finalized():
            self._tell("has ended")

    def wait_for_end(self) -> None:
        """Leave when all others do, so that no notice is on its way when MPI ends."""
        if self._mpi.Is_finalized():
            return
        while len(self._heard) < self._size - 1:
            if self._comm.Iprobe():
                self._receive()
            else:
                time.sleep(0.001)


def _end_all() -> None:
    """Tell on all channels before waiting on any: the others may listen on another one."""
    for notices in _all:
        notices.tell_of_end()
    for notices in _all:
        notices.wait_for_end()
