"""Weights that are assigned: what is written is what predicts, or it is refused."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit, softmax
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import gpunn as gn
from gpunn.estimators import LogisticRegression
from tests.conftest import get_place
from tests.quick_estimators import NUMBERS, X, Y, classifier, regressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

_RNG = np.random.default_rng(3)
HOMES = ["numpy", "array-api-strict:1", pytest.param("cupy", marks=pytest.mark.gpu)]


def wanted(coefs: Any, intercepts: Any) -> Any:
    hidden = np.maximum(X @ coefs[0] + intercepts[0], 0.0)
    return hidden @ coefs[1] + intercepts[1]


class TestNetworks:
    @pytest.fixture(params=HOMES)
    def model(self, request: pytest.FixtureRequest) -> Any:
        get_place(request.param)
        return regressor(backend=request.param).fit(X, NUMBERS["three"])

    def test_items(self, model: Any) -> None:
        coefs = [_RNG.standard_normal(w.shape) for w in model.coefs_]
        intercepts = [_RNG.standard_normal(b.shape) for b in model.intercepts_]
        for i in (0, -1):
            model.coefs_[i] = coefs[i]
            model.intercepts_[i] = intercepts[i].tolist()
        assert_allclose(model.predict(X), wanted(coefs, intercepts), rtol=1e-11)
        held = model.coefs_
        held[1] = coefs[1] = np.zeros_like(coefs[1])
        assert_array_equal(gn.to_numpy(held[1]), coefs[1])
        assert_allclose(model.predict(X), wanted(coefs, intercepts), rtol=1e-11)
        held[:] = coefs = [2 * coef for coef in coefs]
        assert_allclose(model.predict(X), wanted(coefs, intercepts), rtol=1e-11)

    def test_all(self, model: Any) -> None:
        coefs = [_RNG.standard_normal(w.shape) for w in model.coefs_]
        model.coefs_ = tuple(coefs)
        assert_allclose(model.predict(X), wanted(coefs, model.intercepts_), rtol=1e-11)

    def test_in_place(self, model: Any) -> None:
        """It goes through, or it is an error: never into a copy."""
        coefs = [np.array(w) for w in model.coefs_]
        new = _RNG.standard_normal(coefs[0].shape)
        if model._network.backend == gn.get_backend("numpy"):
            model.coefs_[0][...] = new
            model.coefs_[1] *= 2.0
            wanted_now = wanted([new, 2 * coefs[1]], model.intercepts_)
            assert_allclose(model.predict(X), wanted_now, rtol=1e-11)
        else:
            with pytest.raises(ValueError, match="read-only"):
                model.coefs_[0][...] = new
            assert_allclose(model.predict(X), wanted(coefs, model.intercepts_), rtol=1e-11)

    @pytest.mark.gpu
    def test_in_place_on_a_gpu(self) -> None:
        place = gn.get_backend("cupy")
        with config_context(array_api_dispatch=True):
            x = place.asarray(X)
            model = regressor().fit(x, place.asarray(NUMBERS["three"]))
            new = _RNG.standard_normal((5, 6))
            model.coefs_[0][...] = place.asarray(new)
            model.coefs_[1] = place.asarray(2 * gn.to_numpy(model.coefs_[1]))
            model.coefs_[1] = gn.to_numpy(model.coefs_[1])
            coefs, intercepts = (
                [gn.to_numpy(w) for w in ws] for ws in (model.coefs_, model.intercepts_)
            )
            assert_array_equal(coefs[0], new)
            assert_allclose(gn.to_numpy(model.predict(x)), wanted(coefs, intercepts), rtol=1e-9)

    def test_training_goes_on_from_them(self, model: Any) -> None:
        other = copy.deepcopy(model)
        values = [_RNG.standard_normal(w.shape) for w in model.coefs_]
        model.coefs_ = values
        for i, value in enumerate(values):
            other.coefs_[i] = value
        for one in (model, other):
            one.partial_fit(X, NUMBERS["three"])
        assert model.loss_curve_ == other.loss_curve_
        for a, b, before in zip(model.coefs_, other.coefs_, values, strict=True):
            assert_array_equal(np.asarray(a), np.asarray(b))
            assert (np.asarray(a) != before).any()

    BAD = (
        (np.zeros((6, 5)), r"expected shape \(5, 6\), got \(6, 5\)"),
        (0.0, r"expected shape \(5, 6\), got \(\)"),
        (np.full((5, 6), "a"), "numbers"),
        (np.ones((5, 6), dtype=complex), "numbers"),
        ([[1.0], [2.0, 3.0]], "array"),
        (None, "array"),
    )

    @pytest.mark.parametrize(("value", "message"), BAD, ids=str)
    def test_what_does_not_fit(self, model: Any, value: Any, message: str) -> None:
        before = model.predict(X)
        with pytest.raises(ValueError, match=rf"MLPRegressor: coefs_\[0\].*({message})"):
            model.coefs_[0] = value
        with pytest.raises(ValueError, match=rf"MLPRegressor: coefs_\[0\].*({message})"):
            model.coefs_ = [value, model.coefs_[1]]
        assert_array_equal(model.predict(X), before)

    @pytest.mark.parametrize(
        "values", [{0: 1, 1: 2}, {1.0, 2.0}, "ab", 3, np.zeros((5, 6)), [np.zeros((5, 6))]], ids=str
    )
    def test_what_is_no_list_of_them(self, model: Any, values: Any) -> None:
        with pytest.raises(ValueError, match=r"MLPRegressor: coefs_ .*2 arrays"):
            model.coefs_ = values

    def test_their_number_stays(self, model: Any) -> None:
        for change in (
            lambda w: w.append(1.0), lambda w: w.pop(), lambda w: w.insert(0, 1.0),
            lambda w: w.extend([1.0]), lambda w: w.clear(), lambda w: w.reverse(),
            lambda w: w.__delitem__(0), lambda w: w.__iadd__([1.0]), lambda w: w.__imul__(2),
            lambda w: w.sort(), lambda w: w.remove(1.0),
        ):  # fmt: skip
            with pytest.raises(TypeError, match=r"coefs_ .*assign"):
                change(model.coefs_)
        with pytest.raises(IndexError):
            model.coefs_[2] = 1.0

    def test_it_is_a_list(self, model: Any) -> None:
        assert isinstance(model.coefs_, list)
        assert len(model.coefs_ + model.intercepts_) == 4
        for copied in (copy.deepcopy(model.coefs_), pickle.loads(pickle.dumps(model.coefs_))):  # noqa: S301
            assert type(copied) is list
        before = model.predict(X)
        copy.deepcopy(model.coefs_)[0] = np.zeros((5, 6))
        assert_array_equal(model.predict(X), before)

    def test_classes(self) -> None:
        model = classifier().fit(X, Y["multiclass"])
        before = model.predict(X)
        model.classes_ = ["x", "y", "z"]
        assert_array_equal(model.predict(X), np.array(["x", "y", "z"])[before])
        for bad in (["x", "y"], ["z", "y", "x"], [["x", "y", "z"]]):
            with pytest.raises(ValueError, match=r"MLPClassifier: classes_ must be"):
                model.classes_ = bad
        several = classifier().fit(X, Y["multilabel"])
        several.classes_ = [0, 1, 2]
        with pytest.raises(ValueError, match=r"classes_ are the indices of the columns"):
            several.classes_ = ["x", "y", "z"]

    def test_before_fit(self) -> None:
        with pytest.raises(NotFittedError):
            classifier().coefs_ = [np.zeros((5, 6))]
        with pytest.raises(NotFittedError):
            classifier().classes_ = [0, 1]


class TestLogistic:
    @pytest.fixture(params=HOMES)
    def home(self, request: pytest.FixtureRequest) -> str:
        get_place(request.param)
        return str(request.param)

    def test_of_a_fitted_one(self, home: str) -> None:
        model = LogisticRegression(backend=home, max_iter=3).fit(X, Y["multiclass"])
        coef, intercept = _RNG.standard_normal((3, 5)), _RNG.standard_normal(3)
        model.coef_, model.intercept_ = coef, intercept.tolist()
        assert_allclose(model.predict_proba(X), softmax(X @ coef.T + intercept, axis=1), rtol=1e-10)
        model.intercept_ = 2.0
        assert_array_equal(np.asarray(model.intercept_), np.full(3, 2.0))
        model.classes_ = ["x", "y", "z"]
        assert_array_equal(model.predict(X), np.array(list("xyz"))[(X @ coef.T).argmax(axis=1)])
        model.partial_fit(X, np.array(list("xyz"))[Y["multiclass"]])

    def test_in_place(self, home: str) -> None:
        model = LogisticRegression(backend=home, max_iter=3).fit(X, Y["binary"])
        if home != "numpy":
            with pytest.raises(ValueError, match="read-only"):
                model.coef_[0, 0] = 1.0
            return
        model.coef_[...] = 1.0
        model.intercept_[0] = 3.0
        assert_allclose(model.decision_function(X), X.sum(axis=1) + 3.0, rtol=1e-11)

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
    @pytest.mark.parametrize("kind", ["binary", "multiclass"])
    def test_of_one_that_was_never_fitted(self, kind: str, order: Any, home: str) -> None:
        k = 1 if kind == "binary" else 3
        given = [
            ("coef_", _RNG.standard_normal((k, 5))),
            ("intercept_", _RNG.standard_normal(k)),
            ("classes_", np.array(["a", "b", "c"])[: max(2, k)]),
        ]
        model = LogisticRegression(backend=home)
        for i in order:
            with pytest.raises(NotFittedError):
                model.predict(X)
            assert not model.__sklearn_is_fitted__()
            setattr(model, *given[i])
            assert_array_equal(np.asarray(getattr(model, given[i][0])), given[i][1])
        coef, intercept, classes = (value for _, value in given)
        z = X @ coef.T + intercept
        p = softmax(z, axis=1) if k == 3 else np.hstack([1 - expit(z), expit(z)])
        assert model.__sklearn_is_fitted__()
        assert model.n_features_in_ == 5
        assert_allclose(model.predict_proba(X), p, rtol=1e-10)
        assert_array_equal(model.predict(X), classes[p.argmax(axis=1)])
        again = pickle.loads(pickle.dumps(model))  # noqa: S301
        assert_array_equal(again.predict_proba(X), model.predict_proba(X))
        assert not clone(model).__sklearn_is_fitted__()
        assert model.loss_curve_ == []
        assert model._repr_html_()
        y = classes[Y[kind]]
        before = model.predict_proba(X)
        model.partial_fit(X, y)
        assert (model.predict_proba(X) != before).any()
        assert model.t_ == len(X)
        model.set_params(max_iter=2).fit(X, y)  # begins anew
        assert model.loss_curve_[0] == pytest.approx(np.log(len(classes)), rel=0.5)

    @pytest.mark.gpu
    def test_where_they_are(self) -> None:
        place = gn.get_backend("cupy")
        coef = _RNG.standard_normal((1, 5))
        with config_context(array_api_dispatch=True):
            model = LogisticRegression()
            model.coef_, model.intercept_ = place.asarray(coef), place.asarray(np.zeros(1))
            model.classes_ = [0, 1]
            assert model._network.backend == place
            z = model.decision_function(place.asarray(X))
            assert gn.backend_of(z) == place
            assert_allclose(gn.to_numpy(z), X @ coef[0], rtol=1e-10)

    def test_float32_stays(self) -> None:
        model = LogisticRegression()
        model.coef_, model.intercept_ = np.ones((1, 5), "float32"), np.zeros(1, "float32")
        model.classes_ = [0, 1]
        assert model.coef_.dtype == model.decision_function(X).dtype == np.float32

    def test_some_of_them_are_forgotten_by_fit(self) -> None:
        model = LogisticRegression(max_iter=3, random_state=0)
        model.coef_ = np.ones((1, 5))
        with pytest.raises(NotFittedError, match=r"intercept_.*classes_"):
            model.predict(X)
        model.fit(X, Y["binary"])
        wanted = LogisticRegression(max_iter=3, random_state=0).fit(X, Y["binary"])
        assert_array_equal(model.coef_, wanted.coef_)

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("coef_", np.zeros((2, 5)), r"coef_.*expected shape \(1, 5\), got \(2, 5\)"),
            ("coef_", np.zeros((1, 4)), r"coef_.*expected shape \(1, 5\), got \(1, 4\)"),
            ("coef_", "abc", "coef_.*numbers"),
            ("intercept_", [0.0, 1.0], r"intercept_.*expected shape \(1,\), got \(2,\)"),
            ("classes_", [0, 1, 2], "classes_.*2"),
            ("classes_", [1, 0], "classes_.*ascending"),
            ("classes_", [1, 1], "classes_.*ascending"),
        ],
        ids=str,
    )
    def test_what_does_not_fit(self, name: str, value: Any, message: str) -> None:
        model = LogisticRegression(max_iter=3).fit(X, Y["binary"])
        before = model.predict(X)
        with pytest.raises(ValueError, match=f"LogisticRegression: {message}"):
            setattr(model, name, value)
        assert_array_equal(model.predict(X), before)

    def test_what_does_not_fit_together(self) -> None:
        model = LogisticRegression()
        model.coef_, model.classes_ = np.zeros((2, 5)), [0, 1]
        with pytest.raises(ValueError, match=r"coef_.*expected shape \(1, \d+\), got \(2, 5\)"):
            model.intercept_ = [0.0]
        model.coef_ = np.zeros((1, 5))
        model.intercept_ = [0.0]
        assert model.predict(X).shape == (len(X),)

    def test_what_cannot_be_made(self) -> None:
        def fail(_: Any) -> None:
            raise ZeroDivisionError

        for settings in ({"solver": fail}, {"backend": "tpu"}, {"C": -1.0}):
            model = LogisticRegression(**settings)
            model.coef_, model.intercept_ = np.ones((1, 5)), [0.0]
            with pytest.raises((ValueError, ZeroDivisionError)):
                model.classes_ = [0, 1]
            assert not model.__sklearn_is_fitted__()
            model.set_params(**LogisticRegression().get_params()).classes_ = [0, 1]
            assert model.predict(X).shape == (len(X),)

    def test_without_an_intercept(self) -> None:
        model = LogisticRegression(fit_intercept=False, max_iter=3).fit(X, Y["binary"])
        model.intercept_ = 0.0
        with pytest.raises(ValueError, match=r"intercept_.*fit_intercept=False.*zero"):
            model.intercept_ = [1.0]


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (2, IndexError, r"MLPClassifier: coefs_ has 2 entries, one for each layer; got index 2"),
        (-3, IndexError, r"MLPClassifier: coefs_ has 2 entries, one for each layer; got index -3"),
        (
            "0",
            TypeError,
            r"MLPClassifier: coefs_ takes whole numbers and slices as indices, got '0'",
        ),
        (None, TypeError, r"MLPClassifier: coefs_ takes whole numbers and slices .*, got None"),
    ],
)
def test_an_index_that_is_none(index: Any, error: type[Exception], message: str) -> None:
    model = classifier(max_iter=1).fit(X, Y["binary"])
    with pytest.raises(error, match=message):
        model.coefs_[index] = model.coefs_[0]


def test_what_is_missing_of_a_linear_model() -> None:
    model = LogisticRegression()
    model.coef_ = np.ones((1, 5))
    with pytest.raises(
        NotFittedError, match=r"has coef_ but no intercept_ or classes_; assign all"
    ):
        model.predict(X)
    model.intercept_ = [0.0]
    with pytest.raises(NotFittedError, match=r"has coef_ and intercept_ but no classes_; assign"):
        model.predict(X)
