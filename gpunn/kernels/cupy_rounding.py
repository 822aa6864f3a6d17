"""Round the factors of products to bfloat16 on the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cupy
import numpy as np

from gpunn._typing import Array
from gpunn.kernels.cuda.grids import over_entries
from gpunn.kernels.cupy_launch import cuda_kernel

_LINE = 64  # entries: the second factor begins at a multiple of 128 bytes, which cuBLAS prefers

#: An object that keeps two rounded factors alive, and their addresses.
Rounded = tuple[Any, int, int]
Rounder = Callable[[Array, Array], Rounded]


def round_factors(x: Array, y: Array) -> Rounded:
    """Round two float32 arrays to bfloat16, in one launch on the current device.

    Nothing is cached: any array may be written to between two products, without notice.

    Parameters
    ----------
    x, y : array
        Not empty, without gaps between entries. The results keep the order of the entries in
        memory.
    """
    start = -(-x.size // _LINE) * _LINE
    rounded = cupy.ndarray(start + y.size, np.uint16)
    left = rounded.data.ptr
    right = left + 2 * start
    _launch((x.data.ptr, left, x.size), (y.data.ptr, right, y.size))
    return rounded, left, right


def _launch(first: tuple[int, int, int], second: tuple[int, int, int] = (0, 0, 0)) -> None:
    """Round one or two arrays, each given by source, destination and number of entries."""
    (blocks, _), threads = over_entries(max(first[2], second[2]))
    kernel = cuda_kernel("bfloat16", "round_factors", None)
    kernel((blocks, 2 if second[2] else 1), threads, *first, *second)


class Span(NamedTuple):
    """The memory of an array without gaps."""

    start: int
    n_bytes: int

    @classmethod
    def of(cls, x: Array) -> Span:
        """Return an array's memory."""
        return cls(x.data.ptr, x.nbytes)

    def holds(self, other: Span) -> bool:
        """Return whether this span contains another."""
        end, other_end = self.start + self.n_bytes, other.start + other.n_bytes
        return self.start <= other.start and other_end <= end


class NotedFactors:
    """Rounds factors as `round_factors` does, and notes their memory."""

    def __init__(self) -> None:
        self.spans: list[tuple[Span, Span]] = []

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The numbers of entries of the factors."""
        return [(x.n_bytes // 4, y.n_bytes // 4) for x, y in self.spans]

    def __call__(self, x: Array, y: Array) -> Rounded:
        """Round the factors of a product."""
        self.spans.append((Span.of(x), Span.of(y)))
        return round_factors(x, y)


class WeightCopies:
    """Copies of weights in bfloat16, for consecutive steps with no other code in between.

    `refresh` writes them before the first step. In each step, the update's kernel rewrites them
    and sets `are_written`; after an update that does not, call `refresh`.

    Parameters
    ----------
    weights : sequence of array
        Weights, or blocks of weights, that only the update writes.
    factors : sequence of Span
        The memory of the products' factors. A weight that contains none of it gets no copy.
    """

    def __init__(self, weights: Sequence[Array], factors: Sequence[Span]) -> None:
        spans = map(Span.of, weights)
        read = [span for span in spans if any(map(span.holds, factors))]
        self._copies = [(span, cupy.ndarray(span.n_bytes // 4, np.uint16)) for span in read]
        self.are_written = False

    def refresh(self) -> None:
        """Write all copies, in the current stream."""
        parts = [(span.start, copy.data.ptr, copy.size) for span, copy in self._copies]
        for i in range(0, len(parts), 2):
            _launch(*parts[i : i + 2])

    def start_of(self, x: Array) -> int:
        """Return the address of the copy of a weight, or of a part of one; 0 if there is none."""
        wanted = Span.of(x)
        for span, copy in self._copies:
            if span.holds(wanted):
                start: int = copy.data.ptr
                return start + (wanted.start - span.start) // 2
        return 0


class KeptFactors:
    """Rounds the factors of a step's products in turn: each only once, and no weights.

    Parameters
    ----------
    copies : WeightCopies
    contents : sequence of pairs
        For the two factors of each product, a key that is equal for equal contents; None where the
        contents are unknown.
    """

    def __init__(self, copies: WeightCopies, contents: Sequence[tuple[Any, Any]]) -> None:
        self._copies = copies
        self._contents = iter(contents)
        self._uses = Counter(content for pair in contents for content in pair)
        self._kept: dict[Any, tuple[Span, Array]] = {}

    def __call__(self, x: Array, y: Array) -> Rounded:
        """Round a product's factors, unless they are rounded already, in one launch."""
        contents = next(self._contents, (None, None))
        missing: list[tuple[int, int, int]] = []
        (left, start), (right, other_start) = (
            self._rounded(factor, content, missing)
            for factor, content in zip((x, y), contents, strict=True)
        )
        if missing:
            _launch(*missing)
        self._uses.subtract(contents)
        for content in contents:
            if not self._uses[content]:
                self._kept.pop(content, None)
        return (left, right), start, other_start

    def _rounded(self, factor: Array, content: Any, missing: list[Any]) -> tuple[Any, int]:
        """Return the owner and address of a rounded factor; add it to `missing` if not rounded."""
        copy = self._copies.start_of(factor)
        if copy:
            return self._copies, copy
        span, rounded = self._kept.get(content, (None, None))
        if span != Span.of(factor) or rounded is None:
            rounded = cupy.ndarray(factor.size, np.uint16)
            missing.append((factor.data.ptr, rounded.data.ptr, factor.size))
            if content is not None:
                self._kept[content] = Span.of(factor), rounded
        return rounded, rounded.data.ptr
