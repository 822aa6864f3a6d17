"""Laws that every layer and every loss obeys, over the one table of cases, on every backend."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from tests.cases import ACTIVATIONS, LAYERS, LOSSES, LayerCase, LossCase
from tests.conftest import Place

GRADIENT_TOLERANCE = 1e-6  # relative, in float64
by_name = {"ids": lambda case: case.name}


@pytest.fixture(params=LAYERS, **by_name)
def layer_case(request: pytest.FixtureRequest) -> LayerCase:
    return request.param


@pytest.fixture(params=LOSSES, **by_name)
def loss_case(request: pytest.FixtureRequest) -> LossCase:
    return request.param


@pytest.fixture(params=["mean", "sum", "none"])
def reduction(request: pytest.FixtureRequest) -> str:
    return request.param


def ones_like(x: Any) -> Any:
    """Return a gradient of the shape of an output, not all alike."""
    shape = tuple(x.shape)
    values = np.linspace(0.5, 1.5, int(np.prod(shape))).reshape(shape)
    place = gn.backend_of(x)
    assert place is not None
    return place.asarray(values, str(x.dtype).rpartition(".")[2])


def same(a: Any, b: Any) -> bool:
    a, b = gn.to_numpy(a), gn.to_numpy(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_the_table_holds_every_public_layer_and_loss() -> None:
    public = [getattr(gn, name) for name in gn.__all__]
    classes = [item for item in public if isinstance(item, type)]
    layers = {kind for kind in classes if issubclass(kind, gn.Layer)} - {gn.Layer, gn.Activation}
    losses = {kind for kind in classes if issubclass(kind, gn.Loss)} - {gn.Loss}
    assert layers == {kind for case in LAYERS for kind in case.kinds}
    assert losses == {type(case.make()) for case in LOSSES}
    assert {type(case.make("float32")) for case in ACTIVATIONS} == {
        kind for kind in layers if issubclass(kind, gn.Activation)
    }


class TestLayers:
    def test_backward_is_the_derivative(self, place: Place, layer_case: LayerCase) -> None:
        layer = layer_case.make("float64").to(place.backend)
        report = gn.check_gradients(layer, place.array(layer_case.x()), max_entries=24)
        assert report.error < GRADIENT_TOLERANCE, report
        assert layer_case.tokens or report.checked >= min(24, layer_case.x().size)

    def test_backward_is_the_derivative_under_residual(
        self, place: Place, layer_case: LayerCase
    ) -> None:
        if not layer_case.keeps_shape:
            layer_case = LayerCase("Flatten", lambda _: gn.Flatten())  # the rest change the shape
        layer = gn.Residual(layer_case.make("float64").to(place.backend))
        report = gn.check_gradients(layer, place.array(layer_case.x()), max_entries=24)
        assert report.error < GRADIENT_TOLERANCE, report

    @pytest.mark.parametrize("n", [0, 1, 5])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_pass_keeps_what_it_must(
        self, place: Place, layer_case: LayerCase, n: int, dtype: str
    ) -> None:
        layer = layer_case.make(dtype).to(place.backend)
        x = place.array(layer_case.x(n), layer_case.dtype(dtype))
        x_before = np.array(gn.to_numpy(x))
        tape = gn.Tape(rng=0)
        if n == 1 and not layer_case.alone:
            with pytest.raises(gn.errors.ShapeError, match="more than one entry"):
                layer(x, tape)
            return
        y = layer(x, tape)
        grad = ones_like(y)
        grad_before, y_before = np.array(gn.to_numpy(grad)), np.array(gn.to_numpy(y))
        grad_x = layer.backward(grad, tape)
        assert len(tape) == 0
        assert same(x, x_before)
        assert same(grad, grad_before)
        assert same(y, y_before)
        assert y.shape[0] == n
        grads = [p.grad for p in layer.parameters()]
        if layer_case.tokens:
            assert grad_x is None
        else:
            assert grad_x.shape == x.shape
            grads.append(grad_x)
        for array in (y, *grads):
            assert gn.backend_of(array) == place.backend
            assert gn.to_numpy(array).dtype == dtype
        for parameter in layer.parameters():
            assert parameter.grad.shape == parameter.value.shape
            assert n > 0 or not gn.to_numpy(parameter.grad).any()

    def test_two_passes_add_their_gradients(self, place: Place, layer_case: LayerCase) -> None:
        layer = layer_case.make("float64").to(place.backend)
        inputs = [place.array(layer_case.x(seed=seed)) for seed in (1, 2)]
        alone = []
        for x in inputs:
            single, tape = copy.deepcopy(layer), gn.Tape(rng=7)
            single.backward(ones_like(single(x, tape)), tape)
            alone.append([gn.to_numpy(p.grad) for p in single.parameters()])
        tapes = [gn.Tape(rng=7), gn.Tape(rng=7)]
        outputs = [layer(x, tape) for x, tape in zip(inputs, tapes, strict=True)]
        for y, tape in zip(outputs, tapes, strict=True):
            layer.backward(ones_like(y), tape)
        for parameter, first, second in zip(layer.parameters(), *alone, strict=True):
            np.testing.assert_allclose(gn.to_numpy(parameter.grad), first + second, rtol=1e-12)

    def test_parameters_learn_the_same_without_the_input_gradient(
        self, place: Place, layer_case: LayerCase
    ) -> None:
        grads = []
        for input_grad in (True, False):
            layer = layer_case.make("float32").to(place.backend)
            tape = gn.Tape(rng=0, input_grad=input_grad)
            y = layer(place.array(layer_case.x(), layer_case.dtype("float32")), tape)
            layer.backward(ones_like(y), tape)
            grads.append([p.grad for p in layer.parameters()])
        assert all(same(a, b) for a, b in zip(*grads, strict=True))

    def test_inference_stores_nothing_and_agrees(self, place: Place, layer_case: LayerCase) -> None:
        layer = layer_case.make("float32").to(place.backend)
        x = place.array(layer_case.x(), layer_case.dtype("float32"))
        tape = gn.Tape(training=False)
        assert same(layer(x), layer(x, tape))
        if not layer_case.random:
            assert same(layer(x), layer(x, gn.Tape()))

    def test_files_give_back_the_same_model(
        self, place: Place, layer_case: LayerCase, tmp_path: Any
    ) -> None:
        layer = layer_case.make("float32").to(place.backend)
        gn.save(tmp_path / "model.safetensors", layer)
        other = layer_case.make("float32").to(place.backend)
        for parameter in other.parameters():
            parameter.value += 1.0
        assert gn.load(tmp_path / "model.safetensors", other) == ([], [])
        x = place.array(layer_case.x(), layer_case.dtype("float32"))
        assert same(layer(x), other(x))

    def test_the_repr_makes_the_same_layer(self, layer_case: LayerCase) -> None:
        layer = layer_case.make("float32")
        assert repr(eval(repr(layer), vars(gn))) == repr(layer)  # noqa: S307

    def test_a_move_there_and_back_keeps_every_bit(
        self, place: Place, layer_case: LayerCase
    ) -> None:
        layer = layer_case.make("float32")
        before = {name: np.array(p.value) for name, p in layer.named_parameters().items()}
        assert layer.to(place.backend) is layer
        moved = layer.named_parameters()
        assert all(gn.backend_of(p.value) == place.backend for p in moved.values())
        assert all(same(p.value, before[name]) for name, p in moved.items())
        layer.to("numpy")
        assert all(same(p.value, before[name]) for name, p in layer.named_parameters().items())

    def test_the_summary_counts_every_parameter(self, layer_case: LayerCase) -> None:
        layer = layer_case.make("float32")
        total = sum(parameter.value.size for parameter in layer.parameters())
        assert f"{total:,} parameters" in layer.summary(layer_case.sample)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", ACTIVATIONS, **by_name)
def test_activations_are_stable(place: Place, case: LayerCase, dtype: str) -> None:
    layer = case.make(dtype)
    values = [[-1e4, 0.0, 1e4], [1e4, 1e4, 1e4], [-1e4, -1e4, -1e4], [-88.0, 88.0, 30.0]]
    tape = gn.Tape()
    y = layer(place.array(values, dtype), tape)
    grad = layer.backward(ones_like(y), tape)
    assert np.isfinite(gn.to_numpy(y)).all()
    assert np.isfinite(gn.to_numpy(grad)).all()


class TestLosses:
    @pytest.mark.parametrize("weighted", [False, True])
    def test_backward_is_the_derivative(
        self, place: Place, loss_case: LossCase, reduction: str, weighted: bool
    ) -> None:
        prediction, target = loss_case.data()
        weight = place.array(np.linspace(0.0, 2.0, len(prediction))) if weighted else None
        report = gn.check_gradients(
            loss_case.make(reduction=reduction),
            place.array(prediction),
            place.array(target),
            sample_weight=weight,
        )
        assert report.error < GRADIENT_TOLERANCE, report
        assert report.checked == prediction.size

    @pytest.mark.parametrize("n", [0, 1, 6])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_a_pass_keeps_what_it_must(
        self, place: Place, loss_case: LossCase, reduction: str, n: int, dtype: str
    ) -> None:
        prediction, target = loss_case.data(n)
        x, y = place.array(prediction, dtype), place.array(target)
        tape = gn.Tape()
        loss = loss_case.make(reduction=reduction)
        cost = loss(x, y, tape)
        grad = loss.backward(tape)
        assert len(tape) == 0
        assert same(x, prediction.astype(dtype))
        assert same(y, target)
        assert tuple(cost.shape) == ((n,) if reduction == "none" else ())
        assert grad.shape == x.shape
        for array in (cost, grad):
            assert gn.backend_of(array) == place.backend
            assert array.dtype == x.dtype
            assert np.isfinite(gn.to_numpy(array)).all()
        assert n > 0 or reduction == "none" or float(cost) == 0.0

    def test_reductions_agree(self, place: Place, loss_case: LossCase) -> None:
        prediction, target = (place.array(part) for part in loss_case.data())
        weight = np.linspace(0.5, 2.0, prediction.shape[0])
        each, total, mean = (
            gn.to_numpy(
                loss_case.make(reduction=reduction)(
                    prediction, target, sample_weight=place.array(weight)
                )
            )
            for reduction in ("none", "sum", "mean")
        )
        counted = loss_case.make().total_weight(prediction, target, place.array(weight))
        np.testing.assert_allclose(each.sum(), total, rtol=1e-12)
        np.testing.assert_allclose(total / gn.to_numpy(counted), mean, rtol=1e-12)

    def test_a_weight_of_two_is_a_sample_seen_twice(
        self, place: Place, loss_case: LossCase
    ) -> None:
        prediction, target = loss_case.data()
        times = np.array([1, 2, 1, 3, 1, 0])
        loss = loss_case.make()
        weighted = loss(
            place.array(prediction),
            place.array(target),
            sample_weight=place.array(times, "float64"),
        )
        repeated = loss(
            place.array(prediction.repeat(times, axis=0)), place.array(target.repeat(times, axis=0))
        )
        np.testing.assert_allclose(gn.to_numpy(weighted), gn.to_numpy(repeated), rtol=1e-12)

    def test_weights_that_are_all_zero_cost_nothing(
        self, place: Place, loss_case: LossCase
    ) -> None:
        prediction, target = (place.array(part) for part in loss_case.data())
        tape, loss = gn.Tape(), loss_case.make()
        weight = place.array(np.zeros(prediction.shape[0]))
        assert float(loss(prediction, target, tape, weight)) == 0.0
        assert not gn.to_numpy(loss.backward(tape)).any()

    def test_the_repr_makes_the_same_loss(self, loss_case: LossCase, reduction: str) -> None:
        loss = loss_case.make(reduction=reduction)
        assert repr(eval(repr(loss), vars(gn))) == repr(loss)  # noqa: S307
