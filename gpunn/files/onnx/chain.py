"""What is known of a value of an ONNX graph while its operators are read, one after another."""

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
    """How many bytes of parameters may still be made."""

    left: int

    def take(self, layer: Layer) -> None:
        """Count a layer."""
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
        Of this chain and its branches.
    name, shape : str and tuple of int
        The current value: its name, and the shape of one sample, channels last.
    turned : bool
        Whether its channels stand behind the samples in the graph.
    integers : bool
        Whether it is tokens.
    flattened : tuple of int or None
        The numbers of channels and of pixels of images that the graph has flattened with the
        channels first, and the layers with the channels last: the entries are in another order.
    layers : list of Layer
    """

    constants: Mapping[str, NDArray[Any]]
    budget: Budget
    name: str
    shape: Shape
    turned: bool = False
    integers: bool = False
    flattened: tuple[int, int] | None = None
    layers: list[Layer] = field(default_factory=list)

    def branch(self) -> Chain:
        """Return a chain that begins with the current value."""
        return replace(self, layers=[])

    def add(self, layer: Layer, shape: Shape) -> None:
        """Add a layer, and tell the shape that it returns."""
        self.budget.take(layer)
        self.put(layer, shape)

    def put(self, layer: Layer, shape: Shape) -> None:
        """Add a layer of layers that are counted already."""
        self.layers.append(layer)
        self.shape = shape

    def returned(self, node: Node) -> None:
        """Go on with what an operator returns, all of whose settings were taken."""
        if node.settings:
            raise node.refused(f"its setting {min(node.settings)!r:.99} is not known")
        if len(node.outputs) != 1:
            raise node.refused(f"it returns {len(node.outputs)} values")
        self.name = node.outputs[0]

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

    def channels(self, node: Node, array: NDArray[Any]) -> int:
        """Return how many numbers there are; they must be as many as channels."""
        if not self.shape or self.shape[-1] != len(array):
            raise node.refused(f"{len(array)} numbers do not fit samples of {self.shape}")
        return len(array)

    # -- Where the channels are

    def facing(self, node: Node, *, turned: bool) -> None:
        """Check where the channels are."""
        if self.turned != turned:
            where = "behind the samples" if turned else "last"
            raise node.refused(
                f"it needs the channels {where}; gpunn's layout is channels last: a Transpose must "
                "stand before and after each operator on images, or say channels_first=True of a "
                "graph whose input has them behind the samples"
            )

    def is_last(self, axis: int) -> bool:
        """Return whether an axis of the graph is that of the channels."""
        axes = len(self.shape) + 1
        return axis % axes == (1 if self.turned else axes - 1) if -axes <= axis < axes else False

    def transpose(self, node: Node) -> None:
        """Note that the channels move."""
        axes, perm = len(self.shape) + 1, node.take("perm", [])
        if perm != (last(axes) if self.turned else first(axes)):
            raise node.refused(f"perm is {perm!r:.99}, which does not move the channels")
        self.turned = not self.turned

    def flatten(self) -> Shape:
        """Note that the axes of each sample become one; return its shape."""
        *pixels, channels = self.shape or (1,)
        if self.turned and min(math.prod(pixels), channels) > 1:
            self.flattened = channels, math.prod(pixels)
        self.turned = False
        return (math.prod(self.shape),)

    def ordered(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return an array with a row for each entry in the order of the layers, not the graph."""
        if self.flattened is None or array.shape[0] != math.prod(self.flattened):
            return array
        rows = array.reshape(*self.flattened, *array.shape[1:])
        return rows.swapaxes(0, 1).reshape(array.shape)


def fill(node: Node, item: Held, array: NDArray[Any]) -> None:
    """Write a constant into a layer."""
    if tuple(item.value.shape) != array.shape:
        raise node.refused(
            f"constants of {array.shape}, where {tuple(item.value.shape)} are wanted"
        )
    item.value[...] = array
