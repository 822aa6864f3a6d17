"""Vector instructions for compiled code, where the compiler's own vectorization falls short.

numba's compiler vectorizes simple loops over arrays. It does not keep a tile of sums in registers,
and it first checks each pair of arrays for overlap, which takes as long as processing the few
channels of a pixel. So some inner loops are generated here, as LLVM instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils

from gpunn.kernels.native import intrinsic

INTEGER = ir.IntType(64)


def _register_size() -> int:
    """Return the bytes of the processor's widest registers."""
    features = llvmlite.binding.get_host_cpu_features()
    widest = (size for name, size in (("avx512f", 64), ("avx", 32)) if features.get(name))
    return next(widest, 16)


#: The bytes of the widest vectors, and of vectors that every processor has.
WIDE, NARROW = _register_size(), 16


class Vectors:
    """Generates instructions on vectors of a given size, or on single numbers.

    Parameters
    ----------
    builder : llvmlite.ir.IRBuilder
    number, other : llvmlite.ir.Type
        float or double; and a second type, whose vectors have as many entries.
    size : int
        The bytes of a vector; 0 for single numbers.
    """

    def __init__(self, builder: Any, number: Any, other: Any, size: int) -> None:
        self.builder, self.number = builder, number
        self.align = 8 if number == ir.DoubleType() else 4
        self.is_single = size == 0
        self.size = size or self.align
        self.lanes = self.size // self.align
        self.vector, self.others = (ir.VectorType(kind, self.lanes) for kind in (number, other))

    def word(self, place: Any, i: Any = 0) -> Any:
        """Return the i-th integer at an address."""
        pointer = self.builder.inttoptr(place, INTEGER.as_pointer())
        index = INTEGER(i) if isinstance(i, int) else i
        return self.builder.load(self.builder.gep(pointer, [index]))

    def load(self, place: Any, *, skipped: int = 0) -> Any:
        """Return the vector at an address plus `skipped` bytes."""
        return self.builder.load(self._at(place, skipped), align=self.align)

    def store(self, value: Any, place: Any, *, skipped: int = 0) -> None:
        """Write a vector."""
        self.builder.store(value, self._at(place, skipped), align=self.align)

    def repeated(self, place: Any) -> Any:
        """Return a vector with the number at an address in all entries."""
        builder = self.builder
        number = builder.load(builder.inttoptr(place, self.number.as_pointer()), align=self.align)
        return self.spread(number, self.vector)

    def spread(self, number: Any, vector: Any) -> Any:
        """Return a vector with a number in all entries."""
        first = self.builder.insert_element(vector(ir.Undefined), number, ir.IntType(32)(0))
        mask = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), None)
        return self.builder.shuffle_vector(first, first, mask)

    def _at(self, place: Any, skipped: int) -> Any:
        moved = self.builder.add(place, INTEGER(skipped)) if skipped else place
        return self.builder.inttoptr(moved, self.vector.as_pointer())


def generated(write: Callable[..., None], size: int, integers: int) -> Any:
    """Return a function for compiled code.

    It takes a tuple of integers, 1 in the dtype of the vectors, and a number of the second dtype;
    without a second dtype, 1 again.

    Parameters
    ----------
    write : function
        Generates the instructions, from `Vectors` and the integers.
    size : int
        The bytes of a vector; 0 for single numbers.
    integers : int
        The number of integers.
    """

    def typed(_: Any, numbers: Any, one: Any, other: Any) -> Any:  # noqa: ARG001
        def generate(target: Any, builder: Any, _: Any, arguments: Any) -> Any:
            given = cgutils.unpack_tuple(builder, arguments[0], integers)
            number, beside = (target.get_value_type(kind) for kind in (one, other))
            write(Vectors(builder, number, beside, size), *given)
            return target.get_dummy_value()

        return types.void(types.UniTuple(types.int64, integers), one, other), generate

    return intrinsic(typed)
