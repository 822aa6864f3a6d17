"""A chain of ONNX operators while it is read: what comes next, and what the last one returned."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn.files.onnx.graph import first, last
from gpunn.nn.layer import Layer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gpunn._typing import Shape
    from gpunn.nn.parameter import Buffer, Parameter


class UnreadableError(ValueError):
    """What is wrong with a graph; `import_onnx` says of which file."""


@dataclass
class Node:
    """An operator: its type, the names that it reads and returns, and its settings.

    A reader takes the settings that it understands; what is left over is not understood.
    """

    operator: str
    inputs: list[str]
    outputs: list[str]
    settings: dict[str, Any]

    def take(self, name: str, default: Any) -> Any:
        """Take a setting; it must be of the kind of its default."""
        value = self.settings.pop(name, default)
        value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        value = list(value) if isinstance(value, (list, tuple)) else value
        if type(value) is not type(default):
            raise self.refused(f"{name} is {value!r:.99}")
        return value

    def only(self, name: str, value: Any) -> None:
        """Take a setting that may have one value only, which is also ONNX's default."""
        found = self.take(name, value)
        if found != value:
            raise self.refused(f"{name} is {found!r:.99}, and only {value!r} can be read")

    def refused(self, why: str) -> UnreadableError:
        """Return the error for this operator."""
        return UnreadableError(f"the operator {self.operator} cannot be read: {why}")


@dataclass
class Chain:
    """Operators, each of which reads what the one before it returns, and constants.

    Attributes
    ----------
    nodes : list of Node
        In order.
    constants : mapping from str to array
    name, shape : str and tuple of int
        What the last operator returned: its name, and the shape of one sample, channels last.
    turned : bool
        Whether its channels stand behind the samples at the moment.
    """

    nodes: list[Node]
    constants: Mapping[str, NDArray[Any]]
    name: str
    shape: Shape
    turned: bool = False
    layers: list[Layer] = field(default_factory=list)
    _next: int = 0

    def take(self, *operators: str) -> Node | None:
        """Take the next operator if it is one of these (or any), and reads the current value."""
        if self._next == len(self.nodes):
            return None
        node = self.nodes[self._next]
        if operators and (node.operator not in operators or self.name not in node.inputs):
            return None
        if self.name not in node.inputs:
            raise node.refused("it does not read what the operator before it returns")
        self._next += 1
        return node

    def returned(self, node: Node) -> None:
        """Go on with what an operator returns, all of whose settings were taken."""
        if node.settings:
            raise node.refused(f"its setting {min(node.settings)!r:.99} is not known")
        if len(node.outputs) != 1:
            raise node.refused(f"it returns {len(node.outputs)} values")
        self.name = node.outputs[0]

    def add(self, layer: Layer, shape: Shape) -> None:
        """Add a layer, and tell the shape that it returns."""
        self.layers.append(layer)
        self.shape = shape

    def constant(self, node: Node, i: int, axes: int, kind: str = "float32") -> NDArray[Any]:
        """Return an input of an operator that must be a constant, with so many axes."""
        name = node.inputs[i] if i < len(node.inputs) else ""
        array = self.constants.get(name)
        if array is None:
            raise node.refused(f"its input {i} is no constant")
        if array.dtype.name != kind or array.ndim != axes:
            raise node.refused(
                f"its input {i} is an array of {array.dtype} with {array.ndim} axes, and "
                f"{kind} with {axes} is expected"
            )
        return array

    def data_first(self, node: Node, inputs: int) -> None:
        """Check that an operator reads the current value, and then constants: at most so many."""
        if node.inputs[0] != self.name or len(node.inputs) > inputs:
            raise node.refused(f"its inputs are {', '.join(node.inputs)[:199]}")

    def facing(self, node: Node, *, turned: bool) -> None:
        """Check where the channels are."""
        if self.turned != turned:
            where = "behind the samples" if turned else "last"
            raise node.refused(
                f"it needs the channels {where}; gpunn's layout is channels last, and a Transpose "
                "must stand before and after each operator on images"
            )

    def transpose(self, node: Node) -> None:
        """Note that the channels move."""
        axes, perm = len(self.shape) + 1, node.take("perm", [])
        if perm != (last(axes) if self.turned else first(axes)):
            raise node.refused(f"perm is {perm}, which does not move the channels")
        self.turned = not self.turned


def fill(node: Node, item: Parameter | Buffer, array: NDArray[Any]) -> None:
    """Write a constant into a layer."""
    if tuple(item.value.shape) != array.shape:
        raise node.refused(
            f"constants of {array.shape}, where {tuple(item.value.shape)} are wanted"
        )
    item.value[...] = array


def array_of(tensor: Any) -> NDArray[Any]:
    """Return a constant of a file, after comparing its shape with the bytes that are there."""
    from onnx import TensorProto  # noqa: PLC0415

    kinds = {TensorProto.FLOAT: ("<f4", "float_data"), TensorProto.INT64: ("<i8", "int64_data")}
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise UnreadableError(
            f"the constant {tensor.name!r:.99} lies in another file, and none is followed; save "
            "the model as one file"
        )
    if tensor.data_type not in kinds:
        raise UnreadableError(
            f"the constant {tensor.name!r:.99} is neither float32 nor int64 (type "
            f"{tensor.data_type})"
        )
    dtype, listed = kinds[tensor.data_type]
    shape, values = tuple(tensor.dims), getattr(tensor, listed)
    n = len(tensor.raw_data) // np.dtype(dtype).itemsize if tensor.raw_data else len(values)
    left_over = len(tensor.raw_data) % np.dtype(dtype).itemsize
    if len(shape) > 8 or min(shape, default=0) < 0 or math.prod(shape) != n or left_over:
        raise UnreadableError(f"the constant {tensor.name!r:.99} has {n} numbers, not {shape}")
    flat = np.frombuffer(tensor.raw_data, dtype) if tensor.raw_data else np.array(values, dtype)
    return flat.astype(flat.dtype.newbyteorder("=")).reshape(shape)
