"""Logistic regression: near the minimum of scikit-learn's cost, and laid out as there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import expit, log_softmax, logsumexp, softmax
from sklearn import datasets, linear_model
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import StandardScaler
from sklearn.utils import compute_sample_weight

import gpunn as gn
from gpunn.estimators import LogisticRegression
from tests.conftest import get_place

pytestmark = pytest.mark.usefixtures("one_thread")

PROBLEMS = {
    "breast cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
    "wine": datasets.load_wine,
    "iris": datasets.load_iris,
}
_RNG = np.random.default_rng(1)
X = _RNG.standard_normal((80, 4))
Y = {"binary": (X[:, 0] > 0.3).astype(int), "multiclass": X[:, :3].argmax(axis=1)}
WEIGHT = _RNG.uniform(0.0, 2.0, 80)


def load(name: str) -> tuple[Any, Any]:
    x, y = PROBLEMS[name](return_X_y=True)
    return StandardScaler().fit_transform(x), y


def cost(model: Any, x: Any, y: Any, weight: Any = None, c: float = 1.0) -> float:
    """Return scikit-learn's cost, over C."""
    z = x @ model.coef_.T + model.intercept_
    if z.shape[1] == 1:
        z = np.hstack([np.zeros_like(z), z])
    losses = logsumexp(z, axis=1) - z[range(len(y)), np.searchsorted(model.classes_, y)]
    return float(np.dot(np.ones(len(y)) if weight is None else weight, losses)) + float(
        (model.coef_**2).sum() / (2 * c)
    )


def exact(**settings: Any) -> linear_model.LogisticRegression:
    return linear_model.LogisticRegression(tol=1e-6, max_iter=2000, **settings)


class TestTheMinimum:
    @pytest.mark.parametrize("c", [0.01, 0.1, 1.0])
    @pytest.mark.parametrize("name", PROBLEMS)
    def test_within_a_hundredth(self, name: str, c: float) -> None:
        x, y = load(name)
        ours, best = LogisticRegression(C=c, random_state=0).fit(x, y), exact(C=c).fit(x, y)
        costs = [cost(model, x, y, None, c) for model in (best, ours)]
        assert 0.9999 * costs[0] <= costs[1] <= 1.01 * costs[0]
        assert ours.coef_.shape == best.coef_.shape
        assert ours.intercept_.shape == best.intercept_.shape
        # They differ only about samples that are on the border: two classes about as probable.
        second, first = np.sort(best.predict_proba(x), axis=1)[:, -2:].T
        assert ((ours.predict(x) == best.predict(x)) | (first - second < 0.05)).all()

    @pytest.mark.parametrize("c", [0.01, 0.1, 1.0, 3.0])
    @pytest.mark.parametrize("kind", Y)
    def test_with_weights(self, kind: str, c: float) -> None:
        ours = LogisticRegression(C=c, batch_size=8, random_state=0).fit(X, Y[kind], WEIGHT)
        best = exact(C=c).fit(X, Y[kind], WEIGHT)
        costs = [cost(model, X, Y[kind], WEIGHT, c) for model in (ours, best)]
        assert costs[0] <= 1.01 * costs[1]

    @pytest.mark.parametrize("class_weight", ["balanced", {0: 5.0, 1: 0.5}])
    @pytest.mark.parametrize("kind", Y)
    def test_with_class_weights(self, kind: str, class_weight: Any) -> None:
        ours = LogisticRegression(class_weight=class_weight, random_state=0)
        ours.fit(X, Y[kind], WEIGHT)
        best = exact(class_weight=class_weight).fit(X, Y[kind], WEIGHT)
        by_class = compute_sample_weight(class_weight, Y[kind])
        if class_weight == "balanced":
            sums = np.bincount(Y[kind], WEIGHT)
            by_class = (WEIGHT.sum() / (len(sums) * sums))[Y[kind]]
        costs = [cost(model, X, Y[kind], WEIGHT * by_class) for model in (ours, best)]
        assert costs[0] <= 1.01 * costs[1]

    def test_without_a_penalty(self) -> None:
        noisy = Y["binary"] ^ (np.random.default_rng(5).uniform(size=80) < 0.2)
        ours = LogisticRegression(C=np.inf, batch_size=8, random_state=0).fit(X, noisy)
        best = exact(C=1e10).fit(X, noisy)
        assert_allclose(ours.coef_, best.coef_, atol=0.02)
        assert ours.loss_ == pytest.approx(cost(ours, X, noisy, c=np.inf) / 80, rel=1e-2)

    @pytest.mark.parametrize("kind", Y)
    def test_without_an_intercept(self, kind: str) -> None:
        ours = LogisticRegression(fit_intercept=False, random_state=0).fit(X, Y[kind])
        best = exact(fit_intercept=False).fit(X, Y[kind])
        assert cost(ours, X, Y[kind]) <= 1.01 * cost(best, X, Y[kind])
        assert_array_equal(ours.intercept_, np.zeros(len(best.intercept_)))
        assert ours.intercept_.shape == best.intercept_.shape

    def test_the_curve_is_the_cost_over_the_number_of_samples(self) -> None:
        model = LogisticRegression(C=0.1, batch_size=80, random_state=0).fit(X, Y["binary"])
        assert model.loss_curve_[0] == pytest.approx(np.log(2))  # of zeros
        assert model.loss_ == pytest.approx(cost(model, X, Y["binary"], c=0.1) / 80, rel=1e-3)
        assert len(model.loss_curve_) == model.n_iter_
        assert model.t_ == 80 * model.n_iter_


