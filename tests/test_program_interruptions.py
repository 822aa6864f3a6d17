"""Recorded training that is interrupted, shared by threads, forked, or very long."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn

pytest.importorskip("numba", reason="steps are compiled by numba")
pytestmark = pytest.mark.skipif(
    os.environ.get("GPUNN_COMPILED") == "0", reason="GPUNN_COMPILED=0: nothing is compiled"
)

from gpunn.optim import adam, base  # noqa: E402
from gpunn.program import cpu, crew, frame, steps  # noqa: E402
from gpunn.program.cpu import CpuSteps  # noqa: E402
from tests.runs import (  # noqa: E402
    CLOSE,
    Block,
    Run,
    fit_until_interrupted,
    one_by_one,
    state,
)
from tests.turns import taking_turns, threads_for_all  # noqa: E402

RUN = Run(
    blocks=(Block("dense", 20, "relu"), Block("dropout"), Block("dense", 10, "tanh")),
    n=200,
    optimizer="adam",
    shuffle=False,
    clip_norm=0.5,
    epochs=3,
)


def with_blocks(*blocks: Block) -> Run:
    return Run(**vars(RUN) | {"blocks": blocks})


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer here")
@pytest.mark.parametrize("after_s", [0.002, 0.03, 0.08])
@pytest.mark.parametrize("threads", [1, 2])
def test_control_c_leaves_whole_steps(threads: int, after_s: float) -> None:
    """The weights are those after as many steps as were counted; masks may be drawn ahead."""
    with threads_for_all(threads, rows=64):
        trainer, _, loader = RUN.run()
        history = fit_until_interrupted(trainer, loader, after_s)
    assert trainer.why_not_recorded == ""
    optimizer = trainer.optimizer
    assert optimizer.updates == optimizer.steps
    assert len(loader) * (3 + len(history)) <= optimizer.steps
    assert optimizer.steps <= len(loader) * (4 + len(history))
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    with one_by_one():  # the same steps, by hand
        wanted, drawn = RUN.trainer(), 0
        batches = list(loader.in_order())
        while drawn < optimizer.steps:
            x, y, weight = batches[drawn % len(batches)]
            gn.train_step(
                wanted.model, wanted.loss, wanted.optimizer, x, y, weight, rng=wanted._rng
            )
            drawn += 1
    for a, b in zip(state(trainer), state(wanted), strict=True):
        assert_allclose(a, b, rtol=1e-6, atol=1e-9)


@contextmanager
def interrupt_at_call(n: int) -> Iterator[list[str]]:
    """Interrupt the n-th call, as it begins or ends, of those that the compiled steps make.

    Python looks for interrupts where a function begins and where a call returns.
    """
    seen: list[str] = []
    files = {module.__file__ for module in (cpu, crew, frame, steps, base, adam)}

    def look(where: Any, event: str, _: Any) -> None:
        if event in ("call", "c_return") and where.f_code.co_filename in files:
            seen.append(f"{where.f_code.co_name}:{where.f_lineno}")
            if len(seen) == n:
                sys.setprofile(None)
                raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupt_at_any_call_leaves_whole_steps(threads: int) -> None:
    """The weights are those after as many steps as were counted."""
    short = Run(**vars(RUN) | {"blocks": (Block("dense", 4, "tanh"),), "n": 40, "epochs": 1})
    with one_by_one():  # the same steps, by hand
        by_hand, batches = short.trainer(), list(short.loader().in_order())
        states = [[np.array(a) for a in state(by_hand)]]
        for x, y, weight in 2 * batches:
            gn.train_step(by_hand.model, by_hand.loss, by_hand.optimizer, x, y, weight)
            states.append([np.array(a) for a in state(by_hand)])
    n, ends = 0, set()
    while True:
        n += 1
        with threads_for_all(threads, rows=20):
            trainer, _, loader = short.run()
            with interrupt_at_call(n) as seen, suppress(KeyboardInterrupt):
                trainer.fit(loader, 1, progress=False)
        optimizer = trainer.optimizer
        assert optimizer.updates == optimizer.steps
        for a, b in zip(state(trainer), states[optimizer.steps], strict=True):
            assert_allclose(a, b, rtol=1e-6, atol=1e-9, err_msg=f"interrupted at {seen[-1]}")
        ends.add(optimizer.steps)
        if len(seen) < n:
            break
    assert len(ends) > 2


def test_training_goes_on_after_an_interrupt_between_calls() -> None:
    """A callback's interrupt comes between two epochs: nothing is drawn ahead."""
    results = []
    for way in (threads_for_all(1), one_by_one()):
        with way:
            trainer, _, loader = RUN.run()

            def interrupt(_: gn.Trainer, history: gn.History) -> None:
                if len(history) == 2:
                    raise KeyboardInterrupt

            history = trainer.fit(loader, 5, callbacks=[interrupt], progress=False)
            assert "interrupted" in history.stopped
            trainer.fit(loader, 2, progress=False)
            results.append((state(trainer), trainer._rng.bit_generator.state))
    for a, b in zip(results[0][0], results[1][0], strict=True):
        assert_allclose(a, b, **CLOSE["float64"])
    assert results[0][1] == results[1][1]


