"""Lower batch normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.program.lower import Lane, Lowering, address_of, lowers, memory_of
from gpunn.program.lower_norm import add_up, own_part, places_of, read_by_all, rows_per_sample
from gpunn.program.phases import ALL, OWN, Access, in_parts
from gpunn.program.values import Operation, Value

_DOUBLE = np.dtype(np.float64)


@lowers("batch_norm")
def _batch_norm(low: Lowering, operation: Operation) -> None:
    """Lower it to moments per thread and, after a meeting, statistics computed by every thread."""
    x, gain, bias = operation.inputs
    y, statistics = operation.outputs
    n, per_sample, batch_size = x.shape[-1], rows_per_sample(low, x), low.n
    moments = Value((low.threads, 3 * n), _DOUBLE, by_sample=False)  # the third row is scratch

    def moments_of_rows(lane: Lane) -> dict[str, Any]:
        sizes = {"m": lane.rows * per_sample, "n": n}
        return sizes | places_of(lane, {"a": x}) | {"d": own_part(lane, moments)}

    def statistics_of_all(lane: Lane) -> dict[str, Any]:
        sizes = {"m": batch_size, "k": per_sample, "n": n, "p": operation.settings["epsilon"]}
        return sizes | {"a": lane.address(moments, ALL), "c": lane.address(statistics, OWN)}

    low.sharing[statistics] = OWN
    low.add("batch_moments", moments_of_rows, [low.at(x)], [Access(moments, OWN)])
    low.add(
        "batch_statistics", statistics_of_all, [Access(moments, ALL)], [Access(statistics, OWN)]
    )
    _scale(low, x, statistics, (gain, bias), y)


@lowers("fixed_norm")
def _fixed_norm(low: Lowering, operation: Operation) -> None:
    x, gain, bias, mean, variance = operation.inputs
    (y,) = operation.outputs
    statistics = Value((3, x.shape[-1]), low.dtype, by_sample=False)
    low.sharing[statistics] = OWN
    for array in (mean, variance):
        low.check(array, low.dtype)

    def words(lane: Lane) -> dict[str, Any]:
        sizes = {"n": x.shape[-1], "p": operation.settings["epsilon"]}
        places = {"a": address_of(mean), "b": address_of(variance)}
        return sizes | places | {"c": lane.address(statistics, OWN)}

    running = [read_by_all(mean), read_by_all(variance)]
    low.add("fixed_statistics", words, running, [Access(statistics, OWN)])
    _scale(low, x, statistics, (gain, bias), y)


def _scale(
    low: Lowering, x: Value, statistics: Value, parameters: tuple[Array, Array], y: Value
) -> None:
    """Append an instruction that normalises rows by statistics that each thread has."""
    gain, bias = parameters
    for array in parameters:
        low.check(array, low.dtype)
    per_sample = rows_per_sample(low, x)

    def words(lane: Lane) -> dict[str, Any]:
        sizes = {"m": lane.rows * per_sample, "n": x.shape[-1]}
        fixed = {"b": address_of(gain), "d": address_of(bias)}
        return sizes | fixed | places_of(lane, {"a": x, "e": statistics, "c": y})

    reads = [low.at(x), low.at(statistics), read_by_all(gain), read_by_all(bias)]
    low.add("scale_columns", words, reads, [low.at(y)])


@lowers("batch_norm_backward")
def _batch_norm_backward(low: Lowering, operation: Operation) -> None:
    """Lower it to sums per thread and, after a meeting, totals computed by every thread."""
    grad, x, statistics, gain = operation.inputs
    result, *sums = operation.outputs
    n, per_sample = x.shape[-1], rows_per_sample(low, x)
    parts = Value((low.threads, 2 * n), _DOUBLE, by_sample=False)

    def sizes(lane: Lane) -> dict[str, Any]:
        return {"m": lane.rows * per_sample, "n": n}

    def sums_of_rows(lane: Lane) -> dict[str, Any]:
        places = places_of(lane, {"a": grad, "b": x, "e": statistics})
        return sizes(lane) | places | {"d": own_part(lane, parts)}

    reads = [low.at(value) for value in (grad, x, statistics)]
    low.add("batch_norm_sums", sums_of_rows, reads, [Access(parts, OWN)])
    for i, target in enumerate(sums):
        add_up(low, parts, i, target, n)
    if result is None:
        return
    totals = Value((2, n), low.dtype, by_sample=False)
    low.sharing[totals] = OWN
    n_rows = low.n * per_sample

    def totals_of_all(lane: Lane) -> dict[str, Any]:
        places = {"a": lane.address(parts, ALL), "c": lane.address(totals, OWN)}
        return places | {"m": 2 * n, "n": 2 * n, "flag": 0}

    def through(lane: Lane) -> dict[str, Any]:
        values = {"a": grad, "b": x, "e": statistics, "limit": totals, "c": result}
        fixed = {"d": address_of(gain), "k": n_rows}
        return sizes(lane) | places_of(lane, values) | fixed

    low.add("add_up_doubles", totals_of_all, [Access(parts, ALL)], [Access(totals, OWN)])
    writes = [low.at(result), Access(totals, OWN)]
    low.add("batch_norm_backward", through, [*reads, read_by_all(gain)], writes)


@lowers("track")
def _track(low: Lowering, operation: Operation) -> None:
    (statistics,) = operation.inputs
    running = operation.outputs
    n, size = statistics.shape[1], low.dtype.itemsize
    for array in running:
        low.check(array, low.dtype)

    def words(lane: Lane) -> dict[str, Any]:
        start, stop = lane.part(n)
        given = lane.address(statistics, OWN)
        assert isinstance(given, int)  # noqa: S101 (it does not come with the batch)
        mean, variance = (address_of(array) + start * size for array in running)
        sizes = {"m": stop - start, "n": n, "p": operation.settings["momentum"]}
        return sizes | {"a": given + start * size, "c": mean, "d": variance}

    writes = [Access(memory_of(array), in_parts(n)) for array in running]
    low.add("track", words, [low.at(statistics)], writes)
