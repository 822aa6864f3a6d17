"""Training that ends badly: with what weights, and what is said of it."""

from __future__ import annotations

import re
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler

import gpunn as gn
from gpunn.estimators import LogisticRegression, MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 60
_RNG = np.random.default_rng(0)
X = _RNG.standard_normal((N, 4))
Y = X[:, :3].argmax(axis=1)
FEW: dict[str, Any] = {"max_iter": 3, "random_state": 0, "tol": 1e3, "n_iter_no_change": 1}
KINDS = (MLPClassifier, MLPRegressor, LogisticRegression)


class TestDivergenceWithEarlyStopping:
    SETTINGS: ClassVar[dict[str, Any]] = {
        "solver": "sgd",
        "early_stopping": True,
        "random_state": 0,
        "batch_size": 10,
        "max_iter": 60,
        "n_iter_no_change": 60,
        "momentum": 0.0,
    }

    @staticmethod
    def growing(parameters: Any) -> Any:
        """Return an optimizer whose rate is fine for some epochs, and then explodes."""
        return gn.SGD(parameters, lambda step: 0.05 if step < 40 else 1e200)

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_ends_with_the_best_weights(self, kind: Any) -> None:
        model = kind(**self.SETTINGS | {"solver": self.growing})
        message = rf"{kind.__name__}: the loss is (nan|inf) in epoch \d+.*diverged.*Lower.*epoch \d"
        with np.errstate(all="ignore"), pytest.warns(ConvergenceWarning, match=message) as w:
            model.fit(X, Y)
        assert [warning.filename for warning in w] == [__file__]
        scores = model.validation_scores_
        assert len(scores) == model.n_iter_ == len(model.loss_curve_) < 60
        assert np.isfinite(model.loss_curve_[:-1]).all()
        assert [np.isfinite(x) for x in (model.loss_, scores[-1])] == [False, False]
        assert {len(column) for column in model.history_.columns.values()} == {model.n_iter_}
        assert model.best_validation_score_ == np.nanmax(scores)
        n = int(np.nanargmax(scores)) + 1
        best = kind(**self.SETTINGS | {"solver": self.growing, "max_iter": n}).fit(X, Y)
        assert_array_equal(best.predict(X), model.predict(X))
        for a, b in zip(model._network.parameters(), best._network.parameters(), strict=True):
            assert_array_equal(a.value, b.value)
        model.set_params(early_stopping=False, solver="sgd").partial_fit(X, Y)
        assert np.isfinite(model.loss_)

    @pytest.mark.parametrize("kind", KINDS)
    def test_without_an_epoch_to_go_back_to(self, kind: Any) -> None:
        model = kind(**self.SETTINGS | {"learning_rate_init": 1e200})
        y = 1e100 * Y if kind is MLPRegressor else Y
        with np.errstate(all="ignore"), pytest.raises(ValueError, match="diverged"):
            model.fit(1e150 * X, y)
        assert not model.__sklearn_is_fitted__()

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_outputs_that_are_not_finite_are_no_best_ones(self, kind: Any, value: float) -> None:
        """NaN stands for no class, though `argmax` finds one."""
        model = kind(**FEW).fit(X, Y)
        outputs = np.zeros((N, model.n_outputs_))
        target = np.zeros((N, 1)) if model.n_outputs_ == 1 else np.zeros(N, dtype=int)
        assert np.isfinite(model._score_of(outputs, target, None))
        outputs[0, 0] = value
        assert np.isnan(model._score_of(outputs, target, None))


class TestExplosion:
    """Features that are not scaled throw the weights somewhere, where they may stay."""

    MESSAGE = r"The loss is .*always answers 0.*Scale the features.*learning_rate_init"

    def said(self, model: Any, x: Any, y: Any) -> list[str]:
        """Return the warnings of convergence."""
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            with np.errstate(all="ignore"):
                model.fit(x, y)
        ours = [w for w in found if issubclass(w.category, ConvergenceWarning)]
        assert all(w.filename == __file__ for w in ours)
        return [str(w.message) for w in ours]

    CASES = (
        LogisticRegression(random_state=0),
        # Its hidden units die, and what is left is the penalty of their weights.
        MLPClassifier(solver="sgd", learning_rate_init=0.1, random_state=0),
        MLPRegressor(hidden_layer_sizes=10, solver="sgd", learning_rate_init=1e-4, random_state=0),
    )

    @pytest.mark.parametrize("early", [False, True])
    @pytest.mark.parametrize("model", CASES, ids=lambda model: type(model).__name__)
    def test_it_is_warned_of(self, model: Any, early: bool) -> None:
        x, y = load_breast_cancer(return_X_y=True)
        model = clone(model).set_params(early_stopping=early, max_iter=1000)
        (message,) = self.said(model, x, y)
        assert re.search(rf"{type(model).__name__}: {self.MESSAGE}", message)
        assert model.n_iter_ < 1000
        scaled = StandardScaler().fit_transform(x)
        assert self.said(model.set_params(learning_rate_init=0.01), scaled, y) == []

    def test_where_max_iter_ends_it(self) -> None:
        x, y = load_breast_cancer(return_X_y=True)
        (message,) = self.said(LogisticRegression(random_state=0, max_iter=50), x, y)
        assert re.search(rf"^Maximum iterations \(50\).*{self.MESSAGE}", message)

    @pytest.mark.parametrize(
        ("model", "y"),
        [
            (MLPRegressor(random_state=0), np.zeros(N)),
            (MLPRegressor(random_state=0), 1e-3 * X[:, 0]),
            (MLPRegressor(random_state=0, alpha=100.0, max_iter=2000), X[:, 0]),
            (MLPClassifier(random_state=0, alpha=100.0, max_iter=2000), Y),
            (MLPClassifier(random_state=0, dropout=0.9, n_iter_no_change=3, tol=0.1), Y),
            (LogisticRegression(random_state=0, C=0.01), Y),
            (LogisticRegression(random_state=0), _RNG.integers(0, 5, N)),
            (LogisticRegression(random_state=0), np.zeros(N)),
        ],
        ids=lambda x: type(x).__name__,
    )
    def test_no_false_alarm(self, model: Any, y: Any) -> None:
        assert self.said(clone(model), X, y) == []

    def test_not_of_a_part_of_a_stream(self) -> None:
        x, y = load_breast_cancer(return_X_y=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            LogisticRegression(random_state=0).partial_fit(x, y, classes=[0, 1])
