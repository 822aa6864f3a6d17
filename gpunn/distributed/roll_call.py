"""Detect ranks that do different things: each tells the next what it is about to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpunn._typing import Array
from gpunn.distributed.notices import Notices
from gpunn.errors import DistributedError

#: Sizes of a rank's error count, and of its whole message: the count and a text.
_COUNT_SIZE, _MESSAGE_SIZE = 8, 128


class RollCall:
    """Compares, before each operation, what all ranks are about to do.

    Rank r sends a message to rank r + 1, and the last to the first. Each compares the message it
    receives with its own: if no rank finds a difference, all messages are equal. No data is sent
    before that, so arrays of different sizes never meet.

    A message also contains the public call that a rank is in, and the number of errors it has had
    in such calls. This exposes a rank that has caught an error of its own and continued, even if
    its next operation looks like that of the others.

    Parameters
    ----------
    communicator : mpi4py.MPI.Comm
        Reserved for the roll call.
    notices : Notices
        Notifies the other ranks.
    """

    def __init__(self, communicator: Any, notices: Notices) -> None:
        self._rank, self._size = communicator.Get_rank(), communicator.Get_size()
        self._before = (self._rank - 1) % self._size
        self._notices = notices
        self._own, self._other = bytearray(_MESSAGE_SIZE), bytearray(_MESSAGE_SIZE)
        self._receive = communicator.Recv_init(self._other, source=self._before)
        self._send = communicator.Send_init(self._own, dest=(self._rank + 1) % self._size)
        self._doing, self._faults = "", 0
        self._messages: dict[tuple[Any, ...], bytes] = {}

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Return a context for a public call; count the errors that leave it."""
        before, self._doing = self._doing, what
        try:
            yield
        except BaseException as error:
            self._faults += 1
            self._messages.clear()
            if not isinstance(error, DistributedError):  # all ranks have that one
                self._notices.tell_of_fault(f"{what}: {type(error).__name__}: {error}")
            raise
        finally:
            self._doing = before

    def begin(self, operation: str, array: Array | None) -> None:
        """Start sending to the next rank, and receiving from the previous one."""
        kind = () if array is None else (array.dtype, array.size)
        key = self._doing, operation, *kind
        message = self._messages.get(key)
        if message is None:
            message = self._messages[key] = self._encode(operation, *kind)
        self._own[:] = message
        self._receive.Start()
        self._send.Start()

    def Test(self) -> bool:  # noqa: N802 (as of a request of mpi4py)
        """Return whether both messages have arrived."""
        return bool(self._receive.Test() and self._send.Test())

    def difference(self) -> str:
        """Return how the two messages differ, and tell all ranks; empty if they are equal."""
        if self._own == self._other:
            return ""
        difference = self._describe_difference()
        self._notices.tell(f"has found that {difference}")
        return difference

    def _encode(self, operation: str, dtype: Any = None, size: int = 0) -> bytes:
        """Return the message for an operation, of fixed length."""
        numbers = "" if dtype is None else f" of {size} numbers of {dtype}"
        where = f" in {self._doing}" if self._doing else ""
        text = f"{operation}{numbers}{where}".encode()[: _MESSAGE_SIZE - _COUNT_SIZE]
        return self._faults.to_bytes(_COUNT_SIZE, "little") + text.ljust(
            _MESSAGE_SIZE - _COUNT_SIZE
        )

    def _describe_difference(self) -> str:
        """Return how the received message differs from this rank's own."""
        (mine, own), (its, other) = _decode(self._own), _decode(self._other)
        if mine != its:
            odd, alike = self._rank, self._before
            if mine < its:
                odd, alike = alike, odd
            error = self._notices.fault_of(odd)
            return (
                f"rank {odd} has had an error that rank {alike} has not had{error}, and has "
                "continued; let it end the program, or catch it on all ranks"
            )
        return (
            f"the ranks do different things: rank {self._before} {other}, rank {self._rank} {own}; "
            "all must make the same calls in the same order"
        )


def _decode(message: bytearray) -> tuple[int, str]:
    """Return the number of errors and the text of a message."""
    return int.from_bytes(message[:_COUNT_SIZE], "little"), message[_COUNT_SIZE:].decode().rstrip()
