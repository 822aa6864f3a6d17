"""A loop written by hand: what `train_step` looks at before any weight changes."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import gpunn as gn
from gpunn.errors import DTypeError, LabelError, SettingError, ShapeError
from gpunn.kernels import host

N, K = 6, 3
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, 4)).astype("float32")
LABELS = RNG.integers(0, K, N)
SOFT = np.eye(K, dtype="float32")[LABELS]


def labels(i: int, wrong: Any) -> Any:
    changed = LABELS.copy()
    changed[i] = wrong
    return changed


def soft(i: int, wrong: float) -> Any:
    changed = SOFT.copy()
    changed[i, 1] = wrong
    return changed


def network(outputs: int = K, head: str | None = None) -> gn.Sequential:
    return gn.Sequential(
        gn.Dense(4, 5, "relu", rng=0), gn.Dropout(0.5), gn.Dense(5, outputs, head, rng=1)
    )


def state(model: gn.Layer, optimizer: gn.Optimizer) -> list[Any]:
    arrays = [*(p.value for p in model.parameters()), *chain.from_iterable(optimizer._states)]
    return [gn.to_numpy(x).copy() for x in arrays]


def attempt(
    loss: gn.Loss, y: Any, error: type[Exception], told: str, head: str | None = None
) -> None:
    """Check that a step is refused, nothing has changed, and that a good one may follow."""
    outputs = 1 if isinstance(loss, gn.BinaryCrossEntropy) and y.ndim == 1 else K
    model = network(outputs, head)
    optimizer = gn.Adam(model.parameters(), 0.1)
    good = (LABELS > 0) * 1.0 if outputs == 1 else SOFT
    gn.train_step(model, loss, optimizer, X, good, rng=0)
    before = state(model, optimizer)
    with pytest.raises(error, match=told):
        gn.train_step(model, loss, optimizer, X, y, rng=0)
    for a, b in zip(state(model, optimizer), before, strict=True):
        assert_array_equal(a, b)
    assert (optimizer.steps, optimizer.updates) == (1, 1)
    assert [p.grad for p in model.parameters()] == [None] * 4
    cost, _ = gn.train_step(model, loss, optimizer, X, good, rng=0)
    assert math.isfinite(float(np.sum(cost)))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("class_weight", [None, {1: 2.0}, [0.0, 1.0, 0.0]], ids=repr)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
class TestClasses:
    @pytest.mark.parametrize("kind", [gn.SoftmaxCrossEntropy, gn.CrossEntropy])
    @pytest.mark.parametrize(
        ("y", "told"),
        [
            (LABELS + 1, r"labels must be in 0\.\.2; got labels from 1 to 3"),
            (labels(2, -1), r"labels must be in 0\.\.2; got labels from -1 to "),
            (labels(5, 3).astype("int32"), r"0\.\.2; got labels from 0 to 3"),
            (labels(0, 200).astype("uint8"), r"0\.\.2; got labels from . to 200"),
        ],
        ids=["1..3", "-1", "int32", "uint8"],
    )
    def test_labels(
        self, kind: Any, y: Any, told: str, reduction: Any, class_weight: Any, smoothing: float
    ) -> None:
        loss = kind(reduction=reduction, class_weight=class_weight, label_smoothing=smoothing)
        head = "softmax" if kind is gn.CrossEntropy else None
        attempt(loss, y, LabelError, told, head)

    @pytest.mark.parametrize("kind", [gn.SoftmaxCrossEntropy, gn.CrossEntropy])
    @pytest.mark.parametrize("wrong", [-0.5, math.nan])
    def test_soft_targets(
        self, kind: Any, wrong: float, reduction: Any, class_weight: Any, smoothing: float
    ) -> None:
        loss = kind(reduction=reduction, class_weight=class_weight, label_smoothing=smoothing)
        head = "softmax" if kind is gn.CrossEntropy else None
        attempt(loss, soft(2, wrong), LabelError, r"targets must be in \[0, inf\]", head)


def test_labels_that_are_no_integers() -> None:
    told = "class labels must be integers, got float64"
    attempt(gn.SoftmaxCrossEntropy(), LABELS * 1.0, DTypeError, told)
    attempt(gn.SoftmaxCrossEntropy(), LABELS[:, None], ShapeError, "got \\(6, 1\\)")


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize(
    ("y", "told"),
    [
        (np.where(LABELS > 0, 1, -1), r"must be in \[0, 1\], got values from -1 to 1"),
        (np.where(LABELS > 0, 1.0, -1.0), "got values from -1 to 1"),
        (LABELS, r"got values from 0 to 2"),
        (LABELS * np.float32(0.75), "got values from 0 to 1.5"),
        (np.where(LABELS > 0, 1.0, math.nan), "got values from nan to nan"),
        (soft(3, -0.25), "got values from -0.25 to 1"),
    ],
    ids=["-1 and 1", "-1.0 and 1.0", "0..2", "above 1", "nan", "(N, P)"],
)
def test_binary_targets(y: Any, told: str, from_logits: bool, reduction: Any) -> None:
    loss = gn.BinaryCrossEntropy(from_logits=from_logits, reduction=reduction)
    attempt(loss, y, LabelError, told, None if from_logits else "sigmoid")


@pytest.mark.parametrize(
    "y", [LABELS > 0, (LABELS > 0).astype("int8"), (LABELS > 0) * 0.5, LABELS[:0] * 1.0]
)
def test_targets_that_are_right(y: Any) -> None:
    model = network(1)
    cost, _ = gn.train_step(
        model, gn.BinaryCrossEntropy(), gn.SGD(model.parameters()), X[: len(y)], y
    )
    assert math.isfinite(float(cost))


def test_a_cost_that_is_nan_for_other_reasons_is_returned() -> None:
    x = X.copy()
    x[0, 0] = math.nan
    for loss, y in (
        (gn.SoftmaxCrossEntropy(), LABELS),
        (gn.MeanSquaredError(), SOFT),
        (gn.BinaryCrossEntropy(), SOFT),
    ):
        model = network()
        cost, _ = gn.train_step(model, loss, gn.SGD(model.parameters()), x, y)
        assert math.isnan(float(cost))


def test_a_loss_of_the_users_own() -> None:
    class Picky(gn.MeanSquaredError):
        def check_target(self, target: Any, output_shape: Any) -> None:
            super().check_target(target, output_shape)
            if not np.isfinite(target).all():
                raise LabelError("Picky: a target is not finite")

    model = network()
    with pytest.raises(LabelError, match="Picky"):
        gn.train_step(model, Picky(), gn.SGD(model.parameters()), X, soft(1, math.nan))


@pytest.mark.parametrize(
    ("x", "within"),
    [
        ([0.0, 1.0], True),
        ([0.0, 1.5], False),
        ([-0.5, 1.0], False),
        ([0.5, math.nan], False),
        ([], True),
        (0.5, True),
        (math.inf, False),
        ([[0, 1], [1, 2]], False),
        ([True, False], True),
        (np.array([0, 255], "uint8"), False),
    ],
    ids=repr,
)
def test_a_look_at_the_host(x: Any, within: bool) -> None:
    x = np.array(x)
    assert host.lies_within(x, 0.0, 1.0) is within
    assert host.has_nan(x) is bool(np.isnan(x).any())
    assert host.is_on_host(x)
    assert not host.is_on_host(gn.get_backend("array-api-strict").asarray(x))


def test_a_device_is_not_asked() -> None:
    model = network().to("array-api-strict")
    place = gn.get_backend("array-api-strict")
    x, y = place.asarray(X), place.asarray(labels(0, K))
    cost, _ = gn.train_step(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters()), x, y)
    assert math.isnan(float(cost))


def test_it_is_said_where_it_is_read() -> None:
    for item in (gn.train_step, gn.Loss.forward):
        text = " ".join(str(item.__doc__).split())
        assert "NaN" in text
        assert "not checked" in text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": None}, "train_step: model must be a Layer, got NoneType"),
        ({"model": gn.Dense}, "train_step: model must be a Layer, got the class Dense"),
        ({"loss": "mse"}, "train_step: loss must be a Loss, got str"),
        ({"loss": gn.SoftmaxCrossEntropy}, r"got the class .*; write SoftmaxCrossEntropy\(\)"),
        ({"optimizer": "sgd"}, "train_step: optimizer must be an Optimizer, got str"),
        ({"optimizer": gn.SGD}, r"train_step: .* write SGD\(model\.parameters\(\)\)"),
    ],
)
def test_parts_of_the_wrong_kind(wrong: dict[str, Any], message: str) -> None:
    model = network()
    given = {
        "model": model,
        "loss": gn.SoftmaxCrossEntropy(),
        "optimizer": gn.SGD(model[0:1].parameters()),
    }
    with pytest.raises(SettingError, match=message):
        gn.train_step(**given | wrong, x=X, y=LABELS)


@pytest.mark.parametrize("name", ["y", "sample_weight"])
@pytest.mark.parametrize("given", [[1.0] * N, "x", 1.0])
def test_targets_and_weights_that_are_no_arrays(name: str, given: Any) -> None:
    model = network()
    batch = {"x": X, "y": LABELS, "sample_weight": None} | {name: given}
    said = {"y": "target"}.get(name, name)
    wanted = rf"SoftmaxCrossEntropy\(\): expected an array as {said}, got {type(given).__name__}"
    with pytest.raises(DTypeError, match=wanted):
        gn.train_step(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters()), **batch)


def test_labels_of_variable_width_strings() -> None:
    words = np.array(["no", "yes"] * N, dtype=np.dtypes.StringDType())[:N]
    model = network()
    for loss in (gn.SoftmaxCrossEntropy(), gn.CrossEntropy()):
        with pytest.raises(DTypeError, match=r"class labels must be integers, got StringDType"):
            gn.train_step(model, loss, gn.SGD(model.parameters()), X, words)
        with pytest.raises(DTypeError, match=r"class labels must be integers, got StringDType"):
            loss(model(X), words)
    with pytest.raises(DTypeError, match=r"expected floating-point x, got StringDType"):
        model(words)


def test_an_optimizer_of_another_model() -> None:
    model, other = gn.Dense(2, 1, rng=0), gn.Dense(2, 1, rng=0)
    x = np.ones((4, 2), np.float32)
    before = model.weight.value.copy()
    with pytest.raises(SettingError, match=r"holds none of the model's parameters; .*SGD\("):
        gn.train_step(model, gn.MeanSquaredError(), gn.SGD(other.parameters(), 0.1), x, x[:, :1])
    assert np.array_equal(model.weight.value, before)


def test_a_layer_that_came_too_late_is_named(caplog: pytest.LogCaptureFixture) -> None:
    model = gn.Sequential(gn.Dense(2, 2, rng=0))
    optimizer = gn.SGD(model.parameters(), 0.1)
    model.layers.append(gn.Dense(2, 1, rng=0))
    x = np.ones((4, 2), np.float32)
    for _ in range(2):
        gn.train_step(model, gn.MeanSquaredError(), optimizer, x, x[:, :1])
    assert caplog.text.count("layers.1.weight, layers.1.bias will not be trained") == 1
