"""Steps that are captured as CUDA graphs leave, bit for bit, what the readable loop leaves."""

from __future__ import annotations

import gc
import importlib
import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any
from weakref import ref

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_array_equal

import gpunn as gn
from tests.conftest import get_place
from tests.runs import OPTIMIZERS, RUNS, Block, Run, assert_same_bits, both, one_by_one

pytestmark = pytest.mark.gpu
cupy: Any = None

RUN = Run(
    blocks=(Block("dense", 6, "relu"), Block("dropout", rate=0.3), Block("dense", 6, "tanh")),
    optimizer="momentum",
    schedule="falling",
    weight_decay=0.1,
    clip_norm=0.1,
    class_weight="dict",
    n=70,
    batch_size=4,
    dtype="float32",
    metrics=True,
    backend="cupy",
)


@pytest.fixture(autouse=True)
def _cupy() -> None:
    global cupy  # noqa: PLW0603
    get_place("cupy")  # or skip
    cupy = importlib.import_module("cupy")


def assert_same(captured: Any, readable: Any) -> None:
    """Compare all that two runs have left, bit for bit."""
    assert captured[0].why_not_recorded == ""
    assert readable[0].why_not_recorded
    assert_same_bits(captured, readable)
    for name in captured[1].columns.keys() - {"elapsed_s", "samples_per_s"}:
        assert_array_equal(captured[1][name], readable[1][name], name)  # NaN is as good as NaN
    assert captured[1].columns.keys() == readable[1].columns.keys()
    for name in ("steps", "updates", "weight_decay", "learning_rate"):
        values = [getattr(each[0].optimizer, name, None) for each in (captured, readable)]
        assert values[0] == values[1], name
    for a, b in ((captured[0], readable[0]), (captured[2], readable[2])):
        assert a._rng.bit_generator.state == b._rng.bit_generator.state
    for parameter in captured[0].model.parameters():
        assert parameter.grad is None


@given(run=RUNS)
@settings(max_examples=60)
def test_whatever_is_trained(run: Run) -> None:
    # Of few steps, the first epoch is not captured.
    assert_same(*both(replace(run, backend="cupy", epochs=3)))


