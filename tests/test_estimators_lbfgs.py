"""The solver "lbfgs": scikit-learn's minima, from the gradient over all data."""

from __future__ import annotations

import copy
import pickle
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.sparse
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import neural_network
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import InvalidParameterError

import gpunn as gn
from gpunn.errors import DeviceMemoryError
from gpunn.estimators import MLPClassifier, MLPRegressor, NetworkClassifier, full_batch
from gpunn.estimators.objective import Objective
from gpunn.optim.gradient_sum import GradientSum
from gpunn.training import epoch
from tests.conftest import Place, get_place
from tests.quick_estimators import NUMBERS, WEIGHT, X, Y
from tests.runs import WAYS

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]

FEW: dict[str, Any] = {"hidden_layer_sizes": (6,), "max_iter": 15, "random_state": 0}
COUNTS = np.random.default_rng(2).poisson(np.exp(0.5 * X[:, 0] + 0.5)).astype(float)


def fit(kind: str, y: Any, weight: Any = None, **settings: Any) -> list[Any]:
    """Return our network and scikit-learn's, both fitted."""
    classes = [globals()[kind], getattr(neural_network, kind)]
    return [each(solver="lbfgs", **FEW | settings).fit(X, y, weight) for each in classes]


def assert_alike(ours: Any, theirs: Any, rtol: float = 1e-5) -> None:
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.loss_ == pytest.approx(theirs.loss_, rel=rtol)
    for a, b in zip(
        ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True
    ):
        assert_allclose(a, b, rtol=100 * rtol, atol=100 * rtol)


class TestScikitLearn:
    @pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
    @pytest.mark.parametrize("name", Y)
    @pytest.mark.parametrize("alpha", [1e-4, 3.0])
    def test_classification(self, name: str, weight: Any, alpha: float) -> None:
        assert_alike(*fit("MLPClassifier", Y[name], weight, alpha=alpha, activation="tanh"))

    @pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
    def test_regression(self, weight: Any) -> None:
        assert_alike(*fit("MLPRegressor", NUMBERS["one"], weight, activation="logistic"))

    @pytest.mark.skipif(
        "loss" not in neural_network.MLPRegressor().get_params(), reason="new in 1.7"
    )
    @pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
    @pytest.mark.parametrize("solver", ["lbfgs", "adam", "sgd"])
    @pytest.mark.parametrize("y", [COUNTS, np.stack([COUNTS, COUNTS[::-1]], axis=1)], ids="12")
    def test_counts(self, y: Any, solver: str, weight: Any) -> None:
        settings = {**FEW, "solver": solver, "loss": "poisson", "batch_size": 50}
        settings |= {"learning_rate_init": 0.01}
        ours, theirs = (
            each(**settings).fit(X, y, weight)
            for each in (MLPRegressor, neural_network.MLPRegressor)
        )
        assert_alike(ours, theirs)
        if solver != "lbfgs":
            assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-8)
        assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-3)
        assert ours.score(X, y) == pytest.approx(theirs.score(X, y), abs=1e-3)
        assert ours.out_activation_ == theirs.out_activation_ == "exp"

    def test_counts_with_early_stopping(self) -> None:
        settings = {**FEW, "loss": "poisson", "early_stopping": True}
        ours, theirs = (
            each(**settings).fit(X, COUNTS) for each in (MLPRegressor, neural_network.MLPRegressor)
        )
        assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=1e-8)

    def test_limits(self) -> None:
        for settings in ({"max_fun": 5}, {"max_iter": 3}, {"tol": 0.3}):
            ours, theirs = fit("MLPClassifier", Y["binary"], **settings)
            assert_alike(ours, theirs)
            assert ours.n_iter_ < 15

    def test_several_numbers(self) -> None:
        """The cost adds them up, as its gradient does; scikit-learn's divides, its gradient not."""
        y = NUMBERS["three"]
        model = MLPRegressor(**FEW | {"max_iter": 2000, "tol": 1e-7}, solver="lbfgs", alpha=1.0)
        model.fit(X, y)
        squares = sum((w**2).sum() for w in model.coefs_) / (2 * len(X))
        error = ((model.predict(X) - y) ** 2).sum() / (2 * len(X))
        assert model.loss_ == pytest.approx(error / 3 + squares)
        costs = []
        for change in (0.999, 1.0, 1.001):
            other = copy.deepcopy(model)
            other.coefs_ = [change * w for w in model.coefs_]
            squares = sum((w**2).sum() for w in other.coefs_)
            costs.append((((other.predict(X) - y) ** 2).sum() + squares) / (2 * len(X)))
        assert min(costs) == costs[1]


