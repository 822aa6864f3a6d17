"""Layers that are several ONNX operators, recognised by exporting them.

Each phrase is a sequence of operators, with a function that guesses the layer from the constants
they read. The guess is accepted only if exporting that layer gives exactly these operators. So no
operators are misread, and the exported form is defined in one place.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpunn.errors import GpunnError
from gpunn.files.onnx.chain import Chain, fill
from gpunn.files.onnx.graph import Graph, Value, settings_of
from gpunn.files.onnx.layers import write_single
from gpunn.files.onnx.nodes import Node, UnreadableError
from gpunn.nn.activation import Activation, SiLU
from gpunn.nn.activation_smooth import LogSigmoid
from gpunn.nn.attention import MultiHeadAttention
from gpunn.nn.dense import Dense
from gpunn.nn.norm import GroupNorm, RMSNorm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gpunn._typing import Shape
    from gpunn.nn.layer import Layer


class Phrase(NamedTuple):
    """A layer, the shape of its output, and the number of its operators."""

    layer: Layer
    shape: Shape
    length: int


def phrase(chain: Chain, nodes: Sequence[Node]) -> Phrase | None:
    """Return the layer that the next operators form together, or None."""
    for operators, guess in _PHRASES.get(nodes[0].operator, ()):
        given = nodes[: len(operators)]
        if [node.operator for node in given] != operators:
            continue
        with suppress(GpunnError, UnreadableError):  # not this layer
            layer = guess(chain, given)
            if _exports_as(chain, given, layer):
                return _as_phrase(chain, given, layer)
    return None


def _exports_as(chain: Chain, nodes: Sequence[Node], layer: Layer) -> bool:
    """Return whether a layer, applied to the current value, is exported as these operators."""
    graph, sample = Graph(layer), np.broadcast_to(np.float32(0), (1, *chain.shape))
    write_single(graph, layer, Value("x", sample))
    theirs = {"x": chain.name}
    for wanted, node in zip(graph.nodes, nodes, strict=True):
        if (wanted.op_type, settings_of(wanted)) != (node.operator, node.settings):
            return False
        if len(wanted.input) != len(node.inputs) or len(node.outputs) != 1:
            return False
        for ours, name in zip(wanted.input, node.inputs, strict=True):
            if ours in graph.constants:
                constant = chain.constants.get(name)
                if constant is None or not _equal(graph.constants[ours], constant):
                    return False
            elif theirs[ours] != name:
                return False
        theirs[wanted.output[0]] = node.outputs[0]
    return True


def _equal(a: Any, b: Any) -> bool:
    """Return whether two arrays are the same, bit for bit."""
    return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()


def _as_phrase(chain: Chain, nodes: Sequence[Node], layer: Layer) -> Phrase | None:
    """Return a layer's phrase, or None if it would compute something else in this layout."""
    if isinstance(layer, Activation):
        return Phrase(layer, chain.shape, len(nodes))
    if chain.channels_first or chain.integers:
        return None
    if not isinstance(layer, Dense):
        return None if chain.flattened else Phrase(layer, chain.shape, len(nodes))
    layer.weight.value[...] = chain.reorder_rows(layer.weight.value)
    chain.flattened = None
    return Phrase(layer, (*chain.shape[:-1], layer.out_features), len(nodes))


# -- Guesses


def _dense(chain: Chain, nodes: Sequence[Node]) -> Layer:
    """Guess a dense layer with a bias."""
    product, addition = nodes
    weight, bias = chain.constant(product, 1, 2), chain.constant(addition, 1, 1)
    if chain.shape[-1:] != weight.shape[:1]:
        raise product.refused("its weights do not fit")
    layer = Dense(*weight.shape, rng=0)
    fill(product, layer.weight, weight)
    if layer.bias is not None:
        fill(addition, layer.bias, bias)
    return layer


def _rms_norm(chain: Chain, nodes: Sequence[Node]) -> Layer:
    epsilon, gain = chain.constant(nodes[2], 1, 0), chain.constant(nodes[5], 1, 1)
    layer = RMSNorm(chain.channels(nodes[5], gain), float(epsilon))
    fill(nodes[5], layer.gain, gain)
    return layer


def _group_norm(chain: Chain, nodes: Sequence[Node]) -> Layer:
    groups = chain.constant(nodes[0], 1, 1, "int64")
    epsilon = chain.constant(nodes[5], 1, 0)
    gain, bias = (chain.constant(node, 1, 1) for node in nodes[-2:])
    if len(groups) != 4:
        raise nodes[0].refused("it does not form groups")
    layer = GroupNorm(int(groups[2]), chain.channels(nodes[-2], gain), float(epsilon))
    fill(nodes[-2], layer.gain, gain)
    if layer.bias is not None:
        fill(nodes[-1], layer.bias, bias)
    return layer


def _attention(chain: Chain, nodes: Sequence[Node]) -> Layer:
    """Guess attention; its sums add the biases, if any, and the mask, if it is causal."""
    products, sums, shapes = (
        [node for node in nodes if node.operator == operator]
        for operator in ("MatMul", "Add", "Reshape")
    )
    weight, output = (chain.constant(products[i], 1, 2) for i in (0, -1))
    heads, n = chain.constant(shapes[0], 1, 1, "int64"), len(weight)
    shaped = (weight.shape, output.shape) == ((n, 3 * n), (n, n))
    if len(chain.shape) != 2 or chain.shape[1] != n or not shaped or len(heads) != 5:
        raise nodes[0].refused("it is not attention")
    causal, bias = len(sums) % 2 == 1, len(sums) > 1
    if causal and chain.constant(sums[len(sums) // 2], 1, 2).shape != (chain.shape[0],) * 2:
        raise nodes[0].refused("its mask is of another length")
    layer = MultiHeadAttention(n, int(heads[3]), causal=causal, bias=bias, rng=0)
    fill(products[0], layer.projection.weight, weight)
    fill(products[-1], layer.output.weight, output)
    for dense, node in ((layer.projection, sums[:1]), (layer.output, sums[-1:])):
        if dense.bias is not None:
            fill(node[0], dense.bias, chain.constant(node[0], 1, 1))
    return layer


def _activation(make: Callable[[], Layer]) -> Callable[[Chain, Sequence[Node]], Layer]:
    return lambda _, __: make()


_SCALED = "Mul ReduceMean Add Sqrt Div"

#: The operators of each phrase, and the function that guesses its layer.
_TABLE: dict[str, Callable[[Chain, Sequence[Node]], Layer]] = {
    "Sigmoid Mul": _activation(SiLU),
    "Neg Softplus Neg": _activation(LogSigmoid),
    f"{_SCALED} Mul": _rms_norm,
    f"Reshape ReduceMean Sub {_SCALED} Reshape Mul Add": _group_norm,
    **{
        f"MatMul{biased} Reshape Transpose Gather Gather Gather Transpose MatMul Mul{hidden} "
        f"Softmax MatMul Transpose Reshape MatMul{biased}": _attention
        for biased in (" Add", "")
        for hidden in (" Add", "")
    },
    "MatMul Add": _dense,
}

#: The same, grouped by the first operator.
_PHRASES = {
    first: [(words.split(), guess) for words, guess in _TABLE.items() if words.split()[0] == first]
    for first in {words.split()[0] for words in _TABLE}
}

#: The largest number of operators in a phrase.
LONGEST = max(len(words.split()) for words in _TABLE)
