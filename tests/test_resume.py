"""Training that goes on from a checkpoint ends with the bits of training that never stopped."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import gpunn as gn
from tests.runs import RUNS, Run, one_by_one, state

TIMES = {"elapsed_s", "samples_per_s"}


class Stopped(BaseException):
    """Stands for the end of a process."""


class Fatal(gn.Checkpoint):
    """Ends the process after so many files."""

    def __init__(self, path: Path, every: int, unit: Any, files: int) -> None:
        super().__init__(path, every, unit=unit)
        self.left = files

    def write(self, state: dict[str, Any], step: int) -> None:
        super().write(state, step)
        self.left -= 1
        if self.left <= 0:
            raise Stopped


def assert_same_bits(one: Any, other: Any) -> None:
    """Compare (trainer, history, loader)."""
    for a, b in zip(state(one[0]), state(other[0]), strict=True):
        assert_array_equal(a, b, strict=True)
    assert one[1].columns.keys() == other[1].columns.keys()
    for name in one[1].columns.keys() - TIMES:
        assert_array_equal(one[1][name], other[1][name], err_msg=name)
    assert one[1].stopped == other[1].stopped
    for a, b in ((one[0], other[0]), (one[2], other[2])):
        assert a._rng.bit_generator.state == b._rng.bit_generator.state
    assert one[0].optimizer.steps == other[0].optimizer.steps
    assert one[0].optimizer.learning_rate == other[0].optimizer.learning_rate


Parts = tuple[gn.Trainer, gn.Loader]


def straight(make: Callable[[], Parts], epochs: int, **fit: Any) -> Any:
    """Train without a stop."""
    trainer, loader = make()
    try:
        return trainer, trainer.fit(loader, epochs, progress=False, **fit), loader
    except gn.errors.DivergenceError as error:  # as some of those drawn at random do
        return trainer, error.history, loader  # type: ignore[attr-defined]


def in_parts(
    make: Callable[[], Parts],
    epochs: int,
    every: int,
    unit: str,
    files: list[int],
    make_again: Callable[[], Parts] | None = None,
    **fit: Any,
) -> Any:
    """Train until so many files are written, in a new process as it were each time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.safetensors"
        for n in files:
            fatal = Fatal(path, every, unit, n)
            try:
                straight(make, epochs, resume=fatal, callbacks=[fatal], **fit)
            except Stopped:
                continue
        last = gn.Checkpoint(path, every, unit=unit)  # type: ignore[arg-type]
        return straight(make_again or make, epochs, resume=last, callbacks=[last], **fit)


WAYS = {"recorded": nullcontext, "readable": one_by_one}


@pytest.mark.parametrize("way", WAYS)
@given(
    run=RUNS,
    every=st.integers(1, 5),
    files=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_resuming_changes_no_bit(way: str, run: Run, every: int, files: list[int]) -> None:
    """For random networks, losses, optimizers and data: in the middle of epochs, and often."""
    run = replace(run, epochs=3)

    def make() -> Parts:
        return run.trainer(), run.loader()

    with WAYS[way]():
        assert_same_bits(straight(make, 3), in_parts(make, 3, every, "steps", files))


def network(
    place: str = "numpy", *, adam: bool = True, average: bool = False, **loader: Any
) -> Parts:
    """Return a network with random masks, a schedule and metrics, and images for it."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(53, 6, 6, 1)).astype("float32")
    y = rng.integers(0, 3, 53)
    model = gn.Sequential(
        gn.Conv2d(1, 3, 3, "relu", rng=0),
        gn.BatchNorm(3),
        gn.Flatten(),
        gn.Dropout(0.3),
        gn.Dense(48, 3, rng=1),
    ).to(place)
    rate = gn.WarmUp(5, gn.ReduceOnPlateau(0.02, patience=1, tolerance=0.05))
    optimizer: Any = gn.Adam if adam else gn.SGD
    settings = {} if adam else {"momentum": 0.9, "clip_norm": 1.0, "weight_decay": 0.01}
    made = optimizer(model.parameters(), rate, **settings)
    if average:
        gn.WeightAverage(made, 0.8)
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), made, metrics=["accuracy"], rng=7)
    return trainer, gn.Loader(x, y, batch_size=8, backend=place, rng=9, **loader)


LOADERS: dict[str, Callable[[], dict[str, Any]]] = {
    "resident": dict,
    "streamed": lambda: {"resident": False},
    "moved images": lambda: {"transform": gn.Augment(1, flip=True, rng=3)},
    "moved images, streamed": lambda: {
        "transform": gn.Augment(1, flip=True, rng=3),
        "resident": False,
    },
    "stored order": lambda: {"shuffle": False},
    "blocks": lambda: {"shuffle": "blocks", "block_size": 4, "window": 3},
    "own order": lambda: {"shuffle": Rotating()},
    "one generator": lambda: {"drop_last": True},
}


class Rotating:
    """An order that its own counter decides, so it cannot be drawn again."""

    def __init__(self) -> None:
        self.turn = 0

    def __call__(self) -> Any:
        self.turn += 1
        return np.roll(np.arange(53), 11 * self.turn)


@pytest.mark.parametrize("unit", ["epochs", "steps"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", sorted(LOADERS))
def test_every_kind_of_loader(place: Any, kind: str, way: str, unit: str) -> None:
    def make() -> Parts:
        trainer, loader = network(str(place.backend), **LOADERS[kind]())
        if kind == "one generator":
            loader._rng = trainer._rng
        return trainer, loader

    stopping = gn.EarlyStopping(patience=3)
    with WAYS[way]():
        fit: Any = {"early_stopping": stopping, "validation": make()[1]}
        whole = straight(make, 4, **fit)
        fit["validation"] = make()[1]
        parts = in_parts(make, 4, 3 if unit == "steps" else 1, unit, [1, 2, 1], **fit)
    assert_same_bits(whole, parts)
