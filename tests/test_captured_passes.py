"""Predictions and evaluations that are captured as CUDA graphs leave what others do."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_array_equal

import gpunn as gn
from gpunn.training import inference
from tests.conftest import get_place
from tests.runs import RUNS, Block, Run

pytestmark = pytest.mark.gpu
cupy: Any = None

RUN = Run(
    blocks=(Block("dense", 6, "relu"), Block("dropout", rate=0.3), Block("dense", 6, "tanh")),
    loss="squared",
    n=130,
    batch_size=4,
    dtype="float32",
    metrics=True,
    backend="cupy",
    epochs=1,
)


@pytest.fixture(autouse=True)
def _cupy() -> None:
    global cupy  # noqa: PLW0603
    get_place("cupy")  # or skip
    cupy = importlib.import_module("cupy")


def batch_by_batch(work: Callable[[], Any]) -> Any:
    """Do some work with no pass captured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "_recorded_pass", lambda *_, **__: None)
        return work()


def look(trainer: gn.Trainer, loader: gn.Loader) -> tuple[Any, Any]:
    """Evaluate and predict."""
    return trainer.evaluate(loader), gn.to_numpy(trainer.predict(loader))


def assert_same(trainer: gn.Trainer, loader: gn.Loader) -> None:
    """Compare what captured passes find with what others do."""
    captured, readable = (way() for way in ways(trainer, loader))
    assert captured[0] == readable[0] or any(map(np.isnan, captured[0].values()))
    assert_array_equal(captured[1], readable[1])


def ways(trainer: gn.Trainer, loader: gn.Loader) -> list[Callable[[], Any]]:
    return [
        lambda: look(trainer, loader),
        lambda: batch_by_batch(lambda: look(trainer, loader)),
    ]


def are_captured(trainer: gn.Trainer) -> bool:
    _, *passes = trainer.explain().splitlines()
    return all("one launch of a CUDA graph a batch" in line for line in passes)


def ready(run: Run = RUN) -> tuple[gn.Trainer, gn.Loader]:
    """Return a trainer whose passes over the loader's data are captured."""
    trainer, _, loader = run.run()
    for _ in range(2):
        look(trainer, loader)
    assert are_captured(trainer)
    return trainer, loader


@given(run=RUNS)
@settings(max_examples=30)
def test_whatever_is_looked_at(run: Run) -> None:
    size = 2 + run.batch_size % 3
    n = run.n + 64
    n += n % size == 1  # BatchNorm does not train on a batch of one
    # Not scaled: two looks would be at other numbers.
    run = replace(run, n=n, batch_size=size, epochs=1, backend="cupy", scaled=False)
    assert_same(*ready(run))


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
@pytest.mark.parametrize("data", ["resident", "streamed", "memmap"])
@pytest.mark.parametrize("loss", ["softmax", "squared"])
def test_each_way(loss: str, data: str, products: Any) -> None:
    run = replace(RUN, loss=loss, data=data, class_weight="dict", weights=True)
    with gn.use(backend="cupy", products=products):
        assert_same(*ready(run))


def test_validation_is_captured_from_the_second_epoch_on(monkeypatch: pytest.MonkeyPatch) -> None:
    histories = []
    for switched_off in (False, True):
        if switched_off:
            monkeypatch.setenv("GPUNN_GRAPHS", "0")
        trainer, loader, validation = RUN.trainer(), RUN.loader(), replace(RUN, n=70).loader()
        history = trainer.fit(loader, 4, validation=validation, progress=False)
        names = [name for name in history.columns if not name.endswith("_s")]
        histories.append({name: history[name] for name in names})
        evaluation = trainer.explain().splitlines()[1]
        assert ("GPUNN_GRAPHS is 0" if switched_off else "a CUDA graph a batch") in evaluation
    assert histories[0] == histories[1]


