"""A formula counts as it is written: in a subclass, on an object, or put into a class later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import Place
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from gpunn.kernels import kernels
from gpunn.kernels.declared import kernel_of

X = np.linspace(-2.0, 2.0, 40).reshape(8, 5)
TARGETS: dict[type[gn.Loss], Any] = {
    gn.MeanSquaredError: np.linspace(-1.0, 1.0, 40).reshape(8, 5),
    gn.SoftmaxCrossEntropy: np.arange(8) % 5,
    gn.CrossEntropy: np.arange(8) % 5,
    gn.BinaryCrossEntropy: np.arange(40).reshape(8, 5) % 2,
}
LOSSES = sorted(TARGETS, key=lambda kind: kind.__name__)
ACTIVATIONS = [kind for kind in vars(gn).values() if isinstance(kind, type)]
ACTIVATIONS = [k for k in ACTIVATIONS if issubclass(k, gn.Activation) and k is not gn.Activation]


class Huber(gn.MeanSquaredError):
    """Squared up to an error of 1, and from there on linear."""

    def per_sample(self, prediction: Any, target: Any, scale: Any) -> tuple[Any, Any]:
        xp = kernels(prediction).xp
        error = prediction - target
        near = xp.minimum(xp.abs(error), 1.0)
        losses = xp.sum(near * (xp.abs(error) - 0.5 * near), axis=1)
        by_row = scale[:, None] if getattr(scale, "ndim", 0) else scale
        return scale * losses, by_row * (xp.sign(error) * near)


def triple(per_sample: Callable[..., Any]) -> Callable[..., Any]:
    """Return a formula with three times the loss and its gradient."""

    def tripled(*arguments: Any) -> tuple[Any, Any]:
        losses, grad = per_sample(*arguments)
        return 3.0 * losses, 3.0 * grad

    return tripled


def cost_and_grad(loss: gn.Loss, place: Place) -> tuple[Any, Any]:
    x = place.array(X)
    if isinstance(loss, gn.CrossEntropy) and not loss.from_logits:
        x = gn.Softmax()(x)
    target, tape = place.array(TARGETS[next(k for k in LOSSES if isinstance(loss, k))]), gn.Tape()
    cost = gn.to_numpy(loss(x, target, tape))
    return cost, gn.to_numpy(loss.backward(tape))


class TestLosses:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_subclass_trains_by_its_own_formula(self, place: Place, dtype: str) -> None:
        x, y = place.array(3 * X, dtype), place.array(TARGETS[gn.MeanSquaredError], dtype)
        tapes = gn.Tape(), gn.Tape()
        mean = Huber()(x, y, tapes[0])
        each = Huber(reduction="none")(x, y, tapes[1])
        error = 3 * X - TARGETS[gn.MeanSquaredError]
        huber = np.where(np.abs(error) < 1, 0.5 * error**2, np.abs(error) - 0.5).sum(axis=1)
        rtol = 1e-5 if dtype == "float32" else 1e-12
        assert_allclose(gn.to_numpy(each), huber, rtol=rtol)
        assert_allclose(float(mean), huber.mean(), rtol=rtol)
        (of_mean,), (of_each,) = (tape.entries()[0][1] for tape in tapes)
        assert_allclose(gn.to_numpy(of_mean) * 8, gn.to_numpy(of_each), rtol=rtol)

    @pytest.mark.parametrize("kind", LOSSES)
    def test_on_a_subclass_or_an_object(self, place: Place, kind: type[gn.Loss]) -> None:
        own = type("Own", (kind,), {"per_sample": triple(kind.per_sample)})
        changed = kind()
        changed.per_sample = triple(changed.per_sample)  # type: ignore[method-assign]
        cost, grad = cost_and_grad(kind(), place)
        for loss in (own(), type("Further", (own,), {})(), changed):
            got = cost_and_grad(loss, place)
            assert_allclose(got[0], 3 * cost, rtol=1e-12)
            assert_allclose(got[1], 3 * grad, rtol=1e-12)

    def test_a_cost_counts_for_the_formula_that_it_was_written_with(self) -> None:
        class Both(gn.MeanSquaredError):
            def per_sample(self, *arguments: Any) -> Any:
                return triple(super().per_sample)(*arguments)

            def cost(self, *arguments: Any) -> Any:
                losses, grad = super().per_sample(*arguments)
                return 5.0 * losses.sum(), 5.0 * grad

        class Again(Both):
            def per_sample(self, *arguments: Any) -> Any:
                return triple(super().per_sample)(*arguments)

        place = Place(gn.get_backend("numpy"))
        plain, _ = cost_and_grad(gn.MeanSquaredError(), place)
        assert_allclose(cost_and_grad(Both(), place)[0], 5 * plain)
        assert_allclose(cost_and_grad(Again(), place)[0], 9 * plain)


def twice(kind: type[gn.Activation]) -> dict[str, Any]:
    """Return the formula of an activation with twice its slope."""
    return {
        "function": lambda self, xp, x: kind.function(self, xp, x) + 1.0 * x,
        "gradient": lambda self, xp, grad, x: grad * 0.0 + 5.0,
        "saves_output": False,
    }


def through(activation: gn.Activation, place: Place, *, dense: bool) -> tuple[Any, Any]:
    """Return what a network makes of X with an activation, and the gradient of its input."""
    x = place.array(np.tile(X, (1, 200)), "float64")  # enough for kernels of large arrays
    layer: gn.Layer = activation
    if dense:
        layer = gn.Dense(1000, 1000, activation, dtype="float64", init=lambda *_: np.eye(1000))
        layer.to(place.backend)
    tape = gn.Tape()
    h = gn.to_numpy(layer(x, tape))
    return h, gn.to_numpy(layer.backward(place.array(np.ones((8, 1000))), tape))


@pytest.mark.parametrize("dense", [False, True], ids=["alone", "in Dense"])
@pytest.mark.parametrize("kind", ACTIVATIONS)
class TestActivations:
    def test_of_a_subclass(self, place: Place, kind: type[gn.Activation], dense: bool) -> None:
        own = type("Own", (kind,), twice(kind))
        further = type("Further", (own,), {})
        x = np.tile(X, (1, 200))
        wanted = gn.to_numpy(kind()(place.array(x))) + x
        for activation in (own(), further()):
            h, grad = through(activation, place, dense=dense)
            assert_allclose(h, wanted, rtol=1e-9, atol=1e-12)
            assert_allclose(grad, 5.0)

    def test_of_an_object(self, place: Place, kind: type[gn.Activation], dense: bool) -> None:
        activation = kind()
        formula = twice(kind)
        for name in ("function", "gradient"):
            method = formula[name].__get__(activation)
            setattr(activation, name, method)
        activation.saves_output = False
        wanted = gn.to_numpy(kind()(place.array(np.tile(X, (1, 200))))) + np.tile(X, (1, 200))
        h, grad = through(activation, place, dense=dense)
        assert_allclose(h, wanted, rtol=1e-9, atol=1e-12)
        assert_allclose(grad, 5.0)

    def test_of_a_class_later(
        self, kind: type[gn.Activation], dense: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kind, "gradient", lambda self, xp, grad, saved: grad * 0.0 + 5.0)
        place = Place(gn.get_backend("numpy"))
        assert_array_equal(through(kind(), place, dense=dense)[1], np.full((8, 1000), 5.0))


def test_kernels_go_by_the_class_that_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_of(gn.ReLU()) == "relu"
    assert kernel_of(gn.GELU()) == "gelu"
    assert kernel_of(gn.Softmax()) == "softmax"
    assert kernel_of(type("Own", (gn.ReLU,), {})()) is None
    assert kernel_of(type("Own", (gn.ReLU,), {"kernel": "relu"})()) == "relu"
    assert kernel_of(object()) is None
    monkeypatch.setattr(gn.ReLU, "function", gn.ReLU.function)
    assert kernel_of(gn.ReLU()) == "relu"
    monkeypatch.setattr(gn.ReLU, "function", gn.Tanh.function)
    assert kernel_of(gn.ReLU()) is None


class Leaky(gn.LeakyReLU):
    """Learns the slope below zero, which the class it is derived from is given."""

    def __init__(self) -> None:
        super().__init__(0.1)
        self.slope = gn.Parameter(np.float64([0.1]))

    def function(self, xp: Any, x: Any) -> Any:
        return xp.maximum(x, 0.0) + self.slope.value * xp.minimum(x, 0.0)

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        (h,) = tape.pop(self)
        below = np.minimum(h, 0.0) / self.slope.value
        self.slope.add_grad(np.asarray([(grad * below).sum()]))
        return grad * np.where(h > 0, 1.0, self.slope.value)


@pytest.mark.parametrize("kind", [gn.ReLU, gn.Flatten, gn.Dropout])
def test_a_class_that_adds_parameters_trains_them(kind: type[gn.Layer]) -> None:
    """What its base says, that it has none, does not hold for it."""
    assert not kind.has_parameters
    assert type("Own", (kind,), {}).has_parameters
    assert not type("Own", (kind,), {"has_parameters": False}).has_parameters
    model = gn.Sequential(Leaky(), gn.Dense(5, 5, rng=0, dtype="float64"))
    tape = gn.Tape(input_grad=False)
    model(X, tape)
    model.backward(np.ones((8, 5)), tape)
    assert model[0].slope.grad is not None
    with_kernel = type("Own", (gn.Activation,), {"kernel": "none", "gradient": None})
    assert not with_kernel.has_parameters


@pytest.mark.parametrize(
    "loss", [gn.BinaryCrossEntropy(), gn.BinaryCrossEntropy(from_logits=False)], ids=repr
)
def test_what_a_head_means_is_said_by_its_own_class(loss: gn.Loss) -> None:
    """A subclass may put out anything: only the library's own formulas are known."""
    signed = type("Signed", (gn.Sigmoid,), {"function": lambda _, xp, x: xp.tanh(x)})()
    given = type("Given", (type(loss),), {"per_sample": type(loss).per_sample})
    for head, cost in ((signed, loss), (None, given(from_logits=loss.from_logits))):
        model = gn.Dense(5, 1, head, rng=0)
        gn.Trainer(model, cost, gn.SGD(model.parameters()))
    known = gn.Dense(5, 1, "sigmoid" if loss.from_logits else None, rng=0)
    with pytest.raises(gn.errors.SettingError, match="the model ends"):
        gn.Trainer(known, loss, gn.SGD(known.parameters()))


