"""Gradients of several batches are those of one batch as large."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

import gpunn as gn
from gpunn.errors import SettingError
from gpunn.training.accumulation import Accumulation
from gpunn.training.step import learn
from tests.conftest import Place, get_place
from tests.waiting import check_that_nothing_waits

LOSSES: dict[str, Any] = {
    "squared": gn.MeanSquaredError,
    "summed": lambda: gn.MeanSquaredError(reduction="sum"),
    "softmax": gn.SoftmaxCrossEntropy,
    "class weights": lambda: gn.SoftmaxCrossEntropy(class_weight=[0.5, 3.0, 1.0]),
}
OPTIMIZERS: dict[str, Any] = {
    "momentum": lambda parameters: gn.SGD(parameters, 0.05, momentum=0.9, weight_decay=0.1),
    "clipped Adam": lambda parameters: gn.Adam(
        parameters, gn.ExponentialDecay(0.05, factor=0.9), clip_norm=0.1, epsilon=1e-3
    ),
}


def trained(
    place: Place, loss: Any, make: Any, batch_size: int, *, weights: str = "", **settings: Any
) -> tuple[gn.Trainer, gn.History]:
    """Return a trainer, and its history, after two epochs on 50 samples."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 5))
    labels = isinstance(loss, gn.SoftmaxCrossEntropy)
    y: Any = rng.integers(0, 3, 50) if labels else rng.standard_normal((50, 3))
    weight = None
    if weights:
        weight = rng.uniform(0, 2, 50)
        weight[:20] = 0.0  # whole batches of the smaller ones
    model = gn.Sequential(
        gn.Dense(5, 6, "tanh", rng=1, dtype="float64"), gn.Dense(6, 3, rng=2, dtype="float64")
    ).to(place.backend)
    loader = gn.Loader(
        x,
        y,
        sample_weight=weight,
        batch_size=batch_size,
        shuffle=weights != "in order",
        dtype="float64",
        backend=place.backend,
        rng=3,
    )
    trainer = gn.Trainer(model, loss, make(model.parameters()), **settings)
    return trainer, trainer.fit(loader, 2, progress=False)


@pytest.mark.parametrize("weights", ["", "weights", "in order"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("size", "batches"), [(8, 3), (8, 4), (25, 2), (7, 100)])
def test_an_update_is_that_of_the_large_batch(
    place: Place, loss: str, optimizer: str, weights: str, size: int, batches: int
) -> None:
    make = OPTIMIZERS[optimizer]
    parts, history = trained(place, LOSSES[loss](), make, size, weights=weights, accumulate=batches)
    whole, wanted = trained(place, LOSSES[loss](), make, min(50, size * batches), weights=weights)
    assert parts.optimizer.steps == whole.optimizer.steps == 2 * math.ceil(50 / (size * batches))
    for a, b in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert_allclose(gn.to_numpy(a.value), gn.to_numpy(b.value), rtol=1e-9, atol=1e-12)
        assert a.grad is None
    assert_allclose(history["loss"], wanted["loss"], rtol=1e-10)


def test_why_it_is_not_recorded(place: Place) -> None:
    loss, make = gn.MeanSquaredError(), OPTIMIZERS["momentum"]
    trainer, _ = trained(place, loss, make, 8, accumulate=2)
    assert trainer.why_not_recorded == "gradients of 2 batches are accumulated"
    assert "step by step: gradients of 2 batches are accumulated" in trainer.explain()


def test_nothing_is_left_after_an_interrupt(place: Place) -> None:
    class Once(gn.MeanSquaredError):
        calls = 0

        def forward(self, *arguments: Any) -> Any:
            Once.calls += 1
            if Once.calls == 3:
                raise KeyboardInterrupt
            return super().forward(*arguments)

    trainer, history = trained(place, Once(), OPTIMIZERS["momentum"], 8, accumulate=4)
    assert "interrupted" in history.stopped
    assert trainer.optimizer.steps == 0
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.gpu
def test_it_waits_for_nothing() -> None:
    place = get_place("cupy")
    trainer, _ = trained(place, LOSSES["class weights"](), OPTIMIZERS["momentum"], 8, accumulate=4)
    x = place.backend.asarray(np.ones((8, 5)), "float64")
    y = place.backend.asarray(np.zeros(8, "int64"))
    group = Accumulation(2)

    def steps() -> None:
        for _ in range(2):
            learn(trainer.model, trainer.loss, trainer.optimizer, x, y, None, None, group=group)

    steps()
    check_that_nothing_waits(steps)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2", None])
def test_what_it_takes(wrong: Any) -> None:
    model = gn.Dense(2, 1, rng=0)
    parts = model, gn.MeanSquaredError(), gn.SGD(model.parameters())
    with pytest.raises(SettingError, match="Trainer: accumulate must be a whole number above 0"):
        gn.Trainer(*parts, accumulate=wrong)
    trainer = gn.Trainer(*parts)
    assert trainer.accumulate == 1
    with pytest.raises(SettingError, match="Trainer: accumulate must be a whole number above 0"):
        trainer.accumulate = wrong
