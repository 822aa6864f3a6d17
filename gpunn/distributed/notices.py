"""Notify MPI ranks that another rank has ended, so that none waits for it in vain."""

from __future__ import annotations

import atexit
import os
import sys
import time
from traceback import format_exception
from typing import Any, NoReturn

from gpunn.distributed.lives import ProcessWatcher
from gpunn.errors import DistributedError

#: The instances of this process, one per communicator.
_instances: list[Notices] = []

#: How long, at most, a failed rank waits for the others to report the failure, in seconds.
_LAST_WORDS_S = 3.0
#: How long printed text may take to pass through the launcher, which ends at once, in seconds.
_DELIVERY_S = 0.5

#: How the last notice of a rank that ends all others begins.
_FAILURE = "has failed"


class Notices:
    """Tells all other ranks when this one ends, and receives their notices.

    Parameters
    ----------
    mpi : module
        ``mpi4py.MPI``.
    communicator : mpi4py.MPI.Comm
        Reserved for notices.
    """

    def __init__(self, mpi: Any, communicator: Any) -> None:
        self._mpi, self._comm = mpi, communicator
        self._rank, self._size = communicator.Get_rank(), communicator.Get_size()
        #: The number of operations that this rank has completed.
        self.n_completed = 0
        #: By rank: how many operations it had completed when it left, and why it left; how it
        #: ended; and its last error.
        self._departures: dict[int, tuple[int, str]] = {}
        self._ends: dict[int, str] = {}
        self._faults: dict[int, str] = {}
        self._has_told, self._has_ended = False, False
        self._sent: list[Any] = []
        self._watcher = ProcessWatcher(communicator)
        if self._size > 1:
            if not _instances:
                atexit.register(_end_all_channels)
                _announce_exits()
            _instances.append(self)
            self._hook, sys.excepthook = sys.excepthook, self._fail

    def check(self) -> None:
        """Raise if another rank has ended without completing the current operation.

        A rank that has completed it may end before the others do.

        Raises
        ------
        DistributedError
            Names the rank, and says why it ended.
        """
        self._listen()
        for rank, (done, text) in self._departures.items():
            if done <= self.n_completed:
                raise DistributedError(
                    f"rank {self._rank} of {self._size} waits for rank {rank}, which {text}"
                )

    def fault_of(self, rank: int) -> str:
        """Return the last error that a rank has reported, in parentheses; empty if none."""
        self._listen()
        return f" ({self._faults[rank]})" if rank in self._faults else ""

    def tell(self, text: str) -> None:
        """Tell all other ranks, once, not to wait for this one."""
        if not self._has_told:
            self._has_told = True
            self._send("has left", text)

    def tell_of_fault(self, text: str) -> None:
        """Tell all other ranks of an error, which this one may catch; they continue."""
        self._faults[self._rank] = text
        self._send("has had an error", text)

    def tell_of_end(self, how: str = "has ended") -> None:
        """Tell all other ranks, once, that this one ends now."""
        if not self._has_ended and not self._mpi.Is_finalized():
            self._has_told = self._has_ended = True
            self._send("ends", how)

    def _send(self, kind: str, text: str) -> None:
        others = (rank for rank in range(self._size) if rank != self._rank)
        notice = kind, self.n_completed, text
        self._sent += [self._comm.isend(notice, dest=rank) for rank in others]

    def _listen(self) -> None:
        while self._comm.Iprobe():
            status = self._mpi.Status()
            kind, done, text = self._comm.recv(status=status)
            rank = status.Get_source()
            if kind == "has had an error":
                self._faults[rank] = text
                continue
            self._departures.setdefault(rank, (done, text))  # the first one is the cause
            if kind == "ends":
                self._ends[rank] = text
        for rank in self._watcher.gone():
            how = "is gone: it was killed, or has ended by os._exit"
            self._departures.setdefault(rank, (-1, how))
            self._ends.setdefault(rank, how)

    def failures(self) -> list[int]:
        """Return the ranks that have failed and will end all others."""
        return [rank for rank, how in self._ends.items() if how.startswith(_FAILURE)]

    def _fail(self, kind: Any, error: Any, where: Any) -> None:
        """Report an uncaught error, and end all ranks."""
        text = f"gpunn: rank {self._rank} of {self._size} has failed, and ends the others\n"
        if self._hook is sys.__excepthook__:  # one write: other ranks print here too
            text = "".join(format_exception(kind, error, where)) + text
        else:
            self._hook(kind, error, where)
        sys.stderr.write(text)
        sys.stderr.flush()
        self.tell_of_end(f"{_FAILURE}: {kind.__name__}: {error}")
        self.wait_for_end(_LAST_WORDS_S)
        time.sleep(_DELIVERY_S)
        self._comm.Abort(1)

    def wait_for_end(self, limit_s: float = float("inf")) -> None:
        """Wait until all others end, so that no notice is in flight when MPI ends."""
        begun = time.monotonic()
        while not self._mpi.Is_finalized():
            self._listen()
            if len(self._ends) >= self._size - 1 or time.monotonic() - begun > limit_s:
                return
            time.sleep(0.001)


def _end_all_channels() -> None:
    """Send on all channels before waiting on any: other ranks may be listening on another one."""
    for notices in _instances:
        notices.tell_of_end()
    for notices in _instances:
        notices.wait_for_end()


def _announce_exits() -> None:
    """Make ``os._exit``, which ends a process silently, tell the other ranks first.

    In processes forked from this one it is unchanged.
    """
    leave, process = os._exit, os.getpid()

    def tell_and_leave(status: int) -> NoReturn:
        if os.getpid() == process:
            for notices in _instances:
                notices.tell_of_end(f"has ended by os._exit({status})")
            for notices in _instances:
                notices.wait_for_end(_LAST_WORDS_S)
            if any(notices.failures() for notices in _instances):
                time.sleep(_LAST_WORDS_S)  # they end this process with their own status
        leave(status)

    os._exit = tell_and_leave
