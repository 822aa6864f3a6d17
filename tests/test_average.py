"""The moving average of weights: its formula, every way to train, and what trainers do."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from gpunn.errors import SettingError
from tests.by_hand import gradients, parameters, update, values
from tests.conftest import Place, get_place
from tests.runs import WAYS, Block, Run, both


def weighted(ways: list[list[Any]], decay: float) -> list[Any]:
    """Return the average by its definition, from the values after each update."""
    weights = decay ** np.arange(len(ways) - 1, -1, -1.0)
    return [
        sum(w * x for w, x in zip(weights, xs, strict=True)) / weights.sum()
        for xs in zip(*ways, strict=True)
    ]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("in_buffers", [False, True], ids=["new arrays", "in buffers"])
def test_the_formula(place: Place, decay: float, in_buffers: bool) -> None:
    held = parameters(place)
    optimizer = gn.SGD(held, 0.1, momentum=0.9, weight_decay=0.1)
    average = gn.WeightAverage(optimizer, decay)
    ways = []
    for step in range(6):
        grads: list[Any] = gradients(step)
        if step % 2 and not in_buffers:
            grads[1] = None  # what has no gradient counts, too
        update(place, optimizer, grads, in_buffers)
        ways.append(values(held))
        assert average.updates == step + 1
        with average.applied():
            for got, want in zip(values(held), weighted(ways, decay), strict=True):
                assert_allclose(got, want, rtol=1e-12, atol=1e-13)
        for got, want in zip(values(held), ways[-1], strict=True):
            assert_array_equal(got, want)


def test_before_the_first_update_nothing_changes(place: Place) -> None:
    held = parameters(place)
    before = values(held)
    average = gn.WeightAverage(gn.AdamW(held))
    with average.applied():
        for got, want in zip(values(held), before, strict=True):
            assert_array_equal(got, want)
    average.apply()
    for got, want in zip(values(held), before, strict=True):
        assert_array_equal(got, want)


def test_weights_come_back_after_an_error(place: Place) -> None:
    held = parameters(place)
    optimizer = gn.SGD(held, 0.1)
    average = gn.WeightAverage(optimizer, 0.9)
    for step in range(2):
        update(place, optimizer, gradients(step))
    before = values(held)
    with pytest.raises(KeyboardInterrupt), average.applied():
        raise KeyboardInterrupt
    for got, want in zip(values(held), before, strict=True):
        assert_array_equal(got, want)


def test_to_apply_it_for_good(place: Place) -> None:
    held = parameters(place)
    optimizer = gn.SGD(held, 0.1)
    average = gn.WeightAverage(optimizer, 0.9)
    ways = []
    for step in range(3):
        update(place, optimizer, gradients(step))
        ways.append(values(held))
    arrays = [parameter.value for parameter in held]
    average.apply()
    assert all(p.value is array for p, array in zip(held, arrays, strict=True))
    for got, want in zip(values(held), weighted(ways, 0.9), strict=True):
        assert_allclose(got, want, rtol=1e-12)


def test_it_restarts(place: Place) -> None:
    held = parameters(place)
    optimizer = gn.SGD(held, 0.1)
    average = gn.WeightAverage(optimizer, 0.9)
    for restart in (average.restart, optimizer.reset):
        update(place, optimizer, gradients(0))
        restart()
        assert average.updates == 0
        update(place, optimizer, gradients(1))
        now = values(held)
        with average.applied():
            for got, want in zip(values(held), now, strict=True):
                assert_allclose(got, want, rtol=1e-14)


def test_it_goes_where_the_arrays_go(place: Place) -> None:
    """Through another layout, other arrays of the user, a pickle, and a move."""
    results = []
    for moves in (False, True):
        held = parameters(place)
        optimizer = gn.SGD(held, 0.1)
        average = gn.WeightAverage(optimizer, 0.9)
        for step in range(5):
            update(place, optimizer, gradients(step))
            if not moves:
                continue
            if step == 0:
                optimizer.momentum = 0.5
                optimizer.momentum = 0.0
            elif step == 1:
                held[0].value = place.backend.asarray(gn.to_numpy(held[0].value))
            elif step == 2:
                optimizer = pickle.loads(pickle.dumps(optimizer))  # noqa: S301
                average, held = optimizer.average, optimizer.parameters
            elif step == 3:
                optimizer.to("numpy").to(place.backend)
        assert average.updates == 5
        average.apply()
        results.append(values(held))
    for got, want in zip(*results, strict=True):
        assert_allclose(got, want, rtol=1e-14)


def test_its_memory_is_counted() -> None:
    optimizer = gn.Adam(parameters(get_place("numpy"), "float32"))
    before = optimizer.state_bytes()
    gn.WeightAverage(optimizer)
    assert optimizer.state_bytes() == before * 3 // 2


def test_what_it_takes() -> None:
    held = parameters(get_place("numpy"))
    optimizer = gn.SGD(held)
    with pytest.raises(SettingError, match=r"WeightAverage: expected an optimizer, got list; call"):
        gn.WeightAverage(held)  # type: ignore[arg-type]
    for wrong in (1.0, -0.1, math.nan, "0.9"):
        with pytest.raises(SettingError, match=r"WeightAverage: decay must be a number in \[0, 1"):
            gn.WeightAverage(optimizer, wrong)  # type: ignore[arg-type]
    assert optimizer.average is None
    average = gn.WeightAverage(optimizer, 0.5)
    assert repr(average) == "WeightAverage(SGD(...), decay=0.5)"
    with pytest.raises(SettingError, match="WeightAverage: the optimizer already has an average"):
        gn.WeightAverage(optimizer)


# In training


@dataclass(frozen=True)
class AveragedRun(Run):
    """A run whose weights are averaged."""

    decay: float = 0.9

    def make_optimizer(self, model: gn.Layer) -> gn.Optimizer:
        optimizer = super().make_optimizer(model)
        gn.WeightAverage(optimizer, self.decay)
        return optimizer


RUN = AveragedRun(
    blocks=(Block("dense", 9, "relu"), Block("dropout"), Block("dense", 6, "tanh")),
    n=100,
    batch_size=8,
    epochs=3,
    weight_decay=0.1,
    metrics=True,
)
RUNS = {
    "momentum": RUN,
    "adamw": replace(RUN, optimizer="adamw", dtype="float32", data="streamed"),
    "clipped": replace(RUN, clip_norm=0.1, optimizer="nesterov", weights=True),
    "frozen": replace(RUN, frozen=2),
}
PLACES = ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("backend", PLACES)
def test_recorded_steps_average_as_the_loop_does(name: str, backend: str) -> None:
    if backend == "numpy":
        pytest.importorskip("numba", reason="steps are compiled by numba")
    run = replace(RUNS[name], backend=backend)
    many, few = both(run)
    assert (many[0].why_not_recorded, bool(few[0].why_not_recorded)) == ("", True)
    close = (
        {"rtol": 1e-9, "atol": 1e-11} if run.dtype == "float64" else {"rtol": 1e-3, "atol": 1e-5}
    )
    counts, sums, predictions = [], [], []
    for trainer, *_ in (many, few):
        counts.append(trainer.optimizer.average.updates)
        sums.append([gn.to_numpy(x) for x in trainer.optimizer.averages()])
        predictions.append(gn.to_numpy(trainer.predict(run.arrays()[0])))
    assert counts[0] == counts[1] == 3 * 13
    for got, want in zip(*sums, strict=True):
        assert want.any()
        assert_allclose(got, want, **close)
    assert_allclose(*predictions, **close)


def test_an_average_that_comes_later_or_changes_is_recorded_anew() -> None:
    pytest.importorskip("numba", reason="steps are compiled by numba")
    plain = Run(**{field.name: getattr(RUN, field.name) for field in fields(Run)})
    found = []
    for way in WAYS:
        trainer, loader = plain.trainer(), plain.loader()
        with way():
            trainer.fit(loader, 1, progress=False)
            average = gn.WeightAverage(trainer.optimizer, 0.5)
            trainer.fit(loader, 1, progress=False)
            average.decay = 0.99
            trainer.fit(loader, 1, progress=False)
        assert average.updates == 26
        assert (trainer.why_not_recorded == "") == (way is WAYS[0])
        found.append([np.array(x) for x in trainer.optimizer.averages()])
    for got, want in zip(*found, strict=True):
        assert want.any()
        assert_allclose(got, want, rtol=1e-9, atol=1e-11)


def test_a_trainer_evaluates_the_average_and_keeps_the_best() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 5)), rng.standard_normal((64, 1))
    model = gn.Sequential(gn.Dense(5, 8, "tanh", rng=0), gn.Dense(8, 1, rng=1))
    optimizer = gn.SGD(model.parameters(), 0.3, momentum=0.9)
    average = gn.WeightAverage(optimizer, 0.9)
    trainer = gn.Trainer(model, gn.MeanSquaredError(), optimizer)
    loader = gn.Loader(x, y, batch_size=8, rng=0)
    history = trainer.fit(loader, 3, validation=(x, y), progress=False)
    raw = [np.array(p.value) for p in model.parameters()]
    found = trainer.evaluate((x, y))["loss"]
    assert_allclose(found, history["validation_loss"][-1], rtol=1e-12)
    with average.applied():
        assert_allclose(gn.to_numpy(trainer.model(x.astype("float32"))), trainer.predict(x))
    for now, then in zip(model.parameters(), raw, strict=True):
        assert_array_equal(now.value, then)
    stopping = gn.EarlyStopping(patience=2)
    history = trainer.fit(loader, 20, validation=(x, y), early_stopping=stopping, progress=False)
    assert average.updates == 0
    best = min(history["validation_loss"])
    assert_allclose(trainer.evaluate((x, y))["loss"], best, rtol=1e-6)


class Slower(gn.WeightAverage):
    """An average whose decay rises at first."""

    def follow(self, slots: Any) -> None:
        self.decay = min(0.9, (1 + self.updates) / (10 + self.updates))
        super().follow(slots)


@pytest.mark.parametrize("way", ["a subclass", "another follow"])
def test_an_average_in_another_way_is_followed_as_it_is_written(place: Place, way: str) -> None:
    """No recording has its numbers."""
    x = np.random.default_rng(0).standard_normal((64, 5))
    model = gn.Dense(5, 3, rng=0).to(place.backend)
    optimizer = gn.SGD(model.parameters(), 0.1)
    average: Any = Slower(optimizer) if way == "a subclass" else gn.WeightAverage(optimizer)
    if way == "another follow":
        average.follow = lambda slots: None
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer)
    loader = gn.Loader(x, np.arange(64) % 3, batch_size=2, backend=place.backend)
    trainer.fit(loader, 2, progress=False)
    assert trainer.why_not_recorded
    if way == "a subclass":
        assert average.decay == 64 / 73
    else:
        assert not any(gn.to_numpy(each).any() for each in optimizer.averages())
