"""Losses against outside oracles: closed forms, SciPy, scikit-learn and PyTorch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import sklearn.linear_model
import sklearn.metrics
from numpy.testing import assert_allclose

import gpunn as gn
from tests.conftest import Place, get_place

N, K = 12, 4
WEIGHT = np.linspace(0.2, 3.0, N)
CLASS_WEIGHT = [0.5, 2.0, 1.0, 0.25]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def cost(place: Place, loss: gn.Loss, prediction: Any, target: Any, weight: Any = None) -> Any:
    """Return J and its gradient, as NumPy arrays."""
    arrays = [place.array(x) for x in (prediction, target)]
    tape = gn.Tape()
    j = loss(*arrays, tape, None if weight is None else place.array(weight))
    return gn.to_numpy(j), gn.to_numpy(loss.backward(tape))


class TestCrossEntropy:
    @pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
    def test_as_in_scikit_learn(self, place: Place, rng: Any, weight: Any) -> None:
        logits, labels = rng.standard_normal((N, K)) * 3, rng.permutation(N) % K
        p = scipy.special.softmax(logits, axis=1)
        wanted = sklearn.metrics.log_loss(labels, p, sample_weight=weight, labels=range(K))
        for loss, prediction in [(gn.SoftmaxCrossEntropy(), logits), (gn.CrossEntropy(), p)]:
            assert_allclose(cost(place, loss, prediction, labels, weight)[0], wanted, rtol=1e-12)

    def test_the_closed_form(self, place: Place, rng: Any) -> None:
        logits, targets = rng.standard_normal((N, K)), rng.dirichlet(np.ones(K), N)
        loss = gn.SoftmaxCrossEntropy(reduction="none")
        each, grad = cost(place, loss, logits, targets)
        wanted = scipy.special.logsumexp(logits, axis=1) - (targets * logits).sum(axis=1)
        assert_allclose(each, wanted, rtol=1e-12)
        assert_allclose(grad, scipy.special.softmax(logits, axis=1) - targets, atol=1e-15)

    def test_labels_are_one_hot_rows(self, place: Place, rng: Any) -> None:
        logits, labels = rng.standard_normal((N, K)), rng.integers(0, K, N)
        loss = gn.SoftmaxCrossEntropy(class_weight=CLASS_WEIGHT, label_smoothing=0.1)
        wanted = cost(place, loss, logits, np.eye(K)[labels])
        for dtype in ("int8", "uint8", "int32", "int64", "uint64"):
            got = cost(place, loss, logits, labels.astype(dtype))
            assert_allclose(got[0], wanted[0], rtol=1e-14)
            assert_allclose(got[1], wanted[1], atol=1e-16)

    @pytest.mark.parametrize("dtype", ["uint8", "int64"])
    def test_there_may_be_more_classes_than_the_dtype_of_labels_can_count(
        self, place: Place, dtype: str
    ) -> None:
        logits = np.zeros((2, 300))
        logits[:, 256] = 1.0  # what 0 would be taken for, modulo 256
        j, _ = cost(place, gn.SoftmaxCrossEntropy(), logits, np.array([0, 255], dtype=dtype))
        assert_allclose(j, math.log(299 + math.e), rtol=1e-12)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
    @pytest.mark.parametrize("class_weight", [None, CLASS_WEIGHT], ids=["", "class_weight"])
    @pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_as_in_torch(
        self, rng: Any, soft: bool, class_weight: Any, smoothing: float, reduction: str, torch: Any
    ) -> None:
        if soft and class_weight and reduction == "mean":
            reduction = "sum"  # torch divides by N there, and not by the weights
        logits = rng.standard_normal((N, K))
        target = rng.dirichlet(np.ones(K), N) if soft else rng.integers(0, K, N)
        theirs = torch.tensor(logits, requires_grad=True)
        wanted = torch.nn.functional.cross_entropy(
            theirs,
            torch.tensor(target),
            None if class_weight is None else torch.tensor(class_weight, dtype=torch.float64),
            label_smoothing=smoothing,
            reduction=reduction,
        )
        wanted.sum().backward()
        loss = gn.SoftmaxCrossEntropy(
            reduction=reduction, class_weight=class_weight, label_smoothing=smoothing
        )
        tape = gn.Tape()
        assert_allclose(loss(logits, target, tape), wanted.detach().numpy(), rtol=1e-12)
        assert_allclose(loss.backward(tape), theirs.grad.numpy(), atol=1e-14)

    @pytest.mark.parametrize(("dtype", "limit"), [("float32", 15.94), ("float64", 36.04)], ids=str)
    def test_exact_probabilities(self, place: Place, dtype: str, limit: float) -> None:
        p = np.array([[0.0, 1.0], [1.0, 0.0]], dtype=dtype)
        each, grad = cost(place, gn.CrossEntropy(reduction="none"), p, np.array([0, 0]))
        assert_allclose(each, [limit, 0.0], atol=0.005)
        assert_allclose(grad, [[-1 / np.finfo(dtype).eps, 0.0], [-1.0, 0.0]], rtol=1e-6)


class TestBinaryCrossEntropy:
    @pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
    def test_as_in_scikit_learn(self, place: Place, rng: Any, weight: Any) -> None:
        logits, labels = rng.standard_normal((N, 1)) * 3, rng.permutation(N) % 2
        h = scipy.special.expit(logits)
        wanted = sklearn.metrics.log_loss(labels, h[:, 0], sample_weight=weight)
        for from_logits, prediction in [(True, logits), (False, h)]:
            loss = gn.BinaryCrossEntropy(from_logits=from_logits)
            assert_allclose(cost(place, loss, prediction, labels, weight)[0], wanted, rtol=1e-12)

    def test_as_in_torch(self, rng: Any, torch: Any) -> None:
        logits, target = rng.standard_normal((N, 3)), rng.uniform(0.0, 1.0, (N, 3))
        theirs = torch.tensor(logits, requires_grad=True)
        wanted = torch.nn.functional.binary_cross_entropy_with_logits(
            theirs, torch.tensor(target), reduction="none"
        )
        wanted.sum().backward()
        loss, tape = gn.BinaryCrossEntropy(reduction="none"), gn.Tape()
        each = loss(logits, target, tape)
        assert_allclose(each, wanted.detach().numpy().sum(axis=1), rtol=1e-12)
        assert_allclose(loss.backward(tape), theirs.grad.numpy(), atol=1e-15)

    @pytest.mark.parametrize(("dtype", "limit"), [("float32", 15.94), ("float64", 36.04)], ids=str)
    def test_exact_probabilities(self, place: Place, dtype: str, limit: float) -> None:
        h = np.array([[0.0], [0.0], [1.0], [1.0]], dtype=dtype)
        loss = gn.BinaryCrossEntropy(from_logits=False, reduction="none")
        each, grad = cost(place, loss, h, np.array([0, 1, 0, 1]))
        assert_allclose(each, [0.0, limit, limit, 0.0], atol=0.005)
        steep = 1 / float(np.finfo(dtype).eps)
        assert_allclose(grad[:, 0], [1.0, -steep, steep, -1.0], rtol=1e-5)


class TestStability:
    Z = np.array([-1e4, -89.0, -17.0, -1.0, 0.0, 1.0, 17.0, 89.0, 1e4])

    @pytest.mark.parametrize("y", [0.0, 1.0, 0.25])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_binary(self, place: Place, dtype: str, y: float) -> None:
        loss = gn.BinaryCrossEntropy(reduction="none")
        each, grad = cost(place, loss, self.Z[:, None].astype(dtype), np.full(9, y))
        tiny = float(np.finfo(dtype).tiny)
        wanted = y * np.logaddexp(0, -self.Z) + (1 - y) * np.logaddexp(0, self.Z)
        assert_allclose(each, wanted, rtol=1e-6, atol=tiny)
        assert_allclose(grad[:, 0], scipy.special.expit(self.Z) - y, rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("label", [0, 1])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_softmax(self, place: Place, dtype: str, label: int) -> None:
        logits = np.stack([self.Z, -self.Z], axis=1).astype(dtype)
        loss = gn.SoftmaxCrossEntropy(reduction="none")
        each, grad = cost(place, loss, logits, np.full(9, label))
        margin = (1 - 2 * label) * 2 * self.Z
        # A cost near zero is the logarithm of a number near one: of absolute precision.
        assert_allclose(each, np.logaddexp(0, -margin), rtol=1e-6, atol=1e-7)
        wanted = scipy.special.expit(-margin)
        assert_allclose(grad[:, label], -wanted, rtol=1e-6, atol=1e-7)
        assert_allclose(grad[:, 1 - label], wanted, rtol=1e-6, atol=1e-7)


class TestMeanSquaredError:
    def test_the_factor_one_half(self, place: Place) -> None:
        prediction, target = [[1.0, 2.0], [0.0, 5.0]], [[0.0, 4.0], [0.0, 2.0]]
        j, grad = cost(place, gn.MeanSquaredError(), prediction, target)
        assert float(j) == (0.5 * (1 + 4) + 0.5 * 9) / 2
        assert grad.tolist() == [[0.5, -1.0], [0.0, 1.5]]

    def test_its_relation_to_torch(self, rng: Any, torch: Any) -> None:
        prediction, target = rng.standard_normal((2, N, 3))
        theirs = torch.nn.MSELoss()(torch.tensor(prediction), torch.tensor(target))
        assert_allclose(gn.MeanSquaredError()(prediction, target), theirs * 3 / 2, rtol=1e-12)

    def test_its_relation_to_scikit_learn(self, place: Place, rng: Any) -> None:
        prediction, target = rng.standard_normal((2, N, 3))
        theirs = sklearn.metrics.mean_squared_error(target, prediction, sample_weight=WEIGHT)
        j, _ = cost(place, gn.MeanSquaredError(), prediction, target, WEIGHT)
        assert_allclose(j, theirs * 3 / 2, rtol=1e-12)


class TestChecks:
    @pytest.mark.parametrize("class_weight", [None, CLASS_WEIGHT], ids=["", "class_weight"])
    @pytest.mark.parametrize("label", [-1, K, 10**6])
    def test_a_label_out_of_range(self, place: Place, label: int, class_weight: Any) -> None:
        loss = gn.SoftmaxCrossEntropy(class_weight=class_weight)
        logits, labels = place.array(np.zeros((3, K))), place.array([0, label, 1])
        with pytest.raises(gn.errors.LabelError, match=rf"0\.\.3; got labels from .*{label}"):
            loss(logits, labels)
        tape = gn.Tape()
        assert math.isnan(float(loss.forward(logits, labels, tape)))
        bad = np.isnan(gn.to_numpy(loss.backward(tape))).all(axis=1)
        assert bad.tolist()[1]

    @pytest.mark.parametrize("loss", [gn.SoftmaxCrossEntropy(), gn.MeanSquaredError()], ids=repr)
    @pytest.mark.parametrize("shape", [(), (5,), (5, 2, 3)])
    def test_a_prediction_without_outputs(self, loss: gn.Loss, shape: Any) -> None:
        with pytest.raises(gn.errors.ShapeError, match=r"expected a prediction .*\(N"):
            loss(np.zeros(shape), np.zeros(5, dtype=int))

    @pytest.mark.parametrize(
        ("weight", "error"),
        [
            ([1.0] * N, gn.errors.DTypeError),
            (np.ones((N, 1)), gn.errors.ShapeError),
            (np.ones(N, "float32"), gn.errors.DTypeError),
            ("array-api-strict", gn.errors.DeviceError),
        ],
        ids=["list", "shape", "dtype", "device"],
    )
    def test_sample_weights_that_do_not_fit(self, weight: Any, error: type) -> None:
        if isinstance(weight, str):
            weight = get_place(weight).array(np.ones(N))
        with pytest.raises(error, match="sample_weight"):
            gn.MeanSquaredError()(np.ones((N, 1)), np.ones(N), sample_weight=weight)


class TestTargets:
    @pytest.mark.parametrize(
        ("loss", "target", "told"),
        [
            (gn.Poisson(), [[1.0, -0.5]], r"Poisson\(\): targets must be in \[0, inf\].*-0\.5"),
            (gn.Poisson(), [[1.0, np.nan]], "targets must be in"),
            (gn.Hinge(), [[0.0, -1.0]], r"Hinge\(\): targets must be 0 and 1, or -1 and 1"),
            (gn.Hinge(), [[0.5, 1.0]], r"got other values, from 0\.5 to 1"),
            (gn.Hinge(squared=True), np.array([[127, 1]], "int8"), "from 1 to 127"),
            (gn.KLDivergence(), [[0.5, 0.6]], r"each row of the target must add up to 1.* 1\.1"),
            (gn.KLDivergence(), [[1.5, -0.5]], r"targets must be in \[0, 1"),
        ],
    )
    def test_for_which_a_loss_is_not_defined(
        self, place: Place, loss: gn.Loss, target: Any, told: str
    ) -> None:
        prediction, target = place.array([[0.1, 0.2]]), place.array(target)
        with pytest.raises(gn.errors.LabelError, match=told):
            loss(prediction, target)
        if str(place) == "numpy":
            assert loss.suspects(target, loss.forward(prediction, target))

    @pytest.mark.parametrize(
        ("loss", "target"),
        [
            (gn.Poisson(), np.array([[0, 3]], "uint8")),
            (gn.Hinge(), np.array([[True, False]])),
            (gn.Hinge(), np.array([[-1, 1]], "int8")),
            (gn.Hinge(), np.array([[0, 1]], "uint8")),
            (gn.KLDivergence(), np.array([[0.3, 0.7]], "float32")),
            (gn.KLDivergence(), np.array([[1, 0]])),
        ],
    )
    def test_for_which_it_is(self, place: Place, loss: gn.Loss, target: Any) -> None:
        prediction, target = place.array([[0.1, 0.2]]), place.array(target)
        assert math.isfinite(float(loss(prediction, target)))
        if str(place) == "numpy":
            assert not loss.suspects(target, loss.forward(prediction, target))

    def test_logarithms_of_probabilities_come_from_a_model_that_puts_them_out(self) -> None:
        loss = gn.KLDivergence(from_logits=False)
        bare = gn.Dense(3, 2)
        with pytest.raises(gn.errors.SettingError, match="end the model in LogSoftmax"):
            gn.Trainer(bare, loss, gn.SGD(bare.parameters()))
        model = gn.Sequential(gn.Dense(3, 2), gn.LogSoftmax())
        gn.Trainer(model, loss, gn.SGD(model.parameters()))
        with pytest.raises(gn.errors.SettingError, match=r"KLDivergence\(from_logits=False\)"):
            gn.Trainer(model, gn.KLDivergence(), gn.SGD(model.parameters()))

    def test_hinge_takes_both_kinds_of_signs(self, place: Place, rng: Any) -> None:
        z, yes = rng.standard_normal((N, 2)), rng.integers(0, 2, (N, 2))
        for loss in (gn.Hinge(), gn.Hinge(squared=True)):
            (a, da), (b, db) = cost(place, loss, z, yes), cost(place, loss, z, 2 * yes - 1)
            assert a == b
            assert (da == db).all()

    def test_a_target_that_points_nowhere(self, place: Place) -> None:
        each, grad = cost(
            place, gn.CosineDistance(reduction="none"), [[1.0, 2.0], [0.0, 0.0]], np.zeros((2, 2))
        )
        assert each.tolist() == [1.0, 1.0]
        assert not grad.any()


class TestLogisticRegression:
    def test_the_gradient(self, place: Place, rng: Any) -> None:
        model, loss = gn.logistic_regression(5, rng=0, dtype="float64", backend=place.backend)
        x, y, tape = rng.standard_normal((N, 5)), rng.integers(0, 2, N), gn.Tape()
        loss(model(place.array(x), tape), place.array(y), tape)
        model.backward(loss.backward(tape), tape)
        h = scipy.special.expit(x @ gn.to_numpy(model.weight.value))[:, 0]
        assert_allclose(gn.to_numpy(model.weight.grad)[:, 0], x.T @ (h - y) / N, rtol=1e-12)
        assert_allclose(gn.to_numpy(model.bias.grad), [(h - y).mean()], rtol=1e-12)

    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_the_optimum_is_that_of_scikit_learn(self, rng: Any, n_classes: int) -> None:
        x = rng.standard_normal((90, 4))
        y = np.clip(np.rint(x[:, 0] - x[:, 1] + rng.standard_normal(90) + 0.5), 0, n_classes - 1)
        y = y.astype(int)
        model, loss = gn.logistic_regression(4, n_classes, rng=0, dtype="float64")
        penalty = 1 / len(x)  # the mean of the losses here, their sum there; C = 1
        optimizer = gn.SGD(model.parameters(), 1.0, momentum=0.9, weight_decay=penalty)
        for _ in range(400):
            gn.train_step(model, loss, optimizer, x, y)
        theirs = sklearn.linear_model.LogisticRegression(tol=1e-12, max_iter=10_000).fit(x, y)
        assert_allclose(model.weight.value.T, theirs.coef_, atol=1e-6)
        assert_allclose(
            loss.probabilities(model(x))[:, -1], theirs.predict_proba(x)[:, -1], atol=1e-6
        )

    def test_what_it_is_made_of(self) -> None:
        assert repr(gn.logistic_regression(3)) == "(Dense(3, 1), BinaryCrossEntropy())"
        assert repr(gn.logistic_regression(3, 5)) == "(Dense(3, 5), SoftmaxCrossEntropy())"
        with pytest.raises(gn.errors.SettingError, match="at least 2"):
            gn.logistic_regression(3, 1)
