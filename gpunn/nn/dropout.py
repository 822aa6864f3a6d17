"""Dropout."""

from __future__ import annotations

from typing import ClassVar

from gpunn._typing import Array
from gpunn.arrays.checks import number
from gpunn.arrays.settings import checked
from gpunn.kernels import kernels
from gpunn.nn.layer import Layer
from gpunn.nn.tape import Tape


class Dropout(Layer):
    """In training, zero each entry with probability p and scale the rest: y = m x / (1 - p).

    The gradient is m grad / (1 - p), with the same mask m. Without a tape, or if its `training` is
    False, y = x.

    Parameters
    ----------
    rate : float
        p, in [0, 1).

    Notes
    -----
    The tape draws one key per forward pass, and entry i of the mask is computed from (key, i) in
    integer arithmetic: one seed gives the same masks on every backend.
    *Saves*: the mask, with the shape of x; nothing outside training.

    References
    ----------
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting",
    JMLR 15, 2014.
    """

    has_parameters: ClassVar[bool] = False
    records = True

    rate: float = checked(number, "[0, 1)")

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return x, or with a training tape m x / (1 - p)."""
        if tape is None:
            return x
        if not (tape.training and self.rate):
            tape.push(self, None)
            return x
        y, mask = kernels(x).dropout(x, tape.draw_key(), self.rate)
        tape.push(self, mask)
        return y

    def backward(self, grad: Array, tape: Tape) -> Array:
        """Return the gradient where x was kept."""
        (mask,) = tape.pop(self)
        return grad if mask is None else kernels(grad).multiply(grad, mask)

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        return f"Dropout({self.rate})"
