"""Sums of products in tiles that stay in registers.

For the small, oddly laid out products of a convolution, calls of BLAS cost more than they save: it
copies its factors, and it wants them in matrices. Here each row of a tile has addresses of its own,
so pixels are read where they are, as often as the filter meets them.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils

from gpunn.kernels.native import compiled, integers_at, intrinsic, itemsize

#: The rows of a tile, each of two vectors. Twelve registers of sums, one for a row's factor and two
#: for the columns' fit into the sixteen that most processors have.
ROWS = 6
#: The bytes of a tile's table: the addresses of each row's factors, and of where its sums go.
TABLE = 16 * ROWS


def _register_size() -> int:
    """Return the bytes of a processor's widest registers."""
    features = llvmlite.binding.get_host_cpu_features()
    widest = (size for name, size in (("avx512f", 64), ("avx", 32)) if features.get(name))
    return next(widest, 16)


_WIDE = _register_size()


class _Tile:
    """Generates a tile's instructions, with vectors of `size` bytes, or single numbers for 0."""

    def __init__(self, target: Any, builder: Any, kind: Any, size: int) -> None:
        self._builder = builder
        self._number = target.get_value_type(kind)
        self._align = kind.bitwidth // 8
        self._size = size or self._align
        self._lanes = self._size // self._align
        self._vectors = 2 if size else 1
        self._vector = ir.VectorType(self._number, self._lanes)

    def generate(
        self,
        table: Any,
        step: Any,
        offsets: Any,
        taps: Any,
        run: Any,
        b: Any,
        pitch: Any,
        start: Any,
        relu: Any,
    ) -> None:
        """Generate all instructions."""
        builder, every = self._builder, [(r, v) for r in range(ROWS) for v in range(self._vectors)]
        rows = [self._word(table, r) for r in range(ROWS)]
        targets = [self._word(table, ROWS + r) for r in range(ROWS)]
        sums = {place: cgutils.alloca_once(builder, self._vector) for place in every}
        with builder.if_else(cgutils.is_null(builder, start)) as (adds, begins):
            with adds:
                for r, v in every:
                    builder.store(self._load(targets[r], v), sums[r, v])
            with begins:
                for r, v in every:
                    builder.store(self._load(start, v), sums[r, v])
        factors = cgutils.alloca_once_value(builder, b)
        with cgutils.for_range(builder, taps) as tap:
            place = cgutils.alloca_once_value(builder, self._word(offsets, tap.index))
            builder.store(self._word(offsets, tap.index), place)
            with cgutils.for_range(builder, run):
                self._add_products(rows, builder.load(place), builder.load(factors), sums)
                for moved, by in ((place, step), (factors, pitch)):
                    builder.store(builder.add(builder.load(moved), by), moved)
        with builder.if_then(cgutils.is_not_null(builder, relu)):
            zero = self._vector(None)
            for held in sums.values():
                total = builder.load(held)
                negative = builder.fcmp_ordered("<", total, zero)  # NaN is not
                builder.store(builder.select(negative, zero, total), held)
        for r, v in every:
            builder.store(builder.load(sums[r, v]), self._at(targets[r], v), align=self._align)

    def _add_products(self, rows: list[Any], place: Any, b: Any, sums: dict[Any, Any]) -> None:
        builder = self._builder
        factors = [self._load(b, v) for v in range(self._vectors)]
        for r, row in enumerate(rows):
            pointer = builder.inttoptr(builder.add(row, place), self._number.as_pointer())
            number = builder.load(pointer, align=self._align)
            first = builder.insert_element(self._vector(ir.Undefined), number, ir.IntType(32)(0))
            mask = ir.Constant(ir.VectorType(ir.IntType(32), self._lanes), None)
            repeated = builder.shuffle_vector(first, first, mask)
            for v, factor in enumerate(factors):
                # "contract" lets both become one instruction, where the processor has it.
                product = builder.fmul(repeated, factor, flags=("contract",))
                total = builder.fadd(builder.load(sums[r, v]), product, flags=("contract",))
                builder.store(total, sums[r, v])

    def _word(self, place: Any, i: Any) -> Any:
        """Return the i-th whole number at an address."""
        integer = ir.IntType(64)
        pointer = self._builder.inttoptr(place, integer.as_pointer())
        index = integer(i) if isinstance(i, int) else i
        return self._builder.load(self._builder.gep(pointer, [index]))

    def _at(self, place: Any, v: int) -> Any:
        """Return a pointer to the v-th vector at an address."""
        moved = self._builder.add(place, ir.IntType(64)(v * self._size))
        return self._builder.inttoptr(moved, self._vector.as_pointer())

    def _load(self, place: Any, v: int) -> Any:
        return self._builder.load(self._at(place, v), align=self._align)


