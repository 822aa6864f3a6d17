"""The perceptrons against scikit-learn's: one seed gives both the same network, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import neural_network as sk
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gpunn as gn
from gpunn.estimators import MLPClassifier, MLPRegressor
from tests.conftest import get_place

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*[Mm]aximum iterations:sklearn.exceptions.ConvergenceWarning"
)

N = 150
_RNG = np.random.default_rng(0)
X = _RNG.standard_normal((N, 6))
WEIGHT = _RNG.uniform(0.1, 3.0, N)
_Z = np.tanh(X[:, :3] + X[:, 3:] ** 2 - 1.0) + 0.3 * _RNG.standard_normal((N, 3))
CLASSES = {
    "multiclass": np.array([3, 5, 9])[_Z.argmax(axis=1)],
    "binary": np.where(_Z[:, 0] > 0, 7, -4),
    "multilabel": (_Z > 0).astype(int),
}
LABELS = {kind: np.arange(3) if y.ndim == 2 else np.unique(y) for kind, y in CLASSES.items()}
NUMBERS = {"one": 3 * _Z[:, 0] + 1, "two": 3 * _Z[:, :2]}

SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {},
    "adam, other betas": {"beta_1": 0.6, "beta_2": 0.9, "epsilon": 1e-4, "learning_rate_init": 0.1},
    "sgd": {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.1},
    "momentum": {"solver": "sgd", "nesterovs_momentum": False, "learning_rate_init": 0.05},
    "nesterov": {"solver": "sgd", "momentum": 0.8, "learning_rate_init": 0.05},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.5},
    "adaptive": {
        "solver": "sgd",
        "learning_rate": "adaptive",
        "learning_rate_init": 0.1,
        "n_iter_no_change": 2,
        "tol": 0.01,
    },
    "early stopping": {"early_stopping": True, "n_iter_no_change": 4, "learning_rate_init": 0.05},
    "early stopping, adaptive": {
        "solver": "sgd",
        "early_stopping": True,
        "validation_fraction": 0.3,
        "n_iter_no_change": 1,
        "learning_rate": "adaptive",
    },
    "a large penalty": {"alpha": 30.0, "learning_rate_init": 0.01},
    "tolerance": {"tol": 0.05, "n_iter_no_change": 3},
    "one batch": {"batch_size": N},
    "batches": {"batch_size": 32},
    "logistic": {"activation": "logistic", "learning_rate_init": 0.1},
    "tanh": {"activation": "tanh"},
    "identity": {"activation": "identity"},
    "two hidden layers": {"hidden_layer_sizes": (9, 4), "activation": "tanh", "batch_size": 50},
    "no hidden layer": {"hidden_layer_sizes": ()},
    "in order": {"shuffle": False, "batch_size": 40},
}


def pair(
    targets: dict[str, Any], hidden: Any = (8,), epochs: int = 20, **settings: Any
) -> tuple[Any, Any]:
    """Return gpunn's estimator and scikit-learn's."""
    settings = {
        "hidden_layer_sizes": hidden,
        "max_iter": epochs,
        "random_state": 3,
        "batch_size": 64,
    } | settings
    if targets is CLASSES:
        return MLPClassifier(**settings), sk.MLPClassifier(**settings)
    return MLPRegressor(**settings), sk.MLPRegressor(**settings)


def assert_alike(one: Any, other: Any, rtol: float = 1e-9) -> None:
    """Check that all that training leaves is the same."""
    close: Callable[..., None] = lambda a, b: assert_allclose(a, b, rtol=rtol, atol=rtol)  # noqa: E731
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("loss_", "loss_curve_", "best_loss_", "best_validation_score_"):
        a, b = getattr(one, name), getattr(other, name, None)
        assert (a is None) == (b is None), name
        if b is not None:
            close(a, b)
    assert (one.validation_scores_ is None) == (getattr(other, "validation_scores_", None) is None)
    if one.validation_scores_ is not None:
        close(one.validation_scores_, other.validation_scores_)
    for name in ("coefs_", "intercepts_"):
        for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
            assert a.dtype == b.dtype
            close(a, b)
    if hasattr(other, "classes_"):
        assert_array_equal(one.classes_, other.classes_)
        close(one.predict_proba(X), other.predict_proba(X))
        assert_array_equal(one.predict(X), other.predict(X))
    else:
        close(one.predict(X), other.predict(X))


CASES = [
    pytest.param(targets, kind, weight, id=f"{kind}{'' if weight is None else ', weighted'}")
    for targets in (CLASSES, NUMBERS)
    for kind, weight in product(targets, (None, WEIGHT))
]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("targets", "kind", "weight"), CASES)
def test_a_fit(
    targets: Any, kind: str, weight: Any, settings: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    printed = []
    ours, theirs = pair(targets, verbose=True, **settings)
    for model in (ours, theirs):
        model.fit(X, targets[kind], weight)
        printed.append(capsys.readouterr().out)
    assert_alike(ours, theirs)
    assert printed[0] == printed[1]
    assert printed[0].startswith("Iteration 1, loss = ")


@pytest.mark.parametrize("settings", [{}, SETTINGS["nesterov"]], ids=["adam", "sgd"])
@pytest.mark.parametrize(("targets", "kind", "weight"), CASES)
def test_partial_fit(targets: Any, kind: str, weight: Any, settings: dict[str, Any]) -> None:
    models = pair(targets, batch_size=20, **settings)
    for model in models:
        first = {"classes": LABELS[kind]} if targets is CLASSES else {}
        for start in (0, 50, 100, 20):
            rows = slice(start, start + 50)
            w = None if weight is None else weight[rows]
            model.partial_fit(X[rows], targets[kind][rows], sample_weight=w, **first)
            first = {}
    assert models[0].n_iter_ == 1
    models[1].n_iter_ = 1  # scikit-learn's goes on counting
    assert_alike(*models)


@pytest.mark.parametrize("name", ["adam", "nesterov", "adaptive"])
@pytest.mark.parametrize(("targets", "kind", "weight"), CASES[::2])
def test_a_warm_start(targets: Any, kind: str, weight: Any, name: str) -> None:
    models = pair(targets, epochs=4, warm_start=True, **SETTINGS[name])
    for model in models:
        for _ in range(3):
            model.fit(X, targets[kind])
    assert_alike(*models)


@pytest.mark.parametrize(("targets", "kind", "weight"), CASES[::2])
def test_a_warm_start_with_early_stopping(targets: Any, kind: str, weight: Any) -> None:
    ours, theirs = pair(targets, epochs=8, warm_start=True, **SETTINGS["early stopping"])
    for _ in range(2):
        ours.fit(X, targets[kind])
        theirs.fit(X, targets[kind])
        assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-9)
        assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=1e-9)
        assert ours.best_validation_score_ == max(ours.validation_scores_)
    # scikit-learn's goes on in the very arrays that hold its best weights; here they stay.
    best = [coef.copy() for coef in ours.coefs_]
    ours.set_params(learning_rate_init=10.0).fit(X, targets[kind])
    assert max(ours.validation_scores_[-ours.n_iter_ :]) <= ours.best_validation_score_
    for a, b in zip(ours.coefs_, best, strict=True):
        assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["adam", "nesterov", "a large penalty", "early stopping"])
@pytest.mark.parametrize(("targets", "kind", "weight"), CASES[::2])
def test_in_float32(targets: Any, kind: str, weight: Any, name: str) -> None:
    ours, theirs = pair(targets, **SETTINGS[name])
    for model in (ours, theirs):
        model.fit(X.astype("float32"), targets[kind])
    assert {coef.dtype.name for coef in ours.coefs_} == {"float32"}
    for a, b in zip(ours.coefs_, theirs.coefs_, strict=True):
        assert_allclose(a, b, rtol=1e-3, atol=2e-5)
    assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "nesterov", "early stopping"])
@pytest.mark.parametrize(("targets", "kind", "weight"), CASES[1::2])
@pytest.mark.parametrize(
    "backend", ["array-api-strict:1", pytest.param("cupy", marks=pytest.mark.gpu)]
)
def test_on_another_backend(backend: str, targets: Any, kind: str, weight: Any, name: str) -> None:
    place = get_place(backend).backend
    ours, theirs = pair(targets, epochs=5, **SETTINGS[name])
    ours.set_params(backend=backend).fit(X, targets[kind], weight)
    theirs.fit(X, targets[kind], weight)
    assert ours._network.backend == place
    assert gn.backend_of(ours.coefs_[0]) == gn.get_backend("numpy")
    assert_alike(ours, theirs)


@pytest.mark.parametrize(
    ("load", "settings"),
    [
        (load_digits, {"hidden_layer_sizes": 16, "batch_size": 128}),
        (load_wine, {"hidden_layer_sizes": 8, "batch_size": 32}),
        (load_breast_cancer, {"hidden_layer_sizes": 8, "solver": "sgd"}),
    ],
)
def test_accuracy_in_cross_validation(load: Any, settings: dict[str, Any]) -> None:
    features, labels = load(return_X_y=True)
    settings = {"max_iter": 12, "learning_rate_init": 0.02, "random_state": 0} | settings
    ours, theirs = (
        cross_val_score(make_pipeline(StandardScaler(), kind(**settings)), features, labels, cv=5)
        for kind in (MLPClassifier, sk.MLPClassifier)
    )
    standard_error = theirs.std(ddof=1) / np.sqrt(5)
    assert theirs.mean() > 0.9
    assert abs(ours.mean() - theirs.mean()) <= standard_error


@pytest.mark.parametrize("weighted", [False, True])
def test_a_recorded_evaluation_gives_the_same_curves(
    monkeypatch: pytest.MonkeyPatch, weighted: bool
) -> None:
    settings: dict[str, Any] = {"early_stopping": True, "max_iter": 8, "metrics": ["accuracy"]}
    settings["class_weight"] = "balanced" if weighted else None
    histories = []
    for work in (0, math.inf):
        monkeypatch.setattr("gpunn.training.inference._MIN_RECORDED_WORK", work)
        model = MLPClassifier((7,), random_state=0, **settings).fit(X, CLASSES["multiclass"])
        histories.append(model.history_.columns)
    recorded, by_layers = histories
    for name in ("loss", "validation_loss", "validation_accuracy", "validation_score"):
        assert_allclose(recorded[name], by_layers[name], rtol=1e-10, err_msg=name)
