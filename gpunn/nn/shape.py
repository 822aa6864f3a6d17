"""Layers that change only the shape."""

from __future__ import annotations

import math
from typing import ClassVar

from gpunn._typing import Array, Shape
from gpunn.arrays.checks import sample_shape
from gpunn.errors import ShapeError
from gpunn.kernels import kernels
from gpunn.nn.layer import Layer
from gpunn.nn.tape import Tape


class Flatten(Layer):
    """Flatten each sample into a row: (N, a, b, ...) becomes (N, a b ...).

    The gradient is reshaped to the shape of the input.

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


class Reshape(Layer):
    """Reshape each sample: (N, ...) becomes ``(N, *shape)``, with the entries in order.

    It can turn rows, such as those of a table, into images: ``Reshape((8, 8, 1))``. The gradient is
    reshaped to the shape of the input.

    Parameters
    ----------
    shape : int or tuple of int
        The shape of one sample.

    Notes
    -----
    *Saves*: the input's shape, but no array.
    """

    has_parameters: ClassVar[bool] = False
    records = True

    def __init__(self, shape: Shape | int) -> None:
        self.shape = sample_shape("Reshape", shape, "shape")

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return x as ``(N, *shape)``."""
        if math.prod(x.shape[1:]) != math.prod(self.shape):
            raise ShapeError(
                f"{self!r}: expected samples of {math.prod(self.shape)} numbers, got x of shape "
                f"{tuple(x.shape)}"
            )
        if tape is not None:
            tape.push(self, x.shape)
        return kernels(x).reshape(x, (x.shape[0], *self.shape))

    def backward(self, grad: Array, tape: Tape) -> Array:
        """Return grad in the shape of x."""
        (shape,) = tape.pop(self)
        return kernels(grad).reshape(grad, shape)

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        return f"Reshape({self.shape})"
