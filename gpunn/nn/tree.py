"""Walk through a model without knowing its layers' classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from gpunn._typing import Shape


class Node:
    """The part of a layer needed for walking through models: attributes, some of them layers."""

    #: Whether the layer holds parameters of its own.
    has_parameters: ClassVar[bool] = True

    @property
    def takes_integers(self) -> bool:
        """Whether the input holds integers, such as tokens, and not floating-point features.

        A class that takes integers sets ``takes_integers = True`` in its body.
        """
        return False

    def check_integers(self, lowest: int, highest: int) -> None:
        """Check that integers between these two are valid inputs, for a layer that takes them."""

    def sequence(self) -> list[Any] | None:
        """Return the layers that it applies in sequence; None if it does anything else."""
        return None


def entrance(layer: Any) -> Any:
    """Return the layer that receives the input of a model."""
    while layers := layer.sequence():
        layer = layers[0]
    return layer


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a layer, or the items of a list, tuple or dict, by name."""
    if isinstance(value, Node):
        yield from vars(value).items()
    elif isinstance(value, (list, tuple)):
        yield from ((str(i), item) for i, item in enumerate(value))
    elif isinstance(value, dict):
        yield from ((str(key), item) for key, item in value.items())


def holders(
    value: Any, kind: type | tuple[type, ...], holder: Any = None, seen: set[int] | None = None
) -> Iterator[Any]:
    """Yield, for each object of a kind, the layer that holds it, directly or in a container."""
    seen = set() if seen is None else seen
    holder = value if isinstance(value, Node) else holder
    for _, item in children(value):
        if isinstance(item, kind):
            yield holder
        elif isinstance(item, (Node, list, tuple, dict)) and id(item) not in seen:
            seen.add(id(item))
            yield from holders(item, kind, holder, seen)


def first_features(layer: Any) -> Shape | None:
    """Return (in_features,) of the first layer that has it, if nothing before it reshapes."""
    while layer.sequence():
        layers = layer.sequence()
        layer = next((inner for inner in layers if inner.has_parameters), layers[0])
    features = getattr(layer, "in_features", None)
    if features is None:
        inner = next((item for _, item in children(layer) if isinstance(item, Node)), None)
        return None if inner is None else first_features(inner)
    return (int(features),)
