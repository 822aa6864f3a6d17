"""What the estimators have beyond scikit-learn's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.ensemble import BaggingClassifier
from sklearn.metrics import accuracy_score, log_loss, mean_absolute_error, r2_score
from sklearn.utils import compute_sample_weight

import gpunn as gn
from gpunn.estimators import LogisticRegression
from tests.conftest import get_place
from tests.quick_estimators import (
    HELD,
    NUMBERS,
    TRAIN,
    WEIGHT,
    N,
    X,
    Y,
    assert_same,
    classifier,
    regressor,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def balanced(column: Any, weight: Any) -> Any:
    """Return factors for weights, so that those of each label add up to the same."""
    sums = {label: weight[column == label].sum() for label in (0, 1, 2) if label in column}
    return np.array([weight.sum() / (len(sums) * sums[label]) for label in column])


class TestWeights:
    BY_CLASS = (
        ("multiclass", {0: 3.0, 1: 0.5, 2: 1.0}),
        ("multiclass", "balanced"),
        ("binary", {1: 4.0}),
        ("binary", "balanced"),
        ("multilabel", "balanced"),
        ("multilabel", [{0: 1.0, 1: 3.0}, {0: 2.0, 1: 1.0}, {0: 1.0, 1: 1.0}]),
    )

    @pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
    @pytest.mark.parametrize(("kind", "class_weight"), BY_CLASS)
    def test_of_classes_multiply_those_of_samples(
        self, kind: str, class_weight: Any, weight: Any
    ) -> None:
        y = Y[kind]
        by_class = compute_sample_weight(class_weight, y)
        if class_weight == "balanced" and weight is not None:  # unlike `compute_sample_weight`
            by_class = np.prod([balanced(column, weight) for column in np.atleast_2d(y.T)], axis=0)
        one = classifier(class_weight=class_weight).fit(X, y, weight)
        other = classifier().fit(X, y, by_class if weight is None else by_class * weight)
        assert_same(one, other)
        assert one.loss_ != classifier().fit(X, y, weight).loss_

    def test_of_labels_that_are_strings(self) -> None:
        y = np.array(["a", "b", "c"])[Y["multiclass"]]
        one = classifier(class_weight={"a": 2.0, "c": 0.1}).fit(X, y)
        assert_same(one, classifier(class_weight={0: 2.0, 2: 0.1}).fit(X, Y["multiclass"]))

    @pytest.mark.parametrize("kind", Y)
    def test_a_weight_of_two_is_a_sample_twice(self, kind: str) -> None:
        twice = np.repeat(np.arange(N), 2)
        settings = {"shuffle": False, "max_iter": 3, "alpha": 0.1}
        one = classifier(batch_size=30, **settings).fit(X, Y[kind], np.full(N, 2.0))
        other = classifier(batch_size=60, **settings).fit(X[twice], Y[kind][twice])
        assert_same(one, other)

    def test_in_partial_fit(self) -> None:
        one, other = classifier(class_weight={0: 2.0}), classifier()
        for rows in (TRAIN, HELD):
            y, weight = Y["binary"][rows], WEIGHT[rows]
            one.partial_fit(X[rows], y, weight, classes=[0, 1])
            other.partial_fit(X[rows], y, np.where(y == 0, 2 * weight, weight), classes=[0, 1])
        assert_same(one, other)

    def test_of_classes_that_a_call_has_not(self) -> None:
        one, other = classifier(class_weight={1: 5.0}), classifier()
        zeros = np.flatnonzero(Y["binary"] == 0)
        for rows in (zeros, slice(None)):
            y = Y["binary"][rows]
            one.partial_fit(X[rows], y, classes=[0, 1])
            other.partial_fit(X[rows], y, np.where(y == 1, 5.0, 1.0), classes=[0, 1])
        assert_same(one, other)

    def test_of_the_data_held_out(self) -> None:
        model = regressor()
        model.fit(
            X[TRAIN],
            NUMBERS["one"][TRAIN],
            X_val=X[HELD],
            y_val=NUMBERS["one"][HELD],
            sample_weight_val=WEIGHT[HELD],
        )
        errors = (model.predict(X[HELD]) - NUMBERS["one"][HELD]) ** 2 / 2
        wanted = np.average(errors, weights=WEIGHT[HELD])
        assert model.validation_loss_curve_[-1] == pytest.approx(wanted)


class TestValidation:
    def test_the_loss_of_the_data_given(self) -> None:
        y = Y["multiclass"]
        model = classifier(alpha=5.0).fit(X[TRAIN], y[TRAIN], X_val=X[HELD], y_val=y[HELD])
        assert len(model.validation_loss_curve_) == model.n_iter_ == 5
        wanted = log_loss(y[HELD], model.predict_proba(X[HELD]))
        assert model.validation_loss_curve_[-1] == pytest.approx(wanted)  # without the penalty
        assert model.validation_scores_ is None
        assert_same(model, classifier(alpha=5.0).fit(X[TRAIN], y[TRAIN]))  # nothing else changes
        assert classifier().fit(X, y).validation_loss_curve_ is None

    @pytest.mark.parametrize("kind", Y)
    def test_early_stopping_by_the_data_given(self, kind: str) -> None:
        y = Y[kind]
        model = classifier(early_stopping=True, max_iter=40, n_iter_no_change=3)
        model.fit(X[TRAIN], y[TRAIN], X_val=X[HELD], y_val=y[HELD])
        scores = model.validation_scores_
        assert len(scores) == model.n_iter_ == len(model.validation_loss_curve_)
        assert model.t_ == 80 * model.n_iter_  # all that are not held out
        assert model.best_validation_score_ == max(scores)
        assert accuracy_score(y[HELD], model.predict(X[HELD])) == max(scores)
        assert model.best_loss_ is None

    def test_early_stopping_of_a_regressor(self) -> None:
        y = NUMBERS["three"]
        model = regressor(early_stopping=True, max_iter=40, n_iter_no_change=3)
        model.fit(X[TRAIN], y[TRAIN], X_val=X[HELD], y_val=y[HELD], sample_weight_val=WEIGHT[HELD])
        wanted = r2_score(y[HELD], model.predict(X[HELD]), sample_weight=WEIGHT[HELD])
        assert model.best_validation_score_ == max(model.validation_scores_)
        assert model.best_validation_score_ == pytest.approx(wanted)

    @pytest.mark.parametrize("kind", Y)
    def test_samples_of_weight_zero_are_not_there(self, kind: str) -> None:
        """Neither in training nor held out: bagging gives such weights."""
        settings = {"early_stopping": True, "max_iter": 20}
        weight = np.where(np.arange(N) % 3 == 0, 0.0, WEIGHT + 0.1)
        some = weight > 0
        one = classifier(**settings).fit(X, Y[kind], weight)
        other = classifier(**settings).fit(X[some], Y[kind][some], weight[some])
        assert_same(one, other)
        assert one.validation_scores_ == other.validation_scores_
        assert one.t_ == other.t_

    def test_in_a_bag(self) -> None:
        model = classifier(early_stopping=True, max_iter=3, validation_fraction=0.05)
        bag = BaggingClassifier(model, n_estimators=8, max_samples=0.4, random_state=0)
        assert bag.fit(X, Y["multiclass"]).predict(X).shape == (N,)


class TestHistory:
    def test_columns_stay_beside_each_other(self) -> None:
        model = classifier(warm_start=True).fit(X, Y["multiclass"], X_val=X, y_val=Y["multiclass"])
        n = model.n_iter_
        model.fit(X, Y["multiclass"])
        table = model.history_.to_dict()
        assert {len(v) for k, v in table.items() if k != "stopped"} == {2 * n}
        assert np.isnan(table["validation_loss"]).tolist() == [False] * n + [True] * n
        assert "validation_loss" in repr(model.history_)
        model.fit(X, Y["multiclass"], X_val=X, y_val=Y["multiclass"])
        missing = np.isnan(model.history_["validation_loss"])
        assert missing.tolist() == [False] * n + [True] * n + [False] * n

    def test_metrics(self) -> None:
        y = Y["multiclass"]
        model = classifier(metrics=["accuracy", gn.TopK(2)])
        model.fit(X[TRAIN], y[TRAIN], X_val=X[HELD], y_val=y[HELD])
        history = model.history_
        assert len(history) == 5
        assert history.loss == model.loss_curve_
        top = gn.TopK(2).name
        names = ["loss", "accuracy", top, "validation_loss", "validation_accuracy"]
        assert list(history.columns)[:6] == [*names, f"validation_{top}"]
        wanted = accuracy_score(y[HELD], model.predict(X[HELD]))
        assert history["validation_accuracy"][-1] == pytest.approx(wanted)
        assert history["learning_rate"] == [0.03] * 5

    @pytest.mark.parametrize("kind", ["binary", "multilabel"])
    def test_accuracy_of_yes_and_no(self, kind: str) -> None:
        y = Y[kind]
        model = classifier(metrics=("accuracy",)).fit(X, y, X_val=X, y_val=y)
        wanted = (model.predict(X) == y).mean()
        assert model.history_["validation_accuracy"][-1] == pytest.approx(wanted)

    def test_metrics_of_a_regressor(self) -> None:
        y = NUMBERS["three"]
        model = regressor(metrics=["mae", "r2"]).fit(X, y, X_val=X, y_val=y)
        answers = model.predict(X)
        assert model.history_["validation_mae"][-1] == pytest.approx(
            mean_absolute_error(y, answers)
        )
        assert model.history_["validation_r2"][-1] == pytest.approx(r2_score(y, answers))

    def test_the_learning_rates(self) -> None:
        model = classifier(
            solver="sgd", learning_rate="invscaling", learning_rate_init=0.5, power_t=0.25
        ).fit(X, Y["binary"])
        rates = [0.5] + [0.5 / (N * epoch + 1) ** 0.25 for epoch in range(1, 5)]
        assert_allclose(model.history_["learning_rate"], rates, rtol=1e-12)


class TestParts:
    def test_several_labels(self) -> None:
        parts, whole = classifier(shuffle=False), classifier(shuffle=False, max_iter=4)
        whole.fit(X, Y["multilabel"])
        for _ in range(4):
            parts.partial_fit(X, Y["multilabel"])
        assert_same(parts, whole, 0.0)
        assert_array_equal(parts.classes_, [0, 1, 2])

    def test_several_numbers(self) -> None:
        parts, whole = regressor(shuffle=False), regressor(shuffle=False, max_iter=4)
        whole.fit(X, NUMBERS["three"])
        for _ in range(4):
            parts.partial_fit(X, NUMBERS["three"])
        assert_same(parts, whole, 0.0)
        assert parts.predict(X).shape == (N, 3)

    def test_labels_that_come_later(self) -> None:
        y = np.array(["a", "b", "c"])[Y["multiclass"]]
        model = classifier()
        for label in "cab":
            model.partial_fit(X[y == label], y[y == label], classes=["c", "b", "a", "a"])
        assert_array_equal(model.classes_, ["a", "b", "c"])
        assert model.predict_proba(X).shape == (N, 3)


class TestPlaces:
    @pytest.mark.parametrize("model", [classifier(), regressor(), LogisticRegression(max_iter=3)])
    def test_float32_stays(self, model: Any) -> None:
        y = Y["binary"]
        for dtype in ("float32", "float64"):
            model.fit(X.astype(dtype), y, X_val=X, y_val=y)
            assert {p.value.dtype.name for p in model._network.parameters()} == {dtype}
        model.fit(np.rint(3 * X).astype(int), y)
        assert {p.value.dtype.name for p in model._network.parameters()} == {"float64"}

    @pytest.mark.parametrize(
        "settings",
        [
            {"backend": "cupy"},
            {"backend": "cupy", "device": 0},
            {"backend": "auto", "device": 0},
            {"backend": "cupy:0"},
            pytest.param({"backend": "cupy", "device": 1}, marks=pytest.mark.two_devices),
        ],
        ids=str,
    )
    @pytest.mark.gpu
    def test_on_a_gpu(self, settings: dict[str, Any]) -> None:
        model = classifier(**settings).fit(X, Y["multiclass"])
        assert str(model._network.backend) == f"cupy:{settings.get('device', 0)}"
        assert isinstance(model.predict_proba(X), np.ndarray)
        assert_same(model, classifier().fit(X, Y["multiclass"]), 1e-9)

    def test_the_default(self) -> None:
        place = get_place("array-api-strict:1").backend
        with gn.use(backend=place):
            model = classifier().fit(X, Y["multiclass"])
        assert model._network.backend == place
        given = classifier(backend=place).fit(X, Y["multiclass"])
        assert given.loss_curve_ == model.loss_curve_
        assert isinstance(model.predict_proba(X), np.ndarray)
