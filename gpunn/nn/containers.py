"""Layers that contain layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import overload

from gpunn._typing import Array
from gpunn.errors import SettingError, ShapeError
from gpunn.kernels import kernels
from gpunn.nn.layer import Layer, as_instance
from gpunn.nn.tape import Tape


class Sequential(Layer):
    r"""Layers one after another, :math:`y = f_n(\dots f_2(f_1(x)))`.

    The chain rule is the backward pass: each layer turns the gradient of its output into that of
    its input, the last layer first.

    Parameters
    ----------
    *layers : Layer
        The layers, in order. A layer that appears twice has one set of parameters.
    """

    records = True

    def __init__(self, *layers: Layer) -> None:
        for i, layer in enumerate(layers):
            if isinstance(layer, type) and issubclass(layer, Layer):
                name, _, advice = as_instance(layer).partition(";")
                raise SettingError(
                    f"Sequential: expected layers, got {name} at position {i};{advice}"
                )
            if not isinstance(layer, Layer):
                raise SettingError(
                    f"Sequential: expected layers, got {type(layer).__name__} at position {i}; "
                    "pass them one by one, Sequential(a, b), or unpack a list, Sequential(*layers)"
                )
        self.layers = list(layers)

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return the last layer's output."""
        for layer in self.layers:
            x = layer.forward(x, tape)
        return x

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return the first layer's input gradient, or None if no layer below needs it."""
        for layer in reversed(self.layers):
            passed_on = layer.backward(grad, tape)
            if passed_on is None:
                return None
            grad = passed_on
        return grad

    def sequence(self) -> list[Layer]:
        """Return the layers."""
        return self.layers

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        """Iterate over the layers."""
        return iter(self.layers)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | slice) -> Layer | Sequential:
        """Return a layer, or for a slice a Sequential that shares its layers with this one."""
        chosen = self.layers[index]
        return Sequential(*chosen) if isinstance(chosen, list) else chosen

    def __repr__(self) -> str:
        """Return the expression that makes this network."""
        return f"Sequential({', '.join(repr(layer) for layer in self.layers)})"


class Residual(Layer):
    """A layer with a skip connection, y = x + f(x).

    dJ/dx is grad plus the input gradient that f's backward pass computes from grad.

    Parameters
    ----------
    layer : Layer
        f, whose output has the shape of its input.

    References
    ----------
    He et al., "Deep residual learning for image recognition", CVPR 2016.
    """

    records = True

    def __init__(self, layer: Layer) -> None:
        if isinstance(layer, type) and issubclass(layer, Layer):
            raise SettingError(f"Residual: expected a layer, got {as_instance(layer)}")
        if not isinstance(layer, Layer):
            raise SettingError(f"Residual: expected a layer, got {type(layer).__name__}")
        self.layer = layer

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return x + f(x)."""
        y = self.layer.forward(x, tape)
        if y.shape != x.shape:
            raise ShapeError(
                f"{self!r}: the inner layer must keep the shape {tuple(x.shape)}, "
                f"it returned {tuple(y.shape)}"
            )
        return kernels(x).add(x, y)

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return grad + f's input gradient."""
        through = self.layer.backward(grad, tape)
        return None if through is None else kernels(grad).add(grad, through)

    def __repr__(self) -> str:
        """Return the expression that makes this layer."""
        return f"Residual({self.layer!r})"
