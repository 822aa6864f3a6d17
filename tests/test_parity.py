"""NumPy against the other backends: the same bits where nothing rounds, near elsewhere."""

from __future__ import annotations

import importlib
import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits

import gpunn as gn
from gpunn.training.readings import Readings
from tests.cases import LAYERS, LOSSES, LayerCase, LossCase
from tests.conftest import Place, get_place
from tests.waiting import check_that_nothing_waits

HOST = get_place("numpy")
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])

# How far two backends may be apart, in units in the last place of an array's largest entry.
#
# Nothing: these move numbers, or multiply each by one number.
EXACT = {
    "Identity",
    "ReLU",
    "Flatten",
    "Reshape",
    "Dropout",
    "Dropout(0)",
    "Residual(ReLU)",
    "Sequential()",
}
# A few operations on each entry, or sums and products over the few features of a case: exp, log and
# tanh are right to 2 units in CUDA and to 1 in NumPy, and sums may be taken in any order.
ULPS = 16
# 50 updates of a network of 64-32-10. A change of one unit in all weights changes the losses by at
# most 4, and the weights by 5 with SGD and 11 with Adam (measured over five seeds: training forgets
# such errors rather than adding to them), a product over 64 features by some 8; cuBLAS is free to
# sum in any order. TF32 is off in CuPy.
ULPS_50_STEPS = 100


@pytest.fixture(
    params=[
        "array-api-strict:1",
        pytest.param("cupy", marks=pytest.mark.gpu),
        pytest.param("cupy, the last device", marks=pytest.mark.gpu),
    ]
)
def other(request: pytest.FixtureRequest) -> Place:
    """Return what NumPy is compared with; the last device is not the current one, if it can be."""
    if not request.param.endswith("device"):
        return get_place(request.param)
    get_place("cupy")
    count = importlib.import_module("cupy").cuda.runtime.getDeviceCount()
    return get_place(f"cupy:{count - 1}")


def assert_near(got: dict[str, Any], want: dict[str, Any], dtype: str, ulps: float) -> None:
    assert got.keys() == want.keys()
    for name, array in want.items():
        a, b = gn.to_numpy(got[name]), gn.to_numpy(array)
        assert a.dtype == b.dtype == dtype
        atol = float(ulps * np.finfo(dtype).eps * np.abs(b).max(initial=0.0))
        assert_allclose(a, b, rtol=0, atol=atol, err_msg=name)


class TestOperations:
    @DTYPES
    @pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
    def test_layers(self, other: Place, case: LayerCase, dtype: str) -> None:
        def run(place: Place) -> dict[str, Any]:
            layer, tape = case.make(dtype).to(place.backend), gn.Tape(rng=0)
            y = layer(place.array(case.x(33), case.dtype(dtype)), tape)
            # No two entries alike, and no sum of them so small that rounding is all there is.
            grad = 0.5 + np.cos(np.arange(y.size)).reshape(tuple(y.shape))
            with place.backend.scope():  # a call of the layer enters it, backward alone does not
                grad_x = layer.backward(place.array(grad, dtype), tape)
            grads = {name: p.grad for name, p in layer.named_parameters().items()}
            return {"y": y, **({} if grad_x is None else {"x": grad_x}), **grads}

        assert_near(run(other), run(HOST), dtype, 0 if case.name in EXACT else ULPS)

    @DTYPES
    @pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.name)
    def test_losses(self, other: Place, case: LossCase, dtype: str) -> None:
        def run(place: Place) -> dict[str, Any]:
            prediction, target = case.data(33)
            arrays = [place.array(prediction, dtype), place.array(target)]
            weight, tape, loss = np.linspace(0, 2, 33), gn.Tape(), case.make()
            j = loss(*arrays, tape, place.array(weight, dtype))
            return {"j": j, "prediction": loss.backward(tape)}

        assert_near(run(other), run(HOST), dtype, ULPS)


class TestOneSeed:
    @DTYPES
    def test_gives_the_same_weights(self, other: Place, dtype: str) -> None:
        def run(place: Place) -> list[Any]:
            with gn.use(place.backend):
                rng = np.random.default_rng(3)
                layers = [gn.Dense(9, 7, name, rng=rng, dtype=dtype) for name in gn.ACTIVATIONS]
            assert all(layer.backend == place.backend for layer in layers)
            return [gn.to_numpy(p.value) for p in gn.Sequential(*layers).parameters()]

        for got, want in zip(run(other), run(HOST), strict=True):
            assert_array_equal(got, want)

    @DTYPES
    @pytest.mark.parametrize("resident", [True, False])
    def test_gives_the_same_batches(self, other: Place, dtype: str, resident: bool) -> None:
        def run(place: Place) -> list[Any]:
            x = np.linspace(-1, 1, 69).reshape(23, 3)
            settings = {"batch_size": 5, "rng": 7, "dtype": dtype, "resident": resident}
            data = gn.Loader(x, np.arange(23), backend=place.backend, **settings)
            return [gn.to_numpy(part) for _ in range(2) for b in data for part in (b.x, b.y)]

        for got, want in zip(run(other), run(HOST), strict=True):
            assert_array_equal(got, want)

    @DTYPES
    def test_gives_the_same_masks(self, other: Place, dtype: str) -> None:
        def run(place: Place) -> list[Any]:
            tape, x = gn.Tape(rng=5), place.array(np.ones((37, 11)), dtype)
            return [gn.to_numpy(gn.Dropout(rate)(x, tape)) for rate in (0.1, 0.5, 0.9)]

        for got, want in zip(run(other), run(HOST), strict=True):
            assert_array_equal(got, want)


