"""Estimators around a network of the user's own."""

from __future__ import annotations

import functools
import math
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils._param_validation import InvalidParameterError

import gpunn as gn
from gpunn.estimators import NetworkClassifier, NetworkRegressor
from tests.quick_estimators import HELD, NUMBERS, TRAIN, WEIGHT, X, Y, classifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

_RNG = np.random.default_rng(1)
IMAGES = _RNG.standard_normal((120, 4, 3, 2))
DIGITS = gn.datasets.load_digits()


def network(input_shape: Any, n_outputs: int, *, width: int = 8, rng: Any = None) -> gn.Layer:
    n_inputs = math.prod(input_shape)
    return gn.Sequential(
        gn.Flatten(),
        gn.Dense(n_inputs, width, "tanh", rng=rng),
        gn.Dropout(0.1),
        gn.Dense(width, n_outputs, rng=rng),
    )


def without_rng(input_shape: Any, n_outputs: int) -> gn.Layer:
    return gn.Sequential(gn.Flatten(), gn.Dense(math.prod(input_shape), n_outputs))


def of_rows(input_shape: Any, n_outputs: int, **settings: Any) -> gn.Layer:
    return gn.Sequential(gn.Reshape((8, 8, 1)), network((8, 8, 1), n_outputs, **settings))


def convolutional(input_shape: Any, n_outputs: int, *, width: int = 4, rng: Any = None) -> gn.Layer:
    return gn.Sequential(
        gn.Reshape((8, 8, 1)),
        gn.Conv2d(1, width, 3, "relu", padding="same", rng=rng),
        gn.MaxPool2d(4),
        gn.Flatten(),
        gn.Dense(4 * width, n_outputs, rng=rng),
    )


def quick(kind: type = NetworkClassifier, make: Any = network, **settings: Any) -> Any:
    few = {"max_iter": 4, "random_state": 0, "batch_size": 30, "learning_rate_init": 0.03}
    return kind(make, **few | settings)


def weights(model: Any) -> list[Any]:
    return [gn.to_numpy(p.value) for p in model.network_.parameters()]


def assert_equal_weights(one: Any, other: Any) -> None:
    for a, b in zip(weights(one), weights(other), strict=True):
        assert_array_equal(a, b)


class TestWhatGoesIn:
    @pytest.mark.parametrize("labels", ["binary", "multiclass", "multilabel"])
    @pytest.mark.parametrize("x", [X, IMAGES], ids=["table", "images"])
    def test_labels(self, x: Any, labels: str) -> None:
        model = quick().fit(x, Y[labels])
        assert model.predict(x).shape == Y[labels].shape
        p = model.predict_proba(x)
        assert p.shape == (120, {"binary": 2, "multiclass": 3, "multilabel": 3}[labels])
        assert model.network_.output_shape(x.shape[1:]) == (model.n_outputs_,)
        assert_allclose(np.exp(model.predict_log_proba(x)), p, rtol=1e-6)
        assert 0 <= model.score(x, Y[labels]) <= 1

    @pytest.mark.parametrize("numbers", ["one", "three"])
    @pytest.mark.parametrize("x", [X, IMAGES], ids=["table", "images"])
    def test_numbers(self, x: Any, numbers: str) -> None:
        model = quick(NetworkRegressor).fit(x, NUMBERS[numbers])
        assert model.predict(x).shape == NUMBERS[numbers].shape

    def test_images_are_rows_to_a_network_that_flattens_them(self) -> None:
        flat = IMAGES.reshape(120, -1)
        one, other = quick().fit(IMAGES, Y["binary"]), quick().fit(flat, Y["binary"])
        assert_equal_weights(one, other)
        assert_array_equal(one.predict(IMAGES), other.predict(flat))

    def test_the_dtype_is_that_of_x(self) -> None:
        for dtype in ("float32", "float64"):
            model = quick().fit(IMAGES.astype(dtype), Y["binary"])
            assert {w.dtype.name for w in weights(model)} == {dtype}
            assert model.predict_proba(IMAGES.astype(dtype)).dtype.name == dtype

    def test_sparse_tables_and_lists(self) -> None:
        dense = quick().fit(X, Y["binary"])
        model = quick().fit(sparse.csr_array(X), Y["binary"])
        assert_equal_weights(dense, model)
        assert_allclose(model.predict_proba(sparse.csr_array(X)), dense.predict_proba(X))
        assert_equal_weights(dense, quick().fit(X.tolist(), Y["binary"]))

    def test_samples_of_another_shape(self) -> None:
        model = quick().fit(IMAGES, Y["binary"])
        other = np.swapaxes(IMAGES, 2, 3)
        with pytest.raises(
            ValueError, match=r"samples of shape \(4, 3, 2\), and those of X .* \(4, 2"
        ):
            model.predict(other)
        with pytest.raises(ValueError, match=r"samples of shape \(4, 3, 2\)"):
            model.partial_fit(other, Y["binary"])
        with pytest.raises(ValueError, match=r"samples of shape \(4, 3, 2\)"):
            quick().fit(IMAGES, Y["binary"], X_val=other, y_val=Y["binary"])
        with pytest.raises(ValueError, match="expecting 4 features"):
            model.predict(IMAGES[:, :3])
        assert model.fit(other, Y["binary"]).predict(other).shape == (120,)


