"""scikit-learn's callbacks, and a scikit-learn that has none."""

from __future__ import annotations

import importlib
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn import config_context
from sklearn.base import is_regressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gpunn as gn
from gpunn.estimators import LogisticRegression, MLPClassifier, MLPRegressor, hooks
from tests.conftest import get_place

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 90
_RNG = np.random.default_rng(0)
X = _RNG.standard_normal((N, 4))
Y = np.array(["a", "b", "c"])[X[:, :3].argmax(axis=1)]
WEIGHT = _RNG.uniform(0.0, 2.0, N)
FEW: dict[str, Any] = {"hidden_layer_sizes": (6,), "max_iter": 5, "random_state": 0}
KINDS = [
    pytest.param(MLPClassifier(dropout=0.1, learning_rate_init=0.05, **FEW), id="classifier"),
    pytest.param(MLPRegressor(learning_rate_init=0.05, **FEW), id="regressor"),
    pytest.param(LogisticRegression(max_iter=5, random_state=0), id="logistic"),
    pytest.param(
        MLPClassifier(backend="cupy", learning_rate_init=0.05, **FEW),
        id="cupy",
        marks=pytest.mark.gpu,
    ),
]


def fresh(model: Any, **settings: Any) -> Any:
    return type(model)(**model.get_params() | settings)


def targets(model: Any) -> Any:
    return X[:, 1] if is_regressor(model) else Y


class Recorder:
    """A callback that writes down what it is told, and stops training after some epochs."""

    def __init__(self, epochs: int | None = None, error: bool = False) -> None:
        self.events: list[str] = []
        self.seen: list[Any] = []
        self.epochs, self.error = epochs, error

    def setup(self, estimator: Any, context: Any) -> None:
        self.events.append("setup")

    def teardown(self, estimator: Any, context: Any) -> None:
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        self.events.append(f"{context.task_name} begins")

    def on_fit_task_end(
        self,
        estimator: Any,
        context: Any,
        *,
        X: Any = None,  # noqa: N803
        y: Any = None,
        metadata: Any = None,
        fitted_estimator: Any = None,
    ) -> bool:
        self.events.append(f"{context.task_name} ends")
        self.seen.append((X, y, metadata, fitted_estimator))
        if self.error:
            raise ZeroDivisionError
        return context.task_name == "epoch" and context.task_id + 1 == self.epochs


