"""Plan one block of memory for the values of a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

#: Values begin at multiples of a cache line, in bytes.
_LINE = 64


class Span(NamedTuple):
    """A value's size in bytes, and the first and the last instruction that uses it."""

    size: int
    first: int
    last: int


def plan(spans: Sequence[Span]) -> tuple[list[int], int]:
    """Return an offset for each value, and the size of the block that holds them all.

    Two values share bytes only if they are not alive at the same time. Each in turn takes the
    lowest offset where it fits: the aim is to touch few cache lines, not to use the least memory.
    """
    offsets = [0] * len(spans)
    placed: list[tuple[int, int, Span]] = []
    total = 0
    for i in sorted(range(len(spans)), key=lambda i: (spans[i].first, -spans[i].size)):
        span = spans[i]
        size = aligned(span.size)
        start = 0
        for other_start, other_stop, other in sorted(placed, key=lambda item: item[0]):
            if other.last < span.first or span.last < other.first:
                continue
            if start + size <= other_start:
                break
            start = max(start, other_stop)
        offsets[i] = start
        placed.append((start, start + size, span))
        total = max(total, start + size)
    return offsets, total


def consecutive(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Return offsets for consecutive arrays of the given sizes, and the total size."""
    offsets, total = [], 0
    for size in sizes:
        offsets.append(total)
        total += aligned(size)
    return offsets, total


def aligned(size: int) -> int:
    """Return the size rounded up to a multiple of a cache line."""
    return -(-size // _LINE) * _LINE
