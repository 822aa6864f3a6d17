"""Fast checks of features, and the number of rows per block of a prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.kernels.declared import kernel_of, may_record
from gpunn.nn.containers import Sequential
from gpunn.nn.dense import Dense

#: The maximum number of entries in a block of rows, as features or as a layer's outputs: this many
#: stay in a processor's cache from the check until the last product.
_NUMBERS = 1 << 18
#: The minimum number of rows in a block, unless memory is short: fewer rows do not outweigh the
#: cost of reading the weights.
_LEAST = 2048

_DTYPES = (np.dtype("float64"), np.dtype("float32"))


def is_plain(X: Any, n_features: int) -> bool:
    """Return whether scikit-learn's checks would return X itself, if all its entries are finite.

    For a few samples, the checks take longer than the prediction.
    """
    return (
        type(X) is np.ndarray
        and X.ndim == 2
        and X.dtype in _DTYPES
        and X.shape[0] > 0
        and X.shape[1] == n_features
    )


def are_finite(x: Any) -> bool:
    """Return whether the sum of an array is finite: False if an entry is not, or on overflow."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(np.add.reduce(x, axis=None))


def is_one_product(network: Any, X: Any) -> bool:
    """Return whether a network is one product with X, with finite outputs only for finite X.

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
    """Return the number of rows per block of a prediction on a processor."""
    widest = max(math.prod(X.shape[1:]), *(max(weight.shape, default=1) for weight in weights))
    return max(_LEAST, _NUMBERS // widest)
