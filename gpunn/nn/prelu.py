"""A rectifier with a learned slope."""

from __future__ import annotations

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, get_backend
from gpunn.arrays.capacity import room_for
from gpunn.arrays.checks import float_dtype, number, whole_number
from gpunn.kernels import kernels
from gpunn.nn.channels import check_channels
from gpunn.nn.layer import Layer
from gpunn.nn.parameter import Parameter
from gpunn.nn.tape import Tape


class PReLU(Layer):
    r"""h = x where x > 0, else a x, with a learned slope a, per channel or shared by all.

    .. math:: \partial J/\partial x = \partial J/\partial h \text{ where } x > 0,
              \text{ else } a\, \partial J/\partial h; \quad
              \partial J/\partial a = \textstyle\sum \min(x, 0)\, \partial J/\partial h.

    Parameters
    ----------
    features : int, default 1
        The number of slopes: the number of channels (the last axis), or 1 for a shared slope.
    slope : float, default 0.25
        The initial slope.
    dtype : {"float32", "float64"}, default "float32"
        Of the slopes, and so of the input.
    backend : str, Backend or None, default None
        The library and device of the slopes, as for `get_backend`.

    Attributes
    ----------
    slope : Parameter
        a (features,); weight decay does not apply to it, since it would turn PReLU into ReLU.

    Raises
    ------
    ShapeError, DTypeError, DeviceError
        By `forward`, if `x` does not fit.

    Notes
    -----
    *Shapes*: x and h (N, ..., C), where C is `features` unless that is 1.
    *Saves*: x, not a copy.

    References
    ----------
    He et al., "Delving deep into rectifiers", ICCV 2015.
    """

    records = True

    def __init__(
        self,
        features: int = 1,
        slope: float = 0.25,
        *,
        dtype: str = "float32",
        backend: str | Backend | None = None,
    ) -> None:
        name = type(self).__name__
        self.features = whole_number(name, "features", features)
        initial = number(name, "slope", slope, "[-1e38, 1e38]")
        self._initial = initial
        place, dtype, shape = get_backend(backend), float_dtype(name, dtype), (self.features,)
        with room_for(repr(self), place, shape):
            self.slope = Parameter(place.full(shape, initial, dtype), decay=False)

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return max(x, 0) + a min(x, 0)."""
        channels = None if self.features == 1 else self.features
        check_channels(self, x, self.slope.value, channels)
        h = kernels(x).prelu(x, self.slope.value)
        if tape is not None:
            tape.push(self, x)
        return h

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return dJ/dx; add to the gradient of the slope if the tape wants it."""
        (x,) = tape.pop(self)
        wanted = tape.wants(self.slope)
        into = [self.slope.grad_buffer] if wanted else []
        grad_x, grads = kernels(grad).prelu_backward(
            grad, x, self.slope.value, into, through=tape.wants_grad
        )
        for grad_slope in grads:
            self.slope.add_grad(grad_slope)
        return grad_x

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        shown = "" if self._initial == 0.25 else f", slope={self._initial}"
        return f"{type(self).__name__}({self.features}{shown})"
