"""The interface for communication between processes that train together."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn, Protocol, runtime_checkable

from gpunn._typing import Array
from gpunn.errors import StateError


class StartedSum(Protocol):
    """A sum over all ranks that runs while the program does something else."""

    def advance(self) -> None:
        """Advance the sum, if it needs the program for that; return at once."""

    def wait(self) -> None:
        """Wait until the array holds the sum; on a GPU, the current stream waits."""


@runtime_checkable
class Communicator(Protocol):
    """A group of processes that run the same program, each with a rank from 0 to `size` - 1.

    All of them call the same methods in the same order, with arrays of the same shape and dtype.

    Attributes
    ----------
    rank, size : int
        The number of this process, and the number of processes.
    """

    rank: int
    size: int

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite an array, in place and on every rank, with that of rank `root`."""

    def allreduce(self, array: Array) -> None:
        """Overwrite an array, in place and on every rank, with the sum over all ranks.

        Every rank gets the same bits.
        """

    def start_allreduce(self, array: Array) -> StartedSum:
        """Start an `allreduce` of an array in C order, and return at once.

        Do not read or write the array before waiting for the sum. Wait for sums in the order in
        which they were started.
        """

    def barrier(self) -> None:
        """Wait until all ranks have reached this call."""

    def doing(self, what: str) -> AbstractContextManager[None]:
        """Return a context for a call that all ranks are in, such as ``"Trainer.fit"``.

        Operations in it may be compared between ranks, and so may the number of errors that have
        left such contexts: a rank that catches an error of its own is out of step with the others.
        """


class Connected:
    """Base class of communicators: a repr with rank and size, and no pickling."""

    rank: int
    size: int

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled."""
        name = type(self).__name__
        raise StateError(
            f"{name}: a communicator belongs to the processes that it connects, and cannot be "
            f"pickled; call get_communicator() in the other process"
        )

    def __repr__(self) -> str:
        """Return the rank and the size."""
        return f"{type(self).__name__}(rank={self.rank}, size={self.size})"


class Done:
    """A sum that is complete from the start."""

    def advance(self) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Return at once."""


class SingleProcess:
    """The communicator of a single process, which sends nothing.

    Examples
    --------
    >>> from gpunn.distributed.communicator import SingleProcess
    >>> communicator = SingleProcess()
    >>> communicator.rank, communicator.size
    (0, 1)
    """

    rank = 0
    size = 1

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Leave the array unchanged."""

    def allreduce(self, array: Array) -> None:
        """Leave the array unchanged: it is the sum."""

    def start_allreduce(self, array: Array) -> Done:  # noqa: ARG002
        """Leave the array unchanged: it is the sum."""
        return Done()

    def barrier(self) -> None:
        """Return at once."""

    def doing(self, what: str) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return a context that does nothing."""
        return nullcontext()

    def __repr__(self) -> str:
        """Return the expression that creates it."""
        return "SingleProcess()"
