"""Logistic regression on all data: scikit-learn's minimum, for each of its penalties."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import entr, logsumexp, softmax
from sklearn.linear_model import LogisticRegression as Theirs
from sklearn.utils import compute_class_weight
from sklearn.utils._param_validation import InvalidParameterError

from gpunn.estimators import LogisticRegression
from tests.conftest import get_place
from tests.test_estimators_logistic import PROBLEMS, WEIGHT, X, Y, load

pytestmark = pytest.mark.usefixtures("one_thread")

RATIOS = {"l1": 1.0, "elasticnet": 0.4}


def ours(**settings: Any) -> LogisticRegression:
    return LogisticRegression(**{"solver": "lbfgs", **settings})


def cost(model: Any, x: Any, y: Any, c: float, ratio: float = 0.0, weight: Any = None) -> float:
    """Return scikit-learn's cost."""
    z = x @ model.coef_.T + model.intercept_
    if z.shape[1] == 1:
        z = np.hstack([np.zeros_like(z), z])
    losses = logsumexp(z, axis=1) - z[range(len(y)), np.searchsorted(model.classes_, y)]
    penalty = ratio * np.abs(model.coef_).sum() + (1 - ratio) / 2 * (model.coef_**2).sum()
    return float(c * np.dot(np.ones(len(y)) if weight is None else weight, losses) + penalty)


