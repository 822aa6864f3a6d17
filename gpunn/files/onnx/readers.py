"""The layer of each ONNX operator, with its settings checked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gpunn.files.onnx.chain import Chain, Node, fill
from gpunn.files.onnx.read_activations import ACTIVATION_READERS
from gpunn.files.onnx.read_windows import read_convolution, read_pool
from gpunn.nn.batch_norm import BatchNorm
from gpunn.nn.dense import Dense
from gpunn.nn.embedding import Embedding, Position
from gpunn.nn.norm import LayerNorm
from gpunn.nn.pooling import GlobalAveragePool, GlobalMaxPool
from gpunn.nn.prelu import PReLU
from gpunn.nn.shape import Flatten, Reshape

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gpunn.nn.layer import Layer


def read_operator(chain: Chain, node: Node) -> None:
    """Add the layer of an operator, and of those after it that belong to the same layer."""
    if node.operator in _TURNED:
        chain.facing(node, turned=len(chain.shape) > 1)
        _TURNED[node.operator](chain, node)
    elif node.operator == "Transpose":
        chain.transpose(node)
    elif node.operator in _READERS:
        chain.facing(node, turned=False)
        _READERS[node.operator](chain, node)
    else:
        raise node.refused("gpunn has no layer for it")
    chain.returned(node)


# -- Products


def _linear(chain: Chain, node: Node, weight: NDArray[Any], bias: NDArray[Any] | None) -> None:
    if weight.ndim != 2 or not chain.shape or chain.shape[-1] != weight.shape[0]:
        raise node.refused(f"samples of {chain.shape} do not fit weights of {weight.shape}")
    layer = Dense(*weight.shape, bias=bias is not None, rng=0)
    fill(node, layer.weight, weight)
    if layer.bias is not None and bias is not None:
        fill(node, layer.bias, bias)
    chain.add(layer, (*chain.shape[:-1], weight.shape[1]))


def _product(chain: Chain, node: Node) -> None:
    """Read a product, and the bias that is added to it."""
    chain.data_first(node, 2)
    weight, bias = chain.constant(node, 1, 2), None
    chain.name = node.outputs[0]
    more = chain.take("Add")
    if more is not None:
        chain.data_first(more, 2)
        bias, node.outputs = chain.constant(more, 1, 1), more.outputs
    _linear(chain, node, weight, bias)


def _gemm(chain: Chain, node: Node) -> None:
    chain.data_first(node, 3)
    for name, value in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
        node.only(name, value)
    weight = chain.constant(node, 1, 2)
    weight = weight.T if node.take("transB", 0) else weight
    bias = chain.constant(node, 2, 1) if len(node.inputs) > 2 else None
    if len(chain.shape) != 1:
        raise node.refused(f"it takes matrices, and samples have the shape {chain.shape}")
    _linear(chain, node, weight, bias)


def _position(chain: Chain, node: Node) -> None:
    chain.data_first(node, 2)
    table = chain.constant(node, 1, 2)
    if table.shape != chain.shape:
        raise node.refused(f"a table of {table.shape} is added to samples of {chain.shape}")
    layer = Position(*table.shape, rng=0)
    fill(node, layer.weight, table)
    chain.add(layer, chain.shape)


def _embedding(chain: Chain, node: Node) -> None:
    node.only("axis", 0)
    if len(node.inputs) != 2 or node.inputs[1] != chain.name or chain.layers:
        raise node.refused("it is read only as the first operator, by which tokens become vectors")
    table = chain.constant(node, 0, 2)
    layer = Embedding(*table.shape, rng=0)
    fill(node, layer.weight, table)
    chain.add(layer, (*chain.shape, table.shape[1]))


def _reduced(make: Callable[[], Layer]) -> Callable[[Chain, Node], None]:
    def read(chain: Chain, node: Node) -> None:
        chain.data_first(node, 2)
        axes = chain.constant(node, 1, 1, "int64").tolist()
        if axes != list(range(1, len(chain.shape))) or len(axes) not in (1, 2):
            raise node.refused(f"its axes are {axes!r:.99}, and not those of images or sequences")
        if node.take("keepdims", 1):
            raise node.refused("keepdims is 1")
        node.only("noop_with_empty_axes", 0)
        chain.add(make(), chain.shape[-1:])

    return read


# -- Norms and shapes


def _batch_norm(chain: Chain, node: Node) -> None:
    chain.data_first(node, 5)
    node.only("training_mode", 0)
    arrays = [chain.constant(node, i, 1) for i in range(1, 5)]
    momentum, epsilon = 1.0 - node.take("momentum", 0.9), node.take("epsilon", 1e-5)
    layer = BatchNorm(_channels(chain, node, arrays[0]), momentum, epsilon)
    assert layer.bias is not None  # noqa: S101 (batch norm has one)
    fill(node, layer.gain, arrays[0])
    fill(node, layer.bias, arrays[1])
    fill(node, layer.running_mean, arrays[2])
    fill(node, layer.running_variance, arrays[3])
    chain.add(layer, chain.shape)


def _layer_norm(chain: Chain, node: Node) -> None:
    chain.data_first(node, 3)
    node.only("stash_type", 1)
    axis, epsilon = node.take("axis", -1), node.take("epsilon", 1e-5)
    if axis not in (-1, len(chain.shape)):
        raise node.refused(f"axis is {axis}, and only the last one can be read")
    gain = chain.constant(node, 1, 1)
    layer = LayerNorm(_channels(chain, node, gain), epsilon)
    fill(node, layer.gain, gain)
    if layer.bias is not None and len(node.inputs) > 2:
        fill(node, layer.bias, chain.constant(node, 2, 1))
    chain.add(layer, chain.shape)


def _prelu(chain: Chain, node: Node) -> None:
    chain.data_first(node, 2)
    slope = chain.constant(node, 1, 1)
    layer = PReLU(1 if len(slope) == 1 else _channels(chain, node, slope))
    fill(node, layer.slope, slope)
    chain.add(layer, chain.shape)


def _channels(chain: Chain, node: Node, array: NDArray[Any]) -> int:
    """Return how many numbers there are; they must be as many as channels."""
    if not chain.shape or chain.shape[-1] != len(array):
        raise node.refused(f"{len(array)} numbers do not fit samples of {chain.shape}")
    return len(array)


def _reshape(chain: Chain, node: Node) -> None:
    chain.data_first(node, 2)
    node.only("allowzero", 0)
    shape = tuple(chain.constant(node, 1, 1, "int64").tolist())
    if shape[:1] != (0,) or min(shape[1:], default=1) < 1:
        raise node.refused(f"its shape is {shape}, and (0, ...) keeps the number of samples")
    if math.prod(shape[1:]) != math.prod(chain.shape):
        raise node.refused(f"samples of {chain.shape} do not become {shape[1:]}")
    chain.add(Flatten() if len(shape) == 2 else Reshape(shape[1:]), shape[1:])


def _flatten(chain: Chain, node: Node) -> None:
    node.only("axis", 1)
    chain.add(Flatten(), (math.prod(chain.shape),))


_TURNED: dict[str, Callable[[Chain, Node], None]] = {
    "Conv": read_convolution,
    "ConvTranspose": read_convolution,
    "MaxPool": read_pool,
    "AveragePool": read_pool,
    "BatchNormalization": _batch_norm,
}

_READERS: dict[str, Callable[[Chain, Node], None]] = {
    **ACTIVATION_READERS,
    "Identity": lambda chain, node: chain.data_first(node, 1),
    "MatMul": _product,
    "Gemm": _gemm,
    "Add": _position,
    "Gather": _embedding,
    "ReduceMean": _reduced(GlobalAveragePool),
    "ReduceMax": _reduced(GlobalMaxPool),
    "LayerNormalization": _layer_norm,
    "PRelu": _prelu,
    "Reshape": _reshape,
    "Flatten": _flatten,
}
