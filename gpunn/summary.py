"""The table that `Layer.summary` returns."""

from __future__ import annotations

import math
from collections.abc import Iterator

from gpunn._typing import Shape
from gpunn.checks import sample_shape
from gpunn.layer import Layer, children
from gpunn.layers.compose import Sequential


def summarize(model: Layer, input_shape: Shape | int | None = None) -> str:
    """Return the layers of a model, their output shapes and their parameters, as a table.

    Parameters
    ----------
    model : Layer
        Any layer; a `Sequential` is shown layer by layer.
    input_shape : int or tuple of int, optional
        The shape of one sample. By default it is taken from the first layer with `in_features`,
        if that is known.
    """
    shape = None if input_shape is None else sample_shape("summary", input_shape)
    rows = [("layer", "output", "parameters", "shapes")]
    rows += _rows(model, shape if shape is not None else first_features(model), "")
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    total = sum(math.prod(p.value.shape) for p in model.parameters())
    size = sum(math.prod(p.value.shape) * _itemsize(p.value) for p in model.parameters())
    buffers = sum(math.prod(b.value.shape) for b in model.buffers())
    lines.append(
        f"{total:,} parameters, {size:,} bytes" + (f"; {buffers:,} in buffers" if buffers else "")
    )
    return "\n".join(lines)


def _rows(layer: Layer, shape: Shape | None, indent: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield the table's rows for a layer that takes samples of that shape."""
    if isinstance(layer, Sequential):
        for inner in layer:
            yield from _rows(inner, shape, indent)
            shape = None if shape is None else inner.output_shape(shape)
        return
    within = [
        item for _, item in children(layer) if isinstance(item, Layer) and item.has_parameters
    ]
    name = type(layer).__name__ if within else repr(layer)
    output = "" if shape is None else str(("N", *layer.output_shape(shape))).replace("'", "")
    own = [] if within else [p.value for p in layer.parameters()]
    yield (
        indent + name,
        output,
        f"{sum(math.prod(x.shape) for x in own):,}",
        ", ".join(str(tuple(x.shape)) for x in own),
    )
    for inner in within:
        yield from _rows(inner, shape, indent + "  ")


def first_features(layer: Layer) -> Shape | None:
    """Return (in_features,) of the first layer that has it, if nothing before it reshapes."""
    while isinstance(layer, Sequential) and len(layer):
        layer = next((inner for inner in layer if inner.has_parameters), layer[0])
    features = getattr(layer, "in_features", None)
    if features is None:
        inner = next((item for _, item in children(layer) if isinstance(item, Layer)), None)
        return None if inner is None else first_features(inner)
    return (int(features),)


def _itemsize(x: object) -> int:
    return {"float64": 8, "float32": 4, "float16": 2}[str(x.dtype).rpartition(".")[2]]  # type: ignore[attr-defined]