class TestAnswers:
    @pytest.fixture(params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
    def backend(self, request: pytest.FixtureRequest) -> Any:
        return get_place(request.param).backend

    def test_of_two_classes(self, backend: gn.Backend) -> None:
        labels = np.array(["no", "yes"])[Y["binary"]]
        model = LogisticRegression(random_state=0, backend=backend).fit(X, labels)
        z = model.decision_function(X)
        assert_allclose(z, X @ model.coef_[0] + model.intercept_[0], rtol=1e-12)
        p = model.predict_proba(X)
        assert_allclose(p, np.column_stack([1 - expit(z), expit(z)]), rtol=1e-12, atol=1e-15)
        assert_allclose(model.predict_log_proba(X), np.log(p), rtol=1e-9, atol=1e-12)
        assert_array_equal(model.predict(X), np.where(z > 0, "yes", "no"))

    def test_of_more(self, backend: gn.Backend) -> None:
        model = LogisticRegression(random_state=0, backend=backend).fit(X, 10 * Y["multiclass"])
        z = model.decision_function(X)
        assert_allclose(z, X @ model.coef_.T + model.intercept_, rtol=1e-11)
        assert_allclose(model.predict_proba(X), softmax(z, axis=1), rtol=1e-11)
        assert_allclose(model.predict_log_proba(X), log_softmax(z, axis=1), rtol=1e-9, atol=1e-12)
        assert_array_equal(model.predict(X), 10 * z.argmax(axis=1))

    def test_logarithms_of_the_least_probabilities(self) -> None:
        model = LogisticRegression(random_state=0).fit(X, Y["binary"])
        far = 1e4 * np.sign(model.coef_)
        assert_array_equal(model.predict_proba(far), [[0.0, 1.0]])
        z = model.decision_function(far)
        assert_allclose(model.predict_log_proba(far), [[-z[0], 0.0]], rtol=1e-12)

    @pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
    def test_of_one_class(self) -> None:
        model = LogisticRegression(random_state=0, max_iter=3).fit(X, np.full(80, 7))
        assert_array_equal(model.predict(X), np.full(80, 7))
        assert_array_equal(model.predict_proba(X), np.ones((80, 1)))
        assert_array_equal(model.predict_log_proba(X), np.zeros((80, 1)))


class TestInParts:
    def test_passes_over_all_are_epochs(self) -> None:
        settings = {"shuffle": False, "batch_size": 20, "random_state": 0}
        whole, parts = LogisticRegression(max_iter=3, **settings), LogisticRegression(**settings)
        with pytest.warns(ConvergenceWarning):
            whole.fit(X, Y["binary"])
        for _ in range(3):
            parts.partial_fit(X, Y["binary"], classes=[1, 0])
        assert_array_equal(parts.coef_, whole.coef_)
        assert parts.loss_curve_ == whole.loss_curve_
        assert (parts.n_iter_, parts.t_) == (1, 240)

    def test_it_comes_near_the_minimum(self) -> None:
        x, y = load("iris")
        model = LogisticRegression(C=np.inf, random_state=0, learning_rate_init=0.05)
        order = np.random.default_rng(0).permutation(len(y))
        for epoch in range(60):
            for start in range(0, 150, 50):
                rows = order[start : start + 50]
                model.partial_fit(x[rows], y[rows], classes=[0, 1, 2] if epoch == 0 else None)
        assert model.t_ == 60 * 150
        assert model.score(x, y) > 0.96

    def test_the_penalty_is_that_of_the_samples_of_the_call(self) -> None:
        # One step of plain gradient descent from zeros, where there is no penalty, and another.
        model = LogisticRegression(C=0.1, solver="sgd", momentum=0.0, random_state=0)
        theta = np.zeros(5)
        ones = np.column_stack([X, np.ones(80)])
        for rows in (slice(0, 30), slice(30, 60)):
            x, y = ones[rows], Y["binary"][rows]
            n = len(y)
            decay = np.append(theta[:4], 0.0) / (0.1 * n)
            theta = theta - 0.1 * (x.T @ (expit(x @ theta) - y) / n + decay)
            model.partial_fit(X[rows], y, classes=[0, 1])
        assert_allclose(np.append(model.coef_[0], model.intercept_), theta, rtol=1e-12)
