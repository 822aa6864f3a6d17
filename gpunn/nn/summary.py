"""The table that `Layer.summary` returns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from gpunn._typing import Shape
from gpunn.arrays.checks import sample_shape
from gpunn.arrays.facts import size_of
from gpunn.nn.tree import Node, children, first_features


def summarize(model: Any, input_shape: Shape | int | None = None) -> str:
    """Return the layers of a model, their output shapes and their parameters, as a table.

    Parameters
    ----------
    model : Layer
        Any layer; a `Sequential` is shown layer by layer.
    input_shape : int or tuple of int, optional
        The shape of one sample. By default it is taken from the first layer with `in_features`,
        if there is one.
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
    size = sum(size_of(p.value) for p in model.parameters())
    buffers = sum(math.prod(b.value.shape) for b in model.buffers())
    lines.append(
        f"{total:,} parameters, {size:,} bytes" + (f"; {buffers:,} in buffers" if buffers else "")
    )
    return "\n".join(lines)


def _rows(layer: Any, shape: Shape | None, indent: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield the rows of the table for a layer whose input samples have that shape."""
    sequence = layer.sequence()
    if sequence is not None:
        for inner in sequence:
            yield from _rows(inner, shape, indent)
            shape = None if shape is None else inner.output_shape(shape)
        return
    within = [item for _, item in children(layer) if isinstance(item, Node) and item.has_parameters]
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
