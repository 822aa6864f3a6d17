"""The losses that are a sum over a sample's outputs, in loops that numba compiles."""

from __future__ import annotations

from typing import Any

from gpunn._typing import Array
from gpunn.kernels.native import compiled

#: Codes of the losses.
ABSOLUTE_ERROR, HUBER = range(2)

#: By the kernel that their class names: the code, and the setting that is their parameter, if any.
BY_OUTPUT: dict[str, tuple[int, str | None]] = {
    "absolute_error": (ABSOLUTE_ERROR, None),
    "huber": (HUBER, "delta"),
}


def parameter_of(formula: Any) -> float:
    """Return the parameter of one of these losses; 0 if it has none."""
    _, name = BY_OUTPUT[formula.kernel]
    return 0.0 if name is None else float(getattr(formula, name))


@compiled
def by_output(
    kind: int,
    p: Any,
    prediction: Array,
    target: Array,
    weights: Array,
    scale: Any,
    grad: Array,
) -> float:
    """Write the gradient, and return the cost; rows count by their weights, if there are any."""
    of = grad.dtype.type
    p, scale, cost = of(p), of(scale), 0.0
    for i in range(prediction.shape[0]):
        own = scale * weights[i] if weights.size else scale
        total = of(0)
        for j in range(prediction.shape[1]):
            x, y = prediction[i, j], target[i, j]
            total += _loss(kind, p, x, y)
            grad[i, j] = own * _slope(kind, p, x, y)
        cost += own * total
    return cost


@compiled
def _loss(kind: int, p: Any, x: Any, y: Any) -> Any:
    """Return the loss of one output. If `kind` is constant, the compiler drops the branches."""
    if kind == ABSOLUTE_ERROR:
        return abs(x - y)
    clipped = _limited(x - y, p)
    return clipped * (x - y - type(x)(0.5) * clipped)


@compiled
def _slope(kind: int, p: Any, x: Any, y: Any) -> Any:
    """Return the derivative of that loss by x."""
    if kind == ABSOLUTE_ERROR:
        return _sign(x - y)
    return _limited(x - y, p)


@compiled
def _sign(x: Any) -> Any:
    """Return -1, 0 or 1; NaN stays NaN."""
    of = type(x)
    return of(1) if x > of(0) else (of(-1) if x < of(0) else x)


@compiled
def _limited(x: Any, p: Any) -> Any:
    """Return x limited to [-p, p]; NaN stays NaN."""
    return p if x > p else (max(x, -p))
