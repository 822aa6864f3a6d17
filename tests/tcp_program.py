"""What each process does that `test_tcp.py` starts: NCCL, with a substitute for its library."""

from __future__ import annotations

import sys
from typing import Any

import cupy
import numpy as np

import gpunn as gn


class Library:
    """A stand-in for ``cupy.cuda.nccl``, in which all ranks have the same arrays."""

    available = True

    def __init__(self) -> None:
        self.made: tuple[Any, ...] = ()
        self.roots: set[int] = set()

    def __getattr__(self, name: str) -> int:
        if not name.startswith("NCCL_"):
            raise AttributeError(name)
        return {"NCCL_INT64": 4, "NCCL_FLOAT32": 7, "NCCL_FLOAT64": 8}.get(name, 0)

    def get_unique_id(self) -> bytes:
        return bytes(range(100, 228))

    def NcclCommunicator(self, *made: Any) -> Library:  # noqa: N802 (CuPy's name)
        self.made = made
        return self

    def allReduce(self, place: int, _: int, n: int, kind: int, *rest: int) -> None:  # noqa: N802
        dtype = {4: "int64", 7: "float32", 8: "float64"}[kind]
        memory = cupy.cuda.UnownedMemory(place, 8 * n, self)
        array = cupy.ndarray(n, dtype, cupy.cuda.MemoryPointer(memory, 0))
        array *= self.made[0]

    def bcast(self, _place: int, _n: int, _kind: int, root: int, _stream: int) -> None:
        """Leave the array as it is, and remember from whom it comes."""
        self.roots.add(root)


library = Library()
sys.modules["cupy.cuda.nccl"] = library  # type: ignore[assignment]
cupy.cuda.nccl = library

communicator = gn.get_communicator()
for xp in (np, cupy):
    for dtype in ("int64", "float32", "float64"):
        numbers = xp.arange(5, dtype=dtype)
        communicator.broadcast(numbers, 1)
        communicator.allreduce(numbers)
        assert gn.to_numpy(numbers).tolist() == [communicator.size * i for i in range(5)]
communicator.barrier()
assert library.roots == {1}
assert library.made == (communicator.size, bytes(range(100, 228)), communicator.rank)
print(communicator)