@pytest.mark.parametrize("c", [0.01, 0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("name", PROBLEMS)
class TestTheMinimum:
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_within_a_thousandth(self, name: str, c: float, dtype: str) -> None:
        x, y = load(name)
        model = ours(C=c).fit(x.astype(dtype), y)
        best = Theirs(C=c, tol=1e-7, max_iter=5000).fit(x, y)
        costs = [cost(each, x, y, c) for each in (best, model)]
        assert costs[1] <= 1.001 * costs[0]
        assert_array_equal(model.predict(x.astype(dtype)), best.predict(x))
        assert model.coef_.dtype == dtype

    @pytest.mark.parametrize("penalty", RATIOS)
    def test_with_absolute_values(self, name: str, c: float, penalty: str) -> None:
        x, y = load(name)
        ratio = RATIOS[penalty]
        settings = {"C": c, "penalty": penalty, "max_iter": 20_000}
        settings |= {} if penalty == "l1" else {"l1_ratio": ratio}
        exact = ours(**settings, tol=1e-7).fit(x, y)
        least = cost(exact, x, y, c, ratio) - gap(exact, x, y, c, ratio)
        assert cost(ours(**settings).fit(x, y), x, y, c, ratio) <= 1.001 * least


def gap(model: Any, x: Any, y: Any, c: float, ratio: float) -> float:
    """Return how far the cost is above its minimum, at most, by Fenchel's duality.

    Whatever the weights, the cost is at least the entropy of any probabilities that are right on
    average, less the conjugate of the penalty at what they leave of the labels. Here they are the
    model's own, drawn towards the labels until they are allowed: the better the model, the closer
    the two.
    """
    wanted = (model.classes_ == y[:, None]).astype(float)
    z = x @ model.coef_.T + model.intercept_
    z = np.hstack([np.zeros_like(z), z]) if z.shape[1] == 1 else z
    for _ in range(10):  # Newton's steps of the intercepts, which make them right on average
        p = softmax(z, axis=1)
        curvature = np.diag(p.sum(axis=0)) - p.T @ p
        z = z + np.linalg.pinv(curvature) @ (wanted - p).sum(axis=0)
    rest = (p - wanted)[:, -model.coef_.shape[0] :]
    slopes = c * np.abs(x.T @ rest)
    shrink = 1.0 / max(1.0, slopes.max()) if ratio == 1.0 else 1.0
    beyond = np.maximum(shrink * slopes - ratio, 0.0)
    conjugate = 0.0 if ratio == 1.0 else (beyond**2).sum() / (2 * (1 - ratio))
    entropy = c * entr(wanted + shrink * (p - wanted)).sum()
    return cost(model, x, y, c, ratio) - float(entropy - conjugate)


class TestSettings:
    def test_the_names_of_penalties(self) -> None:
        def fitted(**settings: Any) -> Any:
            return ours(C=0.5, **settings).fit(X, Y["multiclass"]).coef_

        for one, other in (
            ({"penalty": "l2"}, {}),
            ({"penalty": "l1"}, {"l1_ratio": 1.0}),
            ({"penalty": "elasticnet", "l1_ratio": 0.3}, {"l1_ratio": 0.3}),
            ({"penalty": "elasticnet", "l1_ratio": 0.0}, {"l1_ratio": None}),
            ({"penalty": "l1", "l1_ratio": 1.0}, {"penalty": "l1", "l1_ratio": None}),
        ):
            assert_array_equal(fitted(**one), fitted(**other))

    @pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
    def test_no_penalty(self, solver: str) -> None:
        noisy = Y["binary"] ^ (np.random.default_rng(5).uniform(size=80) < 0.2)
        settings = {"solver": solver, "random_state": 0}
        none = LogisticRegression(penalty=None, **settings).fit(X, noisy)
        assert_array_equal(none.coef_, LogisticRegression(C=np.inf, **settings).fit(X, noisy).coef_)
        best = Theirs(C=1e10, tol=1e-8, max_iter=1000).fit(X, noisy)
        assert_allclose(none.coef_, best.coef_, atol=1e-4 if solver == "lbfgs" else 0.05)

    def test_what_has_no_effect_is_warned_of(self) -> None:
        for settings, message in (
            ({"penalty": None, "C": 2.0}, "penalty=None will ignore the C and l1_ratio"),
            ({"penalty": "l2", "l1_ratio": 0.5}, r"l1_ratio parameter is only used.*penalty=l2"),
            ({"penalty": "l1", "l1_ratio": 0.5}, r"l1_ratio parameter is only used.*penalty=l1"),
        ):
            with pytest.warns(UserWarning, match=message) as found:
                ours(**settings).fit(X, Y["binary"])
            assert [warning.filename for warning in found] == [__file__]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"penalty": "l3"}, "'penalty' parameter"),
            ({"l1_ratio": 1.5}, "'l1_ratio' parameter"),
            ({"penalty": "elasticnet", "l1_ratio": None}, "l1_ratio must be specified"),
            ({"penalty": "l1", "solver": "sgd"}, "'sgd' has the penalty 'l2' or none.*'lbfgs'"),
            ({"l1_ratio": 0.1, "solver": "adam"}, "'adam' has the penalty 'l2' or none.*'lbfgs'"),
        ],
        ids=str,
    )
    def test_what_is_refused(self, settings: dict[str, Any], message: str) -> None:
        model = ours(**settings)
        with pytest.raises(InvalidParameterError, match=message):
            model.fit(X, Y["binary"])
        assert not hasattr(model, "coef_")

    @pytest.mark.skipif(
        "sample_weight" not in inspect.signature(compute_class_weight).parameters,
        reason="balances classes without regard to the weights of samples",
    )
    def test_weights_of_samples_and_classes(self) -> None:
        settings: dict[str, Any] = {"C": 0.3, "class_weight": "balanced"}
        for name in Y:
            model = ours(**settings).fit(X, Y[name], WEIGHT)
            best = Theirs(**settings, tol=1e-8, max_iter=1000).fit(X, Y[name], WEIGHT)
            assert_allclose(model.coef_, best.coef_, rtol=1e-3, atol=1e-4)
            assert_allclose(model.intercept_, best.intercept_, rtol=1e-3, atol=1e-4)

    def test_without_an_intercept(self) -> None:
        model = ours(fit_intercept=False).fit(X, Y["binary"])
        best = Theirs(fit_intercept=False, tol=1e-8).fit(X, Y["binary"])
        assert_allclose(model.coef_, best.coef_, rtol=1e-3)
        assert_array_equal(model.intercept_, [0.0])

    def test_weights_become_exactly_zero(self) -> None:
        counts = [
            int((ours(C=c, penalty="l1").fit(X, Y["binary"]).coef_ == 0).sum()) for c in (9, 0.1)
        ]
        assert counts[0] < counts[1]

    def test_the_loss_has_the_penalty(self) -> None:
        model = ours(C=0.5, l1_ratio=0.3).fit(X, Y["binary"])
        assert model.loss_ == pytest.approx(cost(model, X, Y["binary"], 0.5, 0.3) / (0.5 * 80))

    def test_warm_start_goes_on_from_there(self) -> None:
        model = ours(penalty="l1", warm_start=True, C=0.5).fit(X, Y["binary"])
        coef, n = model.coef_.copy(), model.n_iter_
        model.fit(X, Y["binary"])
        assert model.n_iter_ < n / 2
        assert_allclose(model.coef_, coef, atol=1e-3)

    def test_assigned_weights(self) -> None:
        model = ours(warm_start=True)
        model.coef_, model.intercept_, model.classes_ = np.ones((1, 4)), [0.0], [0, 1]
        assert_allclose(
            model.fit(X, Y["binary"]).coef_, ours().fit(X, Y["binary"]).coef_, rtol=1e-3, atol=1e-4
        )

    def test_a_checkpoint_is_refused(self, tmp_path: Any) -> None:
        with pytest.raises(InvalidParameterError, match=r"lbfgs.*cannot write checkpoints"):
            ours(checkpoint=tmp_path / "run").fit(X, Y["binary"])


@pytest.mark.gpu
@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_on_a_gpu(penalty: str) -> None:
    get_place("cupy")
    settings: dict[str, Any] = {"C": 0.5, "penalty": penalty, "tol": 1e-7}
    there, here = (
        ours(backend=backend, **settings).fit(X, Y["multiclass"]) for backend in ("cupy", "numpy")
    )
    assert there.loss_ == pytest.approx(here.loss_, rel=1e-9)
    assert_allclose(there.coef_, here.coef_, rtol=1e-4, atol=1e-5)
