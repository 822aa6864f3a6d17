"""Layers that pool the pixels of images, or the steps of sequences, channel by channel."""

from __future__ import annotations

from typing import ClassVar

from gpunn._typing import Array
from gpunn.arrays.checks import flag
from gpunn.errors import SettingError, ShapeError
from gpunn.kernels import kernels
from gpunn.kernels.window import Window
from gpunn.nn.images import (
    LAYOUTS,
    as_given,
    as_images,
    padding_of,
    settings_of,
    short,
    sides,
    window_over,
)
from gpunn.nn.layer import Layer
from gpunn.nn.tape import Tape


class Pool(Layer):
    """The base of the layers with a window that moves over images or sequences."""

    #: The number of axes that the window moves along.
    axes: ClassVar[int]

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        *,
        padding: str | int | tuple[int, ...] = "valid",
    ) -> None:
        name, axes = type(self).__name__, self.axes
        self.kernel_size = sides(name, "kernel_size", kernel_size, axes)
        stride = kernel_size if stride is None else stride
        self.stride = sides(name, "stride", stride, axes)
        self.padding = padding_of(name, padding, axes)
        if not isinstance(self.padding, str) and any(
            pad >= size for pad, size in zip(self.padding, self.kernel_size, strict=True)
        ):
            raise SettingError(
                f"{name}: padding must be less than kernel_size, so that each window meets the "
                f"input; got {padding!r} for {kernel_size!r}"
            )

    def _window(self, x: Array) -> Window:
        """Return the window on images of this size, after checking x."""
        if x.ndim != self.axes + 2:
            layout, what = LAYOUTS[self.axes]
            raise ShapeError(
                f"{self!r}: expected {what} of shape ({layout}, C), got {tuple(x.shape)}"
            )
        if not x.shape[-1]:
            raise ShapeError(f"{self!r}: expected at least one channel, got {tuple(x.shape)}")
        settings = settings_of(self.kernel_size, self.stride, self.padding)
        return window_over(self, x.shape, settings)

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        shown = [short(self.kernel_size)]
        if self.stride != self.kernel_size:
            shown.append(f"stride={short(self.stride)}")
        if self.padding != "valid":
            shown.append(f"padding={short(self.padding)}")
        return f"{type(self).__name__}({', '.join(shown)})"


class MaxPool(Pool):
    """The base of `MaxPool2d` and `MaxPool1d`."""

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return the largest entry of each window."""
        window = self._window(x)
        y, where = kernels(x).max_pool(as_images(x, window), window)
        if tape is not None:
            tape.push(self, where, window)
        return as_given(y, self.axes)

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return dJ/dx: each entry of grad at the pixel that was the largest."""
        where, window = tape.pop(self)
        if not tape.wants_grad:
            return None
        grad = kernels(grad).reshape(grad, where.shape)
        return as_given(kernels(grad).max_pool_backward(grad, where, window), self.axes)


class MaxPool2d(MaxPool):
    r"""The largest entry in each window of an image, channel by channel.

    :math:`y = \max_{ij} x_{s y + i,\, s x + j}`. The gradient goes to the largest entry; among
    equal ones to the first, row by row.

    Parameters
    ----------
    kernel_size : int or pair of int
        Height and width of the window.
    stride : int or pair of int, optional
        The steps down and across; by default kernel_size, so that no two windows overlap.
    padding : "valid", "same", int or pair of int, default "valid"
        As for `Conv2d`, but with entries smaller than any other; less than kernel_size.

    Raises
    ------
    ShapeError
        By `forward`, if images are smaller than the window.

    Notes
    -----
    *Shapes*: x (N, H, W, C), y (N, H', W', C), as for `Conv2d`; N may be 0.
    *Saves*: the position of the largest entry in its window, N H' W' C bytes (four times as many
    for windows of more than 256 entries).
    """

    axes = 2
    has_parameters = False
    records = True


class MaxPool1d(MaxPool):
    """The largest entry in each window of a sequence, channel by channel; see `MaxPool2d`.

    Parameters
    ----------
    kernel_size : int
        Length of the window.
    stride : int, optional
        The steps; by default kernel_size.
    padding : "valid", "same" or int, default "valid"
        As for `MaxPool2d`.

    Notes
    -----
    *Shapes*: x (N, T, C), y (N, T', C); N may be 0.
    *Saves*: the position of the largest entry in its window, N T' C bytes.
    """

    axes = 1
    has_parameters = False
    records = True


