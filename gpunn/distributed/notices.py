"""How ranks of MPI hear that another one has ended, so that nobody waits for it in vain."""

from __future__ import annotations

import atexit
import os
import sys
import time
from typing import Any, NoReturn

from gpunn.distributed.lives import Lives
from gpunn.errors import DistributedError

#: Those of this process, one of each communicator.
_all: list[Notices] = []

#: How long a rank that has failed leaves the others to say what they heard, in seconds.
_LAST_WORDS_S = 1.0

#: How they begin.
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
        #: What others have said of their ends, with how much they had done; and of their errors.
        self._heard: dict[int, tuple[int, str]] = {}
        self._faults: dict[int, str] = {}
        self._told = False
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
            self._send(self.done, text)

    def tell_of_fault(self, text: str) -> None:
        """Tell all other ranks of an error, which this one may catch; they go on."""
        self._faults[self._rank] = text
        self._send(None, text)

    def _send(self, done: int | None, text: str) -> None:
        others = (rank for rank in range(self._size) if rank != self._rank)
        self._sent += [self._comm.isend((done, text), dest=rank) for rank in others]

    def _listen(self) -> None:
        while self._comm.Iprobe():
            status = self._mpi.Status()
            done, text = self._comm.recv(status=status)
            rank = status.Get_source()
            if done is None:
                self._faults[rank] = text
            else:
                self._heard[rank] = done, text
        for rank in self._lives.gone():
            self._heard.setdefault(rank, (-1, "is gone: it was killed, or has ended by os._exit"))

    def failures(self) -> list[int]:
        """Return the ranks that have said that they end all."""
        return [rank for rank, (_, text) in self._heard.items() if text.startswith(_FAILED)]

    def _fail(self, kind: Any, error: Any, traceback: Any) -> None:
        """Report an error that nobody has caught, and end all ranks."""
        self._hook(kind, error, traceback)
        self.tell(f"{_FAILED}: {kind.__name__}: {error}")
        print(  # noqa: T201 (the last that is heard of it)
            f"gpunn: rank {self._rank} of {self._size} has failed, and ends the others",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(_LAST_WORDS_S)
        self._comm.Abort(1)

    def tell_of_end(self, how: str = "has ended") -> None:
        """Tell all other ranks that this one has ended."""
        if not self._mpi.Is_finalized():
            self.tell(how)

    def wait_for_end(self, limit_s: float = float("inf")) -> None:
        """Leave when all others do, so that no notice is on its way when MPI ends."""
        begun = time.monotonic()
        while not self._mpi.Is_finalized():
            self._listen()
            if len(self._heard) >= self._size - 1 or time.monotonic() - begun > limit_s:
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
                time.sleep(2 * _LAST_WORDS_S)  # they end this process, too, with their status
        leave(status)

    os._exit = tell_and_leave
