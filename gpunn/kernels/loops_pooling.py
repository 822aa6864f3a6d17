"""The loops of pooling that numba compiles, over images in C order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.core import cgutils

from gpunn._typing import Array
from gpunn.kernels.loops_convolution import (
    CHANNELS,
    ENTRIES,
    ENTRY_OFFSETS,
    OUT_H,
    OUT_W,
    PIXELS,
    begin,
    begin_back,
    with_padding,
    without_padding,
)
from gpunn.kernels.native import compiled, integers_at, itemsize
from gpunn.kernels.vectors import NARROW, WIDE, Vectors, generated
from gpunn.kernels.window import Window


def numbers_of(window: Window) -> Array:
    """Return a window's numbers as an array, in the order that the loops expect."""
    parts = (window.image, window.output, window.size, window.stride, window.dilation)
    return np.array([*parts, window.before], np.int64).ravel()


def _largest(vectors: Vectors, x: Any, offsets: Any, taps: Any, y: Any, where: Any) -> None:
    """Write the largest of the vectors at x + offset to y, and their positions to `where`."""
    builder, numbers = vectors.builder, vectors.others
    first = vectors.load(builder.add(x, vectors.word(offsets)))
    best = cgutils.alloca_once_value(builder, first)
    number = cgutils.alloca_once_value(builder, numbers(None))
    with cgutils.for_range(builder, taps) as tap:
        here = vectors.load(builder.add(x, vectors.word(offsets, tap.index)))
        known = builder.load(best)
        larger = builder.fcmp_unordered(">", here, known)  # also true if one is NaN
        larger = builder.and_(larger, builder.fcmp_ordered("ord", known, known))
        builder.store(builder.select(larger, here, known), best)
        position = vectors.spread(builder.trunc(tap.index, numbers.element), numbers)
        builder.store(builder.select(larger, position, builder.load(number)), number)
    vectors.store(builder.load(best), y)
    builder.store(builder.load(number), _numbers_at(vectors, where), align=1)


def _spread(vectors: Vectors, grad: Any, where: Any, offsets: Any, taps: Any, x: Any) -> None:
    """Add a gradient to the vectors at x + offset, at the positions in `where`."""
    builder, numbers = vectors.builder, vectors.others
    given, zero = vectors.load(grad), vectors.vector(None)
    number = builder.load(_numbers_at(vectors, where), align=1)
    with cgutils.for_range(builder, taps) as tap:
        place = builder.add(x, vectors.word(offsets, tap.index))
        position = vectors.spread(builder.trunc(tap.index, numbers.element), numbers)
        share = builder.select(builder.icmp_signed("==", number, position), given, zero)
        vectors.store(builder.fadd(vectors.load(place), share), place)


def _numbers_at(vectors: Vectors, place: Any) -> Any:
    return vectors.builder.inttoptr(place, vectors.others.as_pointer())


_largest_wide, _largest_narrow, _largest_single = (
    generated(_largest, size, 5) for size in (WIDE, NARROW, 0)
)
_spread_wide, _spread_narrow, _spread_single = (
    generated(_spread, size, 5) for size in (WIDE, NARROW, 0)
)


@compiled
def max_pool(
    x: int, n: int, layout: Array, y: int, where: int, scratch: int, one: Any, index: Any
) -> None:
    """Write the largest entry of each window of n images, and its position; NaN is the largest.

    Arrays are given by their addresses. `layout` belongs to a convolution in which each channel is
    a group, and `index` is a number of the dtype of `where`.
    """
    channels, outputs = layout[CHANNELS], layout[OUT_H] * layout[OUT_W]
    size, index_size = itemsize(one), itemsize(index)
    place = begin(layout, scratch, type(one)(-math.inf))
    pixels = integers_at(layout[PIXELS], outputs)
    taps, offsets = layout[ENTRIES], layout[ENTRY_OFFSETS]
    for i in range(n):
        image = with_padding(x, i, layout, place, one)
        for q in range(outputs):
            c, first = 0, (i * outputs + q) * channels
            while c < channels:
                lanes = _lanes(channels - c, size)
                source, target = image + pixels[q] + c * size, y + (first + c) * size
                given = (source, offsets, taps, target, where + (first + c) * index_size)
                if lanes * size == WIDE:
                    _largest_wide(given, one, index)
                elif lanes > 1:
                    _largest_narrow(given, one, index)
                else:
                    _largest_single(given, one, index)
                c += lanes


@compiled
def max_pool_backward(
    grad: int, where: int, n: int, layout: Array, x: int, scratch: int, one: Any, index: Any
) -> None:
    """Write dJ/dx: each entry of `grad` goes to the largest pixel of its window."""
    channels, outputs = layout[CHANNELS], layout[OUT_H] * layout[OUT_W]
    size, index_size = itemsize(one), itemsize(index)
    pixels = integers_at(layout[PIXELS], outputs)
    taps, offsets = layout[ENTRIES], layout[ENTRY_OFFSETS]
    for i in range(n):
        image = begin_back(x, i, layout, scratch, one)
        for q in range(outputs):
            c, first = 0, (i * outputs + q) * channels
            while c < channels:
                lanes = _lanes(channels - c, size)
                place, target = grad + (first + c) * size, image + pixels[q] + c * size
                given = (place, where + (first + c) * index_size, offsets, taps, target)
                if lanes * size == WIDE:
                    _spread_wide(given, one, index)
                elif lanes > 1:
                    _spread_narrow(given, one, index)
                else:
                    _spread_single(given, one, index)
                c += lanes
        without_padding(image, layout, x, i, one)


@compiled
def _lanes(channels: int, size: int) -> int:
    """Return the number of channels to process at once, of those left."""
    for wide in (WIDE, NARROW):
        if channels * size >= wide:
            return wide // size
    return 1


@compiled
def average_pool(x: Array, window: Array, count_padding: bool, y: Array) -> None:
    """Write the mean of each window."""
    h, w, out_h, out_w, size_h, size_w, down, across, _, _, top, left = window
    of = x.dtype.type
    for n in range(x.shape[0]):
        for v in range(out_h):
            rows = range(max(0, top - v * down), min(size_h, h + top - v * down))
            for u in range(out_w):
                first, last = max(0, left - u * across), min(size_w, w + left - u * across)
                count = size_h * size_w if count_padding else len(rows) * (last - first)
                y[n, v, u] = 0
                for i in rows:
                    for j in range(first, last):
                        for c in range(x.shape[3]):
                            y[n, v, u, c] += x[n, v * down + i - top, u * across + j - left, c]
                for c in range(x.shape[3]):
                    y[n, v, u, c] /= of(count)


@compiled
def average_pool_backward(grad: Array, window: Array, count_padding: bool, x: Array) -> None:
    """Write dJ/dx: all pixels of a window get an equal share of its entry of `grad`."""
    h, w, out_h, out_w, size_h, size_w, down, across, _, _, top, left = window
    of = x.dtype.type
    x[:] = 0
    for n in range(x.shape[0]):
        for v in range(out_h):
            rows = range(max(0, top - v * down), min(size_h, h + top - v * down))
            for u in range(out_w):
                first, last = max(0, left - u * across), min(size_w, w + left - u * across)
                count = size_h * size_w if count_padding else len(rows) * (last - first)
                for i in rows:
                    for j in range(first, last):
                        for c in range(x.shape[3]):
                            share = grad[n, v, u, c] / of(count)
                            x[n, v * down + i - top, u * across + j - left, c] += share