class TestTraining:
    def test_the_seed_decides(self) -> None:
        one, other = (quick(early_stopping=True).fit(IMAGES, Y["binary"]) for _ in range(2))
        assert_equal_weights(one, other)
        assert one.loss_curve_ == other.loss_curve_
        changed = quick(random_state=1).fit(IMAGES, Y["binary"])
        assert changed.loss_curve_ != one.loss_curve_

    def test_the_default_learns_digits(self) -> None:
        x, y = DIGITS
        model = NetworkClassifier(max_iter=40, random_state=0).fit(x[:1200], y[:1200])
        assert model.score(x[1200:], y[1200:]) > 0.9
        assert len(model.network_.parameters()) == 4

    def test_training_is_that_of_the_perceptron(self) -> None:
        """From the same weights, and with the same penalty and batches."""

        def same(input_shape: Any, n_outputs: int) -> gn.Layer:
            assert (input_shape, n_outputs) == ((5,), 3)
            return start._network

        settings = {"shuffle": False, "alpha": 0.1, "tol": 0.0}
        start = classifier(max_iter=1, **settings | {"learning_rate_init": 1e-30})
        start.fit(X, Y["multiclass"])
        wanted = classifier(**settings).fit(X, Y["multiclass"])
        model = quick(make=same, max_iter=5, **settings).fit(X, Y["multiclass"])
        assert_allclose(model.loss_curve_, wanted.loss_curve_, rtol=1e-12)
        assert_allclose(weights(model)[0], wanted.coefs_[0], rtol=1e-9)

    def test_weights_of_samples_and_classes(self) -> None:
        once = quick(shuffle=False, batch_size=120).fit(IMAGES, Y["binary"], WEIGHT)
        twice = quick(shuffle=False, batch_size=120).fit(IMAGES, Y["binary"], 2 * WEIGHT)
        assert once.loss_curve_ != twice.loss_curve_  # the penalty is divided by their sum
        heavy = quick(class_weight={0: 1.0, 1: 50.0}, max_iter=20).fit(IMAGES, Y["binary"])
        assert heavy.predict(IMAGES).mean() > Y["binary"].mean()

    def test_early_stopping_and_validation_data(self) -> None:
        model = quick(early_stopping=True, metrics=["accuracy"])
        model.fit(IMAGES[TRAIN], Y["binary"][TRAIN], X_val=IMAGES[HELD], y_val=Y["binary"][HELD])
        assert len(model.validation_scores_) == len(model.validation_loss_curve_) == model.n_iter_
        assert model.best_validation_score_ == max(model.validation_scores_)
        assert model.score(IMAGES[HELD], Y["binary"][HELD]) == model.best_validation_score_
        assert "accuracy" in model.history_

    def test_going_on(self) -> None:
        model = quick(warm_start=True).fit(IMAGES, Y["binary"])
        kept = model.network_
        model.fit(IMAGES, Y["binary"])
        assert model.network_ is kept
        assert len(model.loss_curve_) == 8
        model.network_params = {"width": 9}
        with pytest.raises(ValueError, match=r"network_params was \{\}"):
            model.fit(IMAGES, Y["binary"])
        model.set_params(network_params=None, network=without_rng)
        with pytest.raises(ValueError, match="network was <function network"):
            model.fit(IMAGES, Y["binary"])

    def test_partial_fit(self) -> None:
        model = quick()
        for _ in range(3):
            model.partial_fit(IMAGES[TRAIN], Y["multiclass"][TRAIN], classes=[0, 1, 2])
        assert model.t_ == 3 * 80
        numbers = quick(NetworkRegressor).partial_fit(IMAGES, NUMBERS["three"])
        assert numbers.predict(IMAGES).shape == (120, 3)


