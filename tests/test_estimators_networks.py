"""Activations, losses, optimizers and dropout that scikit-learn's perceptrons have not."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from tests.quick_estimators import (
    HELD,
    NUMBERS,
    TRAIN,
    N,
    X,
    Y,
    assert_same,
    classifier,
    regressor,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


class TestDropout:
    def test_it_is_drawn_from_the_seed(self) -> None:
        first, again, other = (
            classifier(dropout=0.4, random_state=seed).fit(X, Y["binary"]) for seed in (0, 0, 1)
        )
        assert first.loss_curve_ == again.loss_curve_
        assert first.loss_curve_ != other.loss_curve_
        assert first.loss_curve_ != classifier().fit(X, Y["binary"]).loss_curve_

    def test_it_is_off_in_answers(self) -> None:
        model = classifier(dropout=0.9).fit(X, Y["multiclass"])
        assert_array_equal(model.predict_proba(X), model.predict_proba(X))
        hidden = np.maximum(X @ model.coefs_[0] + model.intercepts_[0], 0.0)
        z = hidden @ model.coefs_[1] + model.intercepts_[1]
        assert_array_equal(model.predict(X), z.argmax(axis=1))

    def test_a_rate_for_each_layer(self) -> None:
        settings = {"hidden_layer_sizes": (6, 5)}
        one, other, none = (
            regressor(dropout=rates, **settings).fit(X, NUMBERS["three"])
            for rates in (0.3, [0.3, 0.0], (0.0, 0.0))
        )
        assert none.loss_curve_ == regressor(**settings).fit(X, NUMBERS["three"]).loss_curve_
        assert len({one.loss_, other.loss_, none.loss_}) == 3
        assert one.n_layers_ == other.n_layers_ == none.n_layers_ == 4


class TestActivations:
    @pytest.mark.parametrize("name", sorted({*gn.ACTIVATIONS, "logistic"}))
    def test_each(self, name: str) -> None:
        model = regressor(activation=name).fit(X, NUMBERS["one"])
        f = gn.ACTIVATIONS["sigmoid" if name == "logistic" else name]()
        hidden = gn.to_numpy(f(X @ model.coefs_[0] + model.intercepts_[0]))
        wanted = (hidden @ model.coefs_[1] + model.intercepts_[1])[:, 0]
        assert_allclose(model.predict(X), wanted, rtol=1e-10)

    def test_one_for_each_layer(self) -> None:
        model = classifier(hidden_layer_sizes=[6, 4], activation=["tanh", gn.LeakyReLU(0.3)]).fit(
            X, Y["multiclass"]
        )
        h = np.tanh(X @ model.coefs_[0] + model.intercepts_[0])
        h = h @ model.coefs_[1] + model.intercepts_[1]
        z = np.where(h > 0, h, 0.3 * h) @ model.coefs_[2] + model.intercepts_[2]
        assert_allclose(model.predict_proba(X), gn.Softmax()(z), rtol=1e-10)

    def test_an_object_is_its_name(self) -> None:
        one, other = (classifier(activation=a).fit(X, Y["binary"]) for a in ("relu", gn.ReLU()))
        assert one.loss_curve_ == other.loss_curve_


class TestLosses:
    @pytest.mark.parametrize(
        "loss",
        [
            gn.SoftmaxCrossEntropy(),
            gn.SoftmaxCrossEntropy(label_smoothing=0.1),
            gn.SoftmaxCrossEntropy(class_weight=[1.0, 2.0, 0.5]),
            gn.BinaryCrossEntropy(),
            gn.MeanSquaredError(),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("kind", Y)
    def test_each_learns(self, loss: gn.Loss, kind: str) -> None:
        if isinstance(loss, gn.CrossEntropy) and kind == "multilabel":
            with pytest.raises(ValueError, match="for labels that exclude each other"):
                classifier(loss=loss).fit(X, Y[kind])
            return
        if getattr(loss, "class_weight", None) and kind == "binary":
            loss = gn.SoftmaxCrossEntropy(class_weight=[1.0, 2.0])
        model = classifier(loss=loss, max_iter=60, early_stopping=True).fit(X, Y[kind])
        assert (model.predict(X) == Y[kind]).mean() > 0.8
        p = model.predict_proba(X)
        assert p.shape == (N, {"binary": 2}.get(kind, 3))
        assert p.min() >= 0.0
        if kind != "multilabel":
            assert_allclose(p.sum(axis=1), 1.0, rtol=1e-12)
            assert_array_equal(p.argmax(axis=1), model.predict(X))
        assert_allclose(np.exp(model.predict_log_proba(X)), p, rtol=1e-9, atol=1e-15)

    def test_label_smoothing_is_that_of_the_loss(self) -> None:
        smooth = gn.SoftmaxCrossEntropy(label_smoothing=0.2)
        y = Y["multiclass"]
        model = classifier(loss=smooth).fit(X[TRAIN], y[TRAIN], X_val=X[HELD], y_val=y[HELD])
        log_p = model.predict_log_proba(X[HELD])
        target = 0.8 * np.eye(3)[y[HELD]] + 0.2 / 3
        wanted = -(target * log_p).sum(axis=1).mean()
        assert model.validation_loss_curve_[-1] == pytest.approx(wanted)
        assert model.out_activation_ == "softmax"

    def test_squared_error_of_classes(self) -> None:
        y = Y["multiclass"]
        one = classifier(loss=gn.MeanSquaredError()).fit(X, y)
        other = regressor().fit(X, np.eye(3)[y])
        for a, b in zip(one.coefs_, other.coefs_, strict=True):
            assert_array_equal(a, b)
        assert_array_equal(one.predict(X), other.predict(X).argmax(axis=1))
        assert one.out_activation_ == "identity"


class TestSolvers:
    def test_a_function(self) -> None:
        sgd = partial(gn.SGD, learning_rate=0.05, momentum=0.8)
        one = classifier(solver=sgd).fit(X, Y["multiclass"])
        other = classifier(
            solver="sgd", learning_rate_init=0.05, momentum=0.8, nesterovs_momentum=False
        ).fit(X, Y["multiclass"])
        assert_same(one, other)

    def test_its_schedule(self) -> None:
        sgd = partial(gn.SGD, learning_rate=gn.StepDecay(0.1, every=4), clip_norm=1.0)
        model = classifier(solver=sgd, learning_rate="adaptive").fit(X, Y["binary"])
        assert_allclose(model.history_["learning_rate"], 0.1 ** np.arange(1.0, 6.0), rtol=1e-9)
