"""An ONNX graph under construction: nodes, constants, and values with a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpunn._typing import Array, Shape
from gpunn.arrays.exchange import to_numpy
from gpunn.nn.layer import Layer
from gpunn.nn.parameter import Buffer, Parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


class Value(NamedTuple):
    """An operator's output: its name in the graph, and the layer's output for one sample.

    The sample gives the shape, and computing it makes the layer check its input.
    """

    name: str
    sample: Array

    @property
    def shape(self) -> Shape:
        """The shape of one sample."""
        return tuple(self.sample.shape[1:])


class Graph:
    """Nodes in the order in which they are computed, and the constants that they read.

    Parameters
    ----------
    model : Layer
        Its parameters and buffers keep their dotted names.
    """

    def __init__(self, model: Layer) -> None:
        from onnx import helper  # noqa: PLC0415 (only an export needs it)

        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self._make = helper.make_node
        held = {**model.named_parameters(), **model.named_buffers()}
        self._names = {id(item): name for name, item in held.items()}

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add an operator with one output; return the output's name."""
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(self._make(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, values: Any, dtype: str = "float32") -> str:
        """Add a constant; return its name."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.array(values, dtype, order="C")
        return name

    def held(
        self, item: Parameter | Buffer, turn: Callable[[NDArray[Any]], NDArray[Any]] = np.asarray
    ) -> str:
        """Add a parameter or buffer, in another layout if needed, and once if shared."""
        name = self._names[id(item)]
        if name not in self.constants:
            self.constants[name] = np.array(turn(to_numpy(item.value)), "float32", order="C")
        return name

    def reshape(self, name: str, sample: Sequence[int]) -> str:
        """Reshape each sample; a 0 stands for the number of samples."""
        return self.node("Reshape", name, self.constant([0, *sample], "int64"))

    def linear(self, name: str, weight: Parameter, bias: Parameter | None) -> str:
        """Multiply by a matrix along the last axis, and add the bias, if any."""
        z = self.node("MatMul", name, self.held(weight))
        return z if bias is None else self.node("Add", z, self.held(bias))

    def channels_first(self, name: str, axes: int) -> str:
        """Move the channels to ONNX's place, right after the samples."""
        return self.node("Transpose", name, perm=first(axes)) if axes > 2 else name

    def channels_last(self, name: str, axes: int) -> str:
        """Move the channels back to the end."""
        return self.node("Transpose", name, perm=last(axes)) if axes > 2 else name


def settings_of(node: Any) -> dict[str, Any]:
    """Return the attributes of an operator by name."""
    from onnx import helper  # noqa: PLC0415

    return {each.name: helper.get_attribute_value(each) for each in node.attribute if each.name}


def first(axes: int) -> list[int]:
    """Return the permutation of axes that moves the channels right after the samples."""
    return [0, axes - 1, *range(1, axes - 1)]


def last(axes: int) -> list[int]:
    """Return the permutation of axes that moves the channels to the end."""
    return [0, *range(2, axes), 1]
