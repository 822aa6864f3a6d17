"""Training that fails or is interrupted, what is left then, and what is warned of."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.exceptions import ConvergenceWarning

import gpunn as gn
from gpunn.estimators import LogisticRegression, MLPClassifier, MLPRegressor, base
from gpunn.training import epoch

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 60
_RNG = np.random.default_rng(0)
X = _RNG.standard_normal((N, 4))
Y = X[:, :3].argmax(axis=1)
FEW: dict[str, Any] = {"max_iter": 3, "random_state": 0, "tol": 1e3, "n_iter_no_change": 1}
KINDS = (MLPClassifier, MLPRegressor, LogisticRegression)


def network(**settings: Any) -> MLPClassifier:
    return MLPClassifier(**{"hidden_layer_sizes": (5,), **FEW, **settings})


def state(model: Any) -> dict[str, Any]:
    """Return all that must be as before when a fit has failed."""
    kept = {k: v for k, v in vars(model).items() if k in ("_origin", "n_features_in_")}
    progress = {k: v for k, v in vars(model._progress).items() if k != "history"}
    weights = [p.value.tolist() for p in model._network.parameters()]
    history = model.history_.to_dict()
    return copy.deepcopy({**kept, "progress": progress, "history": history, "weights": weights})


class TestFailures:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("max_iter", [1, 30])
    def test_divergence(self, kind: Any, max_iter: int) -> None:
        bad = {"solver": "sgd", "learning_rate_init": 1e200, "max_iter": max_iter}
        model = kind(**{**FEW, **bad})
        y = 1e100 * Y if kind is MLPRegressor else Y
        what = "the loss is (nan|inf) in epoch [12]" if max_iter > 1 else ".*"
        message = (
            rf"{kind.__name__}: {what}.*diverged\. Solver produced non-finite parameter "
            r"weights\..*Lower learning_rate_init \(now 1e\+200\).*scale"
        )
        with np.errstate(all="ignore"), pytest.raises(ValueError, match=message):
            model.fit(1e150 * X, y)
        assert not model.__sklearn_is_fitted__()
        assert not hasattr(model, "n_features_in_")
        good = kind(**FEW).get_params()
        assert model.set_params(**good).fit(X, Y).loss_curve_ == kind(**FEW).fit(X, Y).loss_curve_

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("way", ["fit", "warm", "partial_fit"])
    def test_a_fitted_model_stays_as_it_was(self, kind: Any, way: str) -> None:
        model = kind(warm_start=way == "warm", solver="sgd", batch_size=20, **FEW).fit(X, Y)
        before, answers = state(model), model.predict(X)
        method = model.partial_fit if way == "partial_fit" else model.fit
        good = model.get_params()
        y = 1e200 * Y if kind is MLPRegressor else Y
        if way != "partial_fit":
            model.set_params(learning_rate_init=1e300)
        with np.errstate(all="ignore"), pytest.raises(ValueError, match="diverged"):
            method(1e300 * X, y)
        assert state(model) == before
        for x, labels in ((X[:, :2], Y), (X, Y[:-1]), (X * np.nan, Y)):
            with pytest.raises(ValueError, match=r"features|inconsistent|NaN"):
                model.partial_fit(x, labels)
        assert state(model) == before
        assert_array_equal(model.predict(X), answers)
        other = copy.deepcopy(model.set_params(**good))
        for one in (model, other):
            one.partial_fit(X, Y)
        assert state(model)["weights"] == state(other)["weights"] != before["weights"]

    @pytest.mark.parametrize("solver", ["sgd", "adam"])
    def test_a_refused_call_leaves_the_optimizer_in_its_stride(self, solver: str) -> None:
        model, other = (network(solver=solver).partial_fit(X, Y, classes=range(3)) for _ in "12")
        with pytest.raises(ValueError, match="classes that were not there"):
            model.partial_fit(X, Y + 1)
        assert model.partial_fit(X, Y).loss_ == other.partial_fit(X, Y).loss_
        assert state(model)["weights"] == state(other)["weights"]

    @pytest.mark.usefixtures("one_by_one")
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("early_stopping", [False, True])
    @pytest.mark.parametrize("n_calls", [1, 40], ids=["at once", "later"])
    def test_control_c(
        self, kind: Any, early_stopping: bool, n_calls: int, monkeypatch: Any
    ) -> None:
        calls, learn = [], epoch.learn

        def interrupt(*arguments: Any, **settings: Any) -> Any:
            calls.append(1)
            if len(calls) == n_calls:
                raise KeyboardInterrupt
            return learn(*arguments, **settings)

        settings = {"tol": 0.0, "max_iter": 500, "early_stopping": early_stopping, "batch_size": 20}
        model = kind(**{**FEW, "n_iter_no_change": 500, **settings})
        with monkeypatch.context() as patch:
            patch.setattr(epoch, "learn", interrupt)
            with pytest.warns(UserWarning, match=r"^Training interrupted by user\.$"):
                model.fit(X, Y)
        assert model.n_iter_ == len(model.loss_curve_) == (n_calls - 1) // 3
        assert np.isnan(model.loss_) == (n_calls == 1)
        assert model.predict(X).shape == (N,)
        assert model._repr_html_()
        before = model.predict(X) if kind is MLPRegressor else model.predict_proba(X)
        model.set_params(early_stopping=False).partial_fit(X, Y)
        assert np.isfinite(model.loss_)
        after = model.predict(X) if kind is MLPRegressor else model.predict_proba(X)
        assert (before != after).any()

    @pytest.mark.usefixtures("one_by_one")
    @pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
    def test_in_the_middle_of_a_step(self, error: type[BaseException], monkeypatch: Any) -> None:
        calls, backward = [], gn.Dense.backward

        def fail(layer: Any, *arguments: Any) -> Any:
            calls.append(1)
            if len(calls) % 2 == 0:  # in the first of two layers
                raise error
            return backward(layer, *arguments)

        model = network(warm_start=True).fit(X, Y)
        other = copy.deepcopy(model)
        with monkeypatch.context() as patch:
            patch.setattr(gn.Dense, "backward", fail)
            if error is KeyboardInterrupt:
                with pytest.warns(UserWarning, match="interrupted"):
                    model.fit(X, Y)
            else:
                with pytest.raises(error):
                    model.fit(X, Y)
        assert [p.grad for p in model._network.parameters()] == [None] * 4
        for one in (model, other):
            one.set_params(random_state=1).fit(X, Y)
        assert state(model)["weights"] == state(other)["weights"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_control_c_before_training(self, kind: Any, monkeypatch: Any) -> None:
        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        fitted = kind(**FEW).fit(X, Y)
        before = state(fitted)
        monkeypatch.setattr(base, "Loader", interrupt)
        model = kind(**FEW)
        for one in (model, fitted):
            with pytest.raises(KeyboardInterrupt):
                one.fit(X[:, :3], Y)
        assert not model.__sklearn_is_fitted__()
        assert not hasattr(model, "n_features_in_")
        assert state(fitted) == before


class TestWarnings:
    @pytest.mark.parametrize("kind", KINDS)
    def test_of_convergence(self, kind: Any) -> None:
        model = kind(max_iter=2, random_state=0)
        with pytest.warns(ConvergenceWarning, match=r"\(2\).*Increase max_iter.*tol") as w:
            model.fit(X, Y)
        assert w[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.partial_fit(X, Y)

    @pytest.mark.parametrize("kind", KINDS)
    def test_of_batches(self, kind: Any) -> None:
        model = kind(batch_size=N + 1, **FEW)
        with pytest.warns(UserWarning, match=rf"`batch_size` {N + 1}.*clipped to {N}"):
            model.fit(X, Y)
        assert model.loss_curve_ == kind(batch_size=N, **FEW).fit(X, Y).loss_curve_


class TestImports:
    def run(self, program: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-c", program]
        return subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603

    def test_gpunn_needs_no_scikit_learn(self) -> None:
        found = self.run("import gpunn, sys; sys.exit('sklearn' in sys.modules)")
        assert found.returncode == 0, found.stderr

    def test_what_to_install(self) -> None:
        found = self.run("import sys; sys.modules['sklearn'] = None\nimport gpunn.estimators")
        assert found.returncode == 1
        assert "ImportError: gpunn.estimators needs scikit-learn" in found.stderr
        assert 'pip install "scikit-learn>=1.7"' in found.stderr
