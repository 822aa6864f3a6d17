"""Recorded steps on a GPU: each is captured once as a CUDA graph, then run by one launch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from threading import Lock
from typing import Any, ClassVar

import cupy
import numpy as np

from gpunn._typing import Array
from gpunn.arrays.backend import get_backend, held_choice, product_precision
from gpunn.arrays.facts import is_out_of_memory
from gpunn.arrays.memory import copy_of
from gpunn.data.batch import Batch
from gpunn.data.loader import Loader
from gpunn.kernels import kernels
from gpunn.kernels.cublas_handle import loaded_library
from gpunn.kernels.cupy_step import StepBoard
from gpunn.kernels.rules import fused_rule
from gpunn.nn.init import as_generator
from gpunn.nn.tape import BETWEEN_STREAMS
from gpunn.program.capture import StepCapture
from gpunn.program.record import record_forward, record_step
from gpunn.program.results import StepResults
from gpunn.program.sources import FedBatches, StoredRows
from gpunn.program.steps import RecordedSteps
from gpunn.program.values import (
    BatchLike,
    FailedError,
    Feed,
    NotRecordableError,
    Recording,
    refer_to,
    weak_references,
)

#: Maximum steps, and entries of outputs, between two reads of the results.
_STEPS_AT_ONCE, _ENTRIES_AT_ONCE = 1 << 12, 1 << 24
#: Minimum steps in an epoch to capture at once: a capture takes as long as several steps.
_MIN_STEPS = 16


class CudaSteps(RecordedSteps):
    """Runs the steps of an epoch by launching a CUDA graph; see `RecordedSteps`.

    The graph contains the addresses of the data, the parameters and all intermediate arrays; it
    reads the numbers that change from step to step from a `StepBoard`.
    """

    keeps_device_memory: ClassVar[bool] = True

    def __init__(self, *parts: Any, **settings: Any) -> None:
        self._feed: Feed = parts[3]
        self._lock = Lock()
        self._done = cupy.cuda.Event(disable_timing=True)
        with held_choice():  # the same for all products of a graph
            self._precision = product_precision()
            super().__init__(*parts, **settings)
        # The recording must not keep the data alive.
        self._references = weak_references(self._feed.batch)
        self._feed = self._feed._replace(batch=None)
        self._source.release()

    def serves(self, *parts: Any, **settings: Any) -> bool:
        """Return whether the recording fits these parts and data; stored data must be the same."""
        feed: Feed = parts[3]
        if switched_off() or (*feed[1:], settings["outputs"]) != (*self._feed[1:], self._outputs):
            return False
        if product_precision() != self._precision:
            return False
        if feed.stored and not refer_to(self._references, feed.batch):
            return False
        return super().serves(*parts, **settings)

    @staticmethod
    def why_later(optimizer: Any, feed: Feed) -> str:
        """Return why to capture only at the second request; empty to capture at once.

        A first pass without training gains nothing: capturing takes as long as several batches.
        """
        if optimizer is None:
            return "a first pass over these data; a second one is captured"
        if -(-feed.n_samples // feed.batch_size) < _MIN_STEPS:  # the same on all ranks
            return "a first epoch of few steps; a second one is captured"
        return ""

    def explain(self) -> str:
        """Return the launches of a step, and the precision of its products."""
        what = "batch" if self._optimizer is None else "step"
        launches = "one launch of a CUDA graph"
        if self._parallel is not None:
            launches = "two launches of CUDA graphs, and a sum over processes between them,"
        return f"{launches} a {what}, with products in {self._precision}"

    def prepare(self) -> None:
        """Record and capture a step for each batch size: full batches, and a smaller last one."""
        if self._optimizer is not None and fused_rule(self._optimizer) is None:
            kind = type(self._optimizer).__name__
            raise NotRecordableError(f"{kind} has no kernel that reads its numbers on the device")
        _, size, n_samples, _ = self._feed
        sizes = {min(size, n_samples), n_samples % size or size}
        recordings = {n: self._recorded(n) for n in sizes}
        first = recordings[max(sizes)]
        prediction = first.prediction
        assert prediction is not None  # noqa: S101
        at_once = _STEPS_AT_ONCE
        if self._outputs:
            at_once = min(at_once, _ENTRIES_AT_ONCE // max(1, prediction.width * size))
        self._steps_at_once = min(max(1, at_once), -(-n_samples // size))
        rows = min(self._steps_at_once * size, n_samples)
        collected = (rows, *prediction.shape[1:]) if self._outputs else None
        try:
            self._capture_all(recordings, first.n_keys, rows, collected)
        except Exception as error:
            if not is_out_of_memory(error):
                raise FailedError(f"{type(error).__name__}: {error}") from error
        else:
            return
        raise FailedError("the device has too little memory for a captured step")

    def _capture_all(
        self,
        recordings: dict[int, Recording],
        n_keys: int,
        rows: int,
        collected: tuple[int, ...] | None,
    ) -> None:
        """Capture a step for each batch size; `collected` is the shape of all outputs."""
        batch, size, _, stored = self._feed
        gathers = stored and StoredRows.serves(batch)
        self._source = StoredRows(batch, rows) if gathers else FedBatches(batch, size)
        self._board = StepBoard(self._dtype, n_keys, self._steps_at_once)
        self._collected = None if collected is None else cupy.zeros(collected, self._dtype)
        parts: Any = (self._model, self._loss, self._optimizer)
        self._capture = StepCapture(
            parts, self._source, self._board, self._collected, penalized=self._penalized
        )
        captured = {n: self._capture.graph_of(step, n) for n, step in recordings.items()}
        self._steps = captured
        self._has_totals = any(step.has_totals for step in captured.values())

    def run_over(
        self,
        loader: Loader,
        order: Any,
        stop: int,
        decays: Sequence[float],
        *,
        outputs: bool,
        rng: Any = None,
    ) -> Iterator[tuple[StepResults, Batch | None, Any]]:
        """Run a step for each batch; it gathers stored rows, other batches are copied to it."""
        assert outputs == self._outputs  # noqa: S101
        run = self._run_stored if isinstance(self._source, StoredRows) else self._run_fed
        for results in run(loader, order, stop, decays, rng):
            yield results, None, None

    def _run_stored(
        self, loader: Loader, order: Any, stop: int, decays: Sequence[float], rng: Any
    ) -> Iterator[StepResults]:
        batch, source = loader.stored, self._source
        assert isinstance(source, StoredRows)  # noqa: S101
        # The graphs contain the addresses of the old arrays.
        if not refer_to(self._references, batch):
            raise RuntimeError("the data have changed since the step was captured")
        order = None if order is None else np.ascontiguousarray(order, np.int64)
        for turns, steps in self._chunks(stop):
            with self._lock:  # runs share the board and the graphs' memory
                self._wait_for_last_run()
                rows = source.set_order(order, turns)
                self._launch_steps(turns, decays[steps], rng)
                targets = kernels(rows).gather([batch.y], rows)[0] if self._wants_targets else None
                results = self._results(turns, targets)
            yield results

    def _run_fed(
        self, loader: Loader, order: Any, stop: int, decays: Sequence[float], rng: Any
    ) -> Iterator[StepResults]:
        source = self._source
        assert isinstance(source, FedBatches)  # noqa: S101
        targets: list[Array] = []
        with closing(source.batches(loader, order, stop)) as batches:

            def feed() -> None:
                batch = next(batches)
                if self._wants_targets:
                    targets.append(copy_of(batch.y))  # the next batch overwrites it

            for turns, steps in self._chunks(stop):
                with self._lock:
                    self._wait_for_last_run()
                    self._launch_steps(turns, decays[steps], rng, feed)
                    results = self._results(turns, _concatenated(targets))
                targets.clear()
                yield results

    @property
    def _parallel(self) -> Any:
        """The optimizer's `DataParallel`, or None."""
        return None if self._optimizer is None else self._optimizer.parallel

    @property
    def _wants_targets(self) -> bool:
        """Whether the outputs are to be compared with targets."""
        return self._outputs and self._loss is not None

    def _chunks(self, stop: int) -> Iterator[tuple[slice, slice]]:
        """Yield the turns and the steps between two reads of the results."""
        for first in range(0, -(-stop // self._batch_size), self._steps_at_once):
            last = first + self._steps_at_once
            turns = slice(first * self._batch_size, min(last * self._batch_size, stop))
            yield turns, slice(first, last)

    def _wait_for_last_run(self) -> None:
        """Make the current stream wait for the last run, which may have used another stream."""
        cupy.cuda.get_current_stream().wait_event(self._done)

    def _launch_steps(
        self,
        turns: slice,
        decays: Sequence[float],
        rng: Any,
        feed: Callable[[], None] | None = None,
    ) -> None:
        """Launch a step for each batch of some turns; `feed` copies each batch to its place."""
        board, size = self._board, self._batch_size
        numbers, failure = self._numbers(decays)
        turns = self._cut_turns(turns, numbers)
        stop = turns.stop - turns.start
        starts = range(0, stop, size)
        keys = None
        if board.keys:
            shape = len(starts), len(board.keys)
            keys = as_generator(rng).integers(2**64, size=shape, dtype=np.uint64)
            keys += np.uint64(self._stream() * BETWEEN_STREAMS % 2**64)
        if numbers is None:
            numbers = ([0.0] * len(starts),) * 3
        board.load(starts, numbers, keys)
        self._capture.refresh_copies()
        steps = [self._steps[min(size, stop - start)] for start in starts]
        before, launched = self._steps_so_far(), 0
        try:
            for step in steps:
                if feed is not None:
                    feed()
                for graph in step.graphs[:-1]:
                    graph.launch()
                    self._parallel.sum_in_place(step.total, step.present)
                launched += 1  # an interrupt is raised after the launch, not before
                step.graphs[-1].launch()
        finally:  # even after an interrupt, or a second one during the count itself
            try:
                self._count_steps(before, launched)
            except BaseException:
                self._count_steps(before, launched)
                raise
            finally:
                self._done.record()
        if failure is not None:
            raise failure

    def _results(self, turns: slice, targets: Array | None) -> StepResults:
        """Return the results of the last steps, in arrays that later steps do not touch."""
        rows = turns.stop - turns.start
        costs, totals, penalties = self._board.results(-(-rows // self._batch_size))
        return StepResults(
            turns,
            costs,
            penalties if self._penalized else None,
            totals if self._has_totals else None,
            None if self._collected is None else self._collected[:rows].copy(),
            targets,
        )

    def _recorded(self, n: int) -> Recording:
        """Return a recording of a step on n samples, which shows that it only calls kernels."""
        like, place = BatchLike.of(n, self._kind), get_backend("cupy")
        if self._optimizer is None or self._loss is None:
            return record_forward(self._model, self._loss, like, place)
        parts, parallel = (self._model, self._loss), self._optimizer.parallel
        recording = record_step(*parts, self._optimizer.parameters, like, place, parallel=parallel)
        if not recording.grads:
            raise NotRecordableError("a step gives no parameter a gradient")
        return recording


def _concatenated(arrays: list[Array]) -> Array | None:
    """Return the arrays joined along the first axis; None if there are none."""
    return kernels(arrays[0]).xp.concat(arrays) if arrays else None


def switched_off() -> bool:
    """Return whether the user has switched capture off."""
    return os.environ.get("GPUNN_GRAPHS") == "0"


def why_not_here() -> str | None:
    """Return why steps cannot be captured here; None if they can."""
    if switched_off():
        return "the environment variable GPUNN_GRAPHS is 0"
    if cupy.cuda.runtime.is_hip:
        return "CUDA graphs are for CUDA, and this CuPy is for ROCm"
    if loaded_library() is None:
        return "cuBLAS is not found, and CuPy's products cannot be captured"
    return None
