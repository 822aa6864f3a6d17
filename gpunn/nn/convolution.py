"""Convolutions of images and sequences, channels last."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn

from gpunn._typing import RNG, Array
from gpunn.arrays.backend import Backend, backend_of, device_mismatch, get_backend
from gpunn.arrays.capacity import room_for
from gpunn.arrays.checks import flag, float_dtype, whole_number
from gpunn.arrays.facts import dtype_name, size_of
from gpunn.errors import DTypeError, SettingError, ShapeError
from gpunn.kernels import kernels
from gpunn.kernels.window import Window, WindowSettings
from gpunn.nn.activation import Activation, Identity
from gpunn.nn.activation_names import get_activation, name_of
from gpunn.nn.dense import as_rows
from gpunn.nn.images import (
    LAYOUTS,
    as_given,
    as_images,
    layout_advice,
    padding_of,
    settings_of,
    short,
    sides,
    window_over,
)
from gpunn.nn.init import Initializer, as_generator, draw, get_initializer
from gpunn.nn.layer import Layer
from gpunn.nn.parameter import Parameter
from gpunn.nn.tape import Tape


class Convolution(Layer):
    """The base of the convolutions: Conv1d is Conv2d on images of height 1."""

    #: The number of axes that the filters move along.
    axes: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        activation: str | Activation | None = None,
        *,
        stride: int | tuple[int, ...] = 1,
        padding: str | int | tuple[int, ...] = "valid",
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        init: str | Initializer | None = None,
        rng: RNG = None,
        dtype: str = "float32",
        backend: str | Backend | None = None,
    ) -> None:
        name, axes = type(self).__name__, self.axes
        self.in_channels = whole_number(name, "in_channels", in_channels)
        self.out_channels = whole_number(name, "out_channels", out_channels)
        self.kernel_size = sides(name, "kernel_size", kernel_size, axes)
        self.stride = sides(name, "stride", stride, axes)
        self.padding = padding_of(name, padding, axes)
        self.dilation = sides(name, "dilation", dilation, axes)
        self.groups = whole_number(name, "groups", groups)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise SettingError(
                f"{name}: groups must divide in_channels and out_channels, got {groups} for "
                f"{in_channels} and {out_channels}"
            )
        self.activation = get_activation(activation, name)
        has_bias = flag(name, "bias", bias)
        init = self.activation.preferred_init if init is None else init
        initializer, generator = get_initializer(init, name), as_generator(rng, name)
        window = (1, *self.kernel_size)[-2:]
        shape = (*window, self.in_channels // self.groups, self.out_channels)
        drawn = self._arrange(draw(repr(self), initializer, generator, shape))
        dtype, place = float_dtype(repr(self), dtype), get_backend(backend)
        with room_for(repr(self), place, (self.out_channels,)):
            self.weight = Parameter(place.asarray(drawn, dtype))
            zeros = place.full((self.out_channels,), 0.0, dtype)
        self.bias = Parameter(zeros, decay=False) if has_bias else None

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return f(x * W + b)."""
        window, bias = self._window(x), None if self.bias is None else self.bias.value
        k = kernels(x)
        z = k.convolution(as_images(x, window), self.weight.value, window)
        rows, saved = k.bias_activation(as_rows(z), bias, self.activation)
        h = as_given(k.reshape(rows, z.shape), self.axes)
        if tape is not None:
            tape.push(self, x, h if saved is rows else saved)
        return h

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return dJ/dx; add dJ/dW and dJ/db to the gradients of the parameters."""
        x, saved = tape.pop(self)
        window, k = self._window(x), kernels(grad)
        dz = self._backward_to_z(grad, saved, tape)
        dz = k.reshape(dz, (x.shape[0], *window.output, self.out_channels))
        if tape.wants(self.weight):
            into, images = self.weight.grad_buffer, as_images(x, window)
            self.weight.add_grad(k.convolution_weight_grad(images, dz, window, into))
        if not tape.wants_grad:
            return None
        return as_given(k.convolution_input_grad(dz, self.weight.value, window), self.axes)

    def _backward_to_z(self, grad: Array, saved: Array, tape: Tape) -> Array:
        """Return G = dJ/dz, with one row per pixel; add dJ/db = G^T 1 to the bias's gradient."""
        k, grad, saved = kernels(grad), as_rows(grad), as_rows(saved)
        if self.bias is None or not tape.wants(self.bias):
            return k.activation_backward(grad, saved, self.activation)
        into = self.bias.grad_buffer
        dz, grad_bias = k.bias_activation_backward(grad, saved, self.activation, into=into)
        self.bias.add_grad(grad_bias)
        return dz

    def workspace_bytes(self, saved: tuple[Any, ...], batch_size: int) -> int:
        """Return the bytes that kernels need while they run."""
        x, weight = saved[0], self.weight.value
        window, channels = self._window(x), weight.shape[2] * self.groups
        itemsize = size_of(weight) // weight.size
        return kernels(x).convolution_workspace(window, channels, batch_size, itemsize)

    def _arrange(self, drawn: Any) -> Any:
        """Return initial weights, drawn as (..., inputs, outputs), in the layout of the weight."""
        return drawn

    def _window(self, x: Array) -> Window:
        """Return the window on images of this size, after checking x."""
        self._check(x)
        return window_over(self, x.shape, self._settings())

    def _settings(self) -> WindowSettings:
        """Return the window's settings, which hold for images of any size."""
        settings = self.kernel_size, self.stride, self.padding, self.dilation
        return settings_of(*settings, groups=self.groups)

    def _check(self, x: Array) -> None:
        """Check that the layer can take x."""
        weight = self.weight.value
        if type(x) is not type(weight) and backend_of(x) != backend_of(weight):
            self._refuse(x)
        if x.ndim != self.axes + 2 or x.shape[-1] != self.in_channels or x.dtype != weight.dtype:
            self._refuse(x)

    def _refuse(self, x: Array) -> NoReturn:
        """Raise the error that says what is wrong with `x`."""
        place, home = backend_of(x), backend_of(self.weight.value)
        if place is None:
            raise DTypeError(f"{self!r}: expected an array, got {type(x).__name__}")
        if place != home:
            raise device_mismatch(repr(self), home, place)
        if x.ndim != self.axes + 2 or x.shape[-1] != self.in_channels:
            layout, what = LAYOUTS[self.axes]
            advice = layout_advice(tuple(x.shape), self.in_channels, self.axes)
            raise ShapeError(
                f"{self!r}: expected {what} of shape ({layout}, {self.in_channels}), "
                f"got {tuple(x.shape)}{advice}"
            )
        wanted = dtype_name(self.weight.value)
        raise DTypeError(
            f"{self!r}: the weights are {wanted} and x is {x.dtype}; convert x with "
            f'x.astype("{wanted}") or Loader(..., dtype="{wanted}"), or the model with '
            "model.to(dtype=...)"
        )

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        shown = [f"{self.in_channels}, {self.out_channels}, {short(self.kernel_size)}"]
        if not isinstance(self.activation, Identity):
            shown.append(f"activation={name_of(self.activation)}")
        for name, default in self._defaults().items():
            value = getattr(self, name)
            if value != default:
                shown.append(f"{name}={short(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def _defaults(self) -> dict[str, Any]:
        """Return the default settings; `repr` shows those that differ."""
        ones = (1,) * self.axes
        return {"stride": ones, "padding": "valid", "dilation": ones, "groups": 1}


class Conv2d(Convolution):
    r"""A convolution of images, h = f(x * W + b), with images (N, H, W, C).

    Output pixel (y, x) is computed from the pixels under a filter of k by l entries, which moves in
    steps of the stride s:

    .. math:: z_{yx} = b + \sum_{ij} x_{s y + i,\, s x + j}\, W_{ij}, \qquad h = f(z),

    where each pixel is a row of channels and each :math:`W_{ij}` a matrix, C by K. (Like all
    libraries' convolutions, this is a correlation: the filter is not flipped.) With
    :math:`G = \partial J/\partial z`, which f's own backward pass computes, the backward pass is

    .. math:: \partial J/\partial W_{ij} = \sum_{yx} x_{s y + i,\, s x + j}^T G_{yx}, \quad
              \partial J/\partial b = \sum_{yx} G_{yx}, \quad
              \partial J/\partial x_{s y + i,\, s x + j} \mathrel{+}= G_{yx} W_{ij}^T.

    Parameters
    ----------
    in_channels, out_channels : int
        C and K, at least 1.
    kernel_size : int or pair of int
        Height and width of the filter, at least 1.
    activation : str, Activation or None, default None
        f, as for `Dense`; None is the identity.
    stride : int or pair of int, default 1
        The steps down and across.
    padding : "valid", "same", int or pair of int, default "valid"
        Zeros around the images: none; as many as give an output of ceil(H / stride) by
        ceil(W / stride) pixels, with an odd one below and to the right, as in Keras; or the given
        numbers above and below, left and right, as in PyTorch.
    dilation : int or pair of int, default 1
        The distance between entries of the filter.
    groups : int, default 1
        The number of groups of channels, each with its own filters; a divisor of both numbers of
        channels.
    bias : bool, default True
        Whether to add b.
    init : str, function or None, default None
        As for `Dense`; the inputs of a neuron are the C / groups channels under each entry.
    rng, dtype, backend
        As for `Dense`.

    Attributes
    ----------
    weight : Parameter
        W, of shape (k, l, C / groups, K), in which no product needs a copy.
    bias : Parameter or None
        b, of shape (K,); weight decay does not apply to it.

    Raises
    ------
    ShapeError, DTypeError, DeviceError
        By `forward`, if `x` does not fit.
    DeviceMemoryError
        If the device has too little memory for the parameters.

    Notes
    -----
    *Shapes*: x (N, H, W, C), h (N, H', W', K), where H' = floor((H + padding - reach) / stride) + 1
    for a filter that reaches over (k - 1) dilation + 1 pixels; N may be 0.
    *Saves*: x, and h or z, whichever f's gradient needs: N (H W C + H' W' K) elements.

    References
    ----------
    LeCun et al., "Gradient-based learning applied to document recognition", Proceedings of the
    IEEE 86, 1998.
    """

    axes = 2
    records = True


class Conv1d(Convolution):
    r"""A convolution of sequences, h = f(x * W + b), with sequences (N, T, C).

    :math:`z_t = b + \sum_j x_{s t + j} W_j`. It is `Conv2d` on images that are one pixel high, with
    the same equations, settings and gradients; see there.

    Parameters
    ----------
    in_channels, out_channels : int
        C and K, at least 1.
    kernel_size : int
        Length of the filter, at least 1.
    activation, stride, padding, dilation, groups, bias, init, rng, dtype, backend
        As for `Conv2d`, with one number in place of a pair.

    Attributes
    ----------
    weight : Parameter
        W, of shape (1, kernel_size, C / groups, K).
    bias : Parameter or None
        b, of shape (K,); weight decay does not apply to it.

    Raises
    ------
    ShapeError, DTypeError, DeviceError
        By `forward`, if `x` does not fit.
    DeviceMemoryError
        If the device has too little memory for the parameters.

    Notes
    -----
    *Shapes*: x (N, T, C), h (N, T', K); N may be 0.
    *Saves*: x, and h or z, whichever f's gradient needs: N (T C + T' K) elements.
    """

    axes = 1
    records = True