@pytest.mark.filterwarnings("ignore:Maximum iterations")
@pytest.mark.parametrize("base", [gn.SoftmaxCrossEntropy, gn.BinaryCrossEntropy])
@pytest.mark.parametrize("on_the_object", [False, True])
def test_an_estimator_takes_probabilities_from_the_loss(
    base: type[gn.Loss], on_the_object: bool
) -> None:
    """Their logarithms, too, where the loss has a meaning of its own for outputs."""
    estimators = pytest.importorskip("gpunn.estimators", reason="needs scikit-learn")

    def sharpened(self: Any, z: Any) -> Any:
        return base.probabilities(self, 3.0 * z)

    loss = base() if on_the_object else type("Sharp", (base,), {"probabilities": sharpened})()
    if on_the_object:
        loss.probabilities = sharpened.__get__(loss)  # type: ignore[method-assign]
    y = np.arange(8) % (3 if base is gn.SoftmaxCrossEntropy else 2)
    model = estimators.MLPClassifier((4,), max_iter=400, loss=loss, random_state=0).fit(X, y)
    p = model.predict_proba(X)
    assert_allclose(np.exp(model.predict_log_proba(X)), p, rtol=1e-6)
    plain = estimators.MLPClassifier((4,), max_iter=400, loss=base(), random_state=0).fit(X, y)
    assert np.abs(p - plain.predict_proba(X)).max() > 0.01


def test_a_formula_put_into_a_class_later_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In subclasses, too, whenever they were made: the cost is that of the old formula."""
    before = type("Before", (gn.MeanSquaredError,), {})
    z, y = np.array([[5.0], [0.5]]), np.zeros((2, 1))
    want = float(Huber()(z, y))
    monkeypatch.setattr(gn.MeanSquaredError, "per_sample", Huber.per_sample)
    after = type("After", (gn.MeanSquaredError,), {})
    for kind in (gn.MeanSquaredError, before, after):
        assert float(kind()(z, y)) == want
        assert float(kind(reduction="none")(z, y).mean()) == want
