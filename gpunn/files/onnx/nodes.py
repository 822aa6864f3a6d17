"""The operators and constants of an ONNX graph, after checking the file's claims about them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpunn.files.onnx.graph import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from gpunn._typing import Shape

    Constants = dict[str, NDArray[Any]]


#: The largest sample, in numbers; weights for a larger one would not fit on a disk.
_MOST_NUMBERS = 2**55


class UnreadableError(ValueError):
    """A fault in a graph; `import_onnx` adds the name of the file."""


@dataclass
class Node:
    """An operator: its type, the names of its inputs and outputs, and its settings.

    A reader takes the settings that it understands; any that are left over are unknown.
    """

    operator: str
    inputs: list[str]
    outputs: list[str]
    settings: dict[str, Any]

    def take(self, name: str, default: Any) -> Any:
        """Remove and return a setting; it must have the type of its default."""
        value = self.settings.pop(name, default)
        value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        value = list(value) if isinstance(value, (list, tuple)) else value
        if type(value) is not type(default):
            raise self.refused(f"{name} is {value!r:.99}")
        return value

    def require(self, name: str, value: Any) -> None:
        """Remove a setting that must have a given value, which is also ONNX's default."""
        found = self.take(name, value)
        if found != value:
            raise self.refused(f"{name} is {found!r:.99}, and only {value!r} can be read")

    def refused(self, why: str) -> UnreadableError:
        """Return the error that says why this operator cannot be read."""
        return UnreadableError(f"the operator {self.operator} cannot be read: {why}")


class Source(NamedTuple):
    """A graph: its operators in order, constants, input and output.

    `nodes` are the operators that depend on the input; `shape` is the shape of one sample.
    """

    nodes: list[Node]
    constants: Constants
    name: str
    shape: Shape
    integers: bool
    output: str


