"""What a step takes in memory, and what happens when there is not enough."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from tests.conftest import Place


def network(backend: gn.Backend | str = "numpy") -> gn.Sequential:
    return gn.Sequential(
        gn.Dense(20, 64, "relu", rng=0), gn.Dropout(0.5), gn.Dense(64, 3, rng=1)
    ).to(backend)


def test_the_account_of_a_step(place: Place) -> None:
    model = network(place.backend)
    optimizer = gn.SGD(model.parameters(), 0.1, momentum=0.9)
    report = model.memory(10, optimizer=optimizer)
    weights = 4 * (20 * 64 + 64 + 64 * 3 + 3)
    assert (report.parameters, report.gradients, report.optimizer) == (weights,) * 3
    # x, h of the first layer, the mask, and of the last layer its input (the dropped h) and output
    assert list(report.tape.values()) == [
        4 * 10 * 20,
        4 * 10 * 64,
        4 * 10 * 64,
        4 * 10 * (64 + 3),
    ]
    assert report.total == 3 * weights + sum(report.tape.values()) + report.passing
    assert f"{report.total:,} bytes" in str(report)


def test_the_account_is_that_of_a_real_tape() -> None:
    model, n = network(), 33
    tape = gn.Tape(rng=0)
    model(np.ones((n, 20), "float32"), tape)
    held = {id(item): item.nbytes for _, saved in tape.entries() for item in saved}
    assert sum(model.memory(n).tape.values()) == sum(held.values())


def test_moments_cost_and_their_absence_does_not() -> None:
    model = network()
    assert gn.SGD(model.parameters(), 0.1).state_bytes() == 0
    assert model.memory(1).optimizer == 0
    values = sum(parameter.value.nbytes for parameter in model.parameters())
    assert gn.SGD(model.parameters(), momentum=0.9).state_bytes() == values
    assert gn.Adam(model.parameters()).state_bytes() == 2 * values


def test_a_shape_that_is_not_known() -> None:
    with pytest.raises(gn.errors.ShapeError, match="pass input_shape"):
        gn.ReLU().memory(3)
    assert gn.ReLU().memory(3, input_shape=(2, 2)).tape["input"] == 3 * 4 * 4


class Counting(gn.Layer):
    """Counts its passes in every way that a layer may keep state."""

    def __init__(self) -> None:
        self.passes = 0
        self.seen: list[int] = []
        self.mean = gn.Buffer(np.zeros(20, "float32"))

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        self.passes += 1
        self.seen.append(len(x))
        self.mean.value += x.mean(axis=0)
        if tape is not None:
            tape.push(self, x)
        return x

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        tape.pop(self)
        return grad


def test_the_account_changes_no_state() -> None:
    counting, dropout = Counting(), gn.Dropout(0.5)
    model = gn.Sequential(counting, gn.Dense(20, 8, rng=0), dropout, gn.Dense(8, 3, rng=1))
    values = [parameter.value for parameter in model.parameters()]
    settings = dict(vars(dropout))
    assert f"1 {model[1]!r}" in model.memory(4, input_shape=20).tape
    assert (counting.passes, counting.seen, counting.mean.value.tolist()) == (0, [], [0.0] * 20)
    assert vars(dropout) == settings
    assert all(p.value is value for p, value in zip(model.parameters(), values, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_account_of_a_layer_that_cannot_be_copied() -> None:
    counting = Counting()
    counting.lock = threading.Lock()  # type: ignore[attr-defined]
    assert gn.Sequential(counting).memory(2, input_shape=20).tape["input"] == 4 * 2 * 20


class Full(gn.ReLU):
    """A layer for which there is no memory, now and then."""

    def __init__(self) -> None:
        self.full = False

    def backward(self, grad: gn.errors.GpunnError, tape: gn.Tape) -> object:
        if self.full:
            raise MemoryError("no more")
        return super().backward(grad, tape)


def test_out_of_memory_leaves_the_training_as_it_was(place: Place) -> None:
    full = Full()
    model = gn.Sequential(gn.Dense(4, 8, rng=0), full, gn.Dense(8, 2, rng=1)).to(place.backend)
    optimizer = gn.SGD(model.parameters(), 0.1, momentum=0.9)
    loss, x, y = gn.SoftmaxCrossEntropy(), place.array(np.ones((6, 4), "f4")), place.array([0] * 6)
    gn.train_step(model, loss, optimizer, x, y)
    before = [gn.to_numpy(p.value).copy() for p in model.parameters()]
    full.full = True
    with pytest.raises(gn.errors.DeviceMemoryError, match="a step on 6 samples") as caught:
        gn.train_step(model, loss, optimizer, x, y)
    assert isinstance(caught.value, MemoryError)
    assert all(p.grad is None for p in model.parameters())
    for parameter, value in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(gn.to_numpy(parameter.value), value)
    full.full = False
    gn.train_step(model, loss, optimizer, x, y)
    assert optimizer.steps == 2


def test_an_error_that_is_none_of_memory_passes() -> None:
    model = network()
    optimizer = gn.SGD(model.parameters(), 0.1)
    with pytest.raises(gn.errors.ShapeError):
        gn.train_step(
            model, gn.SoftmaxCrossEntropy(), optimizer, np.ones((2, 3), "f4"), np.zeros(2, int)
        )
