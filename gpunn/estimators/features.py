"""Features that scikit-learn's checks would return as they are, and how many to go over at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.kernels.declared import kernel_of, may_record
from gpunn.nn.containers import Sequential
from gpunn.nn.dense import Dense

#: The most numbers of features, or of a layer's outputs, that a block of rows should have: so many
#: stay in a processor's cache from the check until the last product.
_NUMBERS = 1 << 18
#: The fewest rows of a block, unless memory is short: fewer do not pay for going over the weights.
_LEAST = 2048

_DTYPES = (np.dtype("float64"), np.dtype("float32"))


def is_plain(X: Any, n_features: int) -> bool:
    """Return whether scikit-learn's checks would return X itself if all its numbers are finite.

    They take longer than the prediction for a few samples.
    """
    return (
        type(X) is np.ndarray
        and X.ndim == 2
        and X.dtype in _DTYPES
        and X.shape[0] > 0
        and X.shape[1] == n_features
    )


def are_finite(x: Any) -> bool:
    """Return whether numbers are finite, by their sum; False as well if that is too large."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(np.add.reduce(x, axis=None))


def is_one_product(network: Any, X: Any) -> bool:
    """Return whether a network takes X as it is, and its outputs are finite only if X is.

    That holds for z = X W + b if no weight is 0: an entry of X that is not finite makes its product
    with a weight infinite or NaN, and so every sum with that product as a term.
    """
    layers = network.layers if type(network) is Sequential else [network]
    if len(layers) != 1 or type(layers[0]) is not Dense:
        return False
    layer, weight = layers[0], layers[0].weight.value
    if not (may_record(layer) and kernel_of(layer.activation) == "identity"):
        return False
    return type(weight) is np.ndarray and X.dtype == weight.dtype and bool(weight.all())


def rows_at_once(X: Any, weights: Sequence[Any]) -> int:
    """Return how many rows of features to go over at once, on a processor."""
    widest = max(math.prod(X.shape[1:]), *(max(weight.shape, default=1) for weight in weights))
    return max(_LEAST, _NUMBERS // widest)
