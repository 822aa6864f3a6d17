"""What the two multi-layer perceptrons share: hidden layers, and scikit-learn's penalty."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import TypeAlias

import numpy as np

from gpunn.backend import Backend
from gpunn.estimators.base import NetworkEstimator
from gpunn.estimators.network import build
from gpunn.estimators.settings import (
    is_activation,
    is_rate,
    per_layer,
)
from gpunn.layers.compose import Sequential
from gpunn.layers.dropout import Dropout
from gpunn.optim import Optimizer

Solver: TypeAlias = str | Callable[..., Optimizer]


class Perceptron(NetworkEstimator):
    """A network of hidden layers, with scikit-learn's penalty."""

    def _hidden_sizes(self) -> list[int]:
        sizes = self.hidden_layer_sizes
        sizes = [sizes] if isinstance(sizes, Integral) else list(sizes)
        if not all(isinstance(size, Integral) for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be whole numbers, got {sizes}.")
        if not all(int(size) > 0 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
        return [int(size) for size in sizes]

    def _make_network(
        self, sizes: tuple[int, int], rng: np.random.RandomState, dtype: str, place: Backend
    ) -> Sequential:
        name, hidden = type(self).__name__, self._hidden_sizes()
        n = len(hidden)
        activations = per_layer(name, "activation", self.activation, n, is_activation)
        dropouts = per_layer(name, "dropout", self.dropout, n, is_rate)
        every = [sizes[0], *hidden, sizes[1]]
        return build(every, activations, dropouts, rng=rng, dtype=dtype, backend=place)

    def _is_random(self) -> bool:
        return any(isinstance(layer, Dropout) for layer in self._network.layers)

    def _decay(self, total: float) -> Callable[[float], float]:  # noqa: ARG002
        # scikit-learn divides the penalty by the size of the batch, whatever the batch.
        return lambda mass: self.alpha / mass if mass > 0 else 0.0
