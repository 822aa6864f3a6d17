"""Convolutions and pooling, pixel by pixel, and calls of their kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpunn.kernels.window import Window

WINDOWS = [
    Window((4, 5), (1, 1)),
    Window((4, 5), (2, 3), before=(1, 1), after=(0, 1)),
    Window((4, 5), (2, 2), stride=(2, 2), dilation=(1, 2)),
    Window((1, 6), (1, 3), stride=(1, 2), before=(0, 1), after=(0, 1), groups=2),
]


def at(place: tuple[int, int]) -> tuple[Any, ...]:
    """Return the index of a pixel of all images."""
    return slice(None), *place


def met(window: Window) -> Iterator[tuple[tuple[int, int], int, tuple[int, int]]]:
    """Yield each output pixel, with each entry's number and the pixel of the image it meets."""
    for place in np.ndindex(window.output):
        for number, entry in enumerate(np.ndindex(window.size)):
            steps = zip(place, window.stride, entry, window.dilation, window.before, strict=True)
            y, x = (p * s + e * d - b for p, s, e, d, b in steps)
            if 0 <= y < window.image[0] and 0 <= x < window.image[1]:
                yield place, number, (y, x)


class PlainWindows:
    """Each kernel of a window over images, in float64."""

    def convolution(self, x: Any, weight: Any, window: Window) -> Any:
        filters = self._dense(weight, window)
        z = np.zeros((len(x), *window.output, weight.shape[3]))
        for place, number, pixel in met(window):
            z[at(place)] += x[at(pixel)] @ filters[number]
        return z

    def convolution_input_grad(self, grad: Any, weight: Any, window: Window) -> Any:
        filters = self._dense(weight, window)
        x = np.zeros((len(grad), *window.image, filters.shape[1]))
        for place, number, pixel in met(window):
            x[at(pixel)] += grad[at(place)] @ filters[number].T
        return x

    def convolution_weight_grad(self, x: Any, grad: Any, window: Window, into: Any = None) -> Any:
        filters = np.zeros((window.size[0] * window.size[1], x.shape[3], grad.shape[3]))
        for place, number, pixel in met(window):
            filters[number] += x[at(pixel)].T @ grad[at(place)]
        groups = window.groups
        own, out = x.shape[3] // groups, grad.shape[3] // groups
        parts = [
            filters[:, g * own : (g + 1) * own, g * out : (g + 1) * out] for g in range(groups)
        ]
        return np.concatenate(parts, axis=2).reshape(*window.size, own, grad.shape[3])

    def max_pool(self, x: Any, window: Window) -> Any:
        entries = window.size[0] * window.size[1]
        seen = np.full((len(x), *window.output, x.shape[3], entries), -np.inf)
        for place, number, pixel in met(window):
            seen[(*at(place), slice(None), number)] = x[at(pixel)]
        return seen.max(axis=-1), seen.argmax(axis=-1).astype("uint8")

    def max_pool_backward(self, grad: Any, where: Any, window: Window) -> Any:
        x = np.zeros((len(grad), *window.image, grad.shape[3]))
        for place, number, pixel in met(window):
            x[at(pixel)] += np.where(where[at(place)] == number, grad[at(place)], 0.0)
        return x

    def average_pool(self, x: Any, window: Window, count_padding: bool) -> Any:
        y = np.zeros((len(x), *window.output, x.shape[3]))
        for place, _, pixel in met(window):
            y[at(place)] += x[at(pixel)]
        return y / self._counts(window, count_padding)

    def average_pool_backward(self, grad: Any, window: Window, count_padding: bool) -> Any:
        grad = grad / self._counts(window, count_padding)
        x = np.zeros((len(grad), *window.image, grad.shape[3]))
        for place, _, pixel in met(window):
            x[at(pixel)] += grad[at(place)]
        return x

    @staticmethod
    def _counts(window: Window, count_padding: bool) -> Any:
        counts = np.zeros((*window.output, 1))
        for place, _, _ in met(window):
            counts[place] += 1
        return window.size[0] * window.size[1] if count_padding else counts

    @staticmethod
    def _dense(weight: Any, window: Window) -> Any:
        """Return the filters as matrices of all inputs by all outputs, zero between groups."""
        entries = weight.reshape(-1, *weight.shape[2:])
        own, out = weight.shape[2], weight.shape[3] // window.groups
        filters = np.zeros((len(entries), own * window.groups, weight.shape[3]))
        for g in range(window.groups):
            outputs = slice(g * out, (g + 1) * out)
            filters[:, g * own : (g + 1) * own, outputs] = entries[:, :, outputs]
        return filters


def window_calls(rng: np.random.Generator, n: int, p: int) -> dict[str, list[tuple[Any, ...]]]:
    """Return the arguments of several calls of each kernel of a window over images."""
    n, found = min(n, 40), {}

    def add(name: str, *arguments: Any) -> None:
        found.setdefault(name, []).append(arguments)

    for window in WINDOWS:
        channels = window.groups * min(p, 3)
        outputs = window.groups * (1 + p % 9)
        x = rng.standard_normal((n, *window.image, channels))
        weight = rng.standard_normal((*window.size, channels // window.groups, outputs))
        grad = rng.standard_normal((n, *window.output, outputs))
        pooled = rng.standard_normal((n, *window.output, channels))
        add("convolution", x, weight, window)
        add("convolution_input_grad", grad, weight, window)
        add("convolution_weight_grad", x, grad, window)
        add("max_pool", x, window)
        add("max_pool_backward", pooled, PlainWindows().max_pool(x, window)[1], window)
        for count_padding in (False, True):
            add("average_pool", x, window, {"count_padding": count_padding})
            add("average_pool_backward", pooled, window, {"count_padding": count_padding})
    return found
