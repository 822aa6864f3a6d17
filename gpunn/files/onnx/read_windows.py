"""The layer of each ONNX operator that moves a window over images or sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpunn.files.onnx.chain import Chain, fill
from gpunn.kernels.window import Window, window_on
from gpunn.nn.convolution import Conv1d, Conv2d
from gpunn.nn.images import settings_of, window_over
from gpunn.nn.pooling import AveragePool1d, AveragePool2d, MaxPool1d, MaxPool2d
from gpunn.nn.transposed import ConvTranspose2d

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gpunn.files.onnx.nodes import Node
    from gpunn.nn.layer import Layer


def _window_settings(node: Node, axes: int) -> dict[str, Any]:
    """Take the settings of a window, each with one number per axis."""
    node.require("auto_pad", "NOTSET")
    taken = {
        "kernel_size": node.take("kernel_shape", []),
        "stride": node.take("strides", [1] * axes),
        "dilation": node.take("dilations", [1] * axes),
    }
    for name, numbers in taken.items():
        if len(numbers) != axes:
            raise node.refused(f"{name} is {numbers!r:.99}; expected {axes} numbers")
    return {name: tuple(numbers) for name, numbers in taken.items()}


def _with_padding(
    chain: Chain,
    node: Node,
    make: Callable[[Any], Layer],
    window_of: Callable[[Any], Window | None],
) -> tuple[Layer, Window]:
    """Return the layer with the padding of an operator, and its window.

    Padding that is equal on both sides becomes numbers; any other must equal "same" padding.
    """
    axes = len(chain.shape) - 1
    pads = node.take("pads", [0] * 2 * axes)
    before, after = tuple(pads[:axes]), tuple(pads[axes:])
    layer = make(before if before == after else "same")
    window = window_of(layer)
    if window is None or (window.before[-axes:], window.after[-axes:]) != (before, after):
        raise node.refused(f"pads are {pads!r:.99}, which is not what padding='same' means here")
    return layer, window


def _convolution(chain: Chain, node: Node) -> None:
    """Add a convolution or a transposed convolution."""
    chain.check_inputs(node, 3)
    chain.check_layout(node, channels_first=True)
    axes, transposed = len(chain.shape) - 1, node.operator == "ConvTranspose"
    if axes not in (1, 2) or (transposed and axes == 1):
        raise node.refused(f"samples have the shape {chain.shape}")
    filters = chain.constant(node, 1, axes + 2)
    settings = _window_settings(_with_kernel(node, filters), axes)
    groups, bias = node.take("group", 1), len(node.inputs) > 2
    own, other = filters.shape[1] * groups, filters.shape[0]
    kind: Any = ConvTranspose2d if transposed else (Conv1d, Conv2d)[axes - 1]
    channels = (other, own) if transposed else (own, other)
    if transposed:
        node.require("output_shape", [])
        settings["output_padding"] = tuple(node.take("output_padding", [0, 0]))

    def make(padding: Any) -> Layer:
        layer: Layer = kind(*channels, padding=padding, groups=groups, bias=bias, rng=0, **settings)
        return layer

    layer: Any
    layer, window = _with_padding(
        chain, node, make, lambda candidate: _window_of(candidate, chain.shape)
    )
    moved = filters[:, :, None] if axes == 1 else filters
    fill(node, layer.weight, moved.transpose(2, 3, 1, 0))
    if bias:
        fill(node, layer.bias, chain.constant(node, 2, 1))
    image = window.image if transposed else window.output[-axes:]
    chain.add(layer, (*image, layer.out_channels))


def _with_kernel(node: Node, filters: NDArray[Any]) -> Node:
    """Check the operator's kernel size, if it states one, and set it to that of the filters."""
    node.require("kernel_shape", list(filters.shape[2:]))
    node.settings["kernel_shape"] = list(filters.shape[2:])
    return node


def _window_of(layer: Any, shape: tuple[int, ...]) -> Window | None:
    settings = layer._settings()
    if not isinstance(layer, ConvTranspose2d):
        return window_over(layer, (1, *shape), settings)
    height, width = (layer._side(axis, shape[axis]) for axis in (0, 1))
    return window_on((height, width), settings)


def _pool(chain: Chain, node: Node) -> None:
    """Add a pool."""
    chain.check_inputs(node, 1)
    chain.check_layout(node, channels_first=True)
    axes = len(chain.shape) - 1
    if axes not in (1, 2):
        raise node.refused(f"samples have the shape {chain.shape}")
    settings = _window_settings(node, axes)
    if set(settings.pop("dilation")) != {1}:
        raise node.refused("its window has gaps (dilations)")
    node.require("ceil_mode", 0)
    kind: Any = (MaxPool1d, MaxPool2d)[axes - 1]
    if node.operator == "MaxPool":
        node.require("storage_order", 0)
    else:
        kind = (AveragePool1d, AveragePool2d)[axes - 1]
        settings["count_include_pad"] = bool(node.take("count_include_pad", 0))

    def make(padding: Any) -> Layer:
        layer: Layer = kind(padding=padding, **settings)
        return layer

    def window_of(made: Any) -> Window:
        own = settings_of(made.kernel_size, made.stride, made.padding)
        return window_over(made, (1, *chain.shape), own)

    layer, window = _with_padding(chain, node, make, window_of)
    chain.add(layer, (*window.output[-axes:], chain.shape[-1]))


WINDOW_READERS: dict[str, Callable[[Chain, Node], None]] = {
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "MaxPool": _pool,
    "AveragePool": _pool,
}