def _tile_of(size: int) -> Any:
    """Return the function of a tile with vectors of so many bytes; see `add_products`."""

    @intrinsic
    def tile(
        _: Any,
        table: Any,  # noqa: ARG001
        step: Any,  # noqa: ARG001
        offsets: Any,  # noqa: ARG001
        taps: Any,  # noqa: ARG001
        run: Any,  # noqa: ARG001
        b: Any,  # noqa: ARG001
        pitch: Any,  # noqa: ARG001
        start: Any,  # noqa: ARG001
        relu: Any,  # noqa: ARG001
        one: Any,
    ) -> Any:
        def generate(target: Any, builder: Any, _: Any, arguments: Any) -> Any:
            _Tile(target, builder, one, size).generate(*arguments[:-1])
            return target.get_dummy_value()

        return types.void(*[types.int64] * 9, one), generate

    return tile


_wide, _half, _quarter, _single = (_tile_of(size) for size in (_WIDE, _WIDE // 2, 16, 0))


@compiled
def add_products(
    n: int,
    rows: tuple[int, int],
    targets: tuple[int, int],
    sums: tuple[int, int, int, int],
    factors: tuple[int, int],
    columns: int,
    start: int,
    relu: int,
    table: int,
    one: Any,
) -> None:
    """Write sums of products: c_r = s + sum_tp a_r[t, p] b[t, p], of rows b[t, p] of numbers.

    Parameters
    ----------
    n : int
        The number of rows c_r; their order is that of the offsets.
    rows, targets : (address, address of offsets)
        a_r and c_r are so many bytes after an address.
    sums : (address of offsets, taps, run, step)
        a_r[t, p] is the t-th offset + p `step` bytes after a_r, for t < taps and p < run.
    factors : (address, pitch)
        b[0, 0], and the bytes from each row to the next: b[0, 1], ..., b[1, 0], ...
    columns : int
        The length of the rows of b and c.
    start : int
        The address of s, a row; 0 adds to what c holds.
    relu : int
        Whether max(c, 0) is written.
    table : int
        Where `TABLE` bytes begin, for no other thread.
    one : float32 or float64
        1, in the dtype of all numbers.
    """
    size = itemsize(one)
    places = integers_at(table, 2 * ROWS)
    from_offsets, to_offsets = integers_at(rows[1], n), integers_at(targets[1], n)
    done = 0
    while done < columns:
        bytes_left, skipped = (columns - done) * size, done * size
        width = size
        for wide in (2 * _WIDE, _WIDE, 32):
            if bytes_left >= wide:
                width = wide
                break
        begin = start + skipped if start != 0 else 0
        for first in range(0, n, ROWS):
            for r in range(ROWS):
                i = min(first + r, n - 1)  # rows beyond the last are computed like that one
                places[r] = rows[0] + from_offsets[i]
                places[ROWS + r] = targets[0] + to_offsets[i] + skipped
            given = table, sums[3], sums[0], sums[1], sums[2], factors[0] + skipped, factors[1]
            if width == 2 * _WIDE:
                _wide(*given, begin, relu, one)
            elif width == _WIDE:
                _half(*given, begin, relu, one)
            elif width == 32:
                _quarter(*given, begin, relu, one)
            else:
                _single(*given, begin, relu, one)
        done += width // size
