"""Threads that train and predict at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import gpunn as gn
from gpunn.errors import BusyError
from tests.runs import one_by_one

WAYS = {"recorded": nullcontext, "readable": one_by_one}
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(400, 12)).astype("float32"), RNG.integers(0, 3, 400)


def trainer(seed: int, backend: Any = "numpy") -> gn.Trainer:
    model = gn.Sequential(
        gn.Dense(12, 16, "relu", rng=seed), gn.Dropout(0.2), gn.Dense(16, 3, rng=seed + 1)
    )
    model = model.to(backend)
    optimizer = gn.Adam(model.parameters())
    return gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer, metrics=["accuracy"], rng=seed)


def trained(seed: int, backend: Any = "numpy") -> list[Any]:
    """Return the weights and losses of a training."""
    one = trainer(seed, backend)
    loader = gn.Loader(X, Y, batch_size=16, backend=backend, rng=seed)
    history = one.fit(loader, 5, validation=(X, Y), progress=False)
    weights = [gn.to_numpy(x) for x in one.model.state_dict().values()]
    return [*weights, *map(np.asarray, (history.loss, history["validation_loss"]))]


@pytest.mark.gpu
@pytest.mark.parametrize("way", WAYS)
def test_eight_that_predict_while_others_train(place: Any, way: str) -> None:
    """All get what they would get alone, with one model and its trainer among eight."""
    backend = place.backend
    shared = trainer(99, backend)
    with WAYS[way]():
        wanted = {seed: trained(seed, backend) for seed in range(3)}
        outputs = gn.to_numpy(shared.predict(X, batch_size=50))
        numbers = shared.evaluate((X, Y))

        def ask() -> bool:
            for _ in range(10):
                assert_array_equal(gn.to_numpy(shared.predict(X, batch_size=50)), outputs)
                assert shared.evaluate((X, Y)) == numbers
            return True

        with ThreadPoolExecutor(11) as pool:
            trainings = {seed: pool.submit(trained, seed, backend) for seed in wanted}
            asked = [pool.submit(ask) for _ in range(8)]
            assert all(one.result() for one in asked)
        for seed, training in trainings.items():
            for a, b in zip(training.result(), wanted[seed], strict=True):
                assert_array_equal(a, b)


class Meeting:
    """A callback that lets another thread try, in the first epoch."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act
        self.error: BaseException | None = None

    def __call__(self, _: gn.Trainer, history: gn.History) -> None:
        if len(history) == 1:
            thread = threading.Thread(target=self._try)
            thread.start()
            thread.join()

    def _try(self) -> None:
        try:
            self.act()
        except BaseException as error:  # noqa: BLE001 (it is looked at)
            self.error = error


def test_two_that_train_one_model_are_refused() -> None:
    """The one that was first goes on as if it were alone; afterwards others may train."""
    one, loader = trainer(1), gn.Loader(X, Y, batch_size=16, rng=1)
    other = gn.Trainer(one.model, one.loss, one.optimizer)
    meeting = Meeting(lambda: other.fit(gn.Loader(X, Y, rng=2), 1, progress=False))
    one.fit(loader, 5, validation=(X, Y), callbacks=[meeting], progress=False)
    assert isinstance(meeting.error, BusyError)
    assert "Trainer.fit: another thread is training this model" in str(meeting.error)
    for a, b in zip(one.model.parameters(), trained(1), strict=False):
        assert_array_equal(a.value, b)
    other.fit(gn.Loader(X, Y, rng=2), 1, progress=False)


def test_other_models_and_the_same_thread_are_not() -> None:
    one, loader = trainer(1), gn.Loader(X, Y, batch_size=16, rng=1)
    meeting = Meeting(lambda: trained(5))
    within: list[gn.History] = []

    def nested(_: gn.Trainer, history: gn.History) -> None:
        if len(history) == 1 and not within:
            within.append(one.fit(loader, 1, progress=False))

    one.fit(loader, 2, callbacks=[meeting, nested], progress=False)
    assert meeting.error is None
    assert len(within) == 1
    thread = Meeting(lambda: one.fit(loader, 1, progress=False))
    thread._try()
    assert thread.error is None


def test_threads_that_predict_by_an_average_wait_for_each_other() -> None:
    """The average takes the place of the weights meanwhile."""
    one, loader = trainer(3), gn.Loader(X, Y, batch_size=16, rng=1)
    gn.WeightAverage(one.optimizer, 0.9)
    one.fit(loader, 2, progress=False)
    before = [x.copy() for x in one.model.state_dict().values()]
    outputs = one.predict(X)

    def ask() -> bool:
        return all(np.array_equal(one.predict(X), outputs) for _ in range(30))

    with ThreadPoolExecutor(8) as pool:
        assert all([task.result() for task in [pool.submit(ask) for _ in range(8)]])  # noqa: C419
    for a, b in zip(before, one.model.state_dict().values(), strict=True):
        assert_array_equal(a, b)
    meeting = Meeting(lambda: one.predict(X))
    one.fit(loader, 2, callbacks=[meeting], progress=False)
    assert isinstance(meeting.error, BusyError)


def test_who_is_refused_disturbs_nobody() -> None:
    one, loader = trainer(1), gn.Loader(X, Y, batch_size=16, rng=1)
    seen: list[Any] = []

    def act() -> None:
        try:
            one.fit(loader, 1, progress=False)
        finally:
            seen.append(one.model.parameters()[0].grad)

    def with_gradients(_: gn.Trainer, history: gn.History) -> None:
        one.model.parameters()[0].grad = np.ones((12, 16), "float32")
        meeting(one, history)
        one.model.parameters()[0].grad = None

    meeting = Meeting(act)
    one.fit(loader, 1, callbacks=[with_gradients], progress=False)
    assert isinstance(meeting.error, BusyError)
    assert seen[0] is not None
