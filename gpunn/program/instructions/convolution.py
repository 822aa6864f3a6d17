"""Instructions of convolutions and pooling.

Images lie in C's order, `m` of them; `limit` is the address of whole numbers: those of the window
(see `loops_convolution.numbers_of`), then the input's channels, the output's, the groups of
channels, and how many rows of pixels are unrolled at a time. `d` is the thread's own memory for
them: a row of pixels stays in the cache from its unrolling to its product, and the whole unrolled
batch, several times as large as the images, exists nowhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.kernels import loops, loops_convolution, loops_pooling
from gpunn.kernels.native import array_at, compiled, itemsize
from gpunn.program.instructions.words import (
    FLAG,
    LIMIT,
    WORKSPACE,
    A,
    B,
    C,
    D,
    E,
    M,
    by_name,
    context_of,
    integers,
    words_of,
)
from gpunn.program.products import add_product, matrix, product, transpose

#: The numbers of a window, and those after them.
WINDOW_NUMBERS, NUMBERS = 12, 16


@by_name
def convolution(op: int, ctx: int, one: Any) -> None:
    """C = a * b + e, of images a and weights b; then max(c, 0), if `flag`. `e` may be 0."""
    w, room, size = words_of(op), context_of(ctx)[WORKSPACE], itemsize(one)
    numbers = integers(w[LIMIT], 16)
    window, out_w, terms, own, out = _parts(numbers)
    channels, groups, at_once = numbers[13], numbers[14], numbers[15]
    x = images_at(w[A], w[M], numbers, one)
    n_rows = w[M] * window[2]
    for first in range(0, n_rows, at_once):
        rows = min(at_once, n_rows - first)
        place = w[C] + first * out_w * channels * size
        for g in range(groups):
            columns = array_at(w[D], (rows, out_w, window[4], window[5], own), one)
            loops_convolution.unroll(x, window, first, g, columns)
            skipped = g * out * size
            factors = matrix(w[D], terms), matrix(w[B] + skipped, channels)
            shape = rows * out_w, out, terms
            product(shape, factors[0], factors[1], matrix(place + skipped, channels), room, one)
        if w[E] != 0:
            z = array_at(place, (rows * out_w, channels), one)
            loops.add_bias(z, array_at(w[E], (channels,), one), w[FLAG] != 0)


@by_name
def convolution_input_grad(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dx, from a = dJ/dz and weights b."""
    w, room, size = words_of(op), context_of(ctx)[WORKSPACE], itemsize(one)
    numbers = integers(w[LIMIT], 16)
    window, out_w, terms, own, out = _parts(numbers)
    channels, groups, at_once = numbers[13], numbers[14], numbers[15]
    x = images_at(w[C], w[M], numbers, one)
    x[:] = 0
    n_rows = w[M] * window[2]
    for first in range(0, n_rows, at_once):
        rows = min(at_once, n_rows - first)
        place = w[A] + first * out_w * channels * size
        for g in range(groups):
            skipped = g * out * size
            grad, weight = matrix(place + skipped, channels), matrix(w[B] + skipped, channels)
            shape = rows * out_w, terms, out
            product(shape, grad, transpose(weight), matrix(w[D], terms), room, one)
            columns = array_at(w[D], (rows, out_w, window[4], window[5], own), one)
            loops_convolution.fold(columns, window, first, g, x)


@by_name
def convolution_weight_grad(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dW, from images a and b = dJ/dz, over the thread's images."""
    w, room, size = words_of(op), context_of(ctx)[WORKSPACE], itemsize(one)
    numbers = integers(w[LIMIT], 16)
    window, out_w, terms, own, out = _parts(numbers)
    channels, groups, at_once = numbers[13], numbers[14], numbers[15]
    x = images_at(w[A], w[M], numbers, one)
    array_at(w[C], (terms * channels,), one)[:] = 0
    n_rows = w[M] * window[2]
    for first in range(0, n_rows, at_once):
        rows = min(at_once, n_rows - first)
        place = w[B] + first * out_w * channels * size
        for g in range(groups):
            columns = array_at(w[D], (rows, out_w, window[4], window[5], own), one)
            loops_convolution.unroll(x, window, first, g, columns)
            skipped = g * out * size
            factors = transpose(matrix(w[D], terms)), matrix(place + skipped, channels)
            shape = terms, out, rows * out_w
            result = matrix(w[C] + skipped, channels)
            add_product(shape, factors[0], factors[1], one, result, room)


@compiled
def _parts(numbers: Array) -> tuple[Array, int, int, int, int]:
    """Return the window, the width of the output, and for a group the terms and both channels."""
    own, out = numbers[12] // numbers[14], numbers[13] // numbers[14]
    return numbers[:12], numbers[3], numbers[4] * numbers[5] * own, own, out


@compiled
def images_at(place: int, n: int, numbers: Array, one: Any) -> Array:
    """Return n images on the input's side of the window."""
    return array_at(place, (n, numbers[0], numbers[1], numbers[12]), one)


@compiled
def outputs_at(place: int, n: int, numbers: Array, one: Any) -> Array:
    """Return n images on the output's side of the window."""
    return array_at(place, (n, numbers[2], numbers[3], numbers[13]), one)


@by_name
def max_pool(op: int, ctx: int, one: Any) -> None:
    """C = the largest entries of a, d = their numbers: bytes, or 32-bit integers if `flag`."""
    w = words_of(op)
    numbers = integers(w[LIMIT], 16)
    x, y = images_at(w[A], w[M], numbers, one), outputs_at(w[C], w[M], numbers, one)
    if w[FLAG] != 0:
        loops_pooling.max_pool(x, numbers[:12], y, outputs_at(w[D], w[M], numbers, np.int32(0)))
    else:
        loops_pooling.max_pool(x, numbers[:12], y, outputs_at(w[D], w[M], numbers, np.uint8(0)))


@by_name
def max_pool_backward(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dx, from a = dJ/dy and the numbers b of the largest entries."""
    w = words_of(op)
    numbers = integers(w[LIMIT], 16)
    grad, x = outputs_at(w[A], w[M], numbers, one), images_at(w[C], w[M], numbers, one)
    if w[FLAG] != 0:
        where = outputs_at(w[B], w[M], numbers, np.int32(0))
        loops_pooling.max_pool_backward(grad, where, numbers[:12], x)
    else:
        bytes_ = outputs_at(w[B], w[M], numbers, np.uint8(0))
        loops_pooling.max_pool_backward(grad, bytes_, numbers[:12], x)


@by_name
def average_pool(op: int, ctx: int, one: Any) -> None:
    """C = the means of a; `flag` says whether padding counts."""
    w = words_of(op)
    numbers = integers(w[LIMIT], 16)
    x, y = images_at(w[A], w[M], numbers, one), outputs_at(w[C], w[M], numbers, one)
    loops_pooling.average_pool(x, numbers[:12], w[FLAG] != 0, y)


@by_name
def average_pool_backward(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dx, from a = dJ/dy; `flag` says whether padding counts."""
    w = words_of(op)
    numbers = integers(w[LIMIT], 16)
    grad, x = outputs_at(w[A], w[M], numbers, one), images_at(w[C], w[M], numbers, one)
    loops_pooling.average_pool_backward(grad, numbers[:12], w[FLAG] != 0, x)
