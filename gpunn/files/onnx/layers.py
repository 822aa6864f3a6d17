"""The ONNX operators of each layer.

Operators on images and sequences have the channels first, right after the samples, and gpunn has
them last: each such operator has a `Transpose` before and after it. A subclass may compute
anything, so a layer is looked up by its exact class.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn.errors import SettingError
from gpunn.files.onnx.activations import write_activation
from gpunn.files.onnx.graph import Graph, Value
from gpunn.kernels import kernels
from gpunn.nn.activation import Activation
from gpunn.nn.attention import MultiHeadAttention
from gpunn.nn.batch_norm import BatchNorm
from gpunn.nn.containers import Parallel, Residual, Sequential
from gpunn.nn.convolution import Conv1d, Conv2d
from gpunn.nn.dense import Dense
from gpunn.nn.dropout import Dropout
from gpunn.nn.embedding import Embedding, Position
from gpunn.nn.norm import GroupNorm, LayerNorm, RMSNorm
from gpunn.nn.pooling import (
    AveragePool1d,
    AveragePool2d,
    GlobalAveragePool,
    GlobalMaxPool,
    MaxPool1d,
    MaxPool2d,
)
from gpunn.nn.prelu import PReLU
from gpunn.nn.shape import Flatten, Reshape
from gpunn.nn.transposed import ConvTranspose2d

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpunn.kernels.window import Window
    from gpunn.nn.layer import Layer


def write_layer(graph: Graph, layer: Any, x: Value) -> Value:
    """Add the operators of a layer and all layers in it; return its output.

    Raises
    ------
    SettingError
        If the layer has no counterpart in ONNX.
    """
    kind = type(layer)
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](graph, layer, x)
    sample = layer.forward(x.sample)
    return Value(write_single(graph, layer, x), sample)


def write_single(graph: Graph, layer: Any, x: Value) -> str:
    """Add the operators of a layer that is not a container; the sample serves for its shape."""
    if isinstance(layer, Activation):
        return _activation(graph, layer, x.name)
    if type(layer) not in _WRITERS:
        raise _unknown(layer)
    return _WRITERS[type(layer)](graph, layer, x)


def _unknown(layer: Layer) -> SettingError:
    return SettingError(
        f"export_onnx: {type(layer).__name__}, shown as {layer!r}, has no counterpart in ONNX (no "
        "class of your own has one); export the layers before it, such as model[:2]"
    )


def _activation(graph: Graph, activation: Activation, name: str) -> str:
    written = write_activation(graph, name, activation)
    if written is None:
        raise _unknown(activation)
    return written


def _sequential(graph: Graph, layer: Sequential, x: Value) -> Value:
    for each in layer.layers:
        x = write_layer(graph, each, x)
    return x


def _residual(graph: Graph, layer: Residual, x: Value) -> Value:
    y = write_layer(graph, layer.layer, x)
    return Value(graph.node("Add", x.name, y.name), y.sample)


def _parallel(graph: Graph, layer: Parallel, x: Value) -> Value:
    outputs = [write_layer(graph, each, x) for each in layer.layers]
    names, samples = [y.name for y in outputs], [y.sample for y in outputs]
    if layer.join == "add":
        return Value(graph.node("Sum", *names), samples[0])
    joined = kernels(samples[0]).concatenate(samples)
    return Value(graph.node("Concat", *names, axis=-1), joined)


def _dense(graph: Graph, layer: Dense, x: Value) -> str:
    return _activation(graph, layer.activation, graph.linear(x.name, layer.weight, layer.bias))


def _between_transposes(graph: Graph, x: Value, write: Callable[[str], str]) -> str:
    """Add an operator between two transposes."""
    axes = x.sample.ndim
    return graph.channels_last(write(graph.channels_first(x.name, axes)), axes)


def _window_attributes(window: Window, axes: int) -> dict[str, list[int]]:
    """Return the attributes of a window; a sequence's window uses the second axis only."""
    return {
        "kernel_shape": list(window.size[-axes:]),
        "strides": list(window.stride[-axes:]),
        "dilations": list(window.dilation[-axes:]),
        "pads": [*window.before[-axes:], *window.after[-axes:]],
    }


