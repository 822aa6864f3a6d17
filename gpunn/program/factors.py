"""Find the factors of a step's products that hold the same numbers, to round them only once."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

from gpunn.program.values import Recording, Value

_PRODUCTS = ("product", "product_over_batch")


class Factor(NamedTuple):
    """A factor of a product.

    Attributes
    ----------
    size : int
    content : object
        Equal for factors with the same numbers; None for an array that outlives the step.
    """

    size: int
    content: Any


def factors_of(recording: Recording) -> list[tuple[Factor, Factor]]:
    """Return the two factors of each product of a step, in order of computation.

    Memory holds the same numbers until an operation writes to it.
    """
    writes: Counter[Value] = Counter()
    pairs = []
    for operation in recording.operations:
        if operation.kernel in _PRODUCTS:
            left, right = (_factor(x, writes) for x in operation.inputs)
            pairs.append((left, right))
        writes.update(x.storage for x in operation.outputs if isinstance(x, Value))
    return pairs


def _factor(x: Any, writes: Counter[Value]) -> Factor:
    if isinstance(x, Value):
        return Factor(math.prod(x.shape), (x.storage, writes[x.storage]))
    return Factor(math.prod(x.shape), None)
