"""The loops of normalisation that numba compiles, over arrays in C order; see `kernels.norm`.

Means are summed in double precision: in float32, a mean of 10,000 would be off by much more than
its own rounding.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.native import compiled

#: The mean of this many rows is close enough to the mean of all rows to shift them by.
_SAMPLE = 64


@compiled
def row_norm(
    x: Array,
    gain: Array,
    bias: Array,
    y: Array,
    statistics: Array,
    groups: int,
    centred: bool,
    epsilon: float,
) -> None:
    """Normalise each row and group of channels of x (R, S, C) separately, into y.

    The mean and the scale are written to `statistics` (R, groups, 2); an empty bias is 0.
    """
    of = x.dtype.type
    width = x.shape[2] // groups
    count = x.shape[1] * width
    for r in range(x.shape[0]):
        for g in range(groups):
            part = slice(g * width, (g + 1) * width)
            total, squares = 0.0, of(0)
            if centred:
                for s in range(x.shape[1]):
                    total += _sum(x[r, s, part])
            mean = of(total / count)
            for s in range(x.shape[1]):
                squares += _squares(x[r, s, part], mean)
            scale = of(1.0 / np.sqrt(np.float64(squares) / count + epsilon))
            statistics[r, g, 0], statistics[r, g, 1] = mean, scale
            for s in range(x.shape[1]):
                _scale_row(x[r, s, part], mean, scale, gain[part], bias[part], y[r, s, part])


@compiled
def _sum(x: Array) -> float:
    total = 0.0
    for j in range(x.size):
        total += np.float64(x[j])
    return total


@compiled
def _squares(x: Array, mean: Any) -> Any:
    total = x.dtype.type(0)
    for j in range(x.size):
        deviation = x[j] - mean
        total += deviation * deviation
    return total


@compiled
def _scale_row(x: Array, mean: Any, scale: Any, gain: Array, bias: Array, y: Array) -> None:
    if bias.size:
        for j in range(x.size):
            y[j] = (x[j] - mean) * scale * gain[j] + bias[j]
    else:
        for j in range(x.size):
            y[j] = (x[j] - mean) * scale * gain[j]


@compiled
def row_norm_backward(
    grad: Array,
    x: Array,
    statistics: Array,
    gain: Array,
    result: Array,
    groups: int,
    centred: bool,
) -> None:
    """Write dJ/dx of `row_norm`."""
    of = grad.dtype.type
    width = x.shape[2] // groups
    count = of(x.shape[1] * width)
    for r in range(x.shape[0]):
        for g in range(groups):
            part = slice(g * width, (g + 1) * width)
            mean, scale = statistics[r, g, 0], statistics[r, g, 1]
            total, towards_x = of(0), of(0)
            for s in range(x.shape[1]):
                sums = _sums(grad[r, s, part], x[r, s, part], mean, gain[part])
                total += sums[0]
                towards_x += sums[1]
            mean_g = total / count if centred else of(0)
            share = towards_x * scale * scale / count
            for s in range(x.shape[1]):
                given, saved, into = grad[r, s, part], x[r, s, part], result[r, s, part]
                factors = gain[part]
                for j in range(width):
                    h = given[j] * factors[j]
                    into[j] = scale * (h - mean_g - share * (saved[j] - mean))


@compiled
def _sums(grad: Array, x: Array, mean: Any, gain: Array) -> tuple[Any, Any]:
    """Return the sums of gain grad and of gain grad (x - mean)."""
    total, towards_x = grad.dtype.type(0), grad.dtype.type(0)
    for j in range(grad.size):
        h = grad[j] * gain[j]
        total += h
        towards_x += h * (x[j] - mean)
    return total, towards_x


@compiled
def add_row_norm_sums(grad: Array, x: Array, statistics: Array, groups: int, sums: Array) -> None:
    """Add the gradients of gain and bias to `sums` (2, C), or of the gain alone to (1, C)."""
    width = x.shape[2] // groups
    for r in range(x.shape[0]):
        for g in range(groups):
            part = slice(g * width, (g + 1) * width)
            mean, scale = statistics[r, g, 0], statistics[r, g, 1]
            for s in range(x.shape[1]):
                given, saved, of_gain = grad[r, s, part], x[r, s, part], sums[0, part]
                for j in range(width):
                    of_gain[j] += given[j] * ((saved[j] - mean) * scale)
                if sums.shape[0] > 1:
                    of_bias = sums[1, part]
                    for j in range(width):
                        of_bias[j] += given[j]


@partial(compiled, fastmath={"contract"})  # sums of differences, not differences of sums
def batch_moments(x: Array, shift: Array, moments: Array) -> None:
    """Write the mean and the sum of squared deviations of each column of x (m, C).

    `moments` (2, C) are doubles; `shift` (C,) is scratch for the means of the first rows.
    """
    moments[:] = 0.0
    m = x.shape[0]
    if m == 0:
        return
    first = min(m, _SAMPLE)
    for i in range(first):
        for j in range(x.shape[1]):
            moments[0, j] += np.float64(x[i, j])
    for j in range(x.shape[1]):
        shift[j] = x.dtype.type(moments[0, j] / first)
        moments[0, j] = 0.0
    whole = m - m % 4
    for i in range(0, whole, 4):
        for j in range(x.shape[1]):
            a, b = x[i, j] - shift[j], x[i + 1, j] - shift[j]
            c, d = x[i + 2, j] - shift[j], x[i + 3, j] - shift[j]
            moments[0, j] += np.float64((a + b) + (c + d))
            moments[1, j] += np.float64((a * a + b * b) + (c * c + d * d))
    for i in range(whole, m):
        for j in range(x.shape[1]):
            a = x[i, j] - shift[j]
            moments[0, j] += np.float64(a)
            moments[1, j] += np.float64(a * a)
    for j in range(x.shape[1]):
        moments[1, j] -= moments[0, j] * (moments[0, j] / m)
        moments[0, j] = np.float64(shift[j]) + moments[0, j] / m


@compiled
def batch_statistics(
    moments: Array, samples: int, per_sample: int, statistics: Array, epsilon: float
) -> None:
    """Write mean, scale and unbiased variance (3, C) of a batch from the moments of its parts.

    The parts (T, >= 2, C) come from T threads, which divide the samples; they are combined in order
    by the formula of Chan, Golub and LeVeque.
    """
    of, parts = statistics.dtype.type, moments.shape[0]
    for j in range(statistics.shape[1]):
        n, mean, squares = 0.0, 0.0, 0.0
        for t in range(parts):
            rows = (samples * (t + 1) // parts - samples * t // parts) * per_sample
            if rows > 0:
                total = n + rows
                deviation, share = moments[t, 0, j] - mean, rows / total
                squares += moments[t, 1, j] + deviation * deviation * n * share
                mean += deviation * share
                n = total
        statistics[0, j] = of(mean)
        statistics[1, j] = of(1.0 / np.sqrt(squares / n + epsilon))
        statistics[2, j] = of(squares / (n - 1.0))


@compiled
def fixed_statistics(mean: Array, variance: Array, statistics: Array, epsilon: float) -> None:
    """Write mean and scale to the first two rows of the statistics."""
    for j in range(mean.size):
        statistics[0, j] = mean[j]
        scale = 1.0 / np.sqrt(np.float64(variance[j]) + epsilon)
        statistics[1, j] = statistics.dtype.type(scale)


@compiled
def scale_columns(x: Array, statistics: Array, gain: Array, bias: Array, y: Array) -> None:
    """Write y = gain (x - mean) scale + bias, from the first two rows of the statistics."""
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            y[i, j] = (x[i, j] - statistics[0, j]) * (statistics[1, j] * gain[j]) + bias[j]


@partial(compiled, fastmath={"contract"})
def batch_norm_sums(grad: Array, x: Array, statistics: Array, sums: Array) -> None:
    """Write the sums of grad x_hat and of grad (2, C) as doubles."""
    sums[:] = 0.0
    m = x.shape[0]
    whole = m - m % 4
    for i in range(0, whole, 4):
        for j in range(x.shape[1]):
            mean = statistics[0, j]
            a, b, c, d = grad[i, j], grad[i + 1, j], grad[i + 2, j], grad[i + 3, j]
            left = a * (x[i, j] - mean) + b * (x[i + 1, j] - mean)
            right = c * (x[i + 2, j] - mean) + d * (x[i + 3, j] - mean)
            sums[0, j] += np.float64(left + right)
            sums[1, j] += np.float64((a + b) + (c + d))
    for i in range(whole, m):
        for j in range(x.shape[1]):
            sums[0, j] += np.float64(grad[i, j] * (x[i, j] - statistics[0, j]))
            sums[1, j] += np.float64(grad[i, j])
    for j in range(x.shape[1]):
        sums[0, j] *= np.float64(statistics[1, j])


@compiled
def batch_norm_backward(
    grad: Array, x: Array, statistics: Array, gain: Array, means: Array, result: Array
) -> None:
    """Write dJ/dx = gain scale (grad - b - (x - mean) a).

    `means` (2, C) are a, scale times the mean of grad x_hat, and b, the mean of grad.
    """
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            left = grad[i, j] - means[1, j] - (x[i, j] - statistics[0, j]) * means[0, j]
            result[i, j] = left * (gain[j] * statistics[1, j])
