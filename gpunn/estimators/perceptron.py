"""The base class of the multi-layer perceptrons: hidden layers and their settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np

from gpunn.arrays.backend import Backend
from gpunn.arrays.capacity import room_for
from gpunn.arrays.checks import is_whole, shown
from gpunn.estimators.base import Sizes
from gpunn.estimators.layered import LayeredNetwork
from gpunn.estimators.network import build
from gpunn.estimators.settings import (
    in_order,
    is_activation,
    is_rate,
    per_layer,
)
from gpunn.nn.containers import Sequential
from gpunn.nn.dropout import Dropout
from gpunn.optim.base import Optimizer

Solver: TypeAlias = str | Callable[..., Optimizer]


class Perceptron(LayeredNetwork):
    """An estimator with hidden layers, and scikit-learn's penalty."""

    def _hidden_sizes(self) -> list[int]:
        sizes = self.hidden_layer_sizes
        if isinstance(sizes, Integral):
            sizes = [sizes]
        sizes = in_order(type(self).__name__, "hidden_layer_sizes", sizes)
        if not all(map(is_whole, sizes)):
            raise ValueError(f"hidden_layer_sizes must be whole numbers, got {shown(sizes)}.")
        if not all(int(size) > 0 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {shown(sizes)}.")
        return [int(size) for size in sizes]

    def _make_network(
        self, sizes: Sizes, rng: np.random.RandomState, dtype: str, place: Backend
    ) -> Sequential:
        structure = dict(self._structure())
        widths = [*sizes.inputs, *structure["hidden_layer_sizes"], sizes.outputs]
        activations, dropouts = structure["activation"], structure["dropout"]
        with room_for(f"{type(self).__name__}: hidden_layer_sizes", place, *pairwise(widths)):
            return build(widths, activations, dropouts, rng=rng, dtype=dtype, backend=place)

    def _structure(self) -> Iterator[tuple[str, Any]]:
        name, hidden = type(self).__name__, tuple(self._hidden_sizes())
        n = len(hidden)
        yield "hidden_layer_sizes", hidden
        yield "activation", per_layer(name, "activation", self.activation, n, is_activation)
        rates = per_layer(name, "dropout", self.dropout, n, is_rate)
        yield "dropout", [float(rate) for rate in rates]
        yield "loss", self.loss

    def _is_random(self) -> bool:
        return any(isinstance(layer, Dropout) for layer in self._network.layers)