@pytest.mark.parametrize("data", ["resident", "streamed", "memmap"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_longer_run(optimizer: str, data: str) -> None:
    assert_same(*both(replace(RUN, optimizer=optimizer, data=data, epochs=20)))


@pytest.mark.parametrize("data", ["resident", "streamed", "other float"])
def test_metrics_of_targets(data: str) -> None:
    """Each batch's targets are kept until the epoch ends."""
    assert_same(*both(replace(RUN, loss="squared", data=data, epochs=3)))


@pytest.mark.parametrize("name", ["Fortran's order", "every second", "backwards", "one for all"])
def test_data_on_the_device_in_another_order(name: str) -> None:
    """A loader takes views as they are."""
    x, y = cupy.asarray(np.random.default_rng(0).standard_normal((70, 10))), cupy.arange(70) % 3
    weight = cupy.linspace(0.1, 2.0, 70)
    views = {
        "Fortran's order": (cupy.asfortranarray(x[:, :5]), y, weight),
        "every second": (x[:, ::2], cupy.repeat(y, 2)[::2], cupy.repeat(weight, 2)[::2]),
        "backwards": (x[::-1, :5], y[::-1], weight[::-1]),
        "one for all": (cupy.broadcast_to(x[:1, :5], (70, 5)), y, cupy.broadcast_to(weight[5], 70)),
    }
    left, losses = [], []
    for way in (pytest.MonkeyPatch.context, one_by_one):
        trainer = replace(RUN, dtype="float64").trainer()
        data, targets, weights = views[name]
        loader = gn.Loader(
            data, targets, sample_weight=weights, batch_size=4, dtype="float64", rng=1
        )
        with way():
            losses.append(trainer.fit(loader, 3, progress=False)["loss"])
        left.append((trainer,))
    assert left[0][0].why_not_recorded == ""
    assert losses[0] == losses[1]
    assert_same_bits(*left)


class TestMemory:
    def test_others_may_use_theirs_between_epochs(self) -> None:
        """All memory that is free is filled with NaN between two epochs of replays."""
        pool = cupy.cuda.MemoryPool()

        def fill(trainer: gn.Trainer, history: gn.History) -> None:
            held = [cupy.full(1 << k, np.nan, "float32") for k in range(7, 20) for _ in range(8)]
            del held

        with cupy.cuda.using_allocator(pool.malloc):
            trainer, loader = RUN.trainer(), RUN.loader()
            history = trainer.fit(loader, 6, callbacks=[fill], progress=False)
        with one_by_one():
            readable = replace(RUN, epochs=6).run()
        assert_same((trainer, history, loader), readable)

    def test_a_trainer_keeps_no_data(self) -> None:
        trainer, loader = RUN.trainer(), RUN.loader()
        trainer.fit(loader, 2, progress=False)
        assert trainer.why_not_recorded == ""
        kept = ref(loader.stored.x)
        del loader
        gc.collect()
        assert kept() is None

    def test_other_data_at_the_same_address(self) -> None:
        """Data that come and go may all be at one address."""
        trainers = [RUN.trainer() for _ in range(2)]
        for _ in range(4):
            for trainer in trainers:
                with one_by_one() if trainer is trainers[0] else pytest.MonkeyPatch.context():
                    trainer.fit(RUN.loader(), 1, progress=False)
        assert_same_bits(*((trainer,) for trainer in trainers))

    def test_too_little_for_a_captured_step(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Training goes on as written, and says so once."""
        capture = importlib.import_module("gpunn.program.capture")

        def fail(*_: Any) -> None:
            raise cupy.cuda.memory.OutOfMemoryError(1 << 40, 0)

        monkeypatch.setattr(capture.StepCapture, "_capture", fail)
        with caplog.at_level(logging.WARNING, "gpunn"):
            failed = replace(RUN, epochs=3).run()
        (record,) = caplog.records
        assert "the device has too little memory for a captured step" in record.getMessage()
        assert "too little memory" in failed[0].explain()
        with one_by_one():
            assert_same_bits(failed, replace(RUN, epochs=3).run())

    def test_a_failure_may_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is tried again later, and training goes on as if nothing had been."""
        capture = importlib.import_module("gpunn.program.capture").StepCapture
        tried, real = [], capture._capture

        def fail_twice(self: Any, n: int, *rest: Any) -> Any:
            tried.append(n)
            if len(tried) <= 2:
                raise cupy.cuda.memory.OutOfMemoryError(1 << 40, 0)
            return real(self, n, *rest)

        monkeypatch.setattr(capture, "_capture", fail_twice)
        captured = replace(RUN, epochs=30).run()
        assert len(tried) == 4  # in epochs 1, 10 and 27, there of two sizes of batches
        with one_by_one():
            assert_same(captured, replace(RUN, epochs=30).run())

    def test_capturing_again_and_again_takes_no_more_memory(self) -> None:
        trainer = RUN.trainer()
        runtime, used = cupy.cuda.runtime, []
        with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc):
            for _ in range(8):
                trainer.fit(RUN.loader(), 1, progress=False)
                assert trainer.why_not_recorded == ""
                gc.collect()
                free, total = runtime.memGetInfo()
                used.append(total - free)
        assert len(set(used[2:])) == 1

    def test_what_a_captured_step_keeps_is_there_for_others(self) -> None:
        trainer, loader = RUN.trainer(), RUN.loader()
        trainer.fit(loader, 1, progress=False)
        assert trainer.why_not_recorded == ""
        model = trainer.model
        forward, failures = model.forward, []

        def fail_once(x: Any, tape: Any = None) -> Any:
            if not failures:
                failures.append(1)
                raise cupy.cuda.memory.OutOfMemoryError(1 << 40, 0)
            return forward(x, tape)

        model.forward = fail_once
        assert np.isfinite(gn.to_numpy(trainer.predict(loader))).all()
        assert not trainer._program.is_recorded

    def test_it_keeps_to_the_limit_of_the_pool(self) -> None:
        trainer, loader = RUN.trainer(), RUN.loader()
        with one_by_one():
            trainer.fit(loader, 1, progress=False)
        pool = cupy.get_default_memory_pool()
        before = pool.get_limit()
        pool.set_limit(pool.total_bytes())
        try:
            trainer.fit(loader, 1, progress=False)
        finally:
            pool.set_limit(before)
        assert "too little memory" in trainer.why_not_recorded


class TestStreamsAndThreads:
    def test_each_epoch_in_another_stream(self) -> None:
        streams = [cupy.cuda.Stream(non_blocking=k % 2 == 1) for k in range(4)]
        results = []
        for way in (pytest.MonkeyPatch.context, one_by_one):
            trainer, loader = RUN.trainer(), RUN.loader()
            cupy.cuda.get_current_stream().synchronize()  # the weights are there
            with way():
                for stream in streams:
                    with stream:
                        trainer.fit(loader, 2, progress=False)
            results.append(trainer)
        assert results[0].why_not_recorded == ""
        assert_same_bits(*((trainer,) for trainer in results))

    def test_two_threads_that_train_two_models(self) -> None:
        runs = [replace(RUN, epochs=8), replace(RUN, epochs=8, optimizer="adam")]
        found: dict[int, Any] = {}

        def train(i: int) -> None:
            with gn.use(backend="numpy"):
                found[i] = runs[i].run()

        threads = [threading.Thread(target=train, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, run in enumerate(runs):
            with one_by_one():
                assert_same(found[i], run.run())

    @pytest.mark.two_devices
    @pytest.mark.parametrize("data", ["resident", "streamed"])
    def test_the_second_device(self, data: str) -> None:
        captured, readable = both(replace(RUN, backend="cupy:1", data=data, epochs=3))
        assert_same(captured, readable)
        assert all(p.value.device.id == 1 for p in captured[0].model.parameters())


class TestWhatMayHappenOnTheWay:
    def test_an_interrupt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The steps that were launched count, and no others; Python raises it after the launch."""
        runner = importlib.import_module("gpunn.program.cuda")
        trainer, loader = RUN.trainer(), RUN.loader()
        made = []
        make = runner.CudaSteps._launch_steps

        def interrupted(self: Any, *arguments: Any) -> None:
            steps = self._steps

            class Graph:
                def __init__(self, graph: Any) -> None:
                    self.graph = graph

                def launch(self) -> None:
                    self.graph.launch()
                    made.append(1)
                    if len(made) == 25:
                        raise KeyboardInterrupt

            self._steps = {
                n: step._replace(graphs=list(map(Graph, step.graphs))) for n, step in steps.items()
            }
            try:
                make(self, *arguments)
            finally:
                self._steps = steps

        monkeypatch.setattr(runner.CudaSteps, "_launch_steps", interrupted)
        history = trainer.fit(loader, 3, progress=False)
        assert history.stopped == "interrupted in epoch 2"
        assert trainer.optimizer.steps == 25

    def test_a_loader_that_fails(self) -> None:
        run = replace(RUN, data="streamed")
        trainer, loader = run.trainer(), run.loader()
        trainer.fit(loader, 1, progress=False)
        batches = loader.batches

        def broken(*arguments: Any) -> Iterator[Any]:
            for i, batch in enumerate(batches(*arguments)):
                if i == 5:
                    raise OSError("the disk is gone")
                yield batch

        loader.batches = broken  # type: ignore[method-assign,assignment]
        with pytest.raises(OSError, match="the disk is gone"):
            trainer.fit(loader, 1, progress=False)
        assert trainer.optimizer.steps == len(loader) + 5

    def test_switched_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GPUNN_GRAPHS", "0")
        trainer, _, loader = RUN.run()
        assert trainer.why_not_recorded == "the environment variable GPUNN_GRAPHS is 0"
        monkeypatch.delenv("GPUNN_GRAPHS")
        trainer.fit(loader, 1, progress=False)
        assert trainer.why_not_recorded == ""
        monkeypatch.setenv("GPUNN_GRAPHS", "0")
        trainer.fit(loader, 1, progress=False)
        assert "GPUNN_GRAPHS" in trainer.why_not_recorded

    def test_short_epochs_are_captured_from_the_second_on(self) -> None:
        trainer, loader = RUN.trainer(), replace(RUN, batch_size=35).loader()
        trainer.fit(loader, 1, progress=False)
        assert "a first epoch of few steps" in trainer.explain()
        trainer.fit(loader, 1, progress=False)
        assert "one launch of a CUDA graph a step" in trainer.explain()

    def test_an_optimizer_of_ones_own(self) -> None:
        class Plain(gn.Optimizer):
            records = True

            def update(self, xp: Any, value: Any, grad: Any, states: Any, step_size: float) -> None:
                value -= step_size * grad

        trainer, loader = RUN.trainer(), RUN.loader()
        trainer.optimizer = Plain(trainer.model.parameters(), 0.1)
        trainer.fit(loader, 1, progress=False)
        assert trainer.why_not_recorded == (
            "Plain has no kernel that reads its numbers on the device"
        )


class TestLaunches:
    """Counted by an emulator; a real device does not count."""

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_a_step_is_one_launch(self, name: str) -> None:
        cudasim = pytest.importorskip("cudasim", reason="counted by an emulator of CUDA")
        run = replace(RUN, optimizer=name, metrics=False)
        counts = []
        for n in (40, 80):
            trainer, loader = run.trainer(), replace(run, n=n).loader()
            trainer.fit(loader, 2, progress=False)
            with cudasim.count() as counted:
                trainer.fit(loader, 1, progress=False)
            counts.append({key: counted[key] for key in cudasim.stats() if key != "kernels"})
        more = {
            key: counts[1][key] - counts[0][key]
            for key in counts[0]
            if isinstance(counts[0][key], (int, float))
        }
        assert more.pop("graph_launches") == 10
        assert more.pop("h2d_bytes") == 40 * 8 + 10 * 5 * 8  # the order, and a row of the board
        assert more.pop("d2h_bytes") > 0
        for key in ("kernel_launches", "memsets", "syncs", "device_allocs", "h2d_copies"):
            assert more[key] == 0, key

    def test_a_streamed_batch_arrives_where_the_graph_reads_it(self) -> None:
        """Each of its parts is copied on the device once: x and y."""
        cudasim = pytest.importorskip("cudasim", reason="counted by an emulator of CUDA")
        run = replace(RUN, data="streamed")
        copies = []
        for n in (40, 80):
            trainer, loader = run.trainer(), replace(run, n=n).loader()
            trainer.fit(loader, 2, progress=False)
            source = trainer._program._steps._source
            order, stop = np.arange(n), n
            with cudasim.count() as counted, closing(source.batches(loader, order, stop)) as found:
                assert all(batch.x.data.ptr == source._place.x.data.ptr for batch in found)
            copies.append(counted["d2d_copies"] + counted["kernel_launches"])
            assert trainer.why_not_recorded == ""
        assert copies[1] - copies[0] == 2 * 10


@pytest.mark.parametrize("switched_off", [False, True])
def test_the_doctor_says_whether_steps_are_captured(
    switched_off: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if switched_off:
        monkeypatch.setenv("GPUNN_GRAPHS", "0")
    monkeypatch.setattr("sys.argv", ["gpunn", "doctor", "--backend", "cupy"])
    assert importlib.import_module("gpunn.__main__").main() == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("graphs")]
    assert ("GPUNN_GRAPHS is 0" in line) == switched_off
    assert ("are captured" in line) != switched_off