def source_of(graph: Any) -> Source:
    """Return the graph of a file as a `Source`."""
    from onnx import TensorProto  # noqa: PLC0415 (optional)

    if graph.sparse_initializer:
        raise UnreadableError("it has sparse constants, which are not supported")
    constants = {each.name: array_of(each, each.name) for each in graph.initializer}
    inputs = [each for each in graph.input if each.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise UnreadableError(
            f"it has {len(inputs)} inputs and {len(graph.output)} outputs, and one of each is "
            "expected"
        )
    (given,) = inputs
    nodes = list(_fold_constants([_node(each) for each in graph.node], constants, given.name))
    integers = given.type.tensor_type.elem_type in (TensorProto.INT64, TensorProto.INT32)
    return Source(nodes, constants, given.name, _shape(given), integers, graph.output[0].name)


def _fold_constants(nodes: list[Node], constants: Constants, given: str) -> Iterator[Node]:
    """Yield the operators that depend on the input; evaluate the others into `constants`."""
    known = {*constants, given}
    for node in nodes:
        used = [name for name in node.inputs if name]
        unknown = [name for name in used if name not in known]
        if unknown:
            raise node.refused(f"nothing before it returns {unknown[0]!r:.99}, which it reads")
        for name in node.outputs:
            if name in known:
                raise node.refused(f"the name of its output, {name!r:.99}, is taken")
            known.add(name)
        if not all(name in constants for name in used):
            yield _constant_last(node, constants)
        elif node.operator in _CONSTANT and len(node.outputs) == 1:
            constants[node.outputs[0]] = _CONSTANT[node.operator](node, constants)
        else:
            raise node.refused("it reads nothing but constants")


def _constant_last(node: Node, constants: Constants) -> Node:
    """Return a node with the operands of a sum or product in order, constant last."""
    if node.operator in ("Add", "Mul") and len(node.inputs) == 2 and node.inputs[0] in constants:
        node.inputs.reverse()
    return node


# -- Constants


def _constant(node: Node, _: Constants) -> NDArray[Any]:
    from onnx import TensorProto  # noqa: PLC0415

    if len(node.settings) != 1:
        raise node.refused(f"it has {len(node.settings)} values")
    ((name, value),) = node.settings.items()
    if name == "value" and isinstance(value, TensorProto):
        return array_of(value, node.outputs[0])
    kinds = {"value_float": float, "value_floats": float, "value_int": int, "value_ints": int}
    several = isinstance(value, (list, tuple))
    values = value if several else [value]
    right = name in kinds and several == name.endswith("s")
    if not right or any(type(each) is not kinds[name] for each in values):
        raise node.refused(f"it is given by {name!r:.99}")
    return np.array(value, "float32" if kinds[name] is float else "int64")


def _slice(node: Node, constants: Constants) -> NDArray[Any]:
    """Return the first rows of a table."""
    table, *bounds = (constants[name] for name in node.inputs if name)
    if [bound.shape for bound in bounds] != [(1,), (1,)] or not table.ndim:
        raise node.refused("it may take only the first rows of a constant")
    begin, end = (int(bound[0]) for bound in bounds)
    if begin != 0 or not 0 < end <= len(table):
        raise node.refused(f"it takes rows {begin} to {end} of {len(table)}")
    return table[:end]


#: Operators that may read nothing but constants.
_CONSTANT: dict[str, Callable[[Node, Constants], NDArray[Any]]] = {
    "Constant": _constant,
    "Identity": lambda node, constants: constants[node.inputs[0]],
    "Slice": _slice,
}


def array_of(tensor: Any, name: str) -> NDArray[Any]:
    """Return a constant of a file, after comparing its shape with its number of bytes."""
    from onnx import TensorProto  # noqa: PLC0415

    kinds = {TensorProto.FLOAT: ("<f4", "float_data"), TensorProto.INT64: ("<i8", "int64_data")}
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise UnreadableError(
            f"the constant {name!r:.99} is in another file, which is not read; save the model as "
            "one file"
        )
    if tensor.data_type not in kinds:
        raise UnreadableError(
            f"the constant {name!r:.99} is neither float32 nor int64 (type {tensor.data_type})"
        )
    dtype, listed = kinds[tensor.data_type]
    shape, values = tuple(tensor.dims), getattr(tensor, listed)
    n = len(tensor.raw_data) // np.dtype(dtype).itemsize if tensor.raw_data else len(values)
    left_over = len(tensor.raw_data) % np.dtype(dtype).itemsize
    if len(shape) > 8 or min(shape, default=0) < 0 or math.prod(shape) != n or left_over:
        raise UnreadableError(f"the constant {name!r:.99} has {n} numbers, not {shape}")
    flat = np.frombuffer(tensor.raw_data, dtype) if tensor.raw_data else np.array(values, dtype)
    return flat.astype(flat.dtype.newbyteorder("=")).reshape(shape)


# -- Operators


def _node(node: Any) -> Node:
    """Return an operator; refuse one that is not ONNX's own."""
    names = [node.domain, node.op_type, *node.input, *node.output]
    if not all(isinstance(name, str) for name in (*names, *(each.name for each in node.attribute))):
        raise UnreadableError("it is damaged: a name is not text")  # bytes that are not UTF-8
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    result = Node(operator[:199], list(node.input), list(node.output), {})
    if node.domain not in ("", "ai.onnx"):
        raise result.refused("gpunn has no layer for it")
    if not result.outputs or (not result.inputs and result.operator != "Constant"):
        raise result.refused("gpunn has no layer for it, since it reads nothing or returns nothing")
    try:
        result.settings = settings_of(node)
    except ValueError as error:
        raise result.refused(f"a setting is damaged ({error})") from error
    if any(value is None for value in result.settings.values()):
        raise result.refused("a setting has no value")
    return result


def _shape(given: Any) -> Shape:
    """Return the shape of one sample that the graph takes."""
    dims = given.type.tensor_type.shape.dim
    shape = tuple(each.dim_value for each in dims)[1:]
    if not dims or not 0 < len(dims) < 9 or min(shape, default=1) < 1:
        raise UnreadableError(
            f"its input {given.name!r:.99} has the shape {[0, *shape]}: the lengths of all axes "
            "but the first must be given as numbers above 0"
        )
    if math.prod(shape) > _MOST_NUMBERS:
        raise UnreadableError(f"its input {given.name!r:.99} has {math.prod(shape)} numbers")
    return shape