class AveragePool(Pool):
    """The base of `AveragePool2d` and `AveragePool1d`."""

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        *,
        padding: str | int | tuple[int, ...] = "valid",
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding=padding)
        self.count_include_pad = flag(type(self).__name__, "count_include_pad", count_include_pad)

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return the mean of each window."""
        window, k = self._window(x), kernels(x)
        if tape is not None:
            tape.push(self, window)
        counted = self.count_include_pad
        return as_given(
            k.average_pool(as_images(x, window), window, count_padding=counted), self.axes
        )

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return dJ/dx: an equal share of each entry of grad for all pixels of its window."""
        (window,), k = tape.pop(self), kernels(grad)
        if not tape.wants_grad:
            return None
        grad = k.reshape(grad, (grad.shape[0], *window.output, grad.shape[-1]))
        counted = self.count_include_pad
        return as_given(k.average_pool_backward(grad, window, count_padding=counted), self.axes)

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        shown = super().__repr__()
        return shown if self.count_include_pad else f"{shown[:-1]}, count_include_pad=False)"


class AveragePool2d(AveragePool):
    r"""The mean of each window of an image, channel by channel.

    :math:`y = \frac 1 n \sum_{ij} x_{s y + i,\, s x + j}` for a window of n pixels, each of which
    gets 1/n of the gradient.

    Parameters
    ----------
    kernel_size, stride
        As for `MaxPool2d`.
    padding : "valid", "same", int or pair of int, default "valid"
        As for `Conv2d`; less than kernel_size.
    count_include_pad : bool, default True
        Whether n counts the zeros of the padding, as PyTorch's does by default. False counts pixels
        of the image alone, as Keras does.

    Raises
    ------
    ShapeError
        By `forward`, if images are smaller than the window.

    Notes
    -----
    *Shapes*: x (N, H, W, C), y (N, H', W', C), as for `Conv2d`; N may be 0.
    *Saves*: no array.
    """

    axes = 2
    has_parameters = False
    records = True


class AveragePool1d(AveragePool):
    """The mean of each window of a sequence, channel by channel; see `AveragePool2d`.

    Parameters
    ----------
    kernel_size, stride : int
        As for `MaxPool1d`.
    padding : "valid", "same" or int, default "valid"
        As for `Conv1d`; less than kernel_size.
    count_include_pad : bool, default True
        As for `AveragePool2d`.

    Notes
    -----
    *Shapes*: x (N, T, C), y (N, T', C); N may be 0.
    *Saves*: no array.
    """

    axes = 1
    has_parameters = False
    records = True


class GlobalPool(Layer):
    """The base of the layers whose window is the whole image or sequence."""

    def _window(self, x: Array) -> Window:
        """Return the window that is as large as the images; a sequence is an image of height 1."""
        if x.ndim not in (3, 4) or not all(x.shape[1:]):
            raise ShapeError(
                f"{self!r}: expected images (N, H, W, C) or sequences (N, T, C), with at least one "
                f"pixel, got {tuple(x.shape)}"
            )
        down, across = (1, *x.shape[1:-1])[-2:]
        return Window((down, across), (down, across), (down, across))


class GlobalAveragePool(GlobalPool):
    """The mean of all pixels of an image, or all steps of a sequence, channel by channel.

    Each of the n pixels gets 1/n of the gradient.

    Raises
    ------
    ShapeError
        By `forward`, if `x` is neither images nor sequences.

    Notes
    -----
    *Shapes*: x (N, H, W, C) or (N, T, C), y (N, C); N may be 0.
    *Saves*: the input's shape, but no array.
    """

    has_parameters = False
    records = True

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return the means (N, C)."""
        window, k = self._window(x), kernels(x)
        if tape is not None:
            tape.push(self, window, x.shape)
        y = k.average_pool(as_images(x, window), window, count_padding=True)
        return k.reshape(y, (x.shape[0], x.shape[-1]))

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return dJ/dx, grad / n at each pixel."""
        (window, shape), k = tape.pop(self), kernels(grad)
        if not tape.wants_grad:
            return None
        grad = k.reshape(grad, (shape[0], 1, 1, shape[-1]))
        return k.reshape(k.average_pool_backward(grad, window, count_padding=True), shape)


class GlobalMaxPool(GlobalPool):
    """The largest entry of an image, or of a sequence, channel by channel.

    The gradient goes to the largest entry; among equal ones to the first.

    Raises
    ------
    ShapeError
        By `forward`, if `x` is neither images nor sequences.

    Notes
    -----
    *Shapes*: x (N, H, W, C) or (N, T, C), y (N, C); N may be 0.
    *Saves*: the position of the largest pixel, N C bytes (four times as many for images of more
    than 256 pixels).
    """

    has_parameters = False
    records = True

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return the largest entries (N, C)."""
        window, k = self._window(x), kernels(x)
        y, where = k.max_pool(as_images(x, window), window)
        if tape is not None:
            tape.push(self, where, window, x.shape)
        return k.reshape(y, (x.shape[0], x.shape[-1]))

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return dJ/dx: each entry of grad at the pixel that was the largest."""
        where, window, shape = tape.pop(self)
        if not tape.wants_grad:
            return None
        k = kernels(grad)
        grad = k.max_pool_backward(k.reshape(grad, where.shape), where, window)
        return k.reshape(grad, shape)
