"""The layer of each ONNX operator, with its settings checked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from gpunn.files.onnx.chain import Chain, fill
from gpunn.files.onnx.read_activations import ACTIVATION_READERS
from gpunn.files.onnx.read_norms import NORM_READERS
from gpunn.files.onnx.read_windows import WINDOW_READERS
from gpunn.nn.dense import Dense
from gpunn.nn.embedding import Embedding, Position
from gpunn.nn.pooling import GlobalAveragePool, GlobalMaxPool
from gpunn.nn.shape import Flatten, Reshape

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from gpunn.files.onnx.nodes import Node
    from gpunn.nn.layer import Layer


def read_operator(chain: Chain, node: Node) -> None:
    """Add the layer for an operator."""
    if node.operator not in _READERS:
        raise node.refused("gpunn has no layer for it")
    if chain.integers and node.operator not in ("Gather", "Identity"):
        raise node.refused("it takes integers, which only an Embedding may")
    if chain.flattened and node.operator not in _ANY_ORDER:
        raise node.refused("it takes images that were flattened with the channels first")
    _READERS[node.operator](chain, node)


# -- Products


def _linear(chain: Chain, node: Node, weight: NDArray[Any], bias: NDArray[Any] | None) -> None:
    if weight.ndim != 2 or not chain.shape or chain.shape[-1] != weight.shape[0]:
        raise node.refused(f"samples of {chain.shape} do not fit weights of {weight.shape}")
    chain.check_layout(node, channels_first=False)
    layer = Dense(*weight.shape, bias=bias is not None, rng=0)
    fill(node, layer.weight, chain.reorder_rows(weight))
    if layer.bias is not None and bias is not None:
        fill(node, layer.bias, bias)
    chain.flattened = None
    chain.add(layer, (*chain.shape[:-1], weight.shape[1]))


def _product(chain: Chain, node: Node) -> None:
    chain.check_inputs(node, 2)
    _linear(chain, node, chain.constant(node, 1, 2), None)


def _gemm(chain: Chain, node: Node) -> None:
    chain.check_inputs(node, 3)
    for name, value in (("alpha", 1.0), ("beta", 1.0), ("transA", 0)):
        node.require(name, value)
    weight = chain.constant(node, 1, 2)
    weight = weight.T if node.take("transB", 0) else weight
    bias = chain.constant(node, 2, 1) if len(node.inputs) > 2 else None
    if len(chain.shape) != 1:
        raise node.refused(f"it takes matrices, and samples have the shape {chain.shape}")
    _linear(chain, node, weight, bias)


def _position(chain: Chain, node: Node) -> None:
    chain.check_inputs(node, 2)
    chain.check_layout(node, channels_first=False)
    table = chain.constant(node, 1, 2)
    if table.shape != chain.shape:
        raise node.refused(f"a table of {table.shape} is added to samples of {chain.shape}")
    layer = Position(*table.shape, rng=0)
    fill(node, layer.weight, table)
    chain.add(layer, chain.shape)


def _embedding(chain: Chain, node: Node) -> None:
    node.require("axis", 0)
    if len(node.inputs) != 2 or node.inputs[1] != chain.name or not chain.integers:
        raise node.refused("it can only be read as an Embedding of tokens")
    table = chain.constant(node, 0, 2)
    layer = Embedding(*table.shape, rng=0)
    fill(node, layer.weight, table)
    chain.integers = False
    chain.add(layer, (*chain.shape, table.shape[1]))


# -- Shapes


def _reduction(make: Callable[[], Layer]) -> Callable[[Chain, Node], None]:
    """Read a reduction over all axes except the sample and channel axes."""

    def read(chain: Chain, node: Node) -> None:
        chain.check_inputs(node, 2)
        axes, n = chain.constant(node, 1, 1, "int64").tolist(), len(chain.shape) + 1
        wanted = range(2, n) if chain.channels_first else range(1, n - 1)
        if sorted(axis % n for axis in axes) != list(wanted) or len(axes) not in (1, 2):
            raise node.refused(f"its axes are {axes!r:.99}, not those of images or sequences")
        keep = node.take("keepdims", 1)
        node.require("noop_with_empty_axes", 0)
        _pool(chain, make(), keep=bool(keep))

    return read


def _global(make: Callable[[], Layer]) -> Callable[[Chain, Node], None]:
    """Read a pool over all pixels that keeps the axes."""

    def read(chain: Chain, node: Node) -> None:
        chain.check_inputs(node, 1)
        chain.check_layout(node, channels_first=True)
        if len(chain.shape) not in (2, 3):
            raise node.refused(f"samples have the shape {chain.shape}")
        _pool(chain, make(), keep=True)

    return read


def _pool(chain: Chain, pool: Layer, *, keep: bool) -> None:
    ones, channels = (1,) * (len(chain.shape) - 1), chain.shape[-1]
    chain.add(pool, (channels,))
    if keep:
        chain.add(Reshape((*ones, channels)), (*ones, channels))
    else:
        chain.channels_first = False


def _reshape(chain: Chain, node: Node) -> None:
    chain.check_inputs(node, 2)
    node.require("allowzero", 0)
    given = chain.constant(node, 1, 1, "int64").tolist()
    n, shape = math.prod(chain.shape), tuple(given[1:])
    if shape.count(-1) == 1 and given[0] == 0:
        rest = -math.prod(shape)
        shape = tuple(n // rest if rest > 0 and length == -1 else length for length in shape)
    if given[:1] not in ([0], [-1]) or min(shape, default=1) < 1:
        raise node.refused(f"its shape is {given!r:.99}; expected (0, ...), to keep the samples")
    if math.prod(shape) != n:
        raise node.refused(f"samples of {chain.shape} do not become {shape}")
    if len(shape) == 1:
        chain.add(Flatten(), chain.flatten())
    else:
        chain.check_layout(node, channels_first=False)
        chain.add(Reshape(shape), shape)


def _flatten(chain: Chain, node: Node) -> None:
    chain.check_inputs(node, 1)
    node.require("axis", 1)
    chain.add(Flatten(), chain.flatten())


#: Operators that can be read for features in any order.
_ANY_ORDER = {*ACTIVATION_READERS, "Identity", "MatMul", "Gemm", "BatchNormalization"}

_READERS: dict[str, Callable[[Chain, Node], None]] = {
    **ACTIVATION_READERS,
    **NORM_READERS,
    **WINDOW_READERS,
    "Identity": lambda chain, node: chain.check_inputs(node, 1),
    "Transpose": lambda chain, node: chain.transpose(node),
    "MatMul": _product,
    "Gemm": _gemm,
    "Add": _position,
    "Gather": _embedding,
    "ReduceMean": _reduction(GlobalAveragePool),
    "ReduceMax": _reduction(GlobalMaxPool),
    "GlobalAveragePool": _global(GlobalAveragePool),
    "GlobalMaxPool": _global(GlobalMaxPool),
    "Reshape": _reshape,
    "Flatten": _flatten,
}
