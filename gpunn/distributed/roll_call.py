"""How ranks find that they do different things: each tells the next what it is about to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpunn._typing import Array
from gpunn.distributed.notices import Notices
from gpunn.errors import DistributedError

#: What a rank says: how many errors it has had, and a text in so many bytes.
_FAULTS, _BYTES = 8, 128


class RollCall:
    """Compares, before each operation, what all ranks are about to do.

    Rank r tells rank r + 1, the last tells the first, and each compares what it hears with what it
    has said: if none finds a difference, all have said the same. Nothing of an operation is sent
    before that, so arrays of different sizes never meet.

    What is said also has the public call that a rank is in, and how many errors it has had in such
    calls. A rank that has caught an error which the others did not have, and goes on, is found by
    that, even if its next operation looks like theirs.

    Parameters
    ----------
    communicator : mpi4py.MPI.Comm
        Used for nothing else.
    notices : Notices
        Tells the other ranks.
    """

    def __init__(self, communicator: Any, notices: Notices) -> None:
        self._rank, self._size = communicator.Get_rank(), communicator.Get_size()
        self._before = (self._rank - 1) % self._size
        self._notices = notices
        self._own, self._other = bytearray(_BYTES), bytearray(_BYTES)
        self._heard = communicator.Recv_init(self._other, source=self._before)
        self._told = communicator.Send_init(self._own, dest=(self._rank + 1) % self._size)
        self._doing, self._faults = "", 0
        self._words: dict[tuple[Any, ...], bytes] = {}

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Say for a while that this rank is in some call, and note an error that leaves it."""
        before, self._doing = self._doing, what
        try:
            yield
        except BaseException as error:
            self._faults += 1
            self._words.clear()
            if not isinstance(error, DistributedError):  # all have that
                self._notices.tell_of_fault(f"{what}: {type(error).__name__}: {error}")
            raise
        finally:
            self._doing = before

    def begin(self, operation: str, array: Array | None) -> None:
        """Start to tell the next rank, and to listen to the one before."""
        kind = () if array is None else (array.dtype, array.size)
        key = self._doing, operation, *kind
        words = self._words.get(key)
        if words is None:
            words = self._words[key] = self._said(operation, *kind)
        self._own[:] = words
        self._heard.Start()
        self._told.Start()

    def Test(self) -> bool:  # noqa: N802 (as of a request of mpi4py)
        """Return whether both is done."""
        return bool(self._heard.Test() and self._told.Test())

    def difference(self) -> str:
        """Return how what was heard differs from what was said, if it does; then tell all ranks."""
        if self._own == self._other:
            return ""
        difference = self._difference()
        self._notices.tell(f"has found that {difference}")
        return difference

    def _said(self, operation: str, dtype: Any = None, size: int = 0) -> bytes:
        """Return what to say of an operation, in as many bytes as always."""
        numbers = "" if dtype is None else f" of {size} numbers of {dtype}"
        where = f" in {self._doing}" if self._doing else ""
        text = f"{operation}{numbers}{where}".encode()[: _BYTES - _FAULTS]
        return self._faults.to_bytes(_FAULTS, "little") + text.ljust(_BYTES - _FAULTS)

    def _difference(self) -> str:
        """Say how what was heard differs from what was said."""
        (mine, own), (its, other) = _parts(self._own), _parts(self._other)
        if mine != its:
            odd, alike = self._rank, self._before
            if mine < its:
                odd, alike = alike, odd
            error = self._notices.fault_of(odd)
            return (
                f"rank {odd} has had an error that rank {alike} has not had{error}, and has gone "
                "on; let it end the program, or catch it on all ranks"
            )
        return (
            f"the ranks do different things: rank {self._before} {other}, rank {self._rank} {own}; "
            "all must make the same calls in the same order"
        )


def _parts(said: bytearray) -> tuple[int, str]:
    """Return the number of errors, and the text."""
    return int.from_bytes(said[:_FAULTS], "little"), said[_FAULTS:].decode().rstrip()
