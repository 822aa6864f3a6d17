"""Sums of products in tiles that stay in registers.

For the small, irregularly laid out products of a convolution, BLAS costs more than it saves: it
copies its factors, and needs them as matrices. Here each row of a tile has its own address, so
pixels are read in place, as often as the filter covers them.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils

from gpunn.kernels.native import compiled, integers_at, itemsize
from gpunn.kernels.vectors import INTEGER, NARROW, WIDE, Vectors, generated

#: The rows of a tile, each of two vectors. Twelve registers of sums, one for a row's factor and two
#: for the columns' factors fit into the sixteen registers of most processors.
ROWS = 6
#: The bytes of a tile's table: the addresses of each row's factors and of its sums.
TABLE = 16 * ROWS


def _tile(
    vectors: Vectors,
    table: Any,
    offsets: Any,
    taps: Any,
    run: Any,
    step: Any,
    b: Any,
    pitch: Any,
    start: Any,
    relu: Any,
) -> None:
    """Generate the instructions of a tile; see `add_products`."""
    builder = vectors.builder
    every = [(r, skipped) for r in range(ROWS) for skipped in _skipped(vectors)]
    rows = [vectors.word(table, r) for r in range(ROWS)]
    targets = [vectors.word(table, ROWS + r) for r in range(ROWS)]
    sums = {place: cgutils.alloca_once(builder, vectors.vector) for place in every}
    with builder.if_else(cgutils.is_null(builder, start)) as (adds, begins):
        with adds:
            for r, skipped in every:
                builder.store(vectors.load(targets[r], skipped=skipped), sums[r, skipped])
        with begins:
            for r, skipped in every:
                builder.store(vectors.load(start, skipped=skipped), sums[r, skipped])
    factors, place = cgutils.alloca_once_value(builder, b), cgutils.alloca_once(builder, INTEGER)
    with cgutils.for_range(builder, taps) as tap:
        builder.store(vectors.word(offsets, tap.index), place)
        with cgutils.for_range(builder, run):
            moved = builder.load(place), builder.load(factors)
            _add_row(vectors, rows, *moved, sums)
            builder.store(builder.add(moved[0], step), place)
            builder.store(builder.add(moved[1], pitch), factors)
    with builder.if_then(cgutils.is_not_null(builder, relu)):
        zero = vectors.vector(None)
        for held in sums.values():
            total = builder.load(held)
            negative = builder.fcmp_ordered("<", total, zero)  # NaN is not
            builder.store(builder.select(negative, zero, total), held)
    for r, skipped in every:
        vectors.store(builder.load(sums[r, skipped]), targets[r], skipped=skipped)


def _add_row(vectors: Vectors, rows: list[Any], place: Any, b: Any, sums: dict[Any, Any]) -> None:
    """Add the product of each row's number at offset `place` and the row of numbers at b."""
    builder = vectors.builder
    factors = {skipped: vectors.load(b, skipped=skipped) for skipped in _skipped(vectors)}
    for r, row in enumerate(rows):
        number = vectors.repeated(builder.add(row, place))
        for skipped, factor in factors.items():
            # "contract" allows one fused instruction, where the processor has it.
            product = builder.fmul(number, factor, flags=("contract",))
            total = builder.fadd(builder.load(sums[r, skipped]), product, flags=("contract",))
            builder.store(total, sums[r, skipped])


def _skipped(vectors: Vectors) -> tuple[int, ...]:
    """Return the offset of each vector in a row of the tile: two vectors, or a single number."""
    return (0,) if vectors.is_single else (0, vectors.size)


_wide, _half, _quarter, _single = (
    generated(_tile, size, 9) for size in (WIDE, WIDE // 2, NARROW, 0)
)


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
    """Write sums of products: c_r = s + sum_tp a_r[t, p] b[t, p], where each b[t, p] is a row.

    Parameters
    ----------
    n : int
        The number of rows c_r.
    rows, targets : (address, address of offsets)
        a_r and c_r are at the address plus the r-th offset, in bytes.
    sums : (address of offsets, taps, run, step)
        a_r[t, p] is the t-th offset + p `step` bytes after a_r, for t < taps and p < run.
    factors : (address, pitch)
        b[0, 0], and the bytes from each row to the next: b[0, 1], ..., b[1, 0], ...
    columns : int
        The length of the rows of b and c.
    start : int
        The address of s, a row; 0 to add to the contents of c.
    relu : int
        Whether max(c, 0) is written.
    table : int
        The address of `TABLE` bytes that no other thread uses.
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
        for wide in (2 * WIDE, WIDE, 2 * NARROW):
            if bytes_left >= wide:
                width = wide
                break
        begin = start + skipped if start != 0 else 0
        for first in range(0, n, ROWS):
            for r in range(ROWS):
                i = min(first + r, n - 1)  # rows beyond the last repeat it
                places[r] = rows[0] + from_offsets[i]
                places[ROWS + r] = targets[0] + to_offsets[i] + skipped
            given = (table, *sums, factors[0] + skipped, factors[1], begin, relu)
            if width == 2 * WIDE:
                _wide(given, one, one)
            elif width == WIDE:
                _half(given, one, one)
            elif width == 2 * NARROW:
                _quarter(given, one, one)
            else:
                _single(given, one, one)
        done += width // size
