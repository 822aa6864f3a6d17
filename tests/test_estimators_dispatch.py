"""Under scikit-learn's array-API dispatch: where attributes are, what tools do, how models move."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.model_selection import cross_val_predict
from sklearn.utils import _array_api

import gpunn as gn
from gpunn.estimators import LogisticRegression, MLPClassifier, MLPRegressor
from tests.conftest import get_place

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 90
_RNG = np.random.default_rng(0)
X = _RNG.standard_normal((N, 4))
Y = X[:, :3].argmax(axis=1)
WORDS = np.array(["a", "b", "c"])[Y]
FEW: dict[str, Any] = {"hidden_layer_sizes": (6,), "max_iter": 4, "random_state": 0}
LINEAR = LogisticRegression(max_iter=4, random_state=0)
CLASSIFIERS = [MLPClassifier(**FEW), LINEAR]
#: Whether scikit-learn is 1.9 or newer: its tools keep to the library of X only since then.
MOVES = "__sklearn_array_api_convert__" in inspect.getsource(_array_api)
OF_TODAY = pytest.mark.skipif(not MOVES, reason="needs scikit-learn 1.9 or newer")
GPU = pytest.param("cupy:0", marks=pytest.mark.gpu)


@pytest.fixture(params=["array-api-strict:0", "array-api-strict:1", GPU])
def home(request: pytest.FixtureRequest) -> Iterator[gn.Backend]:
    """Return where X is, with dispatch on."""
    backend = get_place(request.param).backend
    with config_context(array_api_dispatch=True):
        yield backend


def labels_at(home: gn.Backend) -> dict[str, Any]:
    """Return the same labels as y may have them, by a name."""
    return {
        "there": home.asarray(Y),
        "boolean": home.asarray(Y == 1),
        "on the host": Y,
        "small": Y.astype("int8"),
        "words": WORDS,
        "objects": WORDS.astype(object),
        **({"list": Y.tolist()} if MOVES else {}),  # before, scikit-learn took it to X
    }


class TestAttributes:
    @pytest.mark.parametrize("kind", labels_at(gn.get_backend("numpy")))
    @pytest.mark.parametrize("model", CLASSIFIERS)
    def test_classes_are_where_y_is(self, model: Any, kind: str, home: gn.Backend) -> None:
        """As in scikit-learn's own logistic regression."""
        x, y = home.asarray(X), labels_at(home)[kind]
        wanted = y if kind in ("there", "boolean") else np.asarray(y)
        model = unfitted(model).fit(x, y)
        assert gn.backend_of(model.classes_) == gn.backend_of(wanted)
        assert model.classes_.dtype == wanted.dtype
        assert_array_equal(gn.to_numpy(model.classes_), np.unique(gn.to_numpy(wanted)))
        answer = model.predict(x)
        numbers = np.asarray(gn.to_numpy(wanted)).dtype.kind in "bi"
        assert gn.backend_of(answer) == (home if numbers else gn.get_backend("numpy"))
        assert str(answer.dtype).rpartition(".")[2] == str(wanted.dtype).rpartition(".")[2]

    @pytest.mark.gpu
    @pytest.mark.parametrize("kind", labels_at(gn.get_backend("numpy")))
    def test_scikit_learns_own_are_there_too(self, kind: str) -> None:
        place = gn.get_backend("cupy")
        x, y = place.asarray(X), labels_at(place)[kind]
        with config_context(array_api_dispatch=True):
            theirs, ours = (m.fit(x, y) for m in (Reference(), unfitted(LINEAR)))
            for name in ("classes_", "coef_", "intercept_"):
                one, other = getattr(ours, name), getattr(theirs, name)
                assert gn.backend_of(one) == gn.backend_of(other), name
                assert one.dtype == other.dtype, name
            one, other = ours.predict(x), theirs.predict(x)
            assert (gn.backend_of(one), one.dtype) == (gn.backend_of(other), other.dtype)

    @pytest.mark.parametrize("model", CLASSIFIERS)
    def test_the_first_call_of_partial_fit_says_where(self, model: Any, home: gn.Backend) -> None:
        """The classes are those that it was given."""
        x, y = home.asarray(X), home.asarray(Y)
        for classes in (home.asarray([0, 1, 2]), [0, 1, 2]):
            fitted = unfitted(model).partial_fit(x, y, classes=classes).partial_fit(x, y)
            wanted = gn.backend_of(classes) or gn.get_backend("numpy")
            assert gn.backend_of(fitted.classes_) == wanted

    def test_of_several_labels(self, home: gn.Backend) -> None:
        y = home.asarray((X[:, :3] > 0).astype(int))
        model = MLPClassifier(**FEW).fit(home.asarray(X), y)
        assert gn.backend_of(model.classes_) == home

    @pytest.mark.parametrize("model", CLASSIFIERS)
    def test_assigned_classes_are_where_they_were(self, model: Any, home: gn.Backend) -> None:
        model = unfitted(model).fit(home.asarray(X), home.asarray(Y))
        model.classes_ = [4, 5, 6]
        assert gn.backend_of(model.classes_) == gn.get_backend("numpy")
        assert gn.backend_of(model.predict(home.asarray(X))) == home
        model.classes_ = home.asarray([4, 5, 6])
        assert gn.backend_of(model.classes_) == home

    def test_so_are_those_of_a_model_that_was_never_fitted(self, home: gn.Backend) -> None:
        model = LogisticRegression()
        model.classes_ = home.asarray([0, 1])
        assert gn.backend_of(model.classes_) == home
        model.coef_, model.intercept_ = home.asarray([[1.0, 2.0]]), home.asarray([0.0])
        assert gn.backend_of(model.classes_) == home
        assert gn.backend_of(model.predict(home.asarray(X[:, :2]))) == home

    def test_without_dispatch_they_are_numpys(self, strict: Any) -> None:
        for model in CLASSIFIERS:
            fitted = unfitted(model).fit(strict.asarray(X), strict.asarray(Y))
            assert isinstance(fitted.classes_, np.ndarray)

    @pytest.mark.parametrize("model", [*CLASSIFIERS, MLPRegressor(early_stopping=True, **FEW)])
    def test_numbers_are_pythons(self, model: Any, home: gn.Backend) -> None:
        """All but the weights and the classes is of no library."""
        model = unfitted(model).fit(home.asarray(X), home.asarray(Y))
        names = ("n_iter_", "t_", "loss_", "best_loss_", "best_validation_score_", "n_features_in_")
        for name in names:
            assert isinstance(getattr(model, name), (int, float, type(None))), name
        for name in ("loss_curve_", "validation_scores_", "validation_loss_curve_"):
            assert all(type(number) is float for number in getattr(model, name) or []), name


