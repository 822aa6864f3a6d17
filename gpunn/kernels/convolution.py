"""Convolutions as sums of matrix products, one for each entry of the filter.

Images are channels-last, x (N, H, W, C), and weights are (h, w, C / groups, K) for a filter of h by
w entries and K output channels. So pixels are the rows of a product's factors, and the weights need
no copy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gpunn._typing import Array, Namespace, Shape
from gpunn.kernels.window import Window


class ConvolutionKernels:
    """The kernels of convolutions; a mixin of `gpunn.kernels.Kernels`."""

    xp: Namespace

    def product(self, x: Array, y: Array, into: Array | None = None) -> Array:
        """Return the matrix product."""
        raise NotImplementedError

    def convolution(self, x: Array, weight: Array, window: Window) -> Array:
        """Return z (N, H', W', K), the sum of x_ij W_ij over the entries (i, j) of the filter.

        x_ij are the pixels under the entry, as rows of C channels. Each group of channels has its
        own filters.
        """
        z = zeros_like(self.xp, x, (x.shape[0], *window.output, weight.shape[3]))
        x = padded(self.xp, x, window, 0.0)
        for i, j, met in window.entries():
            for inputs, outputs in groups_of(weight, window):
                here = self.product(self._rows(x[(*met[:3], inputs)]), weight[i, j, :, outputs])
                z[..., outputs] += self.xp.reshape(here, z[..., outputs].shape)
        return z

    def convolution_input_grad(self, grad: Array, weight: Array, window: Window) -> Array:
        """Return dJ/dx from grad = dJ/dz: each x_ij gets grad W_ij^T.

        This is also the transposed convolution, whose input is `grad`.
        """
        channels = weight.shape[2] * window.groups
        x = zeros_like(self.xp, grad, (grad.shape[0], *window.padded, channels))
        for i, j, met in window.entries():
            for inputs, outputs in groups_of(weight, window):
                here = self.product(self._rows(grad[..., outputs]), weight[i, j, :, outputs].T)
                x[(*met[:3], inputs)] += self.xp.reshape(here, x[(*met[:3], inputs)].shape)
        return without_padding(self.xp, x, window)

    def convolution_weight_grad(
        self, x: Array, grad: Array, window: Window, into: Array | None = None
    ) -> Array:
        """Return dJ/dW from grad = dJ/dz: W_ij gets x_ij^T grad."""
        shape = (*window.size, x.shape[3] // window.groups, grad.shape[3])
        weight = zeros_like(self.xp, grad, shape) if into is None else into
        x = padded(self.xp, x, window, 0.0)
        for i, j, met in window.entries():
            for inputs, outputs in groups_of(weight, window):
                here = self._rows(x[(*met[:3], inputs)])
                weight[i, j, :, outputs] = self.product(here.T, self._rows(grad[..., outputs]))
        return weight

    def convolution_workspace(
        self,
        window: Window,  # noqa: ARG002
        channels: int,  # noqa: ARG002
        n: int,  # noqa: ARG002
        itemsize: int,  # noqa: ARG002
    ) -> int:
        """Return the bytes of scratch memory for a convolution of n images."""
        return 0

    def _rows(self, x: Array) -> Array:
        """Return pixels (N, H, W, C) as the rows of a matrix."""
        return self.xp.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def zeros_like(xp: Namespace, x: Array, shape: Shape) -> Array:
    """Return zeros of another shape, with the dtype and device of x."""
    return xp.zeros(shape, dtype=x.dtype, device=x.device)


def padded(xp: Namespace, x: Array, window: Window, value: float) -> Array:
    """Return images surrounded by the window's padding, which is filled with a value."""
    if window.padded == window.image:
        return x
    shape = (x.shape[0], *window.padded, x.shape[3])
    result = xp.full(shape, value, dtype=x.dtype, device=x.device)
    result[window.inner()] = x
    return result


def without_padding(xp: Namespace, x: Array, window: Window) -> Array:
    """Return a copy without the padding; x itself if there is no padding."""
    if window.padded == window.image:
        return x
    return xp.asarray(x[window.inner()], copy=True)


def groups_of(weight: Array, window: Window) -> Iterator[tuple[slice, slice]]:
    """Yield the input channels and the output channels of each group."""
    n_inputs, n_outputs = weight.shape[2], weight.shape[3] // window.groups
    for g in range(window.groups):
        yield slice(g * n_inputs, (g + 1) * n_inputs), slice(g * n_outputs, (g + 1) * n_outputs)
