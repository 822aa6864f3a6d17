"""Sums of gradients that begin before the backward pass has ended."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from faults import Fault
from ranks import Started, Threads, run_ranks
from test_distributed import Run, assert_close
from test_distributed_sums import Unlimited

import gpunn as gn
from gpunn.program import cpu

F64 = {"dtype": "float64"}


def deep(*, shared: bool = False) -> gn.Sequential:
    """Return a network of several buckets; two of its layers may be one."""
    middle = [gn.Dense(8, 8, gn.Tanh(), rng=i, **F64) for i in (1, 2)]
    second = middle[0] if shared else middle[1]
    last = gn.Dense(8, 3, rng=3, **F64)
    return gn.Sequential(gn.Dense(6, 8, gn.Tanh(), rng=0, **F64), middle[0], second, last)


class Watched(Threads):
    """Notes how far the backward pass was at the start of each sum."""

    def __init__(self, inner: Threads) -> None:
        vars(self).update(vars(inner))
        self.run: Any = None
        self.begun: list[int] = []

    def start_allreduce(self, array: Any) -> Started:
        self.begun.append(sum(p.grad is not None for p in self.run.model.parameters()))
        return super().start_allreduce(array)


@pytest.fixture(params=["recorded", "one by one"])
def way(request: pytest.FixtureRequest) -> str:
    if request.param == "one by one":
        request.getfixturevalue("one_by_one")
    return str(request.param)


@pytest.mark.parametrize("shared", [False, True])
def test_they_change_no_bit(way: str, *, shared: bool) -> None:
    def program(communicator: Threads, size: int | None) -> Run:
        model = deep(shared=shared)
        run = Run(communicator, model=model, clip_norm=0.05, bucket_bytes=size).fit()
        assert bool(run.trainer.why_not_recorded) == (way == "one by one")
        return run

    whole, *_ = run_ranks(2, lambda c: program(c, None))
    for size in (1, 64, 600, 10**9):
        for run in run_ranks(2, lambda c, size=size: program(c, size)):
            for mine, wanted in zip(run.weights(), whole.weights(), strict=True):
                np.testing.assert_array_equal(mine, wanted)


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize(("shared", "wanted"), [(False, [3, 4, 6, 8]), (True, [4, 4, 6])])
def test_each_is_started_when_it_is_complete(*, shared: bool, wanted: list[int]) -> None:
    def program(communicator: Threads) -> tuple[list[int], list[int]]:
        watched = Watched(communicator)
        run = Run(watched, model=deep(shared=shared), rule=plain, bucket_bytes=300)
        watched.run = run
        first, second = (batch for _, batch in zip(range(2), run.loader, strict=False))
        gn.train_step(run.model, run.trainer.loss, run.optimizer, *first)
        before, watched.begun = watched.begun, []
        gn.train_step(run.model, run.trainer.loss, run.optimizer, *second)
        return before, watched.begun

    for before, begun in run_ranks(2, program):
        assert before == [wanted[-1]] * len(wanted)  # nobody knew how many to wait for
        assert begun == wanted


def plain(parameters: Any, rate: float, **_: Any) -> gn.SGD:
    """Return an optimizer with one block, so that buckets have weights and biases."""
    return gn.SGD(parameters, rate)


@pytest.mark.parametrize("threads", [1, 2])
def test_so_are_those_of_recorded_steps(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.CpuSteps, "_max_useful_threads", lambda _: threads)
    monkeypatch.setattr(cpu.CpuSteps, "_threads", lambda *_: threads)
    monkeypatch.setattr(cpu, "one_thread", Unlimited)
    placed: list[list[str]] = []
    lower = cpu.Exchange.lower

    def noted(self: Any, low: Any, *parts: Any) -> None:
        lower(self, low, *parts)
        placed.append([each.name for each in low.instructions])

    monkeypatch.setattr(cpu.Exchange, "lower", noted)
    alone = Run(model=deep()).fit()
    placed.clear()
    assert_close(run_ranks(2, lambda c: Run(c, model=deep(), bucket_bytes=300).fit()), alone)
    for names in placed:
        starts = [i for i, name in enumerate(names) if name == "call_host"]
        assert len(starts) > 3
        assert starts[-1] - starts[0] > 2 * len(starts)  # others are between them


@pytest.mark.parametrize("failing", [[1], [0, 1]])
@pytest.mark.parametrize("error", [ValueError("a fault"), KeyboardInterrupt()], ids=str)
def test_a_backward_pass_that_fails_on_one_rank_fails_on_all(
    failing: list[int], error: BaseException
) -> None:
    """Sums are under way then; the next step has nothing of them."""

    def program(communicator: Threads, *, fails: bool = True) -> tuple[list[Any], list[str]]:
        faulty, inner = Fault(), deep()
        model = gn.Sequential(*inner.layers[:2], faulty, *inner.layers[2:])
        run = Run(communicator, model=model, bucket_bytes=64)
        batches, raised = list(run.loader), []
        for i, batch in enumerate(batches):
            if fails and i == 2:
                faulty.error = error if communicator.rank in failing else None
                try:
                    gn.train_step(model, run.trainer.loss, run.optimizer, *batch)
                except (ValueError, KeyboardInterrupt, gn.errors.DistributedError) as caught:
                    raised.append(f"{type(caught).__name__}: {caught}")
                faulty.error = None
                assert all(parameter.grad is None for parameter in model.parameters())
            gn.train_step(model, run.trainer.loss, run.optimizer, *batch)
        return run.weights(), raised

    undisturbed, _ = run_ranks(2, lambda c: program(c, fails=False))
    for rank, (weights, raised) in enumerate(run_ranks(2, program)):
        (said,) = raised
        assert said.startswith(type(error).__name__) == (rank in failing)
        assert ("another rank has failed in the backward pass" in said) == (rank not in failing)
        for mine, wanted in zip(weights, undisturbed[0], strict=True):
            np.testing.assert_array_equal(mine, wanted)


def test_a_gradient_that_comes_after_its_sum_has_begun_is_refused() -> None:
    class Sometimes(gn.Layer):
        """Applies a layer a second time, first of all, if it is told to."""

        twice = False

        def __init__(self, layer: gn.Dense) -> None:
            self.layer = layer

        def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
            return self.layer.forward(x, tape) if self.twice else x

        def backward(self, grad: Any, tape: gn.Tape) -> Any:
            return self.layer.backward(grad, tape) if self.twice else grad

    def program(communicator: Threads) -> str:
        last = gn.Dense(8, 8, rng=1, **F64)
        first = gn.Dense(6, 8, rng=0, **F64)
        often = Sometimes(last)
        model = gn.Sequential(first, often, gn.Dense(8, 8, rng=2, **F64), last)
        run = Run(communicator, model=model, rule=plain, bucket_bytes=64)
        x, y, weight = next(iter(run.loader))
        step = model, run.trainer.loss, run.optimizer, x, y, weight
        gn.train_step(*step)
        gn.train_step(*step)
        often.twice = communicator.rank == 0
        try:
            gn.train_step(*step)
        except gn.errors.GpunnError as error:
            return str(error)
        return ""

    one, other = run_ranks(2, program)
    assert "has 2 contributions to its gradient in this step, and had 1 before" in one
    assert "another rank has failed" in other


def test_an_error_in_a_start_is_raised() -> None:
    def program(communicator: Threads) -> list[int]:
        run = Run(communicator, model=deep(), drop_last=True, bucket_bytes=64).fit(1)
        start, count = communicator.start_allreduce, [0]

        def broken(array: Any) -> Started:
            count[0] += 1
            if count[0] == 10:
                raise gn.errors.DistributedError("rank 9 has ended")
            return start(array)

        communicator.start_allreduce = broken
        with pytest.raises(gn.errors.DistributedError, match="rank 9 has ended"):
            run.fit(1)
        for weights in run.weights():
            assert np.isfinite(weights).all()
        return count

    one, other = run_ranks(2, program)
    assert one == other


@pytest.mark.parametrize("size", [0, -1, 1.5, "4 MB"])
def test_a_size_that_is_none(size: Any) -> None:
    with pytest.raises(gn.errors.SettingError, match="bucket_bytes"):
        gn.DataParallel(gn.SGD(deep().parameters()), bucket_bytes=size)
