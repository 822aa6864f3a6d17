"""Layers that change only the shape."""

from __future__ import annotations

import math
from typing import ClassVar

from gpunn._typing import Array
from gpunn.kernels import kernels
from gpunn.nn.layer import Layer
from gpunn.nn.tape import Tape


class Flatten(Layer):
    """Make each sample one row: (N, a, b, ...) becomes (N, a b ...).

    The gradient gets the shape of the input again.

    Notes
    -----
    *Saves*: the input's shape, but no array.
    """

    has_parameters: ClassVar[bool] = False
    records = True

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return x as (N, P)."""
        if tape is not None:
            tape.push(self, x.shape)
        return kernels(x).reshape(x, (x.shape[0], math.prod(x.shape[1:])))

    def backward(self, grad: Array, tape: Tape) -> Array:
        """Return grad in the shape of x."""
        (shape,) = tape.pop(self)
        return kernels(grad).reshape(grad, shape)
