"""How ranks of MPI hear that another one has ended, so that nobody waits for it in vain."""

from __future__ import annotations

import atexit
import os
import sys
import time
from traceback import format_exception
from typing import Any, NoReturn

from gpunn.distributed.lives import Lives
from gpunn.errors import DistributedError

#: Those of this process, one of each communicator.
_all: list[Notices] = []

#: How long a rank that has failed leaves the others to say what they heard, at most, in seconds.
_LAST_WORDS_S = 3.0
#: So long what has been printed may be on its way through the launcher, which ends at once.
_ON_THE_WAY_S = 0.5

#: How the last words of a rank begin that ends all.
_FAILED = "has failed"


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
        #: Why nobody need wait for other ranks, with how much they had done; how they have ended;
        #: and what errors they have had.
        self._heard: dict[int, tuple[int, str]] = {}
        self._ends: dict[int, str] = {}
        self._faults: dict[int, str] = {}
        self._told, self._ended = False, False
        self._sent: list[Any] = []
        self._lives = Lives(communicator)
        if self._size > 1:
            if not _all:
                atexit.register(_end_all)
                _tell_of_exits()
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
        self._listen()
        for rank, (done, text) in self._heard.items():
            if done <= self.done:
                raise DistributedError(
                    f"rank {self._rank} of {self._size} waits for rank {rank}, which {text}"
                )

    def fault_of(self, rank: int) -> str:
        """Return the last error that a rank has told of, in parentheses, if it has told of any."""
        self._listen()
        return f" ({self._faults[rank]})" if rank in self._faults else ""

    def tell(self, text: str) -> None:
        """Tell all other ranks not to wait for this one, unless they have been told."""
        if not self._told:
            self._told = True
            self._send("has left", text)

    def tell_of_fault(self, text: str) -> None:
        """Tell all other ranks of an error, which this one may catch; they go on."""
        self._faults[self._rank] = text
        self._send("has had an error", text)

    def tell_of_end(self, how: str = "has ended") -> None:
        """Tell all other ranks that this one ends now."""
        if not self._ended and not self._mpi.Is_finalized():
            self._told = self._ended = True
            self._send("ends", how)

    def _send(self, kind: str, text: str) -> None:
        others = (rank for rank in range(self._size) if rank != self._rank)
        notice = kind, self.done, text
        self._sent += [self._comm.isend(notice, dest=rank) for rank in others]

    def _listen(self) -> None:
        while self._comm.Iprobe():
            status = self._mpi.Status()
            kind, done, text = self._comm.recv(status=status)
            rank = status.Get_source()
            if kind == "has had an error":
                self._faults[rank] = text
                continue
            self._heard.setdefault(rank, (done, text))  # the first is the reason
            if kind == "ends":
                self._ends[rank] = text
        for rank in self._lives.gone():
            how = "is gone: it was killed, or has ended by os._exit"
            self._heard.setdefault(rank, (-1, how))
            self._ends.setdefault(rank, how)

    def failures(self) -> list[int]:
        """Return the ranks that have said that they end all."""
        return [rank for rank, how in self._ends.items() if how.startswith(_FAILED)]

    def _fail(self, kind: Any, error: Any, where: Any) -> None:
        """Report an error that nobody has caught, and end all ranks."""
        text = f"gpunn: rank {self._rank} of {self._size} has failed, and ends the others\n"
        if self._hook is sys.__excepthook__:  # in one piece: other ranks write to the same place
            text = "".join(format_exception(kind, error, where)) + text
        else:
            self._hook(kind, error, where)
        sys.stderr.write(text)
        sys.stderr.flush()
        self.tell_of_end(f"{_FAILED}: {kind.__name__}: {error}")
        self.wait_for_end(_LAST_WORDS_S)
        time.sleep(_ON_THE_WAY_S)
        self._comm.Abort(1)

    def wait_for_end(self, limit_s: float = float("inf")) -> None:
        """Leave when all others do, so that no notice is on its way when MPI ends."""
        begun = time.monotonic()
        while not self._mpi.Is_finalized():
            self._listen()
            if len(self._ends) >= self._size - 1 or time.monotonic() - begun > limit_s:
                return
            time.sleep(0.001)


def _end_all() -> None:
    """Tell on all channels before waiting on any: the others may listen on another one."""
    for notices in _all:
        notices.tell_of_end()
    for notices in _all:
        notices.wait_for_end()


def _tell_of_exits() -> None:
    """Let ``os._exit``, which ends a process without a word, tell the other ranks first.

    It does what it did in processes that are forked from this one.
    """
    leave, process = os._exit, os.getpid()

    def tell_and_leave(status: int) -> NoReturn:
        if os.getpid() == process:
            for notices in _all:
                notices.tell_of_end(f"has ended by os._exit({status})")
            for notices in _all:
                notices.wait_for_end(_LAST_WORDS_S)
            if any(notices.failures() for notices in _all):
                time.sleep(_LAST_WORDS_S)  # they end this process, too, with their status
        leave(status)

    os._exit = tell_and_leave