@OF_TODAY
class TestTools:
    @pytest.mark.parametrize(
        ("model", "method"),
        [
            (MLPClassifier(**FEW), "predict_proba"),
            (MLPClassifier(**FEW), "predict_log_proba"),
            (LINEAR, "predict_proba"),
            (LINEAR, "decision_function"),
        ],
    )
    @pytest.mark.parametrize("words", [False, True])
    def test_cross_validation(self, model: Any, method: str, words: bool, home: gn.Backend) -> None:
        x, y = home.asarray(X), WORDS if words else home.asarray(Y)
        got = cross_val_predict(unfitted(model), x, y, cv=3, method=method)
        assert gn.backend_of(got) == home
        wanted = cross_val_predict(unfitted(model), X, WORDS if words else Y, cv=3, method=method)
        assert_allclose(gn.to_numpy(got), wanted, rtol=1e-7, atol=1e-9)

    @pytest.mark.parametrize("model", CLASSIFIERS)
    def test_temperatures(self, model: Any, home: gn.Backend) -> None:
        calibrated = CalibratedClassifierCV(unfitted(model), method="temperature", cv=3)
        got = calibrated.fit(home.asarray(X), home.asarray(Y)).predict_proba(home.asarray(X))
        assert gn.backend_of(got) == home
        wanted = calibrated.fit(X, Y).predict_proba(X)
        assert_allclose(gn.to_numpy(got), wanted, rtol=1e-5, atol=1e-7)


@OF_TODAY
class TestMoves:
    def move(self, model: Any, target: gn.Backend) -> Any:
        return _array_api.move_estimator_to(model, target.xp, target.device)

    @pytest.mark.parametrize("model", [*CLASSIFIERS, MLPRegressor(**FEW)])
    @pytest.mark.parametrize("words", [False, True])
    def test_there_and_back(self, model: Any, words: bool, home: gn.Backend) -> None:
        host, x = gn.get_backend("numpy"), home.asarray(X)
        names = words and not isinstance(model, MLPRegressor)
        model = unfitted(model).fit(x, WORDS if names else home.asarray(Y))
        before = gn.to_numpy(model.predict(x))
        for target, source in ((host, home), (home, host)):
            moved = self.move(model, target)
            assert str(moved._network.backend) == str(target)
            assert gn.backend_of(weights_of(moved)[0]) == target
            if not isinstance(model, MLPRegressor):
                assert gn.backend_of(moved.classes_) == (host if names else target)
            got = moved.predict(target.asarray(X))
            assert gn.backend_of(got) == (host if names else target)
            compare = assert_array_equal if names else partial(assert_allclose, rtol=1e-7)
            compare(gn.to_numpy(got), before)
            assert model._network.backend == source
            model = moved

    @pytest.mark.parametrize("target", ["same", "numpy"])
    def test_nothing_is_shared(self, target: str, home: gn.Backend) -> None:
        place = home if target == "same" else gn.get_backend(target)
        model = unfitted(LINEAR).fit(home.asarray(X), home.asarray(Y))
        before = gn.to_numpy(model.coef_).copy()
        moved = self.move(model, place)
        moved.partial_fit(place.asarray(X), place.asarray(Y))
        assert_array_equal(gn.to_numpy(model.coef_), before)
        assert not np.array_equal(gn.to_numpy(moved.coef_), before)
        model.partial_fit(home.asarray(X), home.asarray(Y))
        assert_allclose(gn.to_numpy(model.coef_), gn.to_numpy(moved.coef_), rtol=1e-7)

    def test_a_setting_of_where_to_compute_does_not_hold_it_back(self, home: gn.Backend) -> None:
        model = MLPClassifier(backend=str(home), **FEW).fit(X, Y)
        moved = self.move(model, gn.get_backend("numpy"))
        assert str(moved._network.backend) == "numpy"
        assert_array_equal(moved.partial_fit(X, Y).predict(X).shape, (N,))

    def test_before_fit(self, home: gn.Backend) -> None:
        model = LogisticRegression()
        model.classes_ = [0, 1]
        model.coef_ = np.ones((1, 4))
        moved = self.move(model, home)
        assert gn.backend_of(moved.coef_) == gn.backend_of(moved.classes_) == home
        assert not self.move(MLPClassifier(**FEW), home).__sklearn_is_fitted__()


def weights_of(model: Any) -> list[Any]:
    """Return the weights of each layer."""
    return model.coefs_ if hasattr(model, "coefs_") else [model.coef_]


def unfitted(model: Any) -> Any:
    """Return an unfitted model with the same settings."""
    return type(model)(**model.get_params())
