"""Small data and quick estimators, for the tests of what estimators have beyond scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.testing import assert_allclose

from gpunn.estimators import MLPClassifier, MLPRegressor

N = 120
_RNG = np.random.default_rng(0)
X = _RNG.standard_normal((N, 5))
_Z = X[:, :3] + 0.5 * _RNG.standard_normal((N, 3))
Y = {
    "multiclass": _Z.argmax(axis=1),
    "binary": (_Z[:, 0] > 0.7).astype(int),
    "multilabel": (_Z > 0.5).astype(int),
}
NUMBERS = {"one": _Z[:, 0], "three": _Z}
WEIGHT = _RNG.uniform(0.0, 2.0, N)
TRAIN, HELD = slice(0, 80), slice(80, N)


def classifier(**settings: Any) -> MLPClassifier:
    few = {"hidden_layer_sizes": (6,), "max_iter": 5, "random_state": 0, "batch_size": 30}
    return MLPClassifier(**few | {"learning_rate_init": 0.03} | settings)


def regressor(**settings: Any) -> MLPRegressor:
    few = {"hidden_layer_sizes": (6,), "max_iter": 5, "random_state": 0, "batch_size": 30}
    return MLPRegressor(**few | {"learning_rate_init": 0.03} | settings)


def assert_same(one: Any, other: Any, rtol: float = 1e-12) -> None:
    for a, b in zip(one.coefs_, other.coefs_, strict=True):
        assert_allclose(a, b, rtol=rtol, atol=1e-14)
    assert_allclose(one.loss_curve_, other.loss_curve_, rtol=rtol)