class TestTheFunction:
    def test_it_makes_a_new_network_for_each_fit(self) -> None:
        shared = without_rng((4, 3, 2), 1)
        before = gn.to_numpy(shared[1].weight.value).copy()
        model = quick(make=lambda *_: shared)
        curve = model.fit(IMAGES, Y["binary"]).loss_curve_
        assert model.fit(IMAGES, Y["binary"]).loss_curve_ == curve
        assert_array_equal(shared[1].weight.value, before)
        assert before.dtype == shared[1].weight.value.dtype

    def test_it_need_not_take_a_generator(self) -> None:
        assert quick(make=without_rng).fit(IMAGES, Y["binary"]).score(IMAGES, Y["binary"]) > 0
        wide = functools.partial(network, width=16)
        assert len(weights(quick(make=wide).fit(X, Y["binary"]))[0][0]) == 16

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (network((5,), 1), "must be a function .* got the network Sequential"),
            (lambda *_: 3, "it returned int"),
            (lambda *_: gn.ReLU(), r"ReLU\(\) has no parameters"),
            (
                lambda *_: gn.Dense(5, 7),
                r"outputs of shape \(1,\), one for each class .* has \(7,\)",
            ),
            ("cnn", "'network' parameter .* must be a callable or None"),
        ],
    )
    def test_mistakes(self, make: Any, message: str) -> None:
        model = quick(make=make)
        with pytest.raises(InvalidParameterError, match=message):
            model.fit(X, Y["binary"])
        assert not model.__sklearn_is_fitted__()

    def test_a_layer_that_does_not_fit_speaks_for_itself(self) -> None:
        with pytest.raises(gn.errors.ShapeError, match=r"Dense\(3, 1\): expected x of shape"):
            quick(make=lambda *_: gn.Dense(3, 1)).fit(X, Y["binary"])


class TestInScikitLearn:
    def test_settings_of_the_network(self) -> None:
        model = quick(network_params={"width": 4})
        assert model.get_params()["network_params__width"] == 4
        assert "network_params__width" not in model.get_params(deep=False)
        given = model.network_params
        model.set_params(network_params__width=6, max_iter=2)
        assert (model.network_params, given, model.max_iter) == ({"width": 6}, {"width": 4}, 2)
        assert quick().set_params(network_params__width=3).network_params == {"width": 3}
        copied = clone(model)
        assert copied.network is network
        assert copied.network_params == {"width": 6}
        assert copied.network_params is not model.network_params

    def test_a_search_in_a_pipeline(self) -> None:
        model = make_pipeline(MinMaxScaler(), quick(make=of_rows, max_iter=8))
        grid = {"networkclassifier__network_params__width": [2, 32]}
        x, y = gn.datasets.load_digits(flat=True)
        search = GridSearchCV(model, grid, cv=2, error_score="raise").fit(x[:400], y[:400])
        assert search.best_params_ == {"networkclassifier__network_params__width": 32}
        assert search.best_estimator_.score(x[400:800], y[400:800]) > 0.8

    def test_convolutions_in_a_search(self) -> None:
        model = make_pipeline(MinMaxScaler(), quick(make=convolutional, max_iter=12))
        grid = {"networkclassifier__network_params__width": [1, 8]}
        x, y = gn.datasets.load_digits(flat=True)
        search = GridSearchCV(model, grid, cv=2, error_score="raise").fit(x[:300], y[:300])
        assert search.best_params_ == {"networkclassifier__network_params__width": 8}
        assert search.best_estimator_.score(x[300:600], y[300:600]) > 0.7

    def test_pickles(self) -> None:
        model = quick().fit(IMAGES, Y["multiclass"])
        loaded = pickle.loads(pickle.dumps(model))  # noqa: S301 (our own)
        assert_array_equal(loaded.predict_proba(IMAGES), model.predict_proba(IMAGES))
        loaded.partial_fit(IMAGES, Y["multiclass"])
        model.partial_fit(IMAGES, Y["multiclass"])
        assert_equal_weights(loaded, model)

    @pytest.mark.gpu
    def test_on_a_gpu(self) -> None:
        host = quick().fit(IMAGES, Y["multiclass"])
        device = quick(backend="cupy").fit(IMAGES, Y["multiclass"])
        assert device.network_.backend == gn.get_backend("cupy")
        assert_allclose(device.loss_curve_, host.loss_curve_, rtol=1e-9)
        assert_allclose(device.predict_proba(IMAGES), host.predict_proba(IMAGES), rtol=1e-8)

    def test_there_is_no_list_of_weights(self) -> None:
        model = quick().fit(X, Y["binary"])
        assert not hasattr(model, "coefs_")
        with pytest.raises(AttributeError, match="not fitted"):
            _ = quick().network_
