"""The transposed convolution, which enlarges images."""

from __future__ import annotations

from typing import Any

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of
from gpunn.errors import SettingError, ShapeError
from gpunn.kernels import kernels
from gpunn.kernels.window import Window, window_on
from gpunn.nn.activation import Activation
from gpunn.nn.convolution import Convolution
from gpunn.nn.dense import as_rows
from gpunn.nn.images import sides
from gpunn.nn.tape import Tape


class ConvTranspose2d(Convolution):
    r"""The transpose of a convolution of images, h = f(z), with images (N, H, W, C).

    Each pixel of the input adds to the k by l pixels of the output under a filter, which moves over
    the output in steps of the stride s:

    .. math:: z = b + \sum_{yxij} x_{yx} W_{ij}^T \text{ at } (s y + i,\, s x + j),
              \qquad h = f(z).

    So z - b is the input gradient of a `Conv2d` with the same filter for an output gradient x, and
    the backward pass is that layer's forward pass: with :math:`G = \partial J/\partial z`,

    .. math:: \partial J/\partial x_{yx} = \sum_{ij} G_{s y + i,\, s x + j} W_{ij}, \quad
              \partial J/\partial W_{ij} = \sum_{yx} G_{s y + i,\, s x + j}^T x_{yx}, \quad
              \partial J/\partial b = \sum_{yx} G_{yx}.

    Parameters
    ----------
    in_channels, out_channels : int
        C and K, at least 1.
    kernel_size : int or pair of int
        Height and width of the filter, at least 1.
    activation : str, Activation or None, default None
        f, as for `Dense`; None is the identity.
    stride : int or pair of int, default 1
        The factor by which images grow, apart from their edges.
    padding : "valid", "same", int or pair of int, default "valid"
        What to cut off the output: nothing; as much as leaves stride H by stride W pixels, as in
        Keras; or the given numbers of rows above and below, and columns left and right, as in
        PyTorch.
    output_padding : int or pair of int, default 0
        Additional rows below and columns to the right of the output; less than the stride.
    dilation, groups, bias, init, rng, dtype, backend
        As for `Conv2d`.

    Attributes
    ----------
    weight : Parameter
        W, of shape (k, l, K / groups, C), like that of the convolution it transposes.
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
    *Shapes*: x (N, H, W, C), h (N, H', W', K), where, with numbers as padding,
    H' = stride (H - 1) + dilation (k - 1) + 1 - 2 padding + output_padding; N may be 0.
    *Saves*: x, and h or z, whichever f's gradient needs: N (H W C + H' W' K) elements.

    References
    ----------
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285.
    """

    axes = 2
    records = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        activation: str | Activation | None = None,
        *,
        output_padding: int | tuple[int, ...] = 0,
        **settings: Any,
    ) -> None:
        name = type(self).__name__
        self.output_padding = sides(name, "output_padding", output_padding, 2, 0)
        super().__init__(in_channels, out_channels, kernel_size, activation, **settings)
        if any(more >= step for more, step in zip(self.output_padding, self.stride, strict=True)):
            raise SettingError(
                f"{name}: output_padding must be less than stride, got {output_padding!r} "
                f"for {settings.get('stride', 1)!r}"
            )
        if self.padding == "same" and any(self.output_padding):
            raise SettingError(
                f"{name}: padding='same' leaves no choice of output_padding, got {output_padding!r}"
            )

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return the larger images."""
        window, bias = self._window(x), None if self.bias is None else self.bias.value
        k = kernels(x)
        z = k.convolution_input_grad(x, self.weight.value, window)
        rows, saved = k.bias_activation(as_rows(z), bias, self.activation)
        h = k.reshape(rows, z.shape)
        if tape is not None:
            tape.push(self, x, h if saved is rows else saved)
        return h

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return dJ/dx; add dJ/dW and dJ/db to the gradients of the parameters."""
        x, saved = tape.pop(self)
        window, k = self._window(x), kernels(grad)
        dz = k.reshape(self._backward_to_z(grad, saved, tape), grad.shape)
        if tape.wants(self.weight):
            into = self.weight.grad_buffer
            self.weight.add_grad(k.convolution_weight_grad(dz, x, window, into))
        return k.convolution(dz, self.weight.value, window) if tape.wants_grad else None

    def _arrange(self, drawn: Array) -> Array:
        """Return weights (k, l, C / groups, K) as (k, l, K / groups, C)."""
        place = backend_of(drawn)
        assert place is not None  # noqa: S101 (`draw` has checked)
        xp, groups = place.xp, self.groups
        *window, own, out = drawn.shape
        by_group = xp.reshape(drawn, (*window, own, groups, out // groups))
        permuted = xp.permute_dims(by_group, (0, 1, 4, 3, 2))
        # Flatten first: otherwise, without groups, the result would be a view in another order.
        return xp.reshape(xp.reshape(permuted, (-1,)), (*window, out // groups, -1))

    def _window(self, x: Array) -> Window:
        """Return the window on images of the output's size, after checking x."""
        self._check(x)
        height, width = (self._side(axis, side) for axis, side in enumerate(x.shape[1:3]))
        window = window_on((height, width), self._settings())
        if window is None:
            raise ShapeError(
                f"{self!r}: padding leaves nothing of the output of {x.shape[1]} x {x.shape[2]} "
                f"pixels, from x of shape {tuple(x.shape)}"
            )
        return window

    def _side(self, axis: int, side: int) -> int:
        """Return the output's height or width."""
        if self.padding == "same":
            return side * self.stride[axis]
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        cut = 0 if isinstance(self.padding, str) else 2 * self.padding[axis]
        return self.stride[axis] * (side - 1) + reach - cut + self.output_padding[axis]

    def _defaults(self) -> dict[str, Any]:
        """Return the default settings; `repr` shows those that differ."""
        return super()._defaults() | {"output_padding": (0, 0)}
