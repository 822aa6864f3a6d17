"""What processes that train together say to each other."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn, Protocol, runtime_checkable

from gpunn._typing import Array
from gpunn.errors import StateError


class StartedSum(Protocol):
    """A sum over all ranks that goes on while the program does something else."""

    def advance(self) -> None:
        """Let it go on, where it needs the program for that; return at once."""

    def wait(self) -> None:
        """Return when the array is the sum; on a GPU, for what the current stream does next."""


@runtime_checkable
class Communicator(Protocol):
    """A group of processes that run the same program, each with a rank from 0 to `size` - 1.

    All of them call the same methods in the same order, with arrays of the same shape and dtype.

    Attributes
    ----------
    rank, size : int
        The number of this process, and how many there are.
    """

    rank: int
    size: int

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Overwrite an array, in place and on every rank, by that of the rank `root`."""

    def allreduce(self, array: Array) -> None:
        """Overwrite an array, in place and on every rank, by the sum over all ranks.

        Every rank gets the same bits.
        """

    def start_allreduce(self, array: Array) -> StartedSum:
        """Start what `allreduce` does, for an array in C order, and return at once.

        Nobody reads or writes the array until the sum has been waited for. Those that have been
        started are waited for in the same order.
        """

    def barrier(self) -> None:
        """Wait until all ranks have come here."""

    def doing(self, what: str) -> AbstractContextManager[None]:
        """Return a context in which all ranks do this, such as ``"Trainer.fit"``.

        What they do in it may be compared, and so may the number of errors that have left such
        contexts: a rank that catches one which the others did not have no longer does what they do.
        """


class Connected:
    """A rank of several: it shows itself, and cannot be sent to another process."""

    rank: int
    size: int

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled."""
        name = type(self).__name__
        raise StateError(
            f"{name}: a communicator belongs to the processes that it connects, and cannot be "
            f"pickled; make it again there with get_communicator()"
        )

    def __repr__(self) -> str:
        """Return the rank and the size."""
        return f"{type(self).__name__}(rank={self.rank}, size={self.size})"


class Done:
    """A sum that is there already."""

    def advance(self) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Return at once."""


class SingleProcess:
    """The communicator of a process that is alone. Nothing has to be sent.

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
        """Leave the array as it is."""

    def allreduce(self, array: Array) -> None:
        """Leave the array as it is: it is the sum."""

    def start_allreduce(self, array: Array) -> Done:  # noqa: ARG002
        """Leave the array as it is, too."""
        return Done()

    def barrier(self) -> None:
        """Return at once."""

    def doing(self, what: str) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return a context that does nothing."""
        return nullcontext()

    def __repr__(self) -> str:
        """Return the expression that makes it."""
        return "SingleProcess()"
