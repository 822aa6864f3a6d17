"""Settings that change between two calls: they take effect, or are refused."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from gpunn.estimators import LogisticRegression
from tests.quick_estimators import NUMBERS, X, Y, classifier, regressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

HELD = (
    ("hidden_layer_sizes", (6,), (50, 20)),
    ("hidden_layer_sizes", [6, 4], [4, 6]),
    ("activation", "relu", "tanh"),
    ("activation", gn.ELU(0.5), gn.ELU(0.7)),
    ("activation", ["relu"], ["tanh"]),
    ("dropout", 0.0, 0.5),
    ("dropout", [0.2], 0.3),
)


class TestRefused:
    @pytest.mark.parametrize("way", ["fit", "partial_fit"])
    @pytest.mark.parametrize("make", [classifier, regressor])
    @pytest.mark.parametrize(("name", "old", "new"), HELD)
    def test_what_the_network_is(self, name: str, old: Any, new: Any, make: Any, way: str) -> None:
        y = Y["multiclass"] if make is classifier else NUMBERS["three"]
        model = make(warm_start=True, **{name: old}).fit(X, y)
        before = [coef.copy() for coef in model.coefs_]
        for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
            one.set_params(**{name: new})
            message = rf"{type(one).__name__}: {name} was .* and is .*warm_start=False"
            with pytest.raises(ValueError, match=message):
                getattr(one, way)(X, y)
            for a, b in zip(one.coefs_, before, strict=True):
                assert_array_equal(a, b)
            getattr(one.set_params(**{name: old}), way)(X, y)
        model.set_params(warm_start=False, **{name: new}).fit(X, y)
        model.set_params(warm_start=True).fit(X, y)  # the new one is what it was made with

    def test_both_values_are_named(self) -> None:
        model = classifier(warm_start=True).fit(X, Y["binary"])
        message = r"hidden_layer_sizes was \(6,\).* and is \(50, 20\)"
        with pytest.raises(ValueError, match=message):
            model.set_params(hidden_layer_sizes=(50, 20)).fit(X, Y["binary"])

    @pytest.mark.parametrize("make", [classifier, regressor])
    def test_the_loss(self, make: Any) -> None:
        y = Y["binary"]
        model = make(warm_start=True).fit(X, y)
        other = gn.MeanSquaredError() if make is classifier else gn.BinaryCrossEntropy()
        with pytest.raises(ValueError, match=r"loss was '\w+'.*MeanSquaredError|Binary"):
            model.set_params(loss=other).fit(X, y)

    def test_a_change_within_the_loss(self) -> None:
        loss = [gn.SoftmaxCrossEntropy(class_weight=[1.0, w, 1.0]) for w in (1.0, 1.0, 2.0)]
        model = classifier(warm_start=True, loss=loss[0]).fit(X, Y["multiclass"])
        model.set_params(loss=loss[1]).fit(X, Y["multiclass"])
        with pytest.raises(ValueError, match="loss was"):
            model.set_params(loss=loss[2]).fit(X, Y["multiclass"])

    def test_the_intercept(self) -> None:
        model = LogisticRegression(warm_start=True, max_iter=3).fit(X, Y["binary"])
        with pytest.raises(ValueError, match=r"fit_intercept was True .* is False"):
            model.set_params(fit_intercept=False).fit(X, Y["binary"])

    def test_the_backend(self) -> None:
        model = classifier(warm_start=True).fit(X, Y["binary"])
        with pytest.raises(ValueError, match=r"backend was None.*'array-api-strict'.*numpy"):
            model.set_params(backend="array-api-strict").fit(X, Y["binary"])
        model.set_params(backend="numpy").fit(X, Y["binary"])  # it is there
        with gn.use(backend="array-api-strict"):  # nobody has said that for this one
            model.fit(X, Y["binary"])

    @pytest.mark.gpu
    def test_the_device(self) -> None:
        model = classifier(warm_start=True, backend="cupy").fit(X, Y["binary"])
        model.set_params(device=0).fit(X, Y["binary"])
        with pytest.raises(ValueError, match=r"backend was 'cupy'.*'numpy'"):
            model.set_params(device=None, backend="numpy").fit(X, Y["binary"])

    @pytest.mark.gpu
    @pytest.mark.two_devices
    def test_another_device(self) -> None:
        model = classifier(warm_start=True, backend="cupy", device=0).fit(X, Y["binary"])
        with pytest.raises(ValueError, match=r"device was 0.*is 1.*cupy:0"):
            model.set_params(device=1).fit(X, Y["binary"])


class TestAlike:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"hidden_layer_sizes": (6,)}, {"hidden_layer_sizes": 6}),
            ({"hidden_layer_sizes": (6,)}, {"hidden_layer_sizes": np.array([6])}),
            ({"activation": "tanh"}, {"activation": ["tanh"]}),
            ({"activation": gn.ELU(0.5)}, {"activation": gn.ELU(0.5)}),
            ({"dropout": 0.2}, {"dropout": [0.2]}),
            (
                {"loss": gn.SoftmaxCrossEntropy(label_smoothing=0.1)},
                {"loss": gn.SoftmaxCrossEntropy(label_smoothing=0.1)},
            ),
        ],
        ids=str,
    )
    def test_the_same_said_otherwise(self, one: dict[str, Any], other: dict[str, Any]) -> None:
        model = classifier(warm_start=True, **one).fit(X, Y["multiclass"])
        model.set_params(**other).fit(X, Y["multiclass"])
        assert len(model.loss_curve_) == 10


def gradient_step(model: Any, x: Any, y: Any) -> Any:
    """Return by how much one call moves the weights."""
    before = model.coef_.copy()
    model.partial_fit(x, y)
    return model.coef_ - before


class TestTaken:
    @pytest.mark.parametrize("name", ["alpha", "learning_rate_init", "batch_size"])
    def test_in_a_warm_start(self, name: str) -> None:
        value = {"alpha": 5.0, "learning_rate_init": 0.2, "batch_size": 10}[name]
        one, other = (classifier(warm_start=True).fit(X, Y["multiclass"]) for _ in "12")
        one.fit(X, Y["multiclass"])
        other.set_params(**{name: value}).fit(X, Y["multiclass"])
        assert one.loss_ != other.loss_

    def test_c_in_a_stream(self) -> None:
        one, other = (LogisticRegression(random_state=0) for _ in "12")
        for model in (one, other):
            model.partial_fit(X, Y["binary"], classes=[0, 1])
        one.set_params(C=1e-3).partial_fit(X, Y["binary"])
        other.partial_fit(X, Y["binary"])
        assert np.linalg.norm(one.coef_) < 0.5 * np.linalg.norm(other.coef_)

    def test_the_rate_and_the_momentum_keep_the_velocities(self) -> None:
        model = LogisticRegression(
            batch_size=120, momentum=0.9, nesterovs_momentum=False, shuffle=False, C=np.inf
        )
        model.partial_fit(X, Y["binary"], classes=[0, 1])
        velocity = gradient_step(model, X, Y["binary"])
        other = copy.deepcopy(model).set_params(momentum=0.0)
        plain = gradient_step(other, X, Y["binary"])  # -rate times the gradient
        model.set_params(momentum=0.5, learning_rate_init=0.02)
        moved = gradient_step(model, X, Y["binary"])
        assert_allclose(moved, 0.5 * velocity + 0.2 * plain, rtol=1e-9)
        assert model.history_["learning_rate"] == [0.1, 0.1, 0.02]

    def test_momentum_that_was_not(self) -> None:
        settings = {"batch_size": 120, "nesterovs_momentum": False, "shuffle": False, "C": np.inf}
        model = LogisticRegression(momentum=0.0, **settings)
        model.partial_fit(X, Y["binary"], classes=[0, 1]).set_params(momentum=0.9)
        first = gradient_step(model, X, Y["binary"])
        before = copy.deepcopy(model).set_params(momentum=0.0)
        plain = gradient_step(before, X, Y["binary"])
        assert_allclose(gradient_step(model, X, Y["binary"]), 0.9 * first + plain, rtol=1e-9)
        # Velocities of long ago do not come back.
        other = copy.deepcopy(before)
        moved = gradient_step(before.set_params(momentum=0.9), X, Y["binary"])
        assert_allclose(moved, gradient_step(other, X, Y["binary"]), rtol=1e-12)

    def test_nesterov(self) -> None:
        models = [LogisticRegression(nesterovs_momentum=False) for _ in "12"]
        for model in models:
            model.partial_fit(X, Y["binary"], classes=[0, 1])
        models[1].set_params(nesterovs_momentum=True)
        steps = [gradient_step(model, X, Y["binary"]) for model in models]
        assert not np.allclose(*steps)
        assert models[1]._optimizer.nesterov

    def test_epsilon_keeps_the_moments(self) -> None:
        model = classifier().partial_fit(X, Y["binary"], classes=[0, 1])
        held, updates = model._optimizer, model._optimizer.updates
        model.set_params(epsilon=0.1).partial_fit(X, Y["binary"])
        assert model._optimizer is held
        assert held.epsilon == 0.1
        assert held.updates == 2 * updates

    @pytest.mark.parametrize("name", ["beta_1", "beta_2"])
    def test_betas_begin_anew(self, name: str) -> None:
        """The moments of other betas would be corrected for the wrong start."""
        model = classifier().partial_fit(X, Y["binary"], classes=[0, 1])
        updates = model._optimizer.updates
        model.set_params(**{name: 0.5}).partial_fit(X, Y["binary"])
        assert getattr(model._optimizer, name) == 0.5
        assert model._optimizer.updates == updates

    @pytest.mark.parametrize(
        ("solver", "kind"),
        [("sgd", gn.SGD), (gn.SGD, gn.SGD), (functools.partial(gn.SGD, momentum=0.5), gn.SGD)],
        ids=["name", "class", "partial"],
    )
    def test_the_solver(self, solver: Any, kind: Any) -> None:
        model = classifier().partial_fit(X, Y["binary"], classes=[0, 1])
        model.set_params(solver=solver).partial_fit(X, Y["binary"])
        assert type(model._optimizer) is kind
        held = model._optimizer
        if isinstance(solver, functools.partial):
            model.set_params(solver=functools.partial(gn.SGD, momentum=0.5))
        model.partial_fit(X, Y["binary"])
        assert model._optimizer is held
        model.set_params(solver=functools.partial(gn.SGD, momentum=0.6)).partial_fit(X, Y["binary"])
        assert model._optimizer.momentum == 0.6

    def test_a_refused_call_changes_nothing(self) -> None:
        one, other = (
            classifier(solver="sgd").partial_fit(X, Y["binary"], classes=[0, 1]) for _ in "12"
        )
        one.set_params(momentum=0.1, learning_rate_init=5.0)
        with pytest.raises(ValueError, match="features"):
            one.partial_fit(X[:, :2], Y["binary"])
        one.set_params(momentum=0.9, learning_rate_init=0.03)
        for model in (one, other):
            model.partial_fit(X, Y["binary"])
        for a, b in zip(one.coefs_, other.coefs_, strict=True):
            assert_array_equal(a, b)