def test_models_of_many_kinds_at_the_same_time() -> None:
    cases = [
        with_blocks(Block("dense", width, activation), Block("dropout"))
        for width, activation in [(5, "relu"), (9, "gelu"), (17, "softmax"), (3, "elu")]
    ]
    with threads_for_all(1):
        wanted = [state(case.run()[0]) for case in cases]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda case: state(case.run()[0]), cases * 3))
    for i, arrays in enumerate(found):
        for a, b in zip(arrays, wanted[i % len(cases)], strict=True):
            assert_array_equal(a, b)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_trainer_that_was_forked_goes_on() -> None:
    """What its parent recorded holds there, too, for arrays of its own."""
    with threads_for_all(2):
        trainer, _, loader = RUN.run()
        before = [np.array(x) for x in state(trainer)]
        context = multiprocessing.get_context("fork")
        there, here = context.Pipe()

        def child() -> None:
            trainer.fit(loader, 2, progress=False)
            there.send([np.array(x) for x in state(trainer)])

        process = context.Process(target=child)
        process.start()
        assert here.poll(60)
        found = here.recv()
        process.join(60)
        for a, b in zip(state(trainer), before, strict=True):
            assert_array_equal(a, b)  # the child wrote to its own
        trainer.fit(loader, 2, progress=False)
    for a, b in zip(found, state(trainer), strict=True):
        assert_array_equal(a, b)
    there.close()
    here.close()


@pytest.mark.parametrize("metrics", [False, True])
def test_thousands_of_epochs_take_no_more_memory_than_one_thousand(metrics: bool) -> None:
    """Python keeps some freed objects for later; but there is not one more for each epoch."""
    run = Run(**vars(RUN) | {"n": 30, "metrics": metrics})
    with threads_for_all(1):
        trainer, _, loader = run.run()
        trainer.fit(loader, 10, progress=False)
        program = trainer._program._steps
        gc.collect()
        tracemalloc.start()
        try:
            for _ in range(10):
                trainer.fit(loader, 100, progress=False)
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(20):
                trainer.fit(loader, 100, progress=False)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    assert trainer._program._steps is program
    assert grown < 20 * 2000  # bytes


def test_a_change_at_each_epoch_keeps_one_program() -> None:
    """Steps that were recorded before are let go, with the memory that they took."""

    def change(trainer: gn.Trainer, history: gn.History) -> None:
        trainer.optimizer.clip_norm = 1.0 + len(history)

    with threads_for_all(1):
        trainer, _, loader = RUN.run()
        trainer.fit(loader, 50, callbacks=[change], progress=False)
        gc.collect()
        kept = [
            x for x in gc.get_objects() if type(x) is cpu.CpuSteps and x._model is trainer.model
        ]
    assert len(kept) <= 1


def test_calls_of_some_rows_draw_the_same_masks() -> None:
    with taking_turns(3, seed=1, rows=17) as calls:
        some, *_ = RUN.run()
    assert len(calls) > RUN.epochs
    with taking_turns(3, seed=2):
        every, *_ = RUN.run()
    for a, b in zip(state(some), state(every), strict=True):
        assert_array_equal(a, b)


def test_another_thread_records_other_steps_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gn.Sequential(gn.Dense(8, 64, "relu", rng=0), gn.Dense(64, 3, rng=1))
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters(), 0.1))
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20_000, 8)).astype("f4"), rng.integers(3, size=20_000)
    few, one_hot = x[:700], np.eye(3, dtype="f4")[y[:700]]
    wanted = trainer.evaluate((x, y))["loss"]
    serves, looked, found = CpuSteps.serves, threading.Event(), threading.Event()

    def serve(steps: CpuSteps, *parts: Any, **settings: Any) -> bool:
        served = serves(steps, *parts, **settings)
        if threading.current_thread() is first:
            looked.set()
            found.wait(10)
        return served

    losses: list[float] = []
    first = threading.Thread(target=lambda: losses.append(trainer.evaluate((x, y))["loss"]))
    monkeypatch.setattr(CpuSteps, "serves", serve)
    first.start()
    assert looked.wait(10)
    trainer.evaluate((few, one_hot))
    found.set()
    first.join()
    assert losses == pytest.approx([wanted], rel=1e-6)
