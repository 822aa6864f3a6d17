"""Data that come in parts: a call of partial_fit is no epoch of fit, and costs the same."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn import neural_network as sk
from sklearn.metrics import log_loss

import gpunn as gn
from gpunn.estimators import LogisticRegression, MLPClassifier, MLPRegressor
from tests.labels import label
from tests.quick_estimators import N, X, Y, assert_same, classifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

STREAMS = [
    pytest.param(LogisticRegression(random_state=0), id="logistic"),
    pytest.param(LogisticRegression(random_state=0, solver="adam"), id="logistic, adam"),
    pytest.param(
        MLPClassifier((4,), solver="sgd", learning_rate="adaptive", random_state=0), id="network"
    ),
    pytest.param(
        MLPRegressor(
            hidden_layer_sizes=(4,), solver="sgd", learning_rate="adaptive", random_state=0
        ),
        id="regressor",
    ),
]


def fresh(model: Any, **settings: Any) -> Any:
    return type(model)(**model.get_params() | settings)


def feed(model: Any, x: Any, y: Any) -> Any:
    first = {} if isinstance(model, MLPRegressor) else {"classes": [0, 1]}
    return model.partial_fit(x, y, **first)


def stream(n_calls: int, sign: int, seed: int = 0) -> Any:
    """Yield batches whose labels follow the first feature, or its opposite."""
    rng = np.random.default_rng(seed)
    for _ in range(n_calls):
        x = rng.standard_normal((32, 5))
        yield x, (sign * x[:, 0] + 0.3 * rng.standard_normal(32) > 0).astype(int)


class TestRates:
    @pytest.mark.parametrize("model", STREAMS)
    def test_adaptive_is_constant_in_a_stream(self, model: Any) -> None:
        one, other = fresh(model), fresh(model, learning_rate="constant")
        for x, y in stream(60, 1):
            feed(one, x, y)
            feed(other, x, y)
        assert set(one.history_["learning_rate"]) == {model.learning_rate_init}
        assert one.loss_curve_ == other.loss_curve_

    def test_a_drift_is_followed(self) -> None:
        model = LogisticRegression(random_state=0)
        for sign in (1, -1):
            for x, y in stream(100, sign):
                feed(model, x, y)
        x, y = next(stream(1, -1, seed=1))
        assert log_loss(y, model.predict_proba(x)) < 0.45

    @pytest.mark.parametrize("model", STREAMS)
    def test_after_a_fit_that_has_ended(self, model: Any) -> None:
        """What fit has lowered the rate to is not what a stream goes on with."""
        model = fresh(model, max_iter=200, tol=0.1, n_iter_no_change=1).fit(X, Y["binary"])
        assert model.history_["learning_rate"][-1] < model.learning_rate_init / 100
        feed(model, X, Y["binary"])
        assert model.history_["learning_rate"][-1] == model.learning_rate_init

    def test_invscaling_goes_by_the_samples_seen(self) -> None:
        settings = {
            "hidden_layer_sizes": (4,),
            "solver": "sgd",
            "learning_rate": "invscaling",
            "learning_rate_init": 0.5,
            "random_state": 0,
        }
        models = MLPClassifier(**settings), sk.MLPClassifier(**settings)
        for model in models:
            for x, y in stream(20, 1):
                feed(model, x, y)
        assert models[0].loss_curve_ == pytest.approx(models[1].loss_curve_, rel=1e-9)
        rates = [0.5 / (32 * i + 1) ** 0.5 for i in range(20)]
        assert models[0].history_["learning_rate"] == pytest.approx(rates)

    def test_a_plateau_is_one_of_epochs(self) -> None:
        def sgd(parameters: Any) -> gn.SGD:
            return gn.SGD(parameters, gn.ReduceOnPlateau(0.1, patience=1))

        model = classifier(solver=sgd)
        for x, y in stream(30, 1):
            feed(model, x, y)
        assert set(model.history_["learning_rate"]) == {0.1}

    @pytest.mark.parametrize("early", [False, True])
    def test_calls_do_not_wear_out_patience(self, early: bool) -> None:
        """A warm start stops as if the calls between had not been."""
        settings = {"warm_start": True, "max_iter": 40, "n_iter_no_change": 3, "tol": 0.0}
        settings["batch_size"] = "auto"
        model = classifier(**settings).fit(X, Y["binary"])
        before = copy.copy(model._progress.losses)
        for _ in range(10):  # one sample that it knows well, and one that it does not
            for i in np.argsort(model.predict_proba(X)[:, 1])[[0, N // 2]]:
                feed(model, X[[i]], Y["binary"][[i]])
        assert model._progress.losses == before
        model.set_params(early_stopping=early).fit(X, Y["binary"])
        assert model.n_iter_ > 3

    def test_no_words_about_stopping(self, capsys: pytest.CaptureFixture[str]) -> None:
        model = LogisticRegression(verbose=True, random_state=0, tol=10.0, n_iter_no_change=1)
        for x, y in stream(5, 1):
            feed(model, x, y)
        lines = capsys.readouterr().out.splitlines()
        assert [line[:19] for line in lines] == ["Iteration 1, loss ="] * 5


class TestLabels:
    def test_a_part_has_some_of_the_classes_also_with_a_warm_start(self) -> None:
        y = Y["multiclass"]
        for warm in (False, True):
            model = classifier(warm_start=warm)
            for k in (2, 0, 1):
                model.partial_fit(X[y == k], y[y == k], classes=[0, 1, 2])
            assert_array_equal(model.classes_, [0, 1, 2])

    @pytest.mark.parametrize("classes", [[0, 1], [1, 2, 3], ["a", "b", "c"]])
    def test_classes_of_several_labels_are_their_columns(self, classes: Any) -> None:
        message = r"MLPClassifier\.partial_fit: y has 3 columns.*classes.*\[0, 1, 2\].*got"
        with pytest.raises(ValueError, match=message):
            classifier().partial_fit(X, Y["multilabel"], classes=classes)
        model = classifier().partial_fit(X, Y["multilabel"], classes=[2, 1, 0])
        model.partial_fit(X, Y["multilabel"], classes=[0, 1, 2]).partial_fit(X, Y["multilabel"])
        with pytest.raises(ValueError, match="not the same as on last call"):
            model.partial_fit(X, Y["multilabel"], classes=classes)

    @pytest.mark.parametrize(
        "classes",
        [3, "ab", {0: 1, 1: 1}, (c for c in [0, 1]), [], [[0, 1]], [0, None], [0.0, np.nan, 1.0],
         [0, "a"], np.array(1)],
        ids=label,
    )  # fmt: skip
    def test_classes_that_are_no_list_of_labels(self, classes: Any) -> None:
        model = classifier()
        for _ in "12":
            message = r"partial_fit: classes must be a list|not (there before: \[0, 1|the same as)"
            with pytest.raises(ValueError, match=message):
                model.partial_fit(X, Y["binary"], classes=classes)
            model = classifier().partial_fit(X, Y["binary"], classes={1, 0})

    @pytest.mark.parametrize("bad", [Y["multilabel"], X[:, 0], Y["binary"] + 0.5, X[:, :2]])
    def test_of_another_kind_in_a_later_call(self, bad: Any) -> None:
        model = classifier().partial_fit(X, Y["binary"], classes=[0, 1])
        with pytest.raises(ValueError, match=r"y (should|has|must)|Unknown label|[Cc]lasses"):
            model.partial_fit(X, bad)
        model = classifier().partial_fit(X, Y["multilabel"])
        for y in (2 * Y["multilabel"], X[:, :3], Y["binary"]):
            with pytest.raises(ValueError, match=r"columns of zeros and ones|Unknown label"):
                model.partial_fit(X, y)


class TestCosts:
    @pytest.mark.parametrize("model", STREAMS)
    def test_a_call_costs_the_same_however_many_came_before(self, model: Any) -> None:
        """Counted in calls of Python's functions, which time is not needed for."""

        def calls(model: Any) -> int:
            count = 0

            def tick(*_: Any) -> None:
                nonlocal count
                count += 1

            sys.setprofile(tick)
            try:
                feed(model, x, y)
            finally:
                sys.setprofile(None)
            return count

        model = fresh(model)
        (x, y), *_ = stream(1, 1)
        for _ in range(10):
            feed(model, x, y)
        early = calls(model)
        for _ in range(300):
            feed(model, x, y)
        assert calls(model) <= 1.05 * early

    @pytest.mark.parametrize("model", STREAMS)
    def test_a_call_that_fails_leaves_no_trace(self, model: Any) -> None:
        model = fresh(model)
        for x, y in stream(3, 1):
            feed(model, x, y)
        other = copy.deepcopy(model)
        before = copy.deepcopy((model.history_.to_dict(), model.loss_curve_, model.t_))
        bad = 1e200 * y if isinstance(model, MLPRegressor) else y
        with np.errstate(all="ignore"), pytest.raises(ValueError, match="diverged"):
            model.set_params(metrics=["mae"], learning_rate_init=1e300).partial_fit(1e300 * x, bad)
        assert (model.history_.to_dict(), model.loss_curve_, model.t_) == before
        assert model.best_loss_ == other.best_loss_
        model.set_params(metrics=(), learning_rate_init=other.learning_rate_init)
        for one in (model, other):
            one._optimizer.reset()  # the one that has failed has forgotten its velocities
            feed(one, x, y)
        if hasattr(model, "coefs_"):
            assert_same(model, other, 0.0)
        assert model.loss_curve_ == other.loss_curve_