class TestObjective:
    def objective(
        self, place: Place, batch_size: int, loss: dict[str, Any], **data: Any
    ) -> Objective:
        model = gn.Sequential(
            gn.Dense(5, 4, "tanh", rng=0, dtype="float64"), gn.Dense(4, 3, rng=1, dtype="float64")
        ).to(place.backend)
        settings = {"batch_size": batch_size, "shuffle": False, "dtype": "float64"}
        x = data.pop("x", X)
        loader = gn.Loader(x, Y["multiclass"], backend=place.backend, **settings, **data)
        return Objective(
            model, gn.SoftmaxCrossEntropy(**loss), GradientSum(model.parameters()), loader
        )

    LOSSES: ClassVar[dict[str, Any]] = {
        "plain": {},
        "class weights": {"class_weight": [0.1, 1.0, 5.0]},
        "sum": {"reduction": "sum"},
    }

    @pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
    @pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
    def test_parts_make_the_whole(self, place: Place, loss: dict[str, Any], weight: Any) -> None:
        found = []
        for batch_size in (120, 50):
            objective = self.objective(place, batch_size, loss, sample_weight=weight)
            theta = objective.theta
            found.append(objective(theta))
            assert_array_equal(objective.theta, theta)
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
        assert_allclose(found[0][1], found[1][1], rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
    def test_the_gradient_is_that_of_the_value(self, loss: dict[str, Any]) -> None:
        for way in WAYS:
            objective = self.objective(get_place("numpy"), 50, loss, sample_weight=WEIGHT)
            with way():
                theta, (_, grad) = objective.theta, objective(objective.theta)
                step = 1e-6 * np.random.default_rng(0).standard_normal(theta.size)
                change = objective(theta + step)[0] - objective(theta - step)[0]
            assert change == pytest.approx(2 * step @ grad, rel=1e-6)

    @pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
    def test_recorded_steps_do_the_same(self, loss: dict[str, Any]) -> None:
        pytest.importorskip("numba", reason="steps are compiled by numba")
        found = []
        for way in WAYS:
            objective = self.objective(get_place("numpy"), 50, loss, sample_weight=WEIGHT)
            with way():
                found.append(objective(objective.theta))
            assert (objective._runner.program.why_not == "") == (way is WAYS[0])
        assert_allclose(found[0][1], found[1][1], rtol=1e-10, atol=1e-15)

    def test_sparse_data(self) -> None:
        place = get_place("numpy")
        found = [
            (objective := self.objective(place, 50, {}, x=x))(objective.theta)
            for x in (X, scipy.sparse.csr_array(X))
        ]
        assert_array_equal(found[0][1], found[1][1])

    def test_batches_are_halved_until_they_fit(self, monkeypatch: Any) -> None:
        objective = self.objective(get_place("numpy"), 120, {})
        wanted, run = objective(objective.theta), epoch.EpochRunner.run

        def limited(runner: Any, *arguments: Any, **settings: Any) -> None:
            if runner.loader.batch_size > 40:
                raise DeviceMemoryError("too little")
            run(runner, *arguments, **settings)

        monkeypatch.setattr(epoch.EpochRunner, "run", limited)
        value, grad = objective(objective.theta)
        assert objective._loader.batch_size == 30
        assert value == pytest.approx(wanted[0], rel=1e-12)
        assert_allclose(grad, wanted[1], rtol=1e-9, atol=1e-12)


class TestTheEstimator:
    def model(self, **settings: Any) -> MLPClassifier:
        return MLPClassifier(**{**FEW, "solver": "lbfgs", **settings})

    def test_many_rows_are_taken_in_parts(self, monkeypatch: Any) -> None:
        whole = self.model().fit(X, Y["binary"], WEIGHT)
        monkeypatch.setattr(full_batch, "_ROWS", 50)
        assert_alike(self.model().fit(X, Y["binary"], WEIGHT), whole, rtol=1e-8)

    def test_no_setting_of_batches_matters(self) -> None:
        wanted = self.model().fit(X, Y["binary"])
        other = {"batch_size": 7, "shuffle": False, "early_stopping": True, "momentum": 0.0}
        got = self.model(**other, learning_rate="adaptive").fit(X, Y["binary"])
        assert got.loss_curve_ == wanted.loss_curve_
        assert got.validation_scores_ is None

    def test_what_is_recorded(self) -> None:
        model = self.model(metrics=["accuracy"])
        model.fit(X, Y["multiclass"], X_val=X[:30], y_val=Y["multiclass"][:30])
        assert len(model.loss_curve_) == len(model.validation_loss_curve_) == model.n_iter_ == 15
        assert sorted(model.loss_curve_, reverse=True) == model.loss_curve_
        assert model.best_loss_ == model.loss_ == model.loss_curve_[-1]
        assert model.history_["accuracy"][-1] == model.score(X, Y["multiclass"])
        assert model.history_["validation_accuracy"][-1] > 0.7
        assert model.t_ >= 16 * len(X)
        assert model.t_ % len(X) == 0

    def test_at_the_minimum_at_once(self) -> None:
        model = self.model(tol=10.0).fit(X, Y["binary"])
        assert model.n_iter_ == 0
        assert model.loss_curve_ == []
        assert model.loss_ == pytest.approx(fit("MLPClassifier", Y["binary"], tol=10.0)[1].loss_)

    def test_warm_start_and_pickles(self) -> None:
        model = self.model(warm_start=True).fit(X, Y["binary"])
        first = model.loss_
        copied = pickle.loads(pickle.dumps(model))  # noqa: S301
        for one in (model, copied):
            assert one.fit(X, Y["binary"]).loss_ < first
            assert len(one.loss_curve_) == 30
            assert one.n_iter_ == 15
        assert_array_equal(model.coefs_[0], copied.coefs_[0])
        model.set_params(solver="adam").fit(X, Y["binary"])
        model.set_params(solver="lbfgs").fit(X, Y["binary"])
        assert np.isfinite(model.loss_)

    @pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor, NetworkClassifier])
    def test_no_partial_fit(self, kind: Any) -> None:
        assert not hasattr(kind(solver="lbfgs"), "partial_fit")
        assert hasattr(kind(solver="sgd"), "partial_fit")
        with pytest.raises(AttributeError) as failure:
            kind(solver="lbfgs").partial_fit(X, Y["binary"])
        assert "only available for stochastic" in str(failure.value.__cause__)

    def test_warnings_say_what_to_do(self) -> None:
        for settings, advice in (
            ({"max_iter": 3}, r"after 3 iteration.*Increase max_iter \(now 3\)"),
            ({"max_fun": 3}, r"Increase max_fun"),
        ):
            message = rf"MLPClassifier: lbfgs failed to converge.*{advice}"
            with pytest.warns(ConvergenceWarning, match=message) as found:
                self.model(**settings).fit(X, Y["binary"])
            assert [warning.filename for warning in found] == [__file__]

    def test_costs_that_are_not_finite(self) -> None:
        model = MLPRegressor(**FEW, solver="lbfgs", activation="identity")
        message = "lbfgs|MLPRegressor: the loss is (nan|inf).*Solver produced non-finite.*Scale"
        with np.errstate(all="ignore"), pytest.raises(ValueError, match=message) as failure:
            model.fit(1e200 * X, 1e200 * NUMBERS["one"])
        assert "learning_rate_init" not in str(failure.value)
        assert not model.__sklearn_is_fitted__()

    @pytest.mark.parametrize("n_passes", [1, 8])
    def test_control_c(self, n_passes: int, monkeypatch: Any) -> None:
        call, made = Objective.__call__, []

        def interrupt(objective: Any, theta: Any) -> Any:
            made.append(1)
            if len(made) > n_passes:
                raise KeyboardInterrupt
            return call(objective, theta)

        with monkeypatch.context() as patch:
            patch.setattr(Objective, "__call__", interrupt)
            with pytest.warns(UserWarning, match="interrupted by user"):
                model = self.model().fit(X, Y["binary"])
        whole = self.model().fit(X, Y["binary"])
        assert model.n_iter_ < 8
        assert model.loss_curve_ == whole.loss_curve_[: model.n_iter_]
        ended = self.model(max_iter=max(1, model.n_iter_)).fit(X, Y["binary"])
        if model.n_iter_:
            assert_array_equal(model.coefs_[0], ended.coefs_[0])

    def test_networks_that_are_no_function_of_their_weights(self) -> None:
        def with_norm(shape: Any, n_outputs: int) -> gn.Layer:
            return gn.Sequential(gn.Dense(shape[0], 4), gn.BatchNorm(4), gn.Dense(4, n_outputs))

        for model, why in (
            (self.model(dropout=0.5), "draws random numbers"),
            (NetworkClassifier(with_norm, solver="lbfgs"), "keeps statistics"),
        ):
            with pytest.raises(InvalidParameterError, match=f"lbfgs.*{why}.*'adam'"):
                model.fit(X, Y["binary"])

    def test_any_other_network(self) -> None:
        model = NetworkClassifier(solver="lbfgs", random_state=0, max_iter=50).fit(X, Y["binary"])
        assert model.score(X, Y["binary"]) > 0.95

    @pytest.mark.parametrize("name", Y)
    def test_float32(self, name: str) -> None:
        got, wanted = (self.model().fit(x, Y[name]) for x in (X.astype("float32"), X))
        assert got.coefs_[0].dtype == np.float32
        assert got.loss_ == pytest.approx(wanted.loss_, rel=0.02)


