"""Arrays that are used together and are not on one device: all that takes several says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn.errors import DeviceError
from tests.conftest import get_place

pytestmark = pytest.mark.parametrize(
    ("here", "there"),
    [
        ("array-api-strict:0", "array-api-strict:1"),
        pytest.param("cupy:0", "cupy:1", marks=[pytest.mark.gpu, pytest.mark.two_devices]),
    ],
)

N = 6


@pytest.fixture(autouse=True)
def _places(here: str, there: str) -> None:
    get_place(here)
    get_place(there)


def at(name: str, x: Any) -> Any:
    return gn.get_backend(name).asarray(np.asarray(x))


def batch(name: str) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 4)).astype("float32")
    weight = rng.random(N).astype("float32")
    arrays = {"x": x, "y": rng.integers(0, 3, N), "sample_weight": weight}
    return {part: at(name, array) for part, array in arrays.items()}


def parts(name: str) -> tuple[gn.Sequential, gn.SoftmaxCrossEntropy, gn.SGD]:
    model = gn.Sequential(gn.Dense(4, 5, "relu", rng=0), gn.Dense(5, 3, rng=1)).to(name)
    return model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters(), 0.1)


def values(model: gn.Layer) -> list[Any]:
    return [gn.to_numpy(p.value).copy() for p in model.parameters()]


def assert_unchanged(model: gn.Layer, before: list[Any]) -> None:
    for a, b in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("elsewhere", ["x", "y", "sample_weight"])
def test_a_part_of_a_batch(here: str, there: str, elsewhere: str) -> None:
    model, loss, optimizer = parts(here)
    before = values(model)
    mixed = batch(here) | {elsewhere: batch(there)[elsewhere]}
    told = f"train_step: the model is on {here} and {elsewhere} on {there}; move one of them: .*"
    with pytest.raises(DeviceError, match=told):
        gn.train_step(model, loss, optimizer, **mixed)
    assert_unchanged(model, before)
    cost, _ = gn.train_step(model, loss, optimizer, **batch(here))
    model, loss, optimizer = parts("numpy")
    wanted, _ = gn.train_step(model, loss, optimizer, **batch("numpy"))
    np.testing.assert_allclose(gn.to_numpy(cost), wanted, rtol=1e-6)


def test_a_whole_batch(here: str, there: str) -> None:
    model, loss, optimizer = parts(here)
    with pytest.raises(DeviceError, match=f"the model is on {here} and x on {there}"):
        gn.train_step(model, loss, optimizer, **batch(there))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_value_that_was_set(here: str, there: str, frozen: bool) -> None:
    model, loss, optimizer = parts(here)
    if frozen:
        optimizer = gn.SGD(model[1:].parameters(), 0.1)
    gn.train_step(model, loss, optimizer, **batch(here))
    weight = model.parameters()[0]
    weight.value = at(there, gn.to_numpy(weight.value))
    with pytest.raises(DeviceError, match=f"weight on {there}"):
        gn.train_step(model, loss, optimizer, **batch(here))
    with pytest.raises(DeviceError, match="its parameters are on different devices"):
        model(batch(here)["x"])


def test_an_optimizer_of_two_devices(here: str, there: str) -> None:
    first, second = gn.Dense(4, 5, rng=0).to(here), gn.Dense(5, 3, rng=0).to(there)
    told = rf"SGD: parameter 0 is on {here} and parameter 2 on {there}; .* for each device"
    with pytest.raises(DeviceError, match=told):
        gn.SGD([*first.parameters(), *second.parameters()], 0.1)


def test_a_gradient_that_was_set(here: str, there: str) -> None:
    model, _, optimizer = parts(here)
    before = values(model)
    for parameter in model.parameters():
        parameter.add_grad(at(there, np.ones(parameter.value.shape, "float32")))
    told = f"SGD: parameter 0 is on {here} and its gradient on {there}"
    with pytest.raises(DeviceError, match=told):
        optimizer.step()
    assert_unchanged(model, before)


def test_a_callback_that_moves_the_model(here: str, there: str) -> None:
    model, loss, optimizer = parts(here)
    x, y, _ = batch(here).values()
    trainer = gn.Trainer(model, loss, optimizer)
    loader = gn.Loader(x, y, batch_size=3)

    def move(trainer: gn.Trainer, history: gn.History) -> None:
        trainer.model.to(there)

    with pytest.raises(DeviceError, match=f"SGD was built when the parameters were on {here}"):
        trainer.fit(loader, 3, callbacks=[move], progress=False)

    model.to(here)
    trainer = gn.Trainer(model, loss, gn.SGD(model.parameters(), 0.1))

    def move_all(trainer: gn.Trainer, history: gn.History) -> None:
        trainer.optimizer.to(there)

    with pytest.raises(DeviceError, match=f"the model is on {there} and the loader's batches on"):
        trainer.fit(loader, 3, callbacks=[move_all], progress=False)


@pytest.mark.parametrize("metric", [gn.Accuracy(), gn.TopK(2), gn.MAE(), gn.R2()], ids=repr)
def test_a_metric(here: str, there: str, metric: gn.Metric) -> None:
    prediction = at(here, np.ones((N, 3), "float32"))
    soft = at(there, np.ones((N, 3), "float32"))
    with pytest.raises(DeviceError, match=f"a prediction on {here} and targets on {there}"):
        metric.measure(prediction, soft)


@pytest.mark.parametrize("elsewhere", ["target", "sample_weight"])
def test_a_loss(here: str, there: str, elsewhere: str) -> None:
    given = batch(here)
    arguments = {
        "prediction": at(here, np.ones((N, 3), "float32")),
        "target": given["y"],
        "sample_weight": given["sample_weight"],
    }
    arguments[elsewhere] = at(there, gn.to_numpy(arguments[elsewhere]))
    with pytest.raises(DeviceError, match=f"on {here} and the {elsewhere} on {there}"):
        gn.SoftmaxCrossEntropy(class_weight=[1, 2, 3])(**arguments)


def test_what_moves_its_arrays_itself(here: str, there: str, tmp_path: Path) -> None:
    """A loader, an evaluation, a check of gradients and a file bring all to one device."""
    model, loss, optimizer = parts(here)
    near, far = batch(here), batch(there)
    loader = gn.Loader(near["x"], far["y"], sample_weight=far["sample_weight"], batch_size=3)
    assert {str(gn.backend_of(part)) for part in next(iter(loader))} == {here}
    trainer = gn.Trainer(model, loss, optimizer)
    wanted = trainer.evaluate(tuple(near.values()))["loss"]
    mixed = near["x"], far["y"], near["sample_weight"]
    assert trainer.evaluate(mixed)["loss"] == pytest.approx(wanted, rel=1e-6)
    assert trainer.evaluate(tuple(far.values()))["loss"] == pytest.approx(wanted, rel=1e-6)
    gn.check_gradients(model, far["x"], near["y"], loss=loss, sample_weight=near["sample_weight"])
    gn.save(tmp_path / "model.safetensors", model)
    other = gn.Sequential(gn.Dense(4, 5, rng=2).to(here), gn.Dense(5, 3, rng=2).to(there))
    gn.load(tmp_path / "model.safetensors", other)
    assert_unchanged(other, values(model))
