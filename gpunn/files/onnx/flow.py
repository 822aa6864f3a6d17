"""The way through an ONNX graph: operators in a row, and branches that meet again."""

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

#: How deep branches may lie within branches.
_DEEPEST = 30


def read_all(chain: Chain, nodes: Sequence[Node], stop: str, depth: int = 0) -> None:
    """Add the layers of operators that lead from the current value to another one.

    Parameters
    ----------
    chain : Chain
    nodes : sequence of Node
        In order. All that read the current value, and all that come of it but what is at the end.
    stop : str
        The value at the end.
    depth : int
        How many branches these lie in.
    """
    if depth > _DEEPEST:
        raise UnreadableError(f"its branches lie more than {_DEEPEST} deep in each other")
    readers = Counter(name for node in nodes for name in node.inputs)
    done = 0
    while done < len(nodes):
        found = phrase(chain, nodes[done : done + LONGEST])
        if found and _closed(chain, nodes[done : done + found.length], readers):
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
            chain.returned(region[-1])
        except GpunnError as error:  # a layer refuses its settings
            raise region[-1].refused(str(error)) from error
    if chain.name != stop:
        raise UnreadableError(f"{stop!r:.99} is not what its last operator returns")


def _region(chain: Chain, nodes: Sequence[Node], begin: int, readers: Counter[str]) -> list[Node]:
    """Return the next operators, up to the first on which all that follow depend."""
    region, open_values = [], {chain.name: readers[chain.name]}
    for node in nodes[begin:]:
        region.append(node)
        for name in node.inputs:
            if name in chain.constants or not name:
                continue
            if name not in open_values:
                raise node.refused("it does not read what the operator before it returns")
            open_values[name] -= 1
            if not open_values[name]:
                del open_values[name]
        if not open_values:
            return region
        open_values |= {name: readers[name] for name in node.outputs}
    raise region[0].refused("what branches off before it does not meet again")


def _closed(chain: Chain, nodes: Sequence[Node], readers: Counter[str]) -> bool:
    """Return whether no other operator reads what these read and return, but for the last value."""
    inside = Counter(name for node in nodes for name in node.inputs)
    inner = [chain.name, *(name for node in nodes[:-1] for name in node.outputs)]
    return all(inside[name] == readers[name] for name in inner)


def _join(chain: Chain, region: Sequence[Node], depth: int) -> None:
    """Add the layer of branches that meet in the last of these operators."""
    *inner, last = region
    if last.operator not in ("Add", "Sum", "Concat"):
        raise last.refused("it joins branches, and gpunn joins by Add, Sum and Concat")
    branches = [_branch_to(name, inner) for name in last.inputs]
    if sum(map(len, branches)) != len(inner):
        raise last.refused("operators lie in several of its branches")
    chains = []
    for name, nodes in zip(last.inputs, branches, strict=True):
        chains.append(chain.branch())
        read_all(chains[-1], nodes, name, depth + 1)
    _check_alike(last, chains, axes_differ=last.operator == "Concat")
    axis = last.take("axis", 0) if last.operator == "Concat" else None
    if axis is not None and not chains[0].is_last(axis):
        raise last.refused(f"axis is {axis}, and only that of the channels can be read")
    layers = [_as_layer(each.layers) for each in chains]
    skips = [not each.layers for each in chains]
    chain.turned, chain.integers = chains[0].turned, chains[0].integers
    if axis is not None:
        width = sum(each.shape[-1] for each in chains)
        chain.put(Parallel(*layers), (*chains[0].shape[:-1], width))
    elif len(layers) == 2 and any(skips):
        chain.put(Residual(layers[0 if skips[1] else 1]), chain.shape)
    else:
        chain.put(Parallel(*layers, join="add"), chains[0].shape)


def _branch_to(name: str, inner: Sequence[Node]) -> list[Node]:
    """Return those of some operators that lead to a value."""
    wanted, found = {name}, []
    for node in reversed(inner):
        if wanted.intersection(node.outputs):
            wanted.update(node.inputs)
            found.append(node)
    return found[::-1]


def _check_alike(last: Node, chains: Sequence[Chain], *, axes_differ: bool) -> None:
    """Check that what branches return can be joined."""
    shapes = {each.shape[:-1] if axes_differ else each.shape for each in chains}
    if len(shapes) > 1 or not chains[0].shape:
        raise last.refused(f"its branches return {', '.join(str(each.shape) for each in chains)}")
    if len({each.turned for each in chains}) > 1 or any(each.flattened for each in chains):
        raise last.refused("the channels stand elsewhere in each of its branches")
    if any(each.integers for each in chains):
        raise last.refused("it joins integers")


def _as_layer(layers: Sequence[Layer]) -> Layer:
    if not layers:
        return Identity()
    return layers[0] if len(layers) == 1 else Sequential(*layers)
