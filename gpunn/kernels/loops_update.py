"""The loops of updates that numba compiles, over arrays in C order.

Each rule is a function of

- the value and its gradient;
- three states, of which a rule with fewer ignores the last;
- `common`, the numbers that all rules share: the step size; the epsilon; the fraction of the value
  that is added to its gradient; the fraction of the value that is kept; the limit on gradient
  entries, and the factor by which they are then multiplied;
- the rule's settings p, q and r; see `gpunn.kernels.rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.native import compiled


@compiled
def _in_dtype(value: Array, common: Any) -> Any:
    """Return the numbers in `common` in the dtype of the value."""
    of = value.dtype.type
    rate, epsilon, decay, keep, limit, factor = common
    return of(rate), of(epsilon), of(decay), of(keep), of(limit), of(factor)


@compiled
def _regular(grad: Any, value: Any, decay: Any, limit: Any, factor: Any) -> Any:
    """Return the gradient for an update: clipped, with weight decay added. NaN stays NaN."""
    grad = factor * (limit if grad > limit else (max(grad, -limit)))
    return grad + decay * value if decay != 0 else grad  # 0 times infinity is NaN


@compiled
def sgd(value: Array, grad: Array, states: Any, common: Any, settings: Any) -> None:
    """Update a value, and its velocity if there is momentum p; q says whether it is Nesterov's."""
    rate, _, decay, keep, limit, factor = _in_dtype(value, common)
    (velocity, _, _), (momentum, nesterov, _) = states, settings
    mu = value.dtype.type(momentum)
    for i in range(value.size):
        step = rate * _regular(grad[i], value[i], decay, limit, factor)
        if momentum == 0.0:
            value[i] = keep * value[i] - step
        else:
            v = mu * velocity[i] - step
            velocity[i] = v
            value[i] = keep * value[i] + (mu * v - step if nesterov != 0.0 else v)


@compiled
def adam(value: Array, grad: Array, states: Any, common: Any, settings: Any) -> None:
    """Update a value and its moments; p and q are the betas."""
    of = value.dtype.type
    rate, epsilon, decay, keep, limit, factor = _in_dtype(value, common)
    (first, second, _), (beta_1, beta_2, _) = states, settings
    kept_1, new_1, kept_2, new_2 = of(beta_1), of(1 - beta_1), of(beta_2), of(1 - beta_2)
    for i in range(value.size):
        g = _regular(grad[i], value[i], decay, limit, factor)
        m = kept_1 * first[i] + new_1 * g
        v = kept_2 * second[i] + new_2 * (g * g)
        first[i] = m
        second[i] = v
        value[i] = keep * value[i] - rate * m / (np.sqrt(v) + epsilon)


@compiled
def rmsprop(value: Array, grad: Array, states: Any, common: Any, settings: Any) -> None:
    """Update a value and its mean square, with beta p and momentum q; centered if r."""
    of = value.dtype.type
    rate, epsilon, decay, keep, limit, factor = _in_dtype(value, common)
    (square, mean, velocity), (beta, momentum, centered) = states, settings
    kept, new, mu, zero = of(beta), of(1 - beta), of(momentum), of(0)
    for i in range(value.size):
        g = _regular(grad[i], value[i], decay, limit, factor)
        spread = kept * square[i] + new * (g * g)
        square[i] = spread
        if centered != 0.0:
            m = kept * mean[i] + new * g
            mean[i] = m
            spread -= m * m
            spread = max(spread, zero)  # NaN stays NaN
        step = g / (np.sqrt(spread) + epsilon)
        if momentum != 0.0:
            step += mu * velocity[i]
            velocity[i] = step
        value[i] = keep * value[i] - rate * step


@compiled
def adagrad(value: Array, grad: Array, states: Any, common: Any, _: Any) -> None:
    """Update a value and its sum of squares."""
    rate, epsilon, decay, keep, limit, factor = _in_dtype(value, common)
    total, _, _ = states
    for i in range(value.size):
        g = _regular(grad[i], value[i], decay, limit, factor)
        s = total[i] + g * g
        total[i] = s
        value[i] = keep * value[i] - rate * g / (np.sqrt(s) + epsilon)


@compiled
def lion(value: Array, grad: Array, states: Any, common: Any, settings: Any) -> None:
    """Update a value and its mean; p and q are the betas."""
    of = value.dtype.type
    rate, _, decay, keep, limit, factor = _in_dtype(value, common)
    (mean, _, _), (beta_1, beta_2, _) = states, settings
    kept_1, new_1, kept_2, new_2 = of(beta_1), of(1 - beta_1), of(beta_2), of(1 - beta_2)
    for i in range(value.size):
        g = _regular(grad[i], value[i], decay, limit, factor)
        direction = kept_1 * mean[i] + new_1 * g
        mean[i] = kept_2 * mean[i] + new_2 * g
        value[i] = keep * value[i] - rate * np.sign(direction)


@compiled
def gradient_sum(value: Array, grad: Array, states: Any, common: Any, _: Any) -> None:
    """Add the gradient, times the step size, to a sum; the value changes by decay only."""
    rate, _, decay, keep, limit, factor = _in_dtype(value, common)
    total, _, _ = states
    for i in range(value.size):
        total[i] += rate * _regular(grad[i], value[i], decay, limit, factor)
        value[i] = keep * value[i]


@compiled
def average(value: Array, grad: Array, _: Any, common: Any, __: Any) -> None:
    """Move an average towards a weight, which is passed as the gradient."""
    rate = value.dtype.type(common[0])
    for i in range(value.size):
        value[i] += rate * (grad[i] - value[i])


#: The rules by the names of their kernels.
UPDATES: dict[str, Callable[..., None]] = {
    rule.__name__: rule for rule in (sgd, adam, rmsprop, adagrad, lion, gradient_sum, average)
}
