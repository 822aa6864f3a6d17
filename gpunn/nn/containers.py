"""Layers that contain layers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from itertools import accumulate, repeat
from typing import overload

from gpunn._typing import Array
from gpunn.arrays.checks import one_of
from gpunn.errors import GradientError, SettingError, ShapeError
from gpunn.kernels import kernels
from gpunn.nn.layer import Layer, as_instance
from gpunn.nn.tape import Tape
from gpunn.nn.tree import entrance


class Sequential(Layer):
    r"""Layers one after another, :math:`y = f_n(\dots f_2(f_1(x)))`.

    The backward pass is the chain rule: from the last layer to the first, each turns the gradient
    of its output into that of its input.

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
                _check_not_needed(layer, tape)
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
        """Return the expression that creates this network."""
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
        _check_layer("Residual", layer)
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
        if through is None:
            _check_not_needed(self.layer, tape)
            return None
        return kernels(grad).add(grad, through)

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        return f"Residual({self.layer!r})"


class Parallel(Layer):
    r"""Layers in parallel on one input: their outputs are concatenated, or added up.

    :math:`y = (f_1(x), \dots, f_n(x))` along the last axis, or
    :math:`y = f_1(x) + \dots + f_n(x)`. Each layer gets the gradient of its own output, and dJ/dx
    is the sum of the layers' input gradients.

    Parameters
    ----------
    *layers : Layer
        f_1 to f_n, at least one.
    join : {"concatenate", "add"}, default "concatenate"
        To add, all outputs must have the same shape; to concatenate, except along the last axis.

    Notes
    -----
    *Saves*: the widths of the outputs, but no array.
    """

    records = True

    def __init__(self, *layers: Layer, join: str = "concatenate") -> None:
        if not layers:
            raise SettingError("Parallel: expected at least one layer")
        for layer in layers:
            _check_layer("Parallel", layer)
        self.layers = list(layers)
        self.join = one_of("Parallel", "join", join, ("concatenate", "add"))

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return the layers' outputs, concatenated or added up."""
        outputs = [layer.forward(x, tape) for layer in self.layers]
        if tape is not None:
            tape.push(self, [y.shape[-1] for y in outputs])
        self._check(outputs)
        k = kernels(x)
        return k.concatenate(outputs) if self.join == "concatenate" else reduce(k.add, outputs)

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return the sum of the layers' input gradients."""
        (widths,) = tape.pop(self)
        k, total = kernels(grad), None
        stops = accumulate(widths) if self.join == "concatenate" else repeat(0)
        parts = list(zip(self.layers, widths, stops, strict=False))
        for layer, width, stop in reversed(parts):
            own = k.columns(grad, stop - width, stop) if stop else grad
            through = layer.backward(own, tape)
            if through is None:
                if not tape.wants_grad:  # no layer before it needs a gradient
                    return None
                _check_not_needed(layer, tape)
            else:
                total = through if total is None else k.add(total, through)
        return total

    @property
    def takes_integers(self) -> bool:
        """Whether the layers take integers."""
        return bool(entrance(self.layers[0]).takes_integers)

    def check_integers(self, lowest: int, highest: int) -> None:
        """Check that integers between these two are valid inputs of all layers."""
        for layer in self.layers:
            entrance(layer).check_integers(lowest, highest)

    def _check(self, outputs: list[Array]) -> None:
        joined = self.join == "concatenate"
        shapes = [tuple(y.shape[:-1] if joined else y.shape) for y in outputs]
        if len(set(shapes)) > 1:
            wanted = "the same shape except for the last axis" if joined else "the same shape"
            found = ", ".join(str(tuple(y.shape)) for y in outputs)
            raise ShapeError(f"{self!r}: the layers' outputs must have {wanted}, got {found}")

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        shown = [repr(layer) for layer in self.layers]
        if self.join != "concatenate":
            shown.append(f"join={self.join!r}")
        return f"Parallel({', '.join(shown)})"


def _check_not_needed(layer: Layer, tape: Tape) -> None:
    """Check that no layer before this one is to be trained, since this one returned no gradient."""
    if tape.wants_below and not entrance(layer).takes_integers:
        raise GradientError(
            f"{layer!r}: backward returned None; it must return dJ/dx, because layers before it "
            "are trained"
        )


def _check_layer(owner: str, layer: object) -> None:
    """Check that an object is a layer, and not a class of layers."""
    if isinstance(layer, type) and issubclass(layer, Layer):
        raise SettingError(f"{owner}: expected a layer, got {as_instance(layer)}")
    if not isinstance(layer, Layer):
        raise SettingError(f"{owner}: expected a layer, got {type(layer).__name__}")
