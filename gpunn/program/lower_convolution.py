"""Lower convolutions and pooling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpunn.kernels.loops_convolution import layout_of
from gpunn.kernels.loops_pooling import numbers_of
from gpunn.kernels.window import Window
from gpunn.program.lower import Bias, Lane, Lowering, address_of, lowers
from gpunn.program.phases import ROWS
from gpunn.program.values import Operation, Value


@lowers("convolution")
def _convolution(low: Lowering, operation: Operation) -> None:
    (x, weight), (z,) = operation.inputs, operation.outputs
    settings, bias = _settings(low, operation, x, z), Bias()
    settings |= {"e": lambda _: address_of(bias.array), "flag": lambda _: int(bias.then_relu)}
    low.check(weight, low.dtype)
    low.by_rows("convolution", {"a": x}, z, weights={"b": weight}, **settings)
    _use_scratch(low)
    low.instructions[-1].bias = bias


@lowers("convolution_input_grad")
def _convolution_input_grad(low: Lowering, operation: Operation) -> None:
    (grad, weight), (x,) = operation.inputs, operation.outputs
    settings = _settings(low, operation, x, grad)
    low.check(weight, low.dtype)
    low.by_rows("convolution_input_grad", {"a": grad}, x, weights={"b": weight}, **settings)
    _use_scratch(low)


@lowers("convolution_weight_grad")
def _convolution_weight_grad(low: Lowering, operation: Operation) -> None:
    (x, grad), (result,) = operation.inputs, operation.outputs
    settings = _settings(low, operation, x, grad)
    width = math.prod(result.shape)
    parts, place = low.parts_of_sum(result, width)

    def words(lane: Lane) -> dict[str, Any]:
        places = {"a": lane.address(x, ROWS), "b": lane.address(grad, ROWS), "c": place(lane)}
        varying = {word: f(lane) if callable(f) else f for word, f in settings.items()}
        return {"m": lane.rows} | places | varying

    low.add("convolution_weight_grad", words, [low.at(x), low.at(grad)], [parts])
    _use_scratch(low)
    low.add_up(parts, result, width)


def _use_scratch(low: Lowering) -> None:
    """Declare that the last instruction uses the thread's scratch memory."""
    own, _ = low.scratch(0)
    low.instructions[-1].reads.append(own)
    low.instructions[-1].writes.append(own)


def _settings(low: Lowering, operation: Operation, x: Value, z: Value) -> dict[str, Any]:
    """Return the words of a convolution from images x to images z; count its multiplications."""
    window: Window = operation.settings["window"]
    low.count(math.prod(z.shape) * math.prod(window.size) * x.shape[3] // window.groups)
    return _layout(low, window, x.shape[3], z.shape[3])


def _layout(low: Lowering, window: Window, channels: int, outputs: int) -> dict[str, Any]:
    """Return the words for the memory layout of a convolution and the thread's scratch memory."""
    layout = layout_of(window, channels, outputs, low.dtype.itemsize)
    low.held += [layout.numbers, *layout.tables.values()]
    _, scratch = low.scratch(-(-layout.scratch // low.dtype.itemsize))
    return {"limit": int(layout.numbers.ctypes.data), "d": scratch}


@lowers("max_pool")
def _max_pool(low: Lowering, operation: Operation) -> None:
    (x,), (y, where) = operation.inputs, operation.outputs
    low.by_rows("max_pool", {"a": x, "e": where}, y, **_pool_settings(low, operation, x, where))
    low.instructions[-1].writes.append(low.at(where))
    _use_scratch(low)


@lowers("max_pool_backward")
def _max_pool_backward(low: Lowering, operation: Operation) -> None:
    (grad, where), (x,) = operation.inputs, operation.outputs
    settings = _pool_settings(low, operation, x, where)
    low.by_rows("max_pool_backward", {"a": grad, "b": where}, x, **settings)
    _use_scratch(low)


def _pool_settings(low: Lowering, operation: Operation, x: Value, where: Value) -> dict[str, Any]:
    """Return the words of a max pool of images x; `where` holds the largest entries' positions."""
    channels = x.shape[3]
    window = operation.settings["window"]._replace(groups=channels)
    wide = int(where.dtype.itemsize > 1)
    return _layout(low, window, channels, channels) | {"flag": wide}


@lowers("average_pool")
def _average_pool(low: Lowering, operation: Operation) -> None:
    (x,), (y,) = operation.inputs, operation.outputs
    numbers = _numbers(low, operation, x)
    counted = int(operation.settings["count_padding"])
    low.by_rows("average_pool", {"a": x}, y, limit=numbers, flag=counted)


@lowers("average_pool_backward")
def _average_pool_backward(low: Lowering, operation: Operation) -> None:
    (grad,), (x,) = operation.inputs, operation.outputs
    numbers = _numbers(low, operation, x)
    counted = int(operation.settings["count_padding"])
    low.by_rows("average_pool_backward", {"a": grad}, x, limit=numbers, flag=counted)


def _numbers(low: Lowering, operation: Operation, x: Value) -> int:
    """Return the address of a window's numbers, followed by the number of channels."""
    numbers = np.append(numbers_of(operation.settings["window"]), np.int64(x.shape[3]))
    low.held.append(numbers)
    return int(numbers.ctypes.data)
