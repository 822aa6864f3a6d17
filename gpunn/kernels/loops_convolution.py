"""The loops of convolutions that numba compiles, over images in C order.

An image with its padding is copied to a thread's scratch memory, where it stays in the cache while
the output pixels are computed from it. The positions of pixels, outputs and weights are computed
once, as tables of offsets in bytes: see `Layout`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.native import array_at, compiled, integers_at, itemsize
from gpunn.kernels.tiles import TABLE, add_products
from gpunn.kernels.window import Window

#: The numbers of a layout, by position.
H, W, CHANNELS, OUT_H, OUT_W, OUT_CHANNELS, TOP, LEFT, PADDED_H, PADDED_W, GROUPS = range(11)
ENTRIES, TAPS, RUN, STEP, PIXELS, OUTPUTS, TAP_OFFSETS, WEIGHTS, ENTRY_OFFSETS, LINES = range(
    11, 21
)
N_NUMBERS = 21
#: The bytes of scratch memory before a padded image, for a tile's table and an offset.
_IMAGE = TABLE + 32


class Layout:
    """The positions of the pixels, outputs and weights of a convolution in memory.

    Attributes
    ----------
    numbers : array of int64
        Sizes, and the addresses of the tables.
    scratch : int
        The bytes of scratch memory that the loops need per thread.
    """

    def __init__(self, window: Window, channels: int, out_channels: int, itemsize: int) -> None:
        (h, w), (out_h, out_w), (padded_h, padded_w) = window.image, window.output, window.padded
        group_in = channels // window.groups
        pixel, line = channels * itemsize, padded_w * channels * itemsize

        def offsets(*steps: tuple[int, int]) -> Array:
            """Return all sums of multiples of sizes, from 0 to count - 1 for each (count, size)."""
            total = np.zeros((), np.int64)
            for count, size in steps:
                total = total[..., None] + np.arange(count, dtype=np.int64) * size
            return np.ascontiguousarray(total.ravel())

        down, across = window.dilation[0] * line, window.dilation[1] * pixel
        filter_ = (window.size[0], down), (window.size[1], across)
        outputs = (out_h, window.stride[0] * line), (out_w, window.stride[1] * pixel)
        # If the inputs under a row of the filter are contiguous, the row is one run.
        contiguous = window.groups == 1 and window.dilation[1] == 1
        taps = offsets(filter_[0]) if contiguous else offsets(*filter_)
        entries = window.size[0] * window.size[1] * group_in
        self.tables = {
            PIXELS: offsets(*outputs),
            OUTPUTS: offsets((out_h * out_w, out_channels * itemsize)),
            TAP_OFFSETS: taps,
            WEIGHTS: offsets((entries, out_channels * itemsize)),
            ENTRY_OFFSETS: offsets(*filter_, (group_in, itemsize)),
            LINES: offsets(outputs[0]),
        }
        self.numbers = np.zeros(N_NUMBERS, np.int64)
        self.numbers[:ENTRIES] = (
            *(h, w, channels, out_h, out_w, out_channels),
            *(*window.before, padded_h, padded_w, window.groups),
        )
        self.numbers[ENTRIES:PIXELS] = entries, len(taps), entries // len(taps), outputs[1][1]
        for place, table in self.tables.items():
            self.numbers[place] = table.ctypes.data
        image = padded_h * line
        self.scratch = _IMAGE + image + entries * out_channels * itemsize


@lru_cache(maxsize=256)
def layout_of(window: Window, channels: int, out_channels: int, itemsize: int) -> Layout:
    """Return the layout of a convolution, from a cache."""
    return Layout(window, channels, out_channels, itemsize)


@compiled
def convolve(
    x: int, n: int, layout: Array, weight: int, bias: int, relu: int, z: int, scratch: int, one: Any
) -> None:
    """Write the convolution of n images plus the bias, and then max(z, 0) if `relu`.

    All arrays are given by their addresses. Without a bias, `bias` and `relu` are 0.
    """
    size, groups, channels = itemsize(one), layout[GROUPS], layout[OUT_CHANNELS]
    group_in, group_out = layout[CHANNELS] // groups, channels // groups
    outputs = layout[OUT_H] * layout[OUT_W]
    start, place = bias, begin(layout, scratch, type(one)(0))
    if bias == 0:
        start = place + _padded_entries(layout) * size
        array_at(start, (channels,), one)[:] = 0
    sums = layout[TAP_OFFSETS], layout[TAPS], layout[RUN], size
    for i in range(n):
        image = with_padding(x, i, layout, place, one)
        for g in range(groups):
            skipped = g * group_out * size
            add_products(
                outputs,
                (image + g * group_in * size, layout[PIXELS]),
                (z + i * outputs * channels * size + skipped, layout[OUTPUTS]),
                sums,
                (weight + skipped, channels * size),
                group_out,
                start + skipped,
                relu,
                scratch,
                one,
            )


@compiled
def convolve_back(
    grad: int, n: int, layout: Array, weight: int, x: int, scratch: int, one: Any
) -> None:
    """Write dJ/dx of n images from dJ/dz: each output pixel adds to all its inputs."""
    size, groups, channels = itemsize(one), layout[GROUPS], layout[OUT_CHANNELS]
    group_in, group_out = layout[CHANNELS] // groups, channels // groups
    outputs, n_taps = layout[OUT_H] * layout[OUT_W], layout[ENTRIES] // group_in
    transposed = scratch + _IMAGE + _padded_entries(layout) * size
    _transpose_taps(weight, n_taps, group_in, groups, group_out, transposed, one)
    zero = scratch + TABLE  # the offset of the only tap
    integers_at(zero, 1)[0] = 0
    taps = integers_at(layout[ENTRY_OFFSETS], layout[ENTRIES])
    for i in range(n):
        image = begin_back(x, i, layout, scratch, one)
        for t in range(n_taps):
            for g in range(groups):
                add_products(
                    outputs,
                    (grad + (i * outputs * channels + g * group_out) * size, layout[OUTPUTS]),
                    (image + taps[t * group_in] + g * group_in * size, layout[PIXELS]),
                    (zero, 1, group_out, size),
                    (transposed + (t * groups + g) * group_out * group_in * size, group_in * size),
                    group_in,
                    0,
                    0,
                    scratch,
                    one,
                )
        without_padding(image, layout, x, i, one)


@compiled
def correlate(
    x: int, grad: int, n: int, layout: Array, weight: int, scratch: int, one: Any
) -> None:
    """Write dJ/dW, the sum over n images, from dJ/dz."""
    size, groups, channels = itemsize(one), layout[GROUPS], layout[OUT_CHANNELS]
    group_in, group_out = layout[CHANNELS] // groups, channels // groups
    outputs, entries = layout[OUT_H] * layout[OUT_W], layout[ENTRIES]
    place = begin(layout, scratch, type(one)(0))
    array_at(weight, (entries * channels,), one)[:] = 0
    sums = layout[LINES], layout[OUT_H], layout[OUT_W], layout[STEP]
    for i in range(n):
        image = with_padding(x, i, layout, place, one)
        for g in range(groups):
            skipped = g * group_out * size
            add_products(
                entries,
                (image + g * group_in * size, layout[ENTRY_OFFSETS]),
                (weight + skipped, layout[WEIGHTS]),
                sums,
                (grad + i * outputs * channels * size + skipped, channels * size),
                group_out,
                0,
                0,
                scratch,
                one,
            )


@compiled
def _has_padding(layout: Array) -> bool:
    different: bool = layout[PADDED_H] != layout[H] or layout[PADDED_W] != layout[W]
    return different


@compiled
def _entries(layout: Array) -> int:
    """Return the number of entries in an image."""
    entries: int = layout[H] * layout[W] * layout[CHANNELS]
    return entries


@compiled
def _padded_entries(layout: Array) -> int:
    """Return the number of entries in an image with its padding."""
    entries: int = layout[PADDED_H] * layout[PADDED_W] * layout[CHANNELS]
    return entries


@compiled
def begin(layout: Array, scratch: int, border: Any) -> int:
    """Return the address for padded images, after filling that memory with `border`."""
    place = scratch + _IMAGE
    if _has_padding(layout):
        array_at(place, (_padded_entries(layout),), border)[:] = border
    return place


@compiled
def with_padding(x: int, i: int, layout: Array, place: int, one: Any) -> int:
    """Return the address of the i-th image with its padding: a copy, if it has padding."""
    x += i * _entries(layout) * itemsize(one)
    if not _has_padding(layout):
        return x
    width, pitch = layout[W] * layout[CHANNELS], layout[PADDED_W] * layout[CHANNELS]
    given = array_at(x, (layout[H], width), one)
    padded = array_at(place, (layout[PADDED_H], pitch), one)
    top, left = layout[TOP], layout[LEFT] * layout[CHANNELS]
    for y in range(layout[H]):
        for j in range(width):
            padded[top + y, left + j] = given[y, j]
    return place


@compiled
def begin_back(x: int, i: int, layout: Array, scratch: int, one: Any) -> int:
    """Return the address for the i-th image's gradient with its padding, after zeroing it."""
    place: int = x + i * _entries(layout) * itemsize(one)
    if _has_padding(layout):
        place = scratch + _IMAGE
    array_at(place, (_padded_entries(layout),), one)[:] = 0
    return place


@compiled
def without_padding(place: int, layout: Array, x: int, i: int, one: Any) -> None:
    """Copy the i-th image from its padded copy, if it has padding."""
    if not _has_padding(layout):
        return
    width, pitch = layout[W] * layout[CHANNELS], layout[PADDED_W] * layout[CHANNELS]
    result = array_at(x + i * _entries(layout) * itemsize(one), (layout[H], width), one)
    padded = array_at(place, (layout[PADDED_H], pitch), one)
    top, left = layout[TOP], layout[LEFT] * layout[CHANNELS]
    for y in range(layout[H]):
        for j in range(width):
            result[y, j] = padded[top + y, left + j]


@compiled
def _transpose_taps(
    weight: int, taps: int, group_in: int, groups: int, group_out: int, place: int, one: Any
) -> None:
    """Write the transpose of each tap's matrix, group by group."""
    given = array_at(weight, (taps, group_in, groups, group_out), one)
    transposed = array_at(place, (taps, groups, group_out, group_in), one)
    for t in range(taps):
        for g in range(groups):
            for k in range(group_out):
                for c in range(group_in):
                    transposed[t, g, k, c] = given[t, c, g, k]
