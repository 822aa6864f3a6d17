"""The threads of BLAS while a network trains: one for small products, and as before afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import gpunn as gn
from gpunn.kernels import blas, kernels
from gpunn.kernels.heap import keep_heap
from gpunn.kernels.numpy_ import NumpyKernels


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """Start from two threads; a machine with one core can have them, too."""
    blas.one_thread.cache_clear()
    with threadpool_limits(2, user_api="blas"):
        if threads() != {2}:
            pytest.skip("the BLAS of this NumPy has a fixed number of threads")
        yield
    blas.one_thread.cache_clear()


def threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


class Counting(gn.Layer):
    """Notes how many threads there are when it runs."""

    has_parameters = False

    def __init__(self, fails: bool = False) -> None:
        self.seen: set[int] = set()
        self.fails = fails

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        if tape is not None:
            tape.push(self)
            self.seen |= threads()
            if self.fails:
                raise RuntimeError("stop here")
        return x

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        tape.pop(self)
        return grad


def fit(counting: Counting, batch_size: int, width: int) -> None:
    model = gn.Sequential(gn.Dense(16, width, rng=0), counting, gn.Dense(width, 1, rng=1))
    x = np.zeros((2 * batch_size, 16), "float32")
    loader = gn.Loader(x, x[:, :1], batch_size=batch_size, backend="numpy")
    optimizer = gn.SGD(model.parameters())
    gn.Trainer(model, gn.MeanSquaredError(), optimizer).fit(loader, 2, progress=False)


@pytest.mark.parametrize(
    ("batch_size", "width", "wanted"),
    [(8, 4, 1), (1024, 128, 1), (1025, 128, 2), (64, 4096, 2)],  # 2^21 multiplications are few
)
def test_small_products_have_one_thread(batch_size: int, width: int, wanted: int) -> None:
    counting = Counting()
    fit(counting, batch_size, width)
    assert counting.seen == {wanted}
    assert threads() == {2}


def test_the_last_of_several_trainings_sets_them_back() -> None:
    weight = np.zeros((4, 4), "float32")
    inside = [kernels(weight).threads(8, [weight]) for _ in range(2)]
    inside[0].__enter__()
    inside[1].__enter__()
    inside[0].__exit__(None, None, None)  # not the one that came last
    assert threads() == {1}
    inside[1].__exit__(None, None, None)
    assert threads() == {2}


def test_they_are_back_after_an_error() -> None:
    counting = Counting(fails=True)
    with pytest.raises(RuntimeError, match="stop here"):
        fit(counting, 8, 4)
    assert counting.seen == {1}
    assert threads() == {2}


def test_without_threadpoolctl_blas_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    counting = Counting()
    fit(counting, 8, 4)
    assert counting.seen == {2}


def by_hand() -> None:
    model = gn.Dense(2, 1, rng=0)
    x = np.ones((4, 2), np.float32)
    gn.train_step(model, gn.MeanSquaredError(), gn.SGD(model.parameters(), 0.1), x, x[:, :1])


@pytest.mark.parametrize("train", [lambda: fit(Counting(), 4, 8), by_hand])
def test_the_heap_is_kept_from_the_first_training_on(train: Callable[[], object]) -> None:
    """Making kernels, which an import or a layer may do, allocates nothing."""
    keep_heap.cache_clear()
    NumpyKernels(np)
    assert keep_heap.cache_info().misses == 0
    for _ in range(2):
        train()
    assert keep_heap.cache_info().misses == 1
