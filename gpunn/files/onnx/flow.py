"""Traverse an ONNX graph: sequences of operators, and branches that meet again."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gpunn.errors import GpunnError
from gpunn.files.onnx.nodes import Node, UnreadableError
from gpunn.files.onnx.phrases import LONGEST, phrase
from gpunn.files.onnx.readers import read_operator
from gpunn.nn.activation import Identity
from gpunn.nn.containers import Parallel, Residual, Sequential

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpunn.files.onnx.chain import Chain
    from gpunn.nn.layer import Layer

#: How deeply branches may be nested.
_DEEPEST = 30


def read_all(chain: Chain, nodes: Sequence[Node], stop: str, depth: int = 0) -> None:
    """Add the layers of the operators that lead from the current value to `stop`.

    Parameters
    ----------
    chain : Chain
    nodes : sequence of Node
        In order: all operators that read the current value or a value derived from it, up to
        `stop`.
    stop : str
        The name of the last value.
    depth : int
        The number of branches that contain these operators.
    """
    if depth > _DEEPEST:
        raise UnreadableError(f"its branches are nested more than {_DEEPEST} deep")
    readers = Counter(name for node in nodes for name in node.inputs)
    done = 0
    while done < len(nodes):
        found = phrase(chain, nodes[done : done + LONGEST])
        if found and _is_closed(chain, nodes[done : done + found.length], readers):
            chain.add(found.layer, found.shape)
            chain.name = nodes[done + found.length - 1].outputs[0]
            done += found.length
            continue
        region = _region(chain, nodes, done, readers)
        done += len(region)
        try:
            if len(region) > 1 or region[0].inputs.count(chain.name) > 1:
                _join(chain, region, depth)
            else:
                read_operator(chain, region[0])
            chain.advance(region[-1])
        except GpunnError as error:  # a layer refuses its settings
            raise region[-1].refused(str(error)) from error
    if chain.name != stop:
        raise UnreadableError(f"its last operator does not return {stop!r:.99}")


def _region(chain: Chain, nodes: Sequence[Node], begin: int, readers: Counter[str]) -> list[Node]:
    """Return the next operators, up to the first one that all later ones depend on."""
    region, open_values = [], {chain.name: readers[chain.name]}
    for node in nodes[begin:]:
        region.append(node)
        for name in node.inputs:
            if name in chain.constants or not name:
                continue
            if name not in open_values:
                raise node.refused("it does not read the output of the operator before it")
            open_values[name] -= 1
            if not open_values[name]:
                del open_values[name]
        if not open_values:
            return region
        open_values |= {name: readers[name] for name in node.outputs}
    raise region[0].refused("the branches that start before it do not meet again")


def _is_closed(chain: Chain, nodes: Sequence[Node], readers: Counter[str]) -> bool:
    """Return whether other operators read none of the values of these except the last output."""
    inside = Counter(name for node in nodes for name in node.inputs)
    inner = [chain.name, *(name for node in nodes[:-1] for name in node.outputs)]
    return all(inside[name] == readers[name] for name in inner)


def _join(chain: Chain, region: Sequence[Node], depth: int) -> None:
    """Add the layer for branches that meet in the last of these operators."""
    *inner, last = region
    if last.operator not in ("Add", "Sum", "Concat"):
        raise last.refused("it joins branches; gpunn joins them by Add, Sum and Concat only")
    branches = [_branch_to(name, inner) for name in last.inputs]
    if sum(map(len, branches)) != len(inner):
        raise last.refused("its branches share operators")
    chains = []
    for name, nodes in zip(last.inputs, branches, strict=True):
        chains.append(chain.branch())
        read_all(chains[-1], nodes, name, depth + 1)
    _check_joinable(last, chains, widths_differ=last.operator == "Concat")
    axis = last.take("axis", 0) if last.operator == "Concat" else None
    if axis is not None and not chains[0].is_last(axis):
        raise last.refused(f"axis is {axis}, and only the channel axis can be read")
    layers = [_as_layer(each.layers) for each in chains]
    skips = [not each.layers for each in chains]
    chain.channels_first, chain.integers = chains[0].channels_first, chains[0].integers
    if axis is not None:
        width = sum(each.shape[-1] for each in chains)
        chain.put(Parallel(*layers), (*chains[0].shape[:-1], width))
    elif len(layers) == 2 and any(skips):
        chain.put(Residual(layers[0 if skips[1] else 1]), chain.shape)
    else:
        chain.put(Parallel(*layers, join="add"), chains[0].shape)


def _branch_to(name: str, inner: Sequence[Node]) -> list[Node]:
    """Return the operators in `inner` that a value depends on."""
    wanted, found = {name}, []
    for node in reversed(inner):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            found.append(node)
    return found[::-1]


def _check_joinable(last: Node, chains: Sequence[Chain], *, widths_differ: bool) -> None:
    """Check that the outputs of branches can be joined."""
    shapes = {each.shape[:-1] if widths_differ else each.shape for each in chains}
    if len(shapes) > 1 or not chains[0].shape:
        raise last.refused(f"its branches return {', '.join(str(each.shape) for each in chains)}")
    if len({each.channels_first for each in chains}) > 1 or any(each.flattened for each in chains):
        raise last.refused("its branches have the channels in different places")
    if any(each.integers for each in chains):
        raise last.refused("it joins integers")


def _as_layer(layers: Sequence[Layer]) -> Layer:
    if not layers:
        return Identity()
    return layers[0] if len(layers) == 1 else Sequential(*layers)