def _filters(axes: int, weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return filters (k, l, C, K) as (K, C, k, l), or for sequences as (K, C, l)."""
    transposed = weight.transpose(3, 2, 0, 1)
    return transposed if axes == 2 else transposed[:, :, 0]


def _convolution(graph: Graph, layer: Conv1d | Conv2d, x: Value) -> str:
    settings: dict[str, Any] = _window_attributes(layer._window(x.sample), layer.axes)
    return _write_convolution(graph, layer, x, "Conv", settings)


def _conv_transpose(graph: Graph, layer: ConvTranspose2d, x: Value) -> str:
    window = layer._window(x.sample)
    settings: dict[str, Any] = _window_attributes(window, 2)
    settings["output_padding"] = [
        side - (stride * (given - 1) + reach - before - after)
        for side, stride, given, reach, before, after in zip(
            *(window.image, window.stride, x.shape, window.reach, window.before, window.after),
            strict=False,
        )
    ]
    return _write_convolution(graph, layer, x, "ConvTranspose", settings)


def _write_convolution(
    graph: Graph, layer: Conv1d | Conv2d | ConvTranspose2d, x: Value, operator: str, settings: Any
) -> str:
    weight = graph.held(layer.weight, partial(_filters, layer.axes))
    more = [] if layer.bias is None else [graph.held(layer.bias)]
    settings["group"] = layer.groups
    z = _between_transposes(
        graph, x, lambda name: graph.node(operator, name, weight, *more, **settings)
    )
    return _activation(graph, layer.activation, z)


def _max_pool(graph: Graph, layer: MaxPool1d | MaxPool2d, x: Value) -> str:
    settings: Any = _window_attributes(layer._window(x.sample), layer.axes)
    return _between_transposes(graph, x, lambda name: graph.node("MaxPool", name, **settings))


def _average_pool(graph: Graph, layer: AveragePool1d | AveragePool2d, x: Value) -> str:
    settings: Any = _window_attributes(layer._window(x.sample), layer.axes)
    settings["count_include_pad"] = int(layer.count_include_pad)
    return _between_transposes(graph, x, lambda name: graph.node("AveragePool", name, **settings))


def _global_pool(operator: str, graph: Graph, _: Layer, x: Value) -> str:
    axes = graph.constant(range(1, x.sample.ndim - 1), "int64")
    return graph.node(operator, x.name, axes, keepdims=0)


def _batch_norm(graph: Graph, layer: BatchNorm, x: Value) -> str:
    assert layer.bias is not None  # noqa: S101 (batch norm has one)
    parameters, running = (layer.gain, layer.bias), (layer.running_mean, layer.running_variance)
    names = [*map(graph.held, parameters), *map(graph.held, running)]
    settings = {"epsilon": layer.epsilon, "momentum": 1.0 - layer.momentum}
    operator = "BatchNormalization"
    return _between_transposes(
        graph, x, lambda name: graph.node(operator, name, *names, **settings)
    )


def _layer_norm(graph: Graph, layer: LayerNorm, x: Value) -> str:
    assert layer.bias is not None  # noqa: S101
    names = graph.held(layer.gain), graph.held(layer.bias)
    return graph.node("LayerNormalization", x.name, *names, axis=-1, epsilon=layer.epsilon)


def _divide_by_rms(graph: Graph, name: str, axes: list[int], epsilon: float) -> str:
    """Divide by the root mean square over some axes."""
    square = graph.node("ReduceMean", graph.node("Mul", name, name), graph.constant(axes, "int64"))
    root = graph.node("Sqrt", graph.node("Add", square, graph.constant(epsilon)))
    return graph.node("Div", name, root)


def _rms_norm(graph: Graph, layer: RMSNorm, x: Value) -> str:
    normalised = _divide_by_rms(graph, x.name, [-1], layer.epsilon)
    return graph.node("Mul", normalised, graph.held(layer.gain))


def _group_norm(graph: Graph, layer: GroupNorm, x: Value) -> str:
    assert layer.bias is not None  # noqa: S101
    groups, axes = layer.groups, [1, 3]
    view = (math.prod(x.shape[:-1]), groups, layer.channels // groups)
    rows = graph.reshape(x.name, view)
    mean = graph.node("ReduceMean", rows, graph.constant(axes, "int64"))
    scaled = _divide_by_rms(graph, graph.node("Sub", rows, mean), axes, layer.epsilon)
    y = graph.node("Mul", graph.reshape(scaled, x.shape), graph.held(layer.gain))
    return graph.node("Add", y, graph.held(layer.bias))


def _embedding(graph: Graph, layer: Embedding, x: Value) -> str:
    return graph.node("Gather", graph.held(layer.weight), x.name, axis=0)


def _position(graph: Graph, layer: Position, x: Value) -> str:
    table, length = graph.held(layer.weight), x.shape[0]
    if length < layer.length:
        bounds = [graph.constant([n], "int64") for n in (0, length)]
        table = graph.node("Slice", table, *bounds)
    return graph.node("Add", x.name, table)


def _attention(graph: Graph, layer: MultiHeadAttention, x: Value) -> str:
    (length, features), heads = x.shape, layer.heads
    each = features // heads
    qkv = graph.linear(x.name, layer.projection.weight, layer.projection.bias)
    parts = graph.reshape(qkv, (length, 3, heads, each))
    parts = graph.node("Transpose", parts, perm=[2, 0, 3, 1, 4])
    q, k, v = (graph.node("Gather", parts, graph.constant(i, "int64")) for i in range(3))
    scores = graph.node("MatMul", q, graph.node("Transpose", k, perm=[0, 1, 3, 2]))
    scores = graph.node("Mul", scores, graph.constant(1.0 / math.sqrt(each)))
    if layer.causal:
        hidden = np.triu(np.full((length, length), -np.inf), 1)
        scores = graph.node("Add", scores, graph.constant(hidden))
    context = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), v)
    context = graph.node("Transpose", context, perm=[0, 2, 1, 3])
    rows = graph.reshape(context, (length, features))
    return graph.linear(rows, layer.output.weight, layer.output.bias)


_CONTAINERS: dict[type, Callable[[Graph, Any, Value], Value]] = {
    Sequential: _sequential,
    Residual: _residual,
    Parallel: _parallel,
}

_WRITERS: dict[type, Callable[[Graph, Any, Value], str]] = {
    Dense: _dense,
    Conv1d: _convolution,
    Conv2d: _convolution,
    ConvTranspose2d: _conv_transpose,
    MaxPool1d: _max_pool,
    MaxPool2d: _max_pool,
    AveragePool1d: _average_pool,
    AveragePool2d: _average_pool,
    GlobalAveragePool: partial(_global_pool, "ReduceMean"),
    GlobalMaxPool: partial(_global_pool, "ReduceMax"),
    BatchNorm: _batch_norm,
    LayerNorm: _layer_norm,
    RMSNorm: _rms_norm,
    GroupNorm: _group_norm,
    Embedding: _embedding,
    Position: _position,
    MultiHeadAttention: _attention,
    Dropout: lambda _, __, x: x.name,
    Flatten: lambda graph, _, x: graph.reshape(x.name, (math.prod(x.shape),)),
    Reshape: lambda graph, layer, x: graph.reshape(x.name, layer.shape),
    PReLU: lambda graph, layer, x: graph.node("PRelu", x.name, graph.held(layer.slope)),
}
