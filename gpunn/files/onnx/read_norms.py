"""The layer of each ONNX operator that normalises, or has one parameter per channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpunn.files.onnx.chain import Chain, fill
from gpunn.nn.batch_norm import BatchNorm
from gpunn.nn.norm import GroupNorm, LayerNorm, RMSNorm
from gpunn.nn.prelu import PReLU

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpunn.files.onnx.nodes import Node


def _batch_norm(chain: Chain, node: Node) -> None:
    chain.check_inputs(node, 5)
    chain.check_layout(node, channels_first=len(chain.shape) > 1)
    node.require("training_mode", 0)
    arrays = [chain.reorder_rows(chain.constant(node, i, 1)) for i in range(1, 5)]
    momentum, epsilon = 1.0 - node.take("momentum", 0.9), node.take("epsilon", 1e-5)
    layer = BatchNorm(chain.channels(node, arrays[0]), momentum, epsilon)
    assert layer.bias is not None  # noqa: S101 (batch norm has one)
    held = layer.gain, layer.bias, layer.running_mean, layer.running_variance
    for item, array in zip(held, arrays, strict=True):
        fill(node, item, array)
    chain.add(layer, chain.shape)


def _feature_norm(kind: type[LayerNorm | RMSNorm]) -> Callable[[Chain, Node], None]:
    def read(chain: Chain, node: Node) -> None:
        chain.check_inputs(node, 3 if kind is LayerNorm else 2)
        node.require("stash_type", 1)
        axis, epsilon = node.take("axis", -1), node.take("epsilon", 1e-5)
        chain.check_layout(node, channels_first=False)
        if axis not in (-1, len(chain.shape)):
            raise node.refused(f"axis is {axis}, and only the last one can be read")
        gain = chain.constant(node, 1, 1)
        layer = kind(chain.channels(node, gain), epsilon)
        fill(node, layer.gain, gain)
        if layer.bias is not None and len(node.inputs) > 2:
            fill(node, layer.bias, chain.constant(node, 2, 1))
        chain.add(layer, chain.shape)

    return read


def _group_norm(chain: Chain, node: Node) -> None:
    chain.check_inputs(node, 3)
    chain.check_layout(node, channels_first=len(chain.shape) > 1)
    node.require("stash_type", 1)
    gain, bias = (chain.constant(node, i, 1) for i in (1, 2))
    groups, epsilon = node.take("num_groups", 0), node.take("epsilon", 1e-5)
    layer = GroupNorm(groups, chain.channels(node, gain), epsilon)
    assert layer.bias is not None  # noqa: S101 (group norm has one)
    fill(node, layer.gain, gain)
    fill(node, layer.bias, bias)
    chain.add(layer, chain.shape)


def _prelu(chain: Chain, node: Node) -> None:
    """Read slopes (C,) or, where the channels are first, (C, 1, 1)."""
    chain.check_inputs(node, 2)
    slope: Any = chain.constants.get(node.inputs[1] if len(node.inputs) > 1 else "")
    axes = len(chain.shape) if chain.channels_first and slope is not None and slope.size > 1 else 1
    slope = chain.constant(node, 1, axes)
    if slope.shape[1:] != (1,) * (axes - 1):
        raise node.refused(f"its slopes have shape {slope.shape}")
    slope = slope.reshape(-1)
    layer = PReLU(1 if len(slope) == 1 else chain.channels(node, slope))
    fill(node, layer.slope, slope)
    chain.add(layer, chain.shape)


NORM_READERS: dict[str, Callable[[Chain, Node], None]] = {
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _feature_norm(LayerNorm),
    "RMSNormalization": _feature_norm(RMSNorm),
    "GroupNormalization": _group_norm,
    "PRelu": _prelu,
}