@pytest.mark.gpu
class TestOnAGpu:
    @pytest.mark.parametrize("name", Y)
    def test_the_same_minimum(self, name: str, monkeypatch: Any) -> None:
        monkeypatch.setattr(full_batch, "_ROWS", 50)
        settings = {**FEW, "solver": "lbfgs", "tol": 1e-6}
        ours, host = (
            MLPClassifier(**settings, backend=backend).fit(X, Y[name], WEIGHT)
            for backend in ("cupy", "numpy")
        )
        assert ours.loss_ == pytest.approx(host.loss_, rel=1e-6)

    def test_features_stay_on_the_device(self) -> None:
        """What is sent in a pass are the parameters, and what comes back their gradient."""
        cudasim = pytest.importorskip("cudasim", reason="its counters are wanted")
        x, y = np.tile(X, (50, 1)), np.tile(Y["binary"], 50)
        found = []
        for max_iter in (5, 15):
            model = MLPClassifier(**FEW | {"max_iter": max_iter}, solver="lbfgs", backend="cupy")
            with cudasim.count() as counted:
                model.fit(x, y)
            found.append([counted["h2d_bytes"], counted["d2h_bytes"], model.t_ // len(x)])
        sent, fetched, passes = np.subtract(found[1], found[0])
        n_bytes = 4096  # four arrays of a few numbers, each at a multiple of 512 bytes, and shares
        assert sent < passes * n_bytes
        assert fetched < passes * n_bytes
        assert n_bytes < x.nbytes / 10
