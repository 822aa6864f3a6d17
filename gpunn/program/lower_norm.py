"""Lower normalisation within samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gpunn._typing import Array
from gpunn.kernels.norm import RowNorm
from gpunn.program.lower import Lane, Lowering, address_of, lowers, memory_of
from gpunn.program.phases import ALL, OWN, ROWS, Access
from gpunn.program.values import Operation, Value


@lowers("row_norm")
def _row_norm(low: Lowering, operation: Operation) -> None:
    x, gain, bias = operation.inputs
    y, statistics = operation.outputs
    norm: RowNorm = operation.settings["norm"]
    low.check(gain, low.dtype)
    if bias is not None:
        low.check(bias, low.dtype)
    sizes = _sizes(low, x, norm)

    def words(lane: Lane) -> dict[str, Any]:
        places = {"a": x, "e": statistics, "c": y}
        fixed = {"b": address_of(gain), "d": address_of(bias), "flag": int(norm.centred)}
        return sizes(lane) | places_of(lane, places) | fixed | {"p": norm.epsilon}

    parameters = [read_by_all(array) for array in (gain, bias) if array is not None]
    low.add("row_norm", words, [low.at(x), *parameters], [low.at(y), low.at(statistics)])


@lowers("row_norm_backward")
def _row_norm_backward(low: Lowering, operation: Operation) -> None:
    grad, x, statistics, gain = operation.inputs
    result, *sums = operation.outputs
    norm: RowNorm = operation.settings["norm"]
    sizes, channels = _sizes(low, x, norm), x.shape[-1]
    parts = Value((low.threads, len(sums) * channels), low.dtype, by_sample=False)

    def words(lane: Lane) -> dict[str, Any]:
        places = {"a": grad, "b": x, "e": statistics, "c": result}
        fixed = {"d": address_of(gain), "flag": 2 * len(sums) + norm.centred}
        own = {"limit": own_part(lane, parts)} if sums else {}
        return sizes(lane) | places_of(lane, places) | fixed | own

    writes = [low.at(result)] if result is not None else []
    if sums:
        writes.append(Access(parts, OWN))
    reads = [low.at(value) for value in (grad, x, statistics)]
    low.add("row_norm_backward", words, [*reads, read_by_all(gain)], writes)
    for i, target in enumerate(sums):
        add_up(low, parts, i, target, channels)


def add_up(low: Lowering, parts: Value, i: int, sums: Any, n: int) -> None:
    """Append an instruction that adds up the threads' i-th sums, of n entries each, in `parts`."""
    target, place = low.target(sums, n)
    size = low.dtype.itemsize

    def words(lane: Lane) -> dict[str, Any]:
        start, stop = lane.part(n)
        sizes = {"m": stop - start, "n": parts.width, "flag": i * n + start}
        skipped = start * size
        return sizes | {"a": lane.address(parts, ALL), "c": place(lane) + skipped}

    name = "add_up" if parts.dtype == low.dtype else "add_up_doubles"
    low.add(name, words, [Access(parts, ALL)], [target])


def own_part(lane: Lane, parts: Value) -> int:
    """Return the address of a thread's row in an array with a row for each thread."""
    address = lane.address(parts, ALL)
    assert isinstance(address, int)  # noqa: S101 (it does not come with the batch)
    return address + lane.thread * parts.width * int(parts.dtype.itemsize)


def _sizes(low: Lowering, x: Value, norm: RowNorm) -> Callable[[Lane], dict[str, Any]]:
    """Return a function from a lane to the sizes of its rows."""
    fixed = {"n": x.shape[-1], "k": norm.positions, "pitch": norm.groups}
    per_sample = rows_per_sample(low, x) // norm.positions
    return lambda lane: fixed | {"m": lane.rows * per_sample}


def rows_per_sample(low: Lowering, x: Value) -> int:
    """Return the number of rows of channels in a sample."""
    return math.prod(x.shape[:-1]) // low.n


def places_of(lane: Lane, values: dict[str, Value | None]) -> dict[str, Any]:
    """Return the addresses of a lane's rows of values, by word; absent values are left out."""
    return {word: lane.address(v, ROWS) for word, v in values.items() if v is not None}


def read_by_all(array: Array) -> Access:
    """Return the access to a parameter that every thread reads."""
    return Access(memory_of(array), ALL)
