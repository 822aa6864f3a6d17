"""Reorder operations to run faster on the CPU, with the same results up to rounding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gpunn.program.values import Operation, Value

#: Kernels that multiply a gradient by an activation's slope.
_SLOPES = ("activation_backward", "bias_activation_backward")
#: Activations of whole rows rather than entries.
BY_ROW = ("softmax", "log_softmax")


def slopes_before_pools(operations: Sequence[Operation]) -> list[Operation]:
    """Return the operations, with slopes of activations before a max pool taken at its output.

    For y = max h and h = f(z), dJ/dz is dJ/dy f'(h) at the largest entry of each window, where h is
    y. So f' can be computed from y, before the gradient is spread over the windows: y has fewer
    entries, h need not be kept, and the bias's gradient is a shorter sum.
    """
    pools = {pool.outputs[1]: pool for pool in operations if pool.kernel == "max_pool"}
    result: list[Operation] = []
    for operation in operations:
        spread = result[-1] if result else None
        if spread is not None and _is_slope_of(operation, spread, pools, operations):
            result[-1:] = _swapped(spread, operation, pools[spread.inputs[1]])
        else:
            result.append(operation)
    return result


def _is_slope_of(
    slope: Operation,
    spread: Operation,
    pools: dict[Any, Operation],
    operations: Sequence[Operation],
) -> bool:
    """Return whether `spread` is a max pool's gradient and `slope` its input's activation slope."""
    if spread.kernel != "max_pool_backward" or slope.kernel not in _SLOPES:
        return False
    grad, saved = slope.inputs
    pooled = pools[spread.inputs[1]].inputs[0]
    formula = slope.formula
    if not formula.saves_output or formula.kernel in BY_ROW:
        return False
    spread_to = spread.outputs[0].storage
    uses = sum(
        isinstance(value, Value) and value.storage is spread_to
        for operation in operations
        for value in operation.inputs
    )
    return grad.storage is spread_to and saved.storage is pooled.storage and uses == 1


def _swapped(spread: Operation, slope: Operation, pool: Operation) -> list[Operation]:
    """Return the slope, taken at the pool's output, followed by the pool's gradient."""
    (grad, where), (dz, *sums) = spread.inputs, slope.outputs
    shape = grad.shape
    rows = math.prod(shape[:-1]), shape[-1]

    def in_rows(value: Value) -> Value:
        return Value(rows, value.dtype, by_sample=True, storage=value)

    small = Value(rows, dz.dtype, by_sample=True)
    images = Value(shape, dz.dtype, by_sample=True, storage=small)
    result = Value(spread.outputs[0].shape, dz.dtype, by_sample=True, storage=dz)
    return [
        replace(slope, inputs=(in_rows(grad), in_rows(pool.outputs[0])), outputs=(small, *sums)),
        replace(spread, inputs=(images, where), outputs=(result,)),
    ]
