"""Lower PReLU."""

from __future__ import annotations

from typing import Any

from gpunn.program.lower import Lane, Lowering, address_of, lowers
from gpunn.program.lower_norm import add_up, own_part, places_of, read_by_all, rows_per_sample
from gpunn.program.phases import OWN, Access
from gpunn.program.values import Operation, Value


@lowers("prelu")
def _prelu(low: Lowering, operation: Operation) -> None:
    (x, slope), (h,) = operation.inputs, operation.outputs
    low.check(slope, low.dtype)
    per_sample = rows_per_sample(low, x)

    def words(lane: Lane) -> dict[str, Any]:
        sizes = {"m": lane.rows * per_sample, "n": x.shape[-1], "k": slope.size}
        return sizes | places_of(lane, {"a": x, "c": h}) | {"d": address_of(slope)}

    low.add("prelu", words, [low.at(x), read_by_all(slope)], [low.at(h)])


@lowers("prelu_backward")
def _prelu_backward(low: Lowering, operation: Operation) -> None:
    grad, x, slope = operation.inputs
    result, *sums = operation.outputs
    per_sample = rows_per_sample(low, x)
    parts = Value((low.threads, slope.size), low.dtype, by_sample=False)

    def words(lane: Lane) -> dict[str, Any]:
        sizes = {"m": lane.rows * per_sample, "n": x.shape[-1], "k": slope.size}
        places = places_of(lane, {"a": grad, "b": x, "c": result})
        own = {"limit": own_part(lane, parts)} if sums else {}
        return sizes | places | own | {"d": address_of(slope)}

    writes = [low.at(result)] if result is not None else []
    writes += [Access(parts, OWN)] if sums else []
    low.add("prelu_backward", words, [low.at(grad), low.at(x), read_by_all(slope)], writes)
    for target in sums:
        add_up(low, parts, 0, target, slope.size)