class TestCallbacks:
    @pytest.fixture(autouse=True)
    def _callback(self) -> None:
        self.sk = pytest.importorskip("sklearn.callback")

    @pytest.mark.parametrize("model", KINDS)
    def test_a_score_an_epoch(self, model: Any) -> None:
        name = "r2" if is_regressor(model) else "accuracy"
        monitor = self.sk.ScoringMonitor(scoring=name)
        model, y = fresh(model), targets(model)
        model.set_callbacks(monitor).fit(X, y)
        rows = [row for row in monitor.get_logs().data if row["task_name"] == "epoch"]
        wanted = [fresh(model, max_iter=n).fit(X, y).score(X, y) for n in range(1, 6)]
        assert [row[name] for row in rows] == pytest.approx(wanted, rel=1e-12)
        assert len(set(wanted)) > 1
        plain = fresh(model).fit(X, y)
        assert model.loss_curve_ == plain.loss_curve_  # watching changes nothing

    @pytest.mark.parametrize("model", KINDS)
    def test_what_they_are_told(self, model: Any) -> None:
        recorder, model, y = Recorder(), fresh(model, max_iter=2), targets(model)
        model.set_callbacks(recorder).fit(X, y, WEIGHT)
        assert recorder.events == [
            "setup", "fit begins", "epoch begins", "epoch ends", "epoch begins", "epoch ends",
            "fit ends", "teardown",
        ]  # fmt: skip
        for x, labels, metadata, _ in recorder.seen:
            assert x is X
            assert labels is y
            assert metadata["sample_weight"] is WEIGHT
        fitted = [seen[3] for seen in recorder.seen]
        assert [len(one.loss_curve_) for one in fitted] == [1, 2, 2]
        assert_array_equal(fitted[2].predict(X), model.predict(X))
        one = fresh(model, max_iter=1).fit(X, y, WEIGHT)
        assert_array_equal(fitted[0].predict(X), one.predict(X))  # and stayed so

    @pytest.mark.parametrize("model", KINDS)
    def test_one_that_stops_training(self, model: Any) -> None:
        model, y = fresh(model), targets(model)
        model.set_callbacks(Recorder(epochs=3)).fit(X, y)
        assert model.n_iter_ == 3
        assert model.loss_curve_ == fresh(model, max_iter=3).fit(X, y).loss_curve_

    def test_stopping_is_no_lack_of_convergence(self) -> None:
        model = MLPClassifier(**FEW).set_callbacks(Recorder(epochs=5))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(X, Y)
        assert model.n_iter_ == model.max_iter
        assert not caught
        with pytest.warns(ConvergenceWarning):
            model.set_callbacks().fit(X, Y)

    def test_one_that_fails(self) -> None:
        recorder = Recorder(error=True)
        model = MLPClassifier(**FEW).set_callbacks(recorder)
        with pytest.raises(ZeroDivisionError):
            model.fit(X, Y)
        assert recorder.events[-1] == "teardown"
        assert not model.__sklearn_is_fitted__()
        before = model.set_callbacks().fit(X, Y).predict_proba(X)
        with pytest.raises(ZeroDivisionError):
            model.set_callbacks(Recorder(error=True)).fit(X, Y[::-1])
        assert_array_equal(model.predict_proba(X), before)

    def test_early_stopping_scores_the_best_weights_at_the_end(self) -> None:
        recorder = Recorder()
        model = MLPClassifier(**FEW | {"max_iter": 30}, early_stopping=True, n_iter_no_change=2)
        model.set_callbacks(recorder).fit(X, Y)
        assert recorder.events.count("epoch ends") == model.n_iter_
        assert_array_equal(recorder.seen[-1][3].predict(X), model.predict(X))

    def test_a_call_of_partial_fit_is_an_epoch(self) -> None:
        recorder = Recorder()
        model = MLPClassifier(**FEW).set_callbacks(recorder)
        model.partial_fit(X, Y, classes=list("abc"))
        events = ["setup", "fit begins", "epoch begins", "epoch ends", "fit ends", "teardown"]
        assert recorder.events == events
        model.partial_fit(X, Y)
        assert recorder.events == 2 * events

    def test_in_a_pipeline(self) -> None:
        recorder = Recorder()
        net = MLPClassifier(**FEW).set_callbacks(recorder)
        make_pipeline(StandardScaler(), net).fit(X, Y)
        assert recorder.events.count("epoch ends") == 5

    def test_in_a_search(self) -> None:
        monitor = self.sk.ScoringMonitor(scoring="accuracy")
        net = MLPClassifier(**FEW | {"max_iter": 2}).set_callbacks(monitor)
        GridSearchCV(net, {"alpha": [0.0, 1.0]}, cv=2).fit(X, Y)
        logs = monitor.get_logs(select="all")
        rows = [row for log in logs for row in log.data if row["task_name"] == "epoch"]
        assert len(rows) == 2 * (2 * 2 + 1)

    def test_a_progress_bar(self, capsys: Any) -> None:
        pytest.importorskip("rich")
        for model in (MLPClassifier(**FEW), make_pipeline(StandardScaler(), MLPClassifier(**FEW))):
            bar = self.sk.ProgressBar()
            (model if hasattr(model, "set_callbacks") else model[-1]).set_callbacks(bar)
            model.fit(X, Y)
            assert "MLPClassifier" in capsys.readouterr().out

    @pytest.mark.gpu
    def test_scores_of_arrays_on_a_gpu(self) -> None:
        place = get_place("cupy").backend
        monitor = self.sk.ScoringMonitor(scoring="r2")
        x, y = place.asarray(X), place.asarray(X[:, 1])
        with config_context(array_api_dispatch=True):
            model = MLPRegressor(**FEW).set_callbacks(monitor).fit(x, y)
            assert len(monitor.get_logs().data) == 6
            assert monitor.get_logs().data[-1]["r2"] == pytest.approx(model.score(x, y))


def test_a_scikit_learn_without_callbacks(monkeypatch: Any) -> None:
    names = [name for name in sys.modules if name.startswith("gpunn.estimators")]
    saved = {name: sys.modules[name] for name in names}
    monkeypatch.setitem(sys.modules, "sklearn.callback", None)  # importing it fails
    try:
        for name in names:
            del sys.modules[name]
        estimators = importlib.import_module("gpunn.estimators")
        old = importlib.import_module("gpunn.estimators.hooks")
        assert old is not hooks
        assert not hasattr(estimators.MLPClassifier, "set_callbacks")
        for kind in (MLPClassifier, MLPRegressor, LogisticRegression):
            settings = {"max_iter": 5, "random_state": 0}
            model = getattr(estimators, kind.__name__)(**settings)
            y = targets(model)
            wanted = kind(**settings).fit(X, y)
            assert model.fit(X, y).loss_curve_ == wanted.loss_curve_
            assert_array_equal(
                model.partial_fit(X, y).predict(X), wanted.partial_fit(X, y).predict(X)
            )
    finally:
        sys.modules.update(saved)
        gn.estimators = saved["gpunn.estimators"]
