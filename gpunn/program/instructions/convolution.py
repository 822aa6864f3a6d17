"""Instructions of convolutions and pooling.

They take `m` images in C order. `d` is the address of the thread's scratch memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.kernels import loops_convolution, loops_pooling
from gpunn.kernels.native import array_at, compiled, integers_at
from gpunn.program.instructions.words import FLAG, LIMIT, A, B, C, D, E, M, instruction, words_of


@instruction
def convolution(op: int, ctx: int, one: Any) -> None:
    """C = a * b + e, for images a, weights b and bias e (or 0); then max(c, 0) if `flag`.

    `limit` is the address of the numbers of a `loops_convolution.Layout`, here and below.
    """
    w = words_of(op)
    layout = integers_at(w[LIMIT], loops_convolution.N_NUMBERS)
    loops_convolution.convolve(w[A], w[M], layout, w[B], w[E], w[FLAG], w[C], w[D], one)


@instruction
def convolution_input_grad(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dx, from a = dJ/dz and weights b."""
    w = words_of(op)
    layout = integers_at(w[LIMIT], loops_convolution.N_NUMBERS)
    loops_convolution.convolve_back(w[A], w[M], layout, w[B], w[C], w[D], one)


@instruction
def convolution_weight_grad(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dW, from images a and b = dJ/dz, summed over the thread's images."""
    w = words_of(op)
    layout = integers_at(w[LIMIT], loops_convolution.N_NUMBERS)
    loops_convolution.correlate(w[A], w[B], w[M], layout, w[C], w[D], one)


@instruction
def max_pool(op: int, ctx: int, one: Any) -> None:
    """C = the largest entries of a, e = their positions: bytes, or 32-bit integers if `flag`."""
    w = words_of(op)
    layout = integers_at(w[LIMIT], loops_convolution.N_NUMBERS)
    if w[FLAG] != 0:
        loops_pooling.max_pool(w[A], w[M], layout, w[C], w[E], w[D], one, np.int32(0))
    else:
        loops_pooling.max_pool(w[A], w[M], layout, w[C], w[E], w[D], one, np.uint8(0))


@instruction
def max_pool_backward(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dx, from a = dJ/dy and the positions b of the largest entries, as in `max_pool`."""
    w = words_of(op)
    layout = integers_at(w[LIMIT], loops_convolution.N_NUMBERS)
    if w[FLAG] != 0:
        loops_pooling.max_pool_backward(w[A], w[B], w[M], layout, w[C], w[D], one, np.int32(0))
    else:
        loops_pooling.max_pool_backward(w[A], w[B], w[M], layout, w[C], w[D], one, np.uint8(0))


@instruction
def average_pool(op: int, ctx: int, one: Any) -> None:
    """C = the means of a; `flag` says whether padding counts.

    `limit` is the address of a window's numbers and the number of channels, here and below.
    """
    w = words_of(op)
    numbers = integers_at(w[LIMIT], 13)
    x, y = images_at(w[A], w[M], numbers, one), outputs_at(w[C], w[M], numbers, one)
    loops_pooling.average_pool(x, numbers[:12], w[FLAG] != 0, y)


@instruction
def average_pool_backward(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dx, from a = dJ/dy; `flag` says whether padding counts."""
    w = words_of(op)
    numbers = integers_at(w[LIMIT], 13)
    grad, x = outputs_at(w[A], w[M], numbers, one), images_at(w[C], w[M], numbers, one)
    loops_pooling.average_pool_backward(grad, numbers[:12], w[FLAG] != 0, x)


@compiled
def images_at(place: int, n: int, numbers: Array, one: Any) -> Array:
    """Return n input images of a window, from its numbers and the number of channels."""
    return array_at(place, (n, numbers[0], numbers[1], numbers[12]), one)


@compiled
def outputs_at(place: int, n: int, numbers: Array, one: Any) -> Array:
    """Return n output images of a window."""
    return array_at(place, (n, numbers[2], numbers[3], numbers[12]), one)
