"""BatchNorm over all ranks: the statistics and gradients of one process with the whole batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ranks import Threads, run_ranks
from test_distributed import Run, data

import gpunn as gn

F64 = {"dtype": "float64"}


class Images(gn.Layer):
    """Makes images of two positions out of rows, so that samples have several entries."""

    records = True

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        return x.reshape(len(x), 2, x.shape[-1] // 2)

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        return grad.reshape(len(grad), 2 * grad.shape[-1])


def network(kind: str) -> gn.Sequential:
    """Return a network with two norms, one of them behind a layer that needs its gradient."""
    last = gn.Dense(8, 3, rng=2, **F64)
    if kind == "rows":
        return gn.Sequential(
            *(gn.Dense(6, 8, bias=False, rng=0, **F64), gn.BatchNorm(8, **F64), gn.Tanh()),
            *(gn.Dense(8, 8, bias=False, rng=1, **F64), gn.BatchNorm(8, **F64), gn.ReLU(), last),
        )
    return gn.Sequential(
        gn.BatchNorm(6, **F64),
        gn.Dense(6, 8, rng=0, **F64),
        gn.Residual(gn.Sequential(Images(), gn.BatchNorm(4, **F64), gn.Tanh(), gn.Flatten())),
        last,
    )


def synchronised(communicator: Any, kind: str, **settings: Any) -> Run:
    model = network(kind)
    return Run(communicator, model=model, synchronise_batch_norm=True, **settings)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "uneven parts": {"data": data(41), "clip_norm": 0.05},
    "no rows on some ranks": {"data": data(26)},
    "without weights": {"data": {**data(), "sample_weight": None}},
    "a sum": {"loss": gn.SoftmaxCrossEntropy(reduction="sum"), "rule": gn.SGD, "clip_norm": 1.0},
    "in buckets": {"bucket_bytes": 64},
}


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("kind", ["rows", "images"])
@pytest.mark.parametrize("name", SETTINGS)
def test_ranks_train_as_one_process_does(name: str, kind: str, size: int) -> None:
    settings = SETTINGS[name]
    alone = Run(model=network(kind), **{**settings, "bucket_bytes": None}).fit()
    for run in run_ranks(size, lambda c: synchronised(c, kind, **settings).fit()):
        assert "BatchNorm over several processes" in run.trainer.why_not_recorded
        assert run.trainer.why_not_recorded in run.trainer.explain()
        np.testing.assert_allclose(run.history["loss"], alone.history["loss"], rtol=1e-12)
        for mine, wanted in zip(held(run), held(alone), strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-12)


def held(run: Run) -> list[Any]:
    """Return the weights and the running statistics."""
    return [*run.weights(), *(np.array(each.value) for each in run.model.buffers())]


def test_without_it_each_rank_has_its_own_statistics() -> None:
    alone = Run(model=network("rows")).fit(1)
    for run in run_ranks(2, lambda c: Run(c, model=network("rows")).fit(1)):
        assert abs(run.history["loss"][0] / alone.history["loss"][0] - 1) > 1e-6


def test_a_large_mean_cancels_nothing() -> None:
    def program(communicator: Threads | None = None) -> Any:
        norm = gn.BatchNorm(6, momentum=1.0, **F64)
        model = gn.Sequential(norm, gn.Dense(6, 3, rng=0, **F64))
        parts = {**data(12), "x": 1e6 + data(12)["x"]}
        settings = {} if communicator is None else {"synchronise_batch_norm": True}
        Run(communicator, model=model, data=parts, **settings).fit(1)
        return np.array(norm.running_variance.value)

    wanted = (1e6 + data(12)["x"]).var(axis=0, ddof=1)
    for found in run_ranks(3, program):
        np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_one_entry_on_all_ranks_is_refused() -> None:
    def program(communicator: Threads) -> str:
        run = synchronised(communicator, "rows")
        x = np.ones((1 - communicator.rank, 6))
        y = np.zeros(1 - communicator.rank, int)
        with pytest.raises(gn.errors.ShapeError) as caught:
            gn.train_step(run.model, run.trainer.loss, run.optimizer, x, y)
        return str(caught.value)

    for said in run_ranks(2, program):
        assert "all ranks together have one" in said


def test_one_rank_that_differs_is_named() -> None:
    def program(communicator: Threads) -> None:
        first = communicator.rank == 0
        Run(communicator, model=network("rows"), synchronise_batch_norm=first)

    for error in run_ranks(2, program):
        with pytest.raises(gn.errors.DistributedError, match="synchronise_batch_norm"):
            raise error
