"""Small data for loaders, and how to look at what comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck
from scipy import sparse

import gpunn as gn

STRICT = "array-api-strict:1"
SHARED = HealthCheck.function_scoped_fixture  # a place may serve all examples
N = 7
X = np.random.default_rng(0).standard_normal((N, 2, 3))
Y = np.arange(N) % 3
W = np.linspace(0.5, 2.0, N)
SPARSE = sparse.coo_array(np.eye(N, 4, k=-1))
NAN, INF = float("nan"), float("inf")


def rows(batches: Any) -> list[list[float]]:
    """Return the first column of each batch, as lists."""
    return [gn.to_numpy(batch.x).reshape(batch.x.shape[0], -1)[:, 0].tolist() for batch in batches]


def numbered(n: int, **settings: Any) -> gn.Loader:
    """Return a loader whose samples hold their own numbers."""
    return gn.Loader(np.arange(n), **settings)


def bits(batch: gn.Batch) -> list[Any]:
    """Return everything that can be told of a batch."""
    arrays = [None if part is None else gn.to_numpy(part) for part in batch]
    return [None if a is None else (a.dtype, a.shape, a.tobytes()) for a in arrays]


def with_value(array: Any, index: Any, value: float) -> Any:
    array = np.array(array, dtype="float64")
    array[index] = value
    return array