class TestTheyAreNeverStale:
    @pytest.mark.parametrize("products", ["float32", "bfloat16"])
    def test_a_weight_changed_in_place(self, products: Any) -> None:
        with gn.use(backend="cupy", products=products):
            trainer, loader = ready()
            before = look(trainer, loader)
            for parameter in trainer.model.parameters():
                parameter.value[...] *= 0.5
            assert look(trainer, loader)[0] != before[0]
            assert_same(trainer, loader)
            assert are_captured(trainer)

    def test_training_in_between(self) -> None:
        trainer, loader = ready()
        before = look(trainer, loader)
        trainer.fit(loader, 2, progress=False)
        assert look(trainer, loader)[0] != before[0]
        assert_same(trainer, loader)

    @pytest.mark.parametrize(
        "change",
        [
            lambda trainer, _: setattr(
                next(iter(trainer.model.parameters())),
                "value",
                next(iter(trainer.model.parameters())).value * 0.5,
            ),
            lambda trainer, _: trainer.model.layers.append(gn.Tanh()),
            lambda trainer, _: setattr(trainer.model[0], "activation", gn.Tanh()),
            lambda _, loader: setattr(loader, "batch_size", 7),
        ],
        ids=["another array", "another layer", "another activation", "the batch size"],
    )
    def test_another(self, change: Callable[[Any, Any], None]) -> None:
        trainer, loader = ready()
        change(trainer, loader)
        captured = gn.to_numpy(trainer.predict(loader))
        readable = batch_by_batch(lambda: gn.to_numpy(trainer.predict(loader)))
        assert_array_equal(captured, readable)

    def test_other_data(self) -> None:
        trainer, _ = ready()
        for n in (130, 130, 70):
            loader = replace(RUN, n=n).loader()
            for captured in (False, True, True):
                assert_same(trainer, loader)
                assert are_captured(trainer) == captured

    def test_the_precision_of_products(self) -> None:
        trainer, loader = ready()
        found = []
        for products in ("float32", "bfloat16", "float32"):
            with gn.use(backend="cupy", products=products):
                for _ in range(2):
                    assert_same(trainer, loader)
                    assert are_captured(trainer)
                found.append(look(trainer, loader)[0])
        assert found[0] == found[2] != found[1]


def test_a_few_large_batches_are_not_captured() -> None:
    trainer, _, loader = replace(RUN, n=15 * 4).run()
    for _ in range(3):
        look(trainer, loader)
    assert not are_captured(trainer)
    assert_same(trainer, loader)


class TestWhatTheyTake:
    @pytest.mark.emulated
    def test_a_batch_is_one_launch(self) -> None:
        cudasim = importlib.import_module("cudasim")
        counts = []
        for n in (80, 160):
            trainer, loader = ready(replace(RUN, n=n, metrics=False))
            with cudasim.count() as counted:
                trainer.evaluate(loader)
            names = "graph_launches", "kernel_launches", "syncs"
            counts.append(tuple(counted[name] for name in names))
        assert counts == [(20, counts[0][1], counts[0][2]), (40, *counts[0][1:])]

    def test_the_data_are_not_kept(self) -> None:
        _trainer, loader = ready()
        kept = importlib.import_module("weakref").ref(loader.stored.x)
        del loader
        gc.collect()
        assert kept() is None

    def test_it_is_given_back_when_memory_runs_short(self) -> None:
        trainer, loader = ready()
        model, failures = trainer.model, []
        forward = model.forward

        def fail_once(x: Any, tape: Any = None) -> Any:
            if not failures:
                failures.append(1)
                raise cupy.cuda.memory.OutOfMemoryError(1 << 40, 0)
            return forward(x, tape)

        model.forward = fail_once
        assert np.isfinite(gn.to_numpy(trainer.predict(loader))).all()
        programs = trainer._program, trainer._evaluation, trainer._prediction
        assert not any(program.is_recorded for program in programs)

    def test_it_is_given_back_before_other_steps_train(self) -> None:
        trainer, loader = ready()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GPUNN_GRAPHS", "0")
            trainer.fit(loader, 1, progress=False)  # its steps were captured: they keep their room
            assert are_captured(trainer)
            trainer.fit(loader, 1, progress=False)
            assert not are_captured(trainer)

    def test_capturing_again_and_again_takes_no_more(self) -> None:
        trainer, loader = ready()
        used = []
        for _ in range(6):
            loader.batch_size = 7 - loader.batch_size + 4
            for _ in range(2):
                look(trainer, loader)
            assert are_captured(trainer)
            gc.collect()
            free, total = cupy.cuda.runtime.memGetInfo()
            used.append(total - free)
        assert len(set(used[2:])) == 1
