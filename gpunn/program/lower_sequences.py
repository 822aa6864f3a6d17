"""Lower attention, embeddings, positions, and the splitting and joining of columns."""

from __future__ import annotations

import math
from typing import Any

from gpunn.program.instructions.sequences import QUERIES
from gpunn.program.lower import Lane, Lowering, lowers, moved
from gpunn.program.lower_layers import column_sums
from gpunn.program.phases import ALL, ROWS
from gpunn.program.values import NotRecordableError, Operation, Value


@lowers("embedding")
def _embedding(low: Lowering, operation: Operation) -> None:
    (indices, table), (result,) = operation.inputs, operation.outputs
    low.check(table, low.dtype)
    if not table.flags.c_contiguous:
        raise NotRecordableError("a table is not C-contiguous")
    low.by_rows(
        "embedding",
        {"a": indices},
        result,
        weights={"b": table},
        rows=math.prod(indices.shape),
        columns=table.shape[1],
        k=table.shape[0],
    )


@lowers("embedding_backward")
def _embedding_backward(low: Lowering, operation: Operation) -> None:
    (indices, grad), (sums,) = operation.inputs, operation.outputs
    n_rows, width = sums.shape
    places, size = math.prod(indices.shape), low.dtype.itemsize
    target, place = low.target(sums, n_rows)

    def words(lane: Lane) -> dict[str, Any]:
        # A thread sums the rows for its part of the table, so the order of terms never varies.
        start, stop = lane.part(n_rows)
        return {
            "m": places,
            "n": width,
            "k": stop - start,
            "flag": start,
            "a": lane.address(indices, ALL),
            "b": lane.address(grad, ALL),
            "c": place(lane) + start * width * size,
        }

    low.add("embedding_backward", words, [low.at(indices, ALL), low.at(grad, ALL)], [target])


@lowers("add_positions")
def _add_positions(low: Lowering, operation: Operation) -> None:
    (x, table), (result,) = operation.inputs, operation.outputs
    low.check(table, low.dtype)
    if not table.flags.c_contiguous:
        raise NotRecordableError("a table is not C-contiguous")
    low.by_rows("add_positions", {"a": x}, result, weights={"b": table})


@lowers("positions_backward")
def _positions_backward(low: Lowering, operation: Operation) -> None:
    (grad,), (sums,) = operation.inputs, operation.outputs
    if tuple(sums.shape) != tuple(grad.shape[1:]):
        raise NotRecordableError("there is no instruction for fewer positions than a table has")
    column_sums(low, Operation("column_sums", (grad,), (sums,)))


@lowers("concatenate")
def _concatenate(low: Lowering, operation: Operation) -> None:
    (result,) = operation.outputs
    start = 0
    for x in operation.inputs:
        _copy_columns(low, x, 0, result, start, x.shape[-1])
        start += x.shape[-1]


@lowers("columns")
def _columns(low: Lowering, operation: Operation) -> None:
    (x,), (result,) = operation.inputs, operation.outputs
    _copy_columns(low, x, operation.settings["start"], result, 0, result.shape[-1])


def _copy_columns(  # noqa: PLR0917 (two arrays, two offsets and a width)
    low: Lowering, x: Value, start: int, result: Value, to: int, width: int
) -> None:
    """Append an instruction that copies columns, from `start` in x to `to` in the result."""
    size, per_sample = low.dtype.itemsize, math.prod(x.shape[:-1]) // low.n

    def words(lane: Lane) -> dict[str, Any]:
        return {
            "m": lane.rows * per_sample,
            "n": x.shape[-1],
            "k": width,
            "pitch": result.shape[-1],
            "a": moved(lane.address(x, ROWS), start * size),
            "c": moved(lane.address(result, ROWS), to * size),
        }

    low.add("copy_columns", words, [low.at(x)], [low.at(result)])


@lowers("attention")
def _attention(low: Lowering, operation: Operation) -> None:
    (qkv,), (context, weights) = operation.inputs, operation.outputs
    operands = {"a": qkv} if weights is None else {"a": qkv, "d": weights}
    _attend(low, operation, "attention", operands, context, products=2)
    if weights is not None:
        low.instructions[-1].writes.append(low.at(weights))


@lowers("attention_backward")
def _attention_backward(low: Lowering, operation: Operation) -> None:
    (grad, qkv, weights), (result,) = operation.inputs, operation.outputs
    operands = {"a": grad, "b": qkv, "d": weights}
    _attend(low, operation, "attention_backward", operands, result, products=5)


def _attend(
    low: Lowering,
    operation: Operation,
    name: str,
    operands: dict[str, Value],
    result: Value,
    *,
    products: int,
) -> None:
    """Append an instruction of attention, and count the multiplications of its products."""
    settings = operation.settings
    _, t, width = (operands.get("b") or operands["a"]).shape
    scratch, place = low.scratch(min(t, QUERIES) * t)
    low.by_rows(
        name,
        operands,
        result,
        columns=t,
        k=settings["heads"],
        pitch=width // 3,
        flag=int(settings["causal"]),
        e=place,
    )
    low.instructions[-1].writes.append(scratch)
    for _ in range(products):
        low.count(low.n * t * t * width // 3)
