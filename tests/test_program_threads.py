"""Who runs recorded steps: threads that meet, fail, are interrupted, or are not to be had."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from threadpoolctl import threadpool_limits

from gpunn.kernels import blas

pytest.importorskip("numba", reason="steps are compiled by numba")
pytestmark = pytest.mark.skipif(
    os.environ.get("GPUNN_COMPILED") == "0", reason="GPUNN_COMPILED=0: nothing is compiled"
)

from gpunn.kernels.native import compiled  # noqa: E402
from gpunn.program import cpu, crew, interpreter  # noqa: E402
from tests.runs import fit_until_interrupted, state  # noqa: E402
from tests.steps import Case  # noqa: E402
from tests.turns import threads_for_all  # noqa: E402


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads, however small the steps and few the processors."""
    with threads_for_all(2):
        yield


@pytest.mark.usefixtures("two_threads")
class TestThreads:
    CASE = Case(n=2000, batch_size=100, sizes=(20, 50, 3), optimizer="adam", dtype="float32")

    def test_one_thread_where_the_user_wants_one(self, calls: list[int]) -> None:
        with threadpool_limits(1, user_api="blas"):
            self.CASE.run()
        assert set(calls) == {1}
        self.CASE.run()
        assert set(calls[3:]) == {2}

    def test_the_same_each_time(self) -> None:
        one, other = self.CASE.run(), self.CASE.run()
        for a, b in zip(state(one[0]), state(other[0]), strict=True):
            assert_array_equal(a, b)

    def test_fits_at_the_same_time(self) -> None:
        wanted = state(self.CASE.run()[0])
        with ThreadPoolExecutor(4) as pool:
            found = [run[0] for run in pool.map(lambda _: self.CASE.run(), range(8))]
        for trainer in found:
            for a, b in zip(state(trainer), wanted, strict=True):
                assert_allclose(a, b, rtol=1e-3, atol=1e-4)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
    def test_a_process_that_was_forked(self) -> None:
        """Its parent's workers are not there."""
        wanted = state(self.CASE.run()[0])
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found = pool.apply_async(_state_of, (self.CASE,)).get(timeout=60)
        for a, b in zip(found, wanted, strict=True):
            assert_array_equal(a, b)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
    def test_a_process_that_was_forked_meanwhile(self) -> None:
        """It has as many threads of BLAS as there were before."""
        limit = blas.one_thread()
        with limit.hold(), multiprocessing.get_context("fork").Pool(1) as pool:
            assert limit.count() == 1
            assert pool.apply_async(_threads_of_blas).get(timeout=60) == 2
        assert limit.count() == 2

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer here")
    @pytest.mark.parametrize("after_s", [0.001, 0.02, 0.05, 0.1])
    def test_control_c(self, after_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        """Steps that were made are counted, and the next fit is as if nothing had been."""
        monkeypatch.setattr(cpu, "_WORK_AT_ONCE", 1 << 26)
        trainer, _, loader = self.CASE.run()
        before = trainer.optimizer.steps
        history = fit_until_interrupted(trainer, loader, after_s)
        made = trainer.optimizer.steps - before
        assert trainer.optimizer.updates == trainer.optimizer.steps
        assert 20 * len(history) <= made <= 20 * (len(history) + 1)
        trainer.fit(loader, 2, progress=False)
        assert trainer.optimizer.steps == before + made + 40

    def test_a_worker_that_fails(self) -> None:
        meeting = np.zeros(2, np.int64)

        def work(thread: int, threads: int) -> None:
            if thread == 1:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            crew.run(work, 2, meeting)
        assert meeting.tolist() == [0, 1]
        assert threading.active_count() < 20

    def test_an_interrupt_while_work_is_given_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those that are known to be at work are through when it is raised."""
        began, done = threading.Event(), threading.Event()
        submit, tasks = crew._Crew.submit, []

        def interrupted(*arguments: Any) -> Any:
            tasks.append(submit(*arguments))
            if len(tasks) == 2:
                began.wait()
                raise KeyboardInterrupt
            return tasks[0]

        def work(thread: int, threads: int) -> None:
            began.set()
            time.sleep(0.05)
            done.set()

        monkeypatch.setattr(crew._Crew, "submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            crew.run(work, 3, np.zeros(2, np.int64))
        assert done.is_set()
        tasks[1].wait()

    def test_what_is_held_lives_as_long_as_a_worker_needs_it(self, monkeypatch: Any) -> None:
        """Also where this thread is interrupted while it waits."""
        held, done = np.zeros(3), threading.Event()
        alive = weakref.ref(held)
        seen = []

        def work(thread: int, threads: int) -> None:
            if thread == 0:
                raise KeyboardInterrupt
            done.wait()
            seen.append(alive() is not None)

        def interrupted(self: Any, work: Any) -> Any:
            task = submit(self, work)
            monkeypatch.setattr(task, "wait", lambda: None)
            return task

        submit = crew._Crew.submit
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(crew._Crew, "submit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                crew.run(work, 2, np.zeros(2, np.int64), held=held)
        del held
        done.set()
        crew.run(lambda *_: None, 2, np.zeros(2, np.int64))  # by a new crew
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            time.sleep(0.001)
        assert seen == [True]

    def test_workers_leave_when_nobody_needs_them(self) -> None:
        def count() -> int:
            return sum(thread.name == "gpunn" for thread in threading.enumerate())

        before = count()
        thread = threading.Thread(target=self.CASE.run)
        thread.start()
        thread.join()
        deadline = time.monotonic() + 10
        while count() > before and time.monotonic() < deadline:
            time.sleep(0.001)
        assert count() <= before

    def test_as_many_as_there_are_processors(self) -> None:
        if not hasattr(os, "sched_getaffinity"):
            pytest.skip("this system does not say which processors there are")
        assert crew.available(1000) == len(os.sched_getaffinity(0))
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(own)})
        try:
            assert crew.available(2) == 1
        finally:
            os.sched_setaffinity(0, own)

    def test_threads_that_cannot_be_had(self, monkeypatch: Any, calls: list[int]) -> None:
        def start(self: Any) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
        monkeypatch.setattr(crew, "_local", threading.local())
        self.CASE.run()
        assert set(calls) == {1}

    def test_in_another_thread_than_before(self, calls: list[int]) -> None:
        """There, too, BLAS has one thread for each of ours; and as many as before at the end."""
        seen = []
        real = cpu.OneThread.count
        self.CASE.run()

        def count(self: Any) -> int:
            seen.append(real(self))
            return seen[-1]

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
            patch.setattr(cpu.OneThread, "count", count)
            pool.submit(self.CASE.run).result()
        assert seen == [2, 1] * 3
        assert set(calls) == {2}
        assert blas.one_thread().count() == 2

    @pytest.mark.parametrize("way", ["atexit", "thread"])
    def test_fits_when_the_interpreter_ends(self, way: str) -> None:
        program = f"""
import atexit, threading, numpy as np, gpunn as gn
from gpunn.kernels import blas
from gpunn.program import cpu
blas._WORK_OF_ONE_THREAD, cpu._MIN_WORK_PER_THREAD = 0, 1

def fit():
    model = gn.Dense(20, 3, rng=0)
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters()))
    loader = gn.Loader(np.ones((400, 20)), np.zeros(400, int), batch_size=100, backend="numpy")
    print("done", len(trainer.fit(loader, 30, progress=False)), flush=True)

fit()
{"atexit.register(fit)" if way == "atexit" else "threading.Thread(target=fit).start()"}
"""
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
        assert done.stdout.split() == ["done", "30"] * 2, done.stderr
        assert done.returncode == 0

    def test_who_leaves_lets_the_others_go(self) -> None:
        """Here, thread 0 fails before the meeting that the worker waits at."""
        meeting = np.zeros(2, np.int64)
        came: list[bool] = []

        def work(thread: int, threads: int) -> None:
            if thread == 0:
                raise ZeroDivisionError
            came.append(_wait(meeting.ctypes.data, threads))

        with pytest.raises(ZeroDivisionError):
            crew.run(work, 2, meeting)
        assert came == [False]


def _state_of(case: Case) -> list[Any]:
    return state(case.run()[0])


def _threads_of_blas() -> int:
    return blas.one_thread().count()


@compiled
def _wait(meeting: Any, threads: int) -> bool:
    return interpreter._meet(meeting, threads)
