"""Many steps in one compiled call: the same as one by one, for plain networks of all kinds."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from threadpoolctl import threadpool_limits

import gpunn as gn
from gpunn.training.epoch import EpochRunner
from gpunn.training.readings import Readings

pytest.importorskip("numba", reason="steps are compiled by numba")
pytestmark = pytest.mark.skipif(
    os.environ.get("GPUNN_COMPILED") == "0", reason="GPUNN_COMPILED=0: nothing is compiled"
)

from gpunn.program import cpu, crew  # noqa: E402
from tests.runs import WAYS, one_by_one, state  # noqa: E402
from tests.steps import (  # noqa: E402
    CASES,
    LOSSES,
    OPTIMIZERS,
    SCHEDULES,
    Case,
    assert_the_same,
)
from tests.turns import threads_for_all  # noqa: E402


class TestSteps:
    @given(case=CASES, threads=st.integers(1, 3), rows=st.sampled_from([1, 30, 1000]))
    def test_many_at_a_time_are_the_same(self, case: Case, threads: int, rows: int) -> None:
        with threads_for_all(threads, rows):
            assert_the_same(case)

    @pytest.mark.parametrize("loss", sorted(LOSSES))
    @pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_each_is_served(self, loss: str, optimizer: str, dtype: str, calls: list[int]) -> None:
        assert_the_same(Case(loss=loss, optimizer=optimizer, dtype=dtype))
        assert calls == [1] * 3  # epochs

    def test_more_threads_than_this_machine_may_have(
        self, monkeypatch: pytest.MonkeyPatch, calls: list[int]
    ) -> None:
        monkeypatch.setattr(crew, "available", lambda threads: threads)
        with threads_for_all(5):
            assert_the_same(Case(sizes=(4, 3, 2), loss="binary", weights="some", epochs=1))
        assert calls == [5]

    def test_large_products_on_two_threads(self, calls: list[int]) -> None:
        case = Case(n=600, batch_size=250, sizes=(300, 270, 10), epochs=2, optimizer="adam")
        with threadpool_limits(2, user_api="blas"):
            assert_the_same(case)
        assert calls == [2] * 2

    @pytest.mark.parametrize("loss", ["softmax", "binary"])
    def test_metrics(self, loss: str, calls: list[int]) -> None:
        metric = {"softmax": "accuracy", "binary": "binary_accuracy"}[loss]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "_ROWS_AT_ONCE", 32)
            assert_the_same(Case(loss=loss, metrics=(metric,), weights="some"))
        assert len(calls) == 3 * 2

    def test_a_history_that_goes_on(self, calls: list[int]) -> None:
        """With validation, early stopping, and its best weights at the end."""
        case = Case(optimizer="momentum", epochs=8)

        def fit() -> Any:
            trainer, loader = case.trainer(), case.loader()
            stored = loader.stored
            early = gn.EarlyStopping(patience=2, tolerance=0.05)
            history = trainer.fit(
                loader, 8, validation=(stored.x, stored.y), early_stopping=early, progress=False
            )
            again = trainer.fit(loader, 2, progress=False)
            return [*state(trainer), history["validation_loss"], again["loss"]]

        many = fit()
        with one_by_one():
            few = fit()
        for a, b in zip(many, few, strict=True):
            assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        assert calls

    @pytest.mark.parametrize("what", ["x", "y", "weight", "parameter"])
    @pytest.mark.parametrize("loss", sorted(LOSSES))
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_what_is_not_finite_goes_where_it_would(
        self, what: str, loss: str, value: float, calls: list[int]
    ) -> None:
        case = Case(loss=loss, weights="some", activation="tanh", optimizer="adam")
        states = []
        for way in WAYS:
            trainer, loader = case.trainer(), case.loader()
            if what == "x":
                loader.stored.x.base[7, 2] = value  # the given array: views refuse writing
            elif what == "weight":
                loader.stored.sample_weight.base[7] = value
            elif what == "parameter":
                trainer.model.layers[0].weight.value[2, 3] = value
            else:  # a label out of range, or a number
                loader.stored = loader.stored._replace(y=loader.stored.y.astype("float64"))
                loader.stored.y[7] = 3 if loss == "softmax" else value
                if loss == "softmax":
                    loader.stored = loader.stored._replace(y=loader.stored.y.astype("int64"))
            readings = Readings(trainer.loss, [])
            with way(), np.errstate(all="ignore"):
                EpochRunner(loader).run(trainer.model, trainer.loss, trainer.optimizer, readings)
            states.append([np.isfinite(x) for x in [*state(trainer), readings.read()["loss"]]])
        for a, b in zip(*states, strict=True):
            assert_array_equal(a, b)
        assert calls == [1]

    def test_a_schedule_goes_by_the_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []

        def schedule(step: int) -> float:
            seen.append(step)
            return 0.1 / (1 + step)

        monkeypatch.setitem(SCHEDULES, "own", schedule)
        assert_the_same(Case(schedule="own"))
        assert set(seen) == set(range(3 * 4 + 1))


def test_a_wide_layer_twice_with_a_small_batch() -> None:
    """A part of a gradient has more rows than the batch."""
    states = []
    for way in WAYS:
        layer = gn.Dense(90, 90, "tanh", rng=0, dtype="float64")
        model = gn.Sequential(layer, layer, gn.Dense(90, 3, rng=1, dtype="float64"))
        trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters(), 0.1))
        x = np.random.default_rng(0).standard_normal((20, 90))
        with way():
            trainer.fit(gn.Loader(x, np.arange(20) % 3, batch_size=4, dtype="float64", rng=0), 2)
        assert (trainer.why_not_recorded == "") == (way is nullcontext)
        states.append(state(trainer))
    for a, b in zip(*states, strict=True):
        assert_allclose(a, b, rtol=1e-9, atol=1e-12)
