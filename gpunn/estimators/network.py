"""Networks for an estimator's settings, with weights drawn as in scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn.arrays.backend import Backend
from gpunn.nn.activation import Activation
from gpunn.nn.activation_names import ACTIVATIONS, get_activation
from gpunn.nn.containers import Sequential
from gpunn.nn.dense import Dense
from gpunn.nn.dropout import Dropout

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: scikit-learn's names that are not gpunn's.
_OTHER_NAMES = {"logistic": "sigmoid"}

#: The names of activations that estimators accept.
NAMES = {*_OTHER_NAMES, *ACTIVATIONS}


def build(
    sizes: Sequence[int],
    activations: Sequence[str | Activation],
    dropouts: Sequence[float],
    *,
    rng: np.random.RandomState,
    dtype: str,
    backend: Backend,
) -> Sequential:
    r"""Return layers from sizes[0] inputs to sizes[-1] outputs, the last without activation.

    Weights and biases are uniform in :math:`\pm\sqrt{6 / (n_{in} + n_{out})}`, Glorot's bound, or
    with 2 instead of 6 before a logistic activation, as in scikit-learn: the same seed gives both
    the same network. The last layer's bound follows from the activation before it.
    """
    layers: list[Any] = []
    named = [*activations, None]
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        preceding = activations[min(i, len(activations) - 1)] if activations else None
        weight, bias = _draw(rng, inputs, outputs, preceding)
        layers.append(dense(weight, bias, named[i], dtype, backend))
        if i < len(dropouts) and dropouts[i]:
            layers.append(Dropout(dropouts[i]))
    return Sequential(*layers)


def dense(
    weight: NDArray[Any],
    bias: NDArray[Any] | None,
    activation: str | Activation | None,
    dtype: str,
    backend: Backend,
) -> Dense:
    """Return a layer with the given weights and biases."""
    layer = Dense(
        weight.shape[0],
        weight.shape[1],
        resolve(activation),
        bias=bias is not None,
        init=lambda *_: weight,
        dtype=dtype,
        backend=backend,
    )
    if layer.bias is not None:
        layer.bias.value = backend.asarray(bias, dtype)
    return layer


def resolve(activation: str | Activation | None) -> Activation:
    """Return the activation of that name in gpunn or scikit-learn, or the object itself."""
    if isinstance(activation, str):
        activation = _OTHER_NAMES.get(activation, activation)
    return get_activation(activation)


def dense_layers(network: Sequential) -> list[Dense]:
    """Return the layers that hold weights, in order."""
    return [layer for layer in network.layers if isinstance(layer, Dense)]


def _draw(
    rng: np.random.RandomState, inputs: int, outputs: int, activation: str | Activation | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    gain = 2.0 if activation == "logistic" else 6.0
    bound = math.sqrt(gain / (inputs + outputs))
    return rng.uniform(-bound, bound, (inputs, outputs)), rng.uniform(-bound, bound, outputs)
