"""Instructions of convolutions and pooling.

Images lie in C's order, `m` of them. `d` is the thread's own memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.kernels import loops_convolution, loops_pooling
from gpunn.kernels.native import array_at, compiled, integers_at
from gpunn.program.instructions.words import FLAG, LIMIT, A, B, C, D, E, M, by_name, words_of


@by_name
def convolution(op: int, ctx: int, one: Any) -> None:
    """C = a * b + e, of images a and weights b; then max(c, 0), if `flag`. `e` may be 0.

    `limit` is the address of the numbers of a `loops_convolution.Layout`, here and below.
    """
    w = words_of(op)
    layout = integers_at(w[LIMIT], loops_convolution.N_NUMBERS)
    loops_convolution.convolve(w[A], w[M], layout, w[B], w[E], w[FLAG], w[C], w[D], one)


@by_name
def convolution_input_grad(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dx, from a = dJ/dz and weights b."""
    w = words_of(op)
    layout = integers_at(w[LIMIT], loops_convolution.N_NUMBERS)
    loops_convolution.convolve_back(w[A], w[M], layout, w[B], w[C], w[D], one)


@by_name
def convolution_weight_grad(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dW, from images a and b = dJ/dz, over the thread's images."""
    w = words_of(op)
    layout = integers_at(w[LIMIT], loops_convolution.N_NUMBERS)
    loops_convolution.correlate(w[A], w[B], w[M], layout, w[C], w[D], one)


@by_name
def max_pool(op: int, ctx: int, one: Any) -> None:
    """C = the largest entries of a, e = their numbers: bytes, or 32-bit integers if `flag`."""
    w = words_of(op)
    layout = integers_at(w[LIMIT], loops_convolution.N_NUMBERS)
    if w[FLAG] != 0:
        loops_pooling.max_pool(w[A], w[M], layout, w[C], w[E], w[D], one, np.int32(0))
    else:
        loops_pooling.max_pool(w[A], w[M], layout, w[C], w[E], w[D], one, np.uint8(0))


@by_name
def max_pool_backward(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dx, from a = dJ/dy and the numbers b of the largest entries, such as in `max_pool`."""
    w = words_of(op)
    layout = integers_at(w[LIMIT], loops_convolution.N_NUMBERS)
    if w[FLAG] != 0:
        loops_pooling.max_pool_backward(w[A], w[B], w[M], layout, w[C], w[D], one, np.int32(0))
    else:
        loops_pooling.max_pool_backward(w[A], w[B], w[M], layout, w[C], w[D], one, np.uint8(0))


@by_name
def average_pool(op: int, ctx: int, one: Any) -> None:
    """C = the means of a; `flag` says whether padding counts.

    `limit` is the address of the numbers of a window, and of the channels, here and below.
    """
    w = words_of(op)
    numbers = integers_at(w[LIMIT], 13)
    x, y = images_at(w[A], w[M], numbers, one), outputs_at(w[C], w[M], numbers, one)
    loops_pooling.average_pool(x, numbers[:12], w[FLAG] != 0, y)


@by_name
def average_pool_backward(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dx, from a = dJ/dy; `flag` says whether padding counts."""
    w = words_of(op)
    numbers = integers_at(w[LIMIT], 13)
    grad, x = outputs_at(w[A], w[M], numbers, one), images_at(w[C], w[M], numbers, one)
    loops_pooling.average_pool_backward(grad, numbers[:12], w[FLAG] != 0, x)


@compiled
def images_at(place: int, n: int, numbers: Array, one: Any) -> Array:
    """Return n images on the input's side of a window, from its numbers and the channels."""
    return array_at(place, (n, numbers[0], numbers[1], numbers[12]), one)


@compiled
def outputs_at(place: int, n: int, numbers: Array, one: Any) -> Array:
    """Return n images on the output's side of a window."""
    return array_at(place, (n, numbers[2], numbers[3], numbers[12]), one)
