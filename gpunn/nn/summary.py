"""The table that `Layer.summary` returns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpunn._typing import Shape
from gpunn.arrays.checks import sample_shape
from gpunn.arrays.facts import size_of
from gpunn.nn.notebook import html_table
from gpunn.nn.parameter import Parameter
from gpunn.nn.tree import Node, children, first_features
from gpunn.nn.trial import Call, Trial, count_operations, empty_copies, try_out

_COLUMNS = ("layer", "output", "parameters", "FLOPs", "tape bytes", "shapes")


class Summary(str):
    """A table of layers: a string that notebooks show as a table.

    Attributes
    ----------
    names : tuple of str
        The column headings.
    rows : list of list of str
        The cells.
    notes : list of str
        The totals.
    """

    names: tuple[str, ...]
    rows: list[list[str]]
    notes: list[str]

    def __new__(cls, names: tuple[str, ...], rows: list[list[str]], notes: list[str]) -> Summary:
        """Lay out the table, all columns right-aligned except the first two and the last."""
        widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
        sides = [">" if 1 < i < len(names) - 1 else "<" for i in range(len(names))]
        lines = [
            "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(*line, strict=True))
            for line in ((row, sides, widths) for row in (names, *rows))
        ]
        lines = [line.rstrip() for line in lines]
        lines.insert(1, "-" * max(map(len, lines)))
        table = super().__new__(cls, "\n".join([*lines, *notes]))
        table.names, table.rows, table.notes = names, rows, notes
        return table

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Return the arguments of `__new__` for a copy."""
        return self.names, self.rows, self.notes

    def __repr__(self) -> str:
        """Return the table."""
        return str(self)

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        return html_table("; ".join(self.notes), self.names, self.rows)


@dataclass
class _Row:
    """A layer with its own numbers, excluding those of the layers within it."""

    label: str
    parameters: list[Parameter]
    output: Shape | None = None
    operations: int | None = None  # for one sample, as are the bytes
    tape: int | None = None

    def cells(self) -> list[str]:
        """Return the cells of the row; a question mark stands for an unknown."""
        output = "?" if self.output is None else str(("N", *self.output)).replace("'", "")
        numbers = ("?" if n is None else f"{n:,}" for n in (self.operations, self.tape))
        shapes = [tuple(parameter.value.shape) for parameter in self.parameters]
        total = sum(math.prod(shape) for shape in shapes)
        return [self.label, output, f"{total:,}", *numbers, ", ".join(map(str, shapes))]


def summarize(model: Any, input_shape: Shape | int | None = None) -> Summary:
    """Return a table of a model's layers, with their parameters and operations.

    Parameters
    ----------
    model : Layer
        Any layer; a `Sequential` is shown layer by layer.
    input_shape : int or tuple of int, optional
        The shape of one sample. By default it is taken from the first layer with `in_features`,
        if there is one.
    """
    given = None if input_shape is None else sample_shape("summary", input_shape)
    shape = first_features(model) if given is None else given
    # BatchNorm refuses one sample.
    two, three = (None if shape is None else try_out(model, shape, n) for n in (2, 3))
    if two is None or three is None or two.call.layers() != three.call.layers():
        rows, saved = list(_without_shapes(model, "")), None
    else:
        rows = list(_Measured(model, two, three).rows(two.call, three.call, ""))
        saved = three.input_bytes - two.input_bytes
    shown = {id(parameter) for row in rows for parameter in row.parameters}
    unused = [parameter for parameter in model.parameters() if id(parameter) not in shown]
    if unused:
        rows.append(_Row("(in no layer that was called)", unused, None, 0, 0))
    return Summary(_COLUMNS, [row.cells() for row in rows], _notes(model, rows, saved))


class _Measured:
    """The rows of a model, from its passes over two samples and over three.

    The difference is the amount for one sample.
    """

    def __init__(self, model: Any, two: Trial, three: Trial) -> None:
        self._two, self._three = two, three
        self._empty = empty_copies(model)
        self._seen: set[int] = set()  # a parameter counts for the first layer that has it

    def rows(self, two: Call, three: Call, indent: str) -> Iterator[_Row]:
        """Yield the row of a call, and those of the calls within it."""
        inner = list(zip(two.within, three.within, strict=True))
        if two.layer.sequence() is not None:
            for pair in inner:
                yield from self.rows(*pair, indent)
            return
        yield _Row(
            indent + (type(two.layer).__name__ if inner else repr(two.layer)),
            self._parameters(two),
            two.output,
            self._operations(two, three),
            three.saved(self._three.sizes) - two.saved(self._two.sizes),
        )
        for pair in inner:
            yield from self.rows(*pair, indent + "  ")

    def _parameters(self, call: Call) -> list[Parameter]:
        """Return the parameters of the layer itself that are in no earlier row."""
        inner = {id(p) for within in call.within for p in within.layer.parameters()}
        own = [p for p in call.layer.parameters() if id(p) not in inner | self._seen]
        self._seen.update(map(id, own))
        return own

    def _operations(self, two: Call, three: Call) -> int | None:
        """Return the operations of the layer itself, without those of the layers within."""
        whole = self._total(two, three)
        parts = [self._total(*pair) for pair in zip(two.within, three.within, strict=True)]
        if whole is None or None in parts:
            return None
        return whole - sum(part for part in parts if part is not None)

    def _total(self, two: Call, three: Call) -> int | None:
        counts = [count_operations(call, self._empty) for call in (two, three)]
        return None if counts[0] is None or counts[1] is None else counts[1] - counts[0]


def _without_shapes(layer: Any, indent: str) -> Iterator[_Row]:
    """Yield the rows of a layer whose input is not known."""
    sequence = layer.sequence()
    if sequence is not None:
        for inner in sequence:
            yield from _without_shapes(inner, indent)
        return
    within = [item for _, item in children(layer) if isinstance(item, Node) and item.has_parameters]
    yield _Row(
        indent + (type(layer).__name__ if within else repr(layer)),
        [] if within else layer.parameters(),
    )
    for inner in within:
        yield from _without_shapes(inner, indent + "  ")


def _notes(model: Any, rows: list[_Row], input_bytes: int | None) -> list[str]:
    """Return the totals for the model and for a sample."""
    total = sum(math.prod(p.value.shape) for p in model.parameters())
    size = sum(size_of(p.value) for p in model.parameters())
    buffers = sum(math.prod(b.value.shape) for b in model.buffers())
    sizes = f"{total:,} parameters, {size:,} bytes" + (
        f"; {buffers:,} in buffers" if buffers else ""
    )
    if input_bytes is None:
        return [sizes]
    known = sum(row.operations or 0 for row in rows)
    least = "at least " if any(row.operations is None for row in rows) else ""
    tape = input_bytes + sum(row.tape or 0 for row in rows)
    work = f"{least}{known:,} floating-point operations, 2 for each multiply-add of a product"
    return [
        sizes,
        f"a sample forward: {work}",
        f"a sample on the tape: {tape:,} bytes, with the {input_bytes:,} of the input",
    ]