OPTIMIZERS: dict[type[gn.Optimizer], dict[str, float]] = {
    gn.SGD: {"learning_rate": 0.1, "momentum": 0.9},
    gn.Adam: {"learning_rate": 0.01},
}


def digits_trainer(
    place: Place, dtype: str, make: type[gn.Optimizer] = gn.SGD, **settings: Any
) -> gn.Trainer:
    model = gn.Sequential(
        gn.Dense(64, 32, "relu", rng=1, dtype=dtype),
        gn.Dropout(0.3),
        gn.Dense(32, 10, rng=2, dtype=dtype),
    ).to(place.backend)
    optimizer = make(model.parameters(), **(OPTIMIZERS[make] | settings))
    return gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer, metrics=["accuracy"], rng=3)


class TestTraining:
    @DTYPES
    @pytest.mark.parametrize("make", OPTIMIZERS)
    def test_the_losses_of_50_steps(self, other: Place, dtype: str, make: Any) -> None:
        x, y = load_digits(return_X_y=True)

        def run(place: Place) -> dict[str, Any]:
            t, rng = digits_trainer(place, dtype, make), np.random.default_rng(3)
            data = gn.Loader(x / 16, y, backend=place.backend, dtype=dtype, rng=4)
            losses = [
                gn.to_numpy(gn.train_step(t.model, t.loss, t.optimizer, *batch, rng=rng)[0])
                for batch in islice(data, 50)
            ]
            weights = {n: p.value for n, p in t.model.named_parameters().items()}
            return {**{f"step {i}": j for i, j in enumerate(losses)}, **weights}

        got, want = run(other), run(HOST)
        assert want["step 49"] < 0.5 * want["step 0"]
        assert_near(got, want, dtype, ULPS_50_STEPS)

    def test_data_that_is_there_already(self, other: Place) -> None:
        x, y = load_digits(return_X_y=True)
        x, y, histories = (x[:200] / 16).astype("float32"), y[:200], []
        for bring in (lambda part: part, other.array):
            t = digits_trainer(other, "float32")
            data = gn.Loader(bring(x), bring(y), backend=other.backend, rng=4)
            history = t.fit(data, 2, validation=(bring(x), bring(y)))
            assert gn.backend_of(t.predict_proba(bring(x))) == other.backend
            names = [name for name in history.columns if "_s" not in name]
            histories.append([history[name] for name in names])
        assert histories[0] == histories[1]


@pytest.mark.gpu
class TestTheHostWaitsForNothing:
    """All is queued while the device is still busy; a wait would show as a device at rest."""

    @pytest.mark.parametrize("weight", [None, np.linspace(0, 2, 96)], ids=["", "weighted"])
    def test_in_an_epoch(self, weight: Any) -> None:
        place = get_place("cupy")
        t = digits_trainer(place, "float32", clip_norm=1.0, weight_decay=0.01)
        readings = Readings(t.loss, [*t.metrics, gn.TopK(2)])
        x, y = (part[:96] for part in load_digits(return_X_y=True))
        data = gn.Loader(x / 16, y, sample_weight=weight, backend=place.backend)

        def epoch() -> None:
            for batch in data:
                cost, prediction = gn.train_step(t.model, t.loss, t.optimizer, *batch)
                readings.add(cost, prediction, batch.y, batch.sample_weight)

        epoch()  # compiles the kernels
        check_that_nothing_waits(epoch)
        assert math.isfinite(readings.read()["loss"])

    @pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
    def test_in_layers(self, case: LayerCase) -> None:
        place = get_place("cupy")
        layer, x = (
            case.make("float32").to(place.backend),
            place.array(case.x(), case.dtype("float32")),
        )

        def step() -> None:
            tape = gn.Tape(rng=0)
            y = layer.forward(x, tape)
            layer.backward(y, tape)

        step()  # compiles the kernels
        check_that_nothing_waits(step)

    @pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.name)
    def test_in_losses(self, case: LossCase) -> None:
        place, loss = get_place("cupy"), case.make()
        prediction, target = case.data()
        x, y, weight = place.array(prediction), place.array(target), place.array(np.ones(6))

        def step() -> None:
            tape = gn.Tape()
            loss.forward(x, y, tape, weight)
            loss.backward(tape)

        step()
        check_that_nothing_waits(step)
