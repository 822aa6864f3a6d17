"""The estimators among scikit-learn's tools: pickles, pipelines, searches and routing."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import joblib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.ensemble import BaggingClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score, learning_curve
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

import gpunn as gn
from gpunn.estimators import LogisticRegression, MLPClassifier, MLPRegressor
from tests.conftest import get_place

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 90
_RNG = np.random.default_rng(0)
X = _RNG.standard_normal((N, 4))
Y = np.array(["a", "b", "c"])[X[:, :3].argmax(axis=1)]
WEIGHT = _RNG.uniform(0.5, 2.0, N)
FEW: dict[str, Any] = {"hidden_layer_sizes": (6,), "max_iter": 5, "random_state": 0}
HOMES = ["numpy", "array-api-strict:1", pytest.param("cupy", marks=pytest.mark.gpu)]


def models(**settings: Any) -> list[Any]:
    """Return an estimator of each kind, fitted."""
    return [
        MLPClassifier(dropout=0.2, metrics=["accuracy"], **FEW, **settings).fit(X, Y),
        MLPRegressor(early_stopping=True, solver="sgd", **FEW, **settings).fit(X, X[:, 1:3]),
        LogisticRegression(max_iter=5, random_state=0, **settings).fit(X, Y),
    ]


def by_pickle(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))  # noqa: S301


def by_joblib(model: Any) -> Any:
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


class TestCopies:
    @pytest.mark.parametrize("home", HOMES)
    @pytest.mark.parametrize("way", [by_pickle, by_joblib, copy.deepcopy])
    def test_they_answer_alike_and_go_on_alike(self, home: str, way: Any) -> None:
        get_place(home)
        for model in models(backend=home):
            other = way(model)
            assert_array_equal(other.predict(X), model.predict(X))
            assert other.loss_curve_ == model.loss_curve_
            assert other._network.backend == model._network.backend
            assert {p.value.dtype for p in other._network.parameters()} == {
                p.value.dtype for p in model._network.parameters()
            }
            before = model.predict(X)
            for one in (model, other):  # Adam's moments, velocities and dropout's generator
                one.set_params(early_stopping=False)
                y = Y if is_classifier(one) else X[:, 1:3]
                one.partial_fit(X, y).partial_fit(X, y)
            assert other.loss_curve_ == model.loss_curve_
            assert_array_equal(other.predict(X), model.predict(X))
            again = way(model)
            assert_array_equal(again.predict(X), model.predict(X))
            assert before.shape == again.predict(X).shape

    def test_before_fit(self) -> None:
        model = by_pickle(MLPClassifier(activation=["tanh"], loss=gn.SoftmaxCrossEntropy()))
        assert not model.__sklearn_is_fitted__()
        assert model.get_params()["activation"] == ["tanh"]


class TestClones:
    @pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor, LogisticRegression])
    def test_settings(self, kind: Any) -> None:
        model = kind(solver="sgd", learning_rate_init=0.5, metrics=["accuracy"])
        assert clone(model).get_params() == model.get_params()
        assert repr(clone(model)) == repr(model)
        assert "learning_rate_init=0.5" in repr(model)

    def test_objects(self) -> None:
        loss, activation = gn.SoftmaxCrossEntropy(label_smoothing=0.1), [gn.ELU(0.5)]
        model = clone(MLPClassifier(loss=loss, activation=activation, **FEW)).fit(X, Y)
        assert repr(model.loss) == repr(loss)
        assert clone(model).fit(X, Y).loss_curve_ == model.loss_curve_

    def test_html(self) -> None:
        model = MLPClassifier(loss=gn.SoftmaxCrossEntropy(), **FEW)
        for state in (model, model.fit(X, Y), make_pipeline(StandardScaler(), model)):
            assert "MLPClassifier" in state._repr_html_()


class TestTags:
    def test_they_say_what_is_so(self) -> None:
        for kind in (MLPClassifier, MLPRegressor, LogisticRegression):
            tags = get_tags(kind())
            assert tags.input_tags.sparse
            assert tags.array_api_support
            assert tags.target_tags.required
            assert is_classifier(kind()) != is_regressor(kind())
        assert get_tags(MLPClassifier()).classifier_tags.multi_label
        assert not get_tags(LogisticRegression()).classifier_tags.multi_label
        assert get_tags(MLPRegressor()).target_tags.multi_output
        assert is_regressor(MLPRegressor())


class TestComposition:
    def test_a_pipeline(self) -> None:
        pipe = make_pipeline(StandardScaler(), MLPClassifier(**FEW)).fit(5 * X + 3, Y)
        scaled = StandardScaler().fit_transform(5 * X + 3)
        wanted = MLPClassifier(**FEW).fit(scaled, Y)
        assert_array_equal(pipe.predict(5 * X + 3), wanted.predict(scaled))
        assert_array_equal(pipe[-1].loss_curve_, wanted.loss_curve_)

    @pytest.mark.parametrize("n_jobs", [1, 2])
    def test_a_grid_search(self, n_jobs: int) -> None:
        pipe = Pipeline([("scale", StandardScaler()), ("net", MLPClassifier(**FEW))])
        grid = {"net__hidden_layer_sizes": [(3,), (8, 4)], "net__dropout": [0.0, 0.5]}
        with joblib.parallel_config("threading"):
            search = GridSearchCV(pipe, grid, cv=3, n_jobs=n_jobs).fit(X, Y)
        assert len(search.cv_results_["mean_test_score"]) == 4
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()
        best = clone(pipe).set_params(**search.best_params_)
        assert_array_equal(search.predict(X), best.fit(X, Y).predict(X))

    def test_scores_of_folds(self) -> None:
        model = LogisticRegression(max_iter=20, random_state=0)
        assert cross_val_score(model, X, Y, cv=3).min() > 0.8
        scores = cross_val_score(MLPClassifier(**FEW), X, Y, cv=3, scoring="neg_log_loss")
        assert np.isfinite(scores).all()
        scores = cross_val_score(MLPRegressor(**FEW), X, X[:, 0], cv=3, scoring="r2")
        assert np.isfinite(scores).all()

    def test_learning_in_parts(self) -> None:
        _, train, _ = learning_curve(
            MLPClassifier(**FEW),
            X,
            Y,
            cv=3,
            train_sizes=[20, 50],
            exploit_incremental_learning=True,
        )
        assert train.shape == (2, 3)

    def test_ensembles(self) -> None:
        bag = BaggingClassifier(MLPClassifier(**FEW), n_estimators=2, random_state=0).fit(X, Y)
        assert bag.predict_proba(X).shape == (N, 3)
        several = OneVsRestClassifier(LogisticRegression(max_iter=20, random_state=0)).fit(X, Y)
        assert several.score(X, Y) > 0.9


class TestRouting:
    @pytest.fixture(autouse=True)
    def _routing(self) -> Any:
        with config_context(enable_metadata_routing=True):
            yield

    def test_weights_through_a_pipeline(self) -> None:
        model = MLPClassifier(**FEW).set_fit_request(sample_weight=True)
        scale = StandardScaler().set_fit_request(sample_weight=False)
        pipe = make_pipeline(scale, model).fit(X, Y, sample_weight=WEIGHT)
        scaled = StandardScaler().fit_transform(X)
        wanted = MLPClassifier(**FEW).fit(scaled, Y, WEIGHT)
        assert pipe[-1].loss_curve_ == wanted.loss_curve_
        assert wanted.loss_curve_ != MLPClassifier(**FEW).fit(scaled, Y).loss_curve_

    def test_all_that_fit_takes_can_be_asked_for(self) -> None:
        model = MLPRegressor(**FEW)
        model.set_fit_request(sample_weight=True, X_val=True, y_val=True, sample_weight_val=True)
        model.set_partial_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        requests = model.get_metadata_routing().fit.requests
        assert requests == dict.fromkeys(
            ("sample_weight", "X_val", "y_val", "sample_weight_val"), True
        )
        MLPClassifier().set_partial_fit_request(classes=True)

    def test_weights_in_cross_validation(self) -> None:
        model = LogisticRegression(max_iter=5).set_fit_request(sample_weight=True)
        model.set_score_request(sample_weight=True)
        scores = cross_val_score(model, X, Y, cv=3, params={"sample_weight": WEIGHT})
        assert np.isfinite(scores).all()


def test_frames_come_out_of_a_pipeline_and_go_in() -> None:
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("abcd"))
    scale = StandardScaler().set_output(transform="pandas")
    pipe = make_pipeline(scale, MLPClassifier(**FEW)).fit(frame, Y)
    assert_array_equal(pipe[-1].feature_names_in_, list("abcd"))
    assert_allclose(pipe.predict_proba(frame).sum(axis=1), 1.0)
