"""How several ranks sum their gradients: in recorded steps, and in 16 bits."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from ranks import Threads, run_ranks
from test_distributed import Run, assert_close

import gpunn as gn
from gpunn.program import cpu


class TestCompressed:
    """Gradients in 16 bits."""

    def test_half_of_the_bytes_are_sent(self) -> None:
        def sent(communicator: Threads, **settings: Any) -> int:
            run = Run(communicator, **settings).fit(1)
            before = communicator.n_bytes
            run.fit(1)
            epoch = communicator.n_bytes - before
            before = communicator.n_bytes
            run.parallel.sum_in_place(1.0, list(range(len(run.model.parameters()))))
            assert epoch > communicator.n_bytes - before
            return communicator.n_bytes - before

        plain, compressed = (
            run_ranks(2, lambda c, compress=compress: sent(c, compress=compress))[0]
            for compress in (False, True)
        )
        assert compressed < 0.3 * plain  # of float64

    @pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
    def test_a_sum_keeps_eleven_bits_of_the_largest(self, scale: float) -> None:
        def program(communicator: Threads) -> tuple[Any, Any]:
            rng = np.random.default_rng(communicator.rank)
            parameter = gn.Parameter(np.zeros(500, np.float32))
            optimizer = gn.SGD([parameter], 1.0)
            parallel = gn.DataParallel(optimizer, communicator, compress=True)
            grad = (scale * rng.normal(size=500)).astype(np.float32)
            parameter.add_grad(grad.copy())
            parallel.average(2.0 + communicator.rank)
            return parameter.grad, grad

        (mine, first), (its, second) = run_ranks(2, program)
        np.testing.assert_array_equal(mine, its)
        wanted = (2 * first + 3 * second) / 5
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=2**-10 * abs(wanted).max())

    def test_training_goes_as_without(self) -> None:
        (plain, _), (one, other) = (
            run_ranks(2, lambda c, compress=compress: Run(c, compress=compress).fit(3))
            for compress in (False, True)
        )
        np.testing.assert_allclose(one.history["loss"], plain.history["loss"], rtol=1e-2)
        assert one.history["loss"] != plain.history["loss"]
        for mine, wanted in zip(one.weights(), other.weights(), strict=True):
            np.testing.assert_array_equal(mine, wanted)

    def test_gradients_of_zero_stay_zero(self) -> None:
        def program(communicator: Threads) -> Any:
            parameter = gn.Parameter(np.ones(3, np.float32))
            parallel = gn.DataParallel(gn.SGD([parameter]), communicator, compress=True)
            parameter.add_grad(np.zeros(3, np.float32))
            parallel.average(1.0)
            return parameter.grad.tolist()

        assert run_ranks(2, program) == [[0.0, 0.0, 0.0]] * 2


class TestRecorded:
    """Sums as an instruction of a program."""

    def test_steps_are_recorded(self) -> None:
        for run in run_ranks(2, lambda c: Run(c).fit()):
            assert run.trainer.why_not_recorded == ""

    def test_those_of_several_threads_are_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        alone = Run().fit()
        monkeypatch.setattr(cpu.CpuSteps, "_max_useful_threads", lambda _: 2)
        monkeypatch.setattr(cpu.CpuSteps, "_threads", lambda *_: 2)
        monkeypatch.setattr(cpu, "one_thread", Unlimited)
        runs = run_ranks(2, lambda c: Run(c).fit())
        assert all("on 2 threads" in run.trainer.explain() for run in runs)
        assert_close(runs, alone)

    @pytest.mark.parametrize("threads", [1, 2])
    def test_an_error_in_a_sum_is_raised(
        self, threads: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cpu.CpuSteps, "_max_useful_threads", lambda _: threads)
        monkeypatch.setattr(cpu.CpuSteps, "_threads", lambda *_: threads)
        monkeypatch.setattr(cpu, "one_thread", Unlimited)

        def program(communicator: Threads) -> tuple[str, int]:
            run = Run(communicator, drop_last=True)
            run.fit(1)
            steps, sums = run.optimizer.steps, communicator.allreduce

            def broken(array: Any) -> None:
                if run.optimizer.steps == steps and array.dtype == np.float64 and array.size > 50:
                    broken.count += 1
                    if broken.count == 2:
                        raise gn.errors.DistributedError("rank 9 has ended")
                sums(array)

            broken.count = 0
            communicator.allreduce = broken
            with pytest.raises(gn.errors.DistributedError, match="rank 9 has ended"):
                run.fit(1)
            return broken.count

        assert run_ranks(2, program) == [2, 2]  # and no third sum was begun


class Unlimited:
    """A limit of BLAS's threads that several ranks in one process may have at a time."""

    def count(self) -> int:
        return 1

    def of_all_threads(self) -> bool:
        return True

    def hold(self) -> Any:
        return nullcontext()
