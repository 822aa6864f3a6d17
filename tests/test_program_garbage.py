"""Recorded steps are in no circle: their memory is freed with the last that uses it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import gpunn as gn

pytest.importorskip("numba", reason="steps are compiled by numba")
pytestmark = pytest.mark.skipif(
    os.environ.get("GPUNN_COMPILED") == "0", reason="GPUNN_COMPILED=0: nothing is compiled"
)

from gpunn.program.lower import Lowering  # noqa: E402
from gpunn.program.plan import Plan  # noqa: E402
from gpunn.program.table import Table  # noqa: E402
from gpunn.program.values import Recording  # noqa: E402
from tests.cases import LAYERS, LayerCase  # noqa: E402

PARTS = (Lowering, Plan, Recording, Table)


@contextmanager
def from_now_on() -> Iterator[None]:
    """Leave all that is in a circle where it is, and what is there already out of sight."""
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


def alive(kinds: Any) -> list[Any]:
    return [each for each in gc.get_objects() if isinstance(each, kinds)]


def train(case: LayerCase) -> None:
    """Train a layer for an epoch with a smaller last batch; plan its steps for two threads, too."""
    layer = gn.Sequential(case.make("float32"), gn.Flatten())
    x = case.x(20).astype(case.dtype("float32"))
    model = gn.Sequential(layer, gn.Dense(layer(x).shape[1], 1, rng=0))
    optimizer = gn.Adam(model.parameters(), clip_norm=1.0)
    loader = gn.Loader(
        x, np.zeros((20, 1), "float32"), batch_size=8, rng=0, keep_integers=bool(case.tokens)
    )
    gn.Trainer(model, gn.MeanSquaredError(), optimizer, rng=0).fit(loader, epochs=1)
    for plan in alive(Plan):
        plan.table(2, in_order=False)


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_steps_go_with_their_trainer(case: LayerCase) -> None:
    train(case)  # what compiles an instruction may leave a circle, with all that called it
    with from_now_on():
        train(case)
        assert [type(each).__name__ for each in alive(PARTS)] == []
