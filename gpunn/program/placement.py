"""Where the values of a step lie: in one block of memory, planned before it is run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

#: Values begin at multiples of a cache line, in bytes.
_LINE = 64


class Span(NamedTuple):
    """A value's size in bytes, and the first and the last instruction that knows it."""

    size: int
    first: int
    last: int


def plan(spans: Sequence[Span]) -> tuple[list[int], int]:
    """Return an offset for each value, and the size of the block that holds them all.

    Two values share bytes only if one is dead before the other is born. Each in turn takes the
    lowest place where it fits: the least memory is not what matters, but that few cache lines are
    touched.
    """
    offsets = [0] * len(spans)
    placed: list[tuple[int, int, Span]] = []
    total = 0
    for i in sorted(range(len(spans)), key=lambda i: (spans[i].first, -spans[i].size)):
        span = spans[i]
        size = aligned(span.size)
        start = 0
        for taken_from, taken_to, other in sorted(placed, key=lambda item: item[0]):
            if other.last < span.first or span.last < other.first:
                continue
            if start + size <= taken_from:
                break
            start = max(start, taken_to)
        offsets[i] = start
        placed.append((start, start + size, span))
        total = max(total, start + size)
    return offsets, total


def in_a_row(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Return an offset for each of several sizes, one after the other, and the sum."""
    offsets, total = [], 0
    for size in sizes:
        offsets.append(total)
        total += aligned(size)
    return offsets, total


def aligned(size: int) -> int:
    """Return the next multiple of a cache line."""
    return -(-size // _LINE) * _LINE
