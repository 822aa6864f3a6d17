"""Kernels of convolutions and pooling that record their calls."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.pooling import index_dtype
from gpunn.kernels.window import Window
from gpunn.program.recorder import Recorder, Traced, is_batch
from gpunn.program.values import Value, refuse


class RecordingConvolutions(Recorder):
    """Records calls of the kernels of convolutions and pooling."""

    def convolution(self, x: Any, weight: Any, window: Window) -> Any:
        """Record z, the convolution of images with a layer's weights."""
        _check(weight, x)
        shape = (x.shape[0], *window.output, weight.shape[3])
        return self._add_image_operation(window, "convolution", (x, weight), shape)

    def convolution_input_grad(self, grad: Any, weight: Any, window: Window) -> Any:
        """Record dJ/dx."""
        _check(weight, grad)
        shape = (grad.shape[0], *window.image, weight.shape[2] * window.groups)
        return self._add_image_operation(window, "convolution_input_grad", (grad, weight), shape)

    def convolution_weight_grad(
        self, x: Any, grad: Any, window: Window, into: Array | None = None
    ) -> Any:
        """Record dJ/dW, a sum over the batch."""
        _check(None, x, grad)
        shape = (*window.size, x.shape[3] // window.groups, grad.shape[3])
        settings, kernel = {"window": window}, "convolution_weight_grad"
        return self._add(
            kernel, (x, grad), shape, x.dtype, into=into, settings=settings, by_sample=False
        )

    def max_pool(self, x: Any, window: Window) -> tuple[Any, Any]:
        """Record the largest entries and their positions."""
        _check(None, x)
        shape = (x.shape[0], *window.output, x.shape[3])
        y = Value(shape, x.dtype, by_sample=True)
        where = Value(shape, np.dtype(index_dtype(np, window)), by_sample=True)
        self._append("max_pool", (x,), (y, where), settings={"window": window})
        return Traced(y, self), Traced(where, self)

    def max_pool_backward(self, grad: Any, where: Any, window: Window) -> Any:
        """Record dJ/dx."""
        _check(None, grad, where)
        shape = (grad.shape[0], *window.image, grad.shape[3])
        return self._add_image_operation(window, "max_pool_backward", (grad, where), shape)

    def average_pool(self, x: Any, window: Window, *, count_padding: bool) -> Any:
        """Record the means."""
        _check(None, x)
        shape = (x.shape[0], *window.output, x.shape[3])
        return self._add_image_operation(
            window, "average_pool", (x,), shape, count_padding=count_padding
        )

    def average_pool_backward(self, grad: Any, window: Window, *, count_padding: bool) -> Any:
        """Record dJ/dx."""
        _check(None, grad)
        shape = (grad.shape[0], *window.image, grad.shape[3])
        settings = {"count_padding": count_padding}
        return self._add_image_operation(
            window, "average_pool_backward", (grad,), shape, **settings
        )

    def _add_image_operation(
        self, window: Window, kernel: str, inputs: tuple[Any, ...], shape: Any, **settings: Any
    ) -> Any:
        """Record an operation on images whose result is images."""
        settings["window"] = window
        return self._add(kernel, inputs, shape, inputs[0].dtype, settings=settings)


def _check(weight: Any, *images: Any) -> None:
    """Refuse anything but batches of images and a layer's weights."""
    if isinstance(weight, Traced) or not all(is_batch(x) and x.ndim == 4 for x in images):
        refuse("a convolution or pooling of anything but a batch of images")
