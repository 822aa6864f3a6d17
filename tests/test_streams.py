"""Streams: what gpunn returns may be used on any, and what it keeps is ready on all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn import kernels
from tests.conftest import get_place

pytestmark = pytest.mark.gpu
cupy: Any = None


@pytest.fixture(autouse=True)
def _cupy() -> None:
    global cupy  # noqa: PLW0603
    get_place("cupy")  # or skip
    cupy = pytest.importorskip("cupy")


@pytest.fixture
def _new_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what kernels have kept so far: a test sees the first use."""
    known = {kind: k for kind, k in kernels._BY_TYPE.items() if kind is not cupy.ndarray}
    monkeypatch.setattr(kernels, "_BY_TYPE", known)


def bias_step(rows: int) -> Callable[[], Any]:
    """Return a function for the gradient of a layer's bias for rows of ones: their number."""
    layer, tape = gn.Dense(4, 2, rng=0, backend="cupy"), gn.Tape()
    grad = cupy.ones_like(layer(cupy.ones((rows, 4), "float32"), tape))
    cupy.cuda.Device().synchronize()

    def step() -> Any:
        layer.backward(grad, tape)
        return layer.bias.grad

    return step


def training_step(loss: gn.Loss) -> Callable[[], Any]:
    """Return a function for the weights after a step."""
    model = gn.Dense(4, 2, rng=0, backend="cupy")
    optimizer = gn.SGD(model.parameters(), 0.5)
    x = cupy.asarray(np.eye(4, dtype="float32"))
    y = cupy.asarray(np.array([0, 1, 1, 0]))
    cupy.cuda.Device().synchronize()

    def step() -> Any:
        gn.train_step(model, loss, optimizer, x, y)
        return model.weight.value

    return step


def streams(n: int) -> list[Any]:
    return [cupy.cuda.Stream(non_blocking=True) for _ in range(n)]


def in_turn(steps: list[Callable[[], Any]]) -> Any:
    """Run each step on a stream of its own; return the last one's result, read before the others.

    None of the others need have run by then.
    """
    for step, stream in zip(steps, streams(len(steps)), strict=True):
        with stream:
            result = step()
            kept.append(stream)
    with kept[-1]:
        return result.get()


#: Streams that must outlive their work.
kept: list[Any] = []


@pytest.mark.usefixtures("_new_kernels")
class TestWhatIsKept:
    """Arrays that are made once and then read by any thread, on any stream."""

    def test_a_row_of_ones_is_ready_in_every_thread(self) -> None:
        """Each thread has a default stream of its own, and all of them have one address."""
        steps = [bias_step(8), bias_step(8)]
        results: list[Any] = []
        done = threading.Event()

        def first() -> None:
            with cupy.cuda.Stream.ptds:
                steps[0]()
                results.append("queued")
                done.wait(60)

        def second() -> None:
            with cupy.cuda.Stream.ptds:
                results.append(steps[1]().get().tolist())

        one, two = threading.Thread(target=first), threading.Thread(target=second)
        one.start()
        while not results:
            time.sleep(0.001)
        two.start()
        two.join()
        done.set()
        one.join()
        assert results == ["queued", [8, 8]]

    def test_a_row_of_ones_is_ready_in_every_stream(self) -> None:
        assert in_turn([bias_step(8), bias_step(8)]).tolist() == [8, 8]

    def test_a_shorter_row_of_ones_is_part_of_a_longer_one(self) -> None:
        for rows in (8, 5000, 3):
            assert bias_step(rows)().get().tolist() == [rows, rows]

    def test_class_weights_are_ready_in_every_stream(self) -> None:
        alone = training_step(gn.SoftmaxCrossEntropy(class_weight=[1, 3]))().get()
        loss = gn.SoftmaxCrossEntropy(class_weight=[1, 3])
        np.testing.assert_array_equal(in_turn([training_step(loss), training_step(loss)]), alone)

    def test_class_weights_are_not_let_go_while_another_stream_reads_them(self) -> None:
        alone = training_step(gn.SoftmaxCrossEntropy(class_weight=[1, 3]))().get()
        loss = gn.SoftmaxCrossEntropy(class_weight=[1, 3])
        steps = [training_step(loss), training_step(loss)]
        one, two = streams(2)
        with one:
            steps[0]()
            one.synchronize()
        with two:
            weights = steps[1]()
        with one:
            loss.class_weight = [5, 5]
            loss(cupy.zeros((2, 2), "float32"), cupy.zeros(2, int))
            junk = [cupy.full(2, 7, "float32") for _ in range(50)]
            one.synchronize()
        with two:
            np.testing.assert_array_equal(weights.get(), alone)
        del junk
