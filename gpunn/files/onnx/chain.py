"""The current value of an ONNX graph while its operators are read one after another."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gpunn.arrays.facts import size_of
from gpunn.files.onnx.graph import first, last
from gpunn.files.onnx.nodes import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from gpunn._typing import Shape
    from gpunn.files.onnx.nodes import Node
    from gpunn.nn.layer import Layer
    from gpunn.nn.parameter import Held


@dataclass
class Budget:
    """The number of bytes of parameters that may still be created."""

    left: int

    def take(self, layer: Layer) -> None:
        """Subtract the bytes of a layer."""
        held = *layer.parameters(), *layer.buffers()
        self.left -= sum(size_of(item.value) for item in held)
        if self.left < 0:
            raise UnreadableError(
                "its operators use the same constants so often that the network would be far "
                "larger than the file"
            )


@dataclass
class Chain:
    """Layers, the last of which returns the current value.

    Attributes
    ----------
    constants : mapping from str to array
    budget : Budget
        Shared with its branches.
    name, shape : str and tuple of int
        The current value: its name, and the shape of one sample, channels last.
    channels_first : bool
        Whether the value has its channels first in the graph, right after the samples.
    integers : bool
        Whether the value is tokens.
    flattened : tuple of int or None
        The numbers of channels and pixels of images that the graph has flattened channels first,
        but the layers channels last: their entries are in different orders.
    layers : list of Layer
    """

    constants: Mapping[str, NDArray[Any]]
    budget: Budget
    name: str
    shape: Shape
    channels_first: bool = False
    integers: bool = False
    flattened: tuple[int, int] | None = None
    layers: list[Layer] = field(default_factory=list)

    def branch(self) -> Chain:
        """Return an empty chain that starts at the current value."""
        return replace(self, layers=[])

    def add(self, layer: Layer, shape: Shape) -> None:
        """Add a layer, and set the shape of its output; count its parameters."""
        self.budget.take(layer)
        self.put(layer, shape)

    def put(self, layer: Layer, shape: Shape) -> None:
        """Add a layer whose parameters have been counted already, and set the shape."""
        self.layers.append(layer)
        self.shape = shape

    def advance(self, node: Node) -> None:
        """Make an operator's output the current value; all of its settings must have been taken."""
        if node.settings:
            raise node.refused(f"its setting {min(node.settings)!r:.99} is not known")
        if len(node.outputs) != 1:
            raise node.refused(f"it returns {len(node.outputs)} values")
        self.name = node.outputs[0]

    def constant(self, node: Node, i: int, axes: int, kind: str = "float32") -> NDArray[Any]:
        """Return an operator's input i, which must be a constant with `axes` axes."""
        name = node.inputs[i] if i < len(node.inputs) else ""
        array = self.constants.get(name)
        if array is None:
            raise node.refused(f"its input {i} is not a constant")
        if array.dtype.name != kind or array.ndim != axes:
            raise node.refused(
                f"its input {i} is an array of {array.dtype} with {array.ndim} axes; expected "
                f"{kind} with {axes} axes"
            )
        return array

    def check_inputs(self, node: Node, inputs: int) -> None:
        """Check that an operator reads the current value first, and at most `inputs` inputs."""
        if node.inputs[0] != self.name or len(node.inputs) > inputs:
            raise node.refused(f"its inputs are {', '.join(node.inputs)[:199]}")

    def channels(self, node: Node, array: NDArray[Any]) -> int:
        """Return the number of channels, which must be the length of an array."""
        if not self.shape or self.shape[-1] != len(array):
            raise node.refused(f"{len(array)} numbers do not fit samples of {self.shape}")
        return len(array)

    # -- Position of the channels

    def check_layout(self, node: Node, *, channels_first: bool) -> None:
        """Check that the channels are first, or last."""
        if self.channels_first != channels_first:
            where = "first (N, C, ...)" if channels_first else "last"
            raise node.refused(
                f"it needs the channels {where}; gpunn's layout is channels last: each operator on "
                "images needs a Transpose before and after it; if the graph's input has the "
                "channels first, pass channels_first=True"
            )

    def is_last(self, axis: int) -> bool:
        """Return whether an axis of the graph's array is the channel axis."""
        axes = len(self.shape) + 1
        return (
            axis % axes == (1 if self.channels_first else axes - 1)
            if -axes <= axis < axes
            else False
        )

    def transpose(self, node: Node) -> None:
        """Follow an operator that moves the channel axis."""
        axes, perm = len(self.shape) + 1, node.take("perm", [])
        if perm != (last(axes) if self.channels_first else first(axes)):
            raise node.refused(f"perm is {perm!r:.99}, which does not move the channels")
        self.channels_first = not self.channels_first

    def flatten(self) -> Shape:
        """Follow an operator that flattens each sample; return the sample's new shape."""
        *pixels, channels = self.shape or (1,)
        if self.channels_first and min(math.prod(pixels), channels) > 1:
            self.flattened = channels, math.prod(pixels)
        self.channels_first = False
        return (math.prod(self.shape),)

    def reorder_rows(self, array: NDArray[Any]) -> NDArray[Any]:
        """Reorder an array with one row per entry from the graph's order to the layers'."""
        if self.flattened is None or array.shape[0] != math.prod(self.flattened):
            return array
        rows = array.reshape(*self.flattened, *array.shape[1:])
        return rows.swapaxes(0, 1).reshape(array.shape)


def fill(node: Node, item: Held, array: NDArray[Any]) -> None:
    """Write a constant into a layer."""
    if tuple(item.value.shape) != array.shape:
        raise node.refused(
            f"it has constants of shape {array.shape}; expected {tuple(item.value.shape)}"
        )
    item.value[...] = array
