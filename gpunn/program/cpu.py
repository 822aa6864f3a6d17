"""Recorded steps on the CPU: one compiled call runs many of them, on one or more threads."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakSet

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.backend import get_backend
from gpunn.data.batch import Batch
from gpunn.data.loader import Loader
from gpunn.errors import GpunnError
from gpunn.kernels.blas import OneThread, is_small, one_thread
from gpunn.nn.init import as_generator
from gpunn.nn.tape import BETWEEN_STREAMS
from gpunn.program import crew
from gpunn.program.exchange import Exchange
from gpunn.program.frame import Frame
from gpunn.program.interpreter import SEGMENT_SIZE, run_program
from gpunn.program.plan import Plan
from gpunn.program.products import WORKSPACE_BYTES
from gpunn.program.record import record_forward, record_step
from gpunn.program.results import StepResults
from gpunn.program.steps import RecordedSteps
from gpunn.program.table import Table
from gpunn.program.values import BatchLike, NotRecordableError, Recording, kind_of

#: Minimum work per thread, in multiplications per step, and minimum rows per thread.
_MIN_WORK_PER_THREAD, _MIN_ROWS_PER_THREAD = 1 << 20, 16
#: With more threads, BLAS divides the products better.
_MAX_THREADS = 8
#: Limits on a call's multiplications and rows: interrupts are handled between calls.
_WORK_AT_ONCE, _ROWS_AT_ONCE = 1 << 31, 1 << 20
#: Limit on a call's number of output entries, if outputs are wanted.
_ENTRIES_AT_ONCE = 1 << 20
#: The frame of a call with up to this many steps is kept for the next call.
_MAX_STEPS_KEPT = 1 << 12


#: All instances: a forked process unlocks those that another thread had locked.
_instances: WeakSet[CpuSteps] = WeakSet()


def _unlock_all() -> None:
    for steps in _instances:
        steps._lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_all)


class _Work(NamedTuple):
    """The program that the threads of a call run.

    Attributes
    ----------
    key : tuple
        The numbers of rows and threads, and whether the rows are in stored order.
    segments : array
        See `gpunn.program.interpreter.run_program`.
    place, n_segments : int
        The address of the segments, and their number per thread.
    tables : list of Table
        The instructions that the segments point to.
    """

    key: tuple[int, int, bool]
    segments: Array
    place: int
    n_segments: int
    tables: list[Table]


class CpuSteps(RecordedSteps):
    """Runs the steps of an epoch, or predicts a data set; see `RecordedSteps`."""

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self._one = self._dtype.type(1)
        self._max_threads = self._max_useful_threads()
        self._threads_used = 1
        self._lock = Lock()
        _instances.add(self)
        self._workspaces = np.zeros((self._max_threads, WORKSPACE_BYTES // 8), np.int64)
        self._last_frame: Frame | None = None

    def prepare(self) -> None:
        """Record a step on a full batch."""
        self._plans: dict[int, Plan] = {}
        self._exchange: Exchange | None = None
        optimizer = self._optimizer
        if optimizer is not None and optimizer.parallel is not None:
            assert self._loss is not None  # noqa: S101 (an optimizer comes with a loss)
            self._exchange = Exchange(optimizer, self._loss, self._dtype)
        self._last_work: _Work | None = None
        self._full_plan = self._plan(self._batch_size)

    def explain(self) -> str:
        """Return the number of a step's instructions, and of threads."""
        n = self._full_plan.n_instructions
        threads = "1 thread" if self._threads_used == 1 else f"{self._threads_used} threads"
        return f"{n} compiled instructions on {threads}"

    def run_over(
        self, loader: Loader, order: Any, stop: int, decays: Sequence[float], **settings: Any
    ) -> Iterator[tuple[StepResults, Batch | None, Any]]:
        """Run steps on the data set: whole if it is in memory, else in groups of batches."""
        data = loader.rows()
        if data is not None:
            for results in self.run(data, order, stop, decays, **settings):
                yield results, data, order
            return
        first = 0
        with closing(loader.groups(order, stop)) as groups:
            for group in groups:
                size = group.x.shape[0]
                last = first - (-size // self._batch_size)
                for results in self.run(group, None, size, decays[first:last], **settings):
                    yield results, group, None
                first = last

    def run(
        self,
        batch: Batch,
        order: Any,
        stop: int,
        decays: Sequence[float],
        *,
        outputs: bool,
        rng: Any = None,
    ) -> Iterator[StepResults]:
        """Run a step for each batch of the first `stop` rows, in `order` or in stored order."""
        assert kind_of(batch) == self._kind  # noqa: S101 (else memory would be misread)
        arrays: dict[str, Array | None] = self._data(batch)
        arrays["order"] = None if order is None else np.ascontiguousarray(order, np.int64)
        at_once = self._rows_at_once(outputs=outputs)
        for start in range(0, stop, at_once):
            turns = slice(start, min(start + at_once, stop))
            first, last = start // self._batch_size, -(-turns.stop // self._batch_size)
            with self._lock:  # calls share buffers and frames
                numbers, failure = self._numbers(decays[first:last])
                turns = self._cut_turns(turns, numbers)
                if turns.stop > start:
                    results = self._run_turns(turns, arrays, numbers, outputs=outputs, rng=rng)
            if failure is not None:
                raise failure
            yield results

    def _run_turns(
        self,
        turns: slice,
        arrays: dict[str, Array | None],
        numbers: tuple[Sequence[float], ...] | None,
        *,
        outputs: bool,
        rng: Any,
    ) -> StepResults:
        """Run the steps of some turns."""
        alone = one_thread()
        assert alone is not None  # noqa: S101 (`why_not_here` has checked)
        plan = self._full_plan
        size = turns.stop - turns.start
        n = -(-size // self._batch_size)
        result = np.empty((size, *plan.output_shape), self._dtype) if outputs else None
        keys = None
        if plan.n_keys:
            keys = as_generator(rng).integers(2**64, size=n * plan.n_keys, dtype=np.uint64)
            keys += np.uint64(self._stream() * BETWEEN_STREAMS % 2**64)
        threads = self._threads(alone)
        with alone.hold():
            if threads > 1 and alone.count() > 1:  # another limit on BLAS's threads is in force
                threads = 1
            frame = self._frame(n, threads)
            frame.begin(turns.start, numbers, arrays | {"outputs": result, "keys": keys})
            work = self._work(size, threads, in_order=arrays["order"] is None)
            arguments = (frame.place, work.place, work.n_segments, frame.meeting_place, self._one)
            held = (frame, work, arrays, result, keys, self._workspaces)
            self._threads_used = threads
            before = self._steps_so_far()
            if self._exchange is not None:
                self._exchange.meeting = frame.meeting
            try:
                crew.run(run_program, threads, frame.meeting, *arguments, held=held)
            finally:  # even after an interrupt, or a second one during the count itself
                try:
                    self._count_steps(before, int(frame.steps_done[0]))
                except BaseException:
                    self._count_steps(before, int(frame.steps_done[0]))
                    raise
        if self._exchange is not None:
            self._exchange.finish()
        sums = frame.read()
        totals = sums.totals if plan.has_totals else None
        return StepResults(turns, sums.costs, sums.penalties, totals, result)

    def _frame(self, steps: int, threads: int) -> Frame:
        """Return the frame of a call, reusing the last call's if it fits.

        After an interrupt, the frame is a new one: a thread may still be using the old one.
        """
        frame = self._last_frame
        alike = frame is not None and (frame.steps, frame.threads) == (steps, threads)
        if frame is None or not alike or frame.meeting[1]:
            frame = Frame(steps, threads, self._workspaces)
            self._last_frame = frame if steps <= _MAX_STEPS_KEPT else None
        return frame

    def _work(self, size: int, threads: int, *, in_order: bool) -> _Work:
        """Return the program for the threads: full batches, then the last, smaller one."""
        work, key = self._last_work, (size, threads, in_order)
        if work is None or work.key != key:
            whole, rest = divmod(size, self._batch_size)
            parts = [(self._batch_size, whole)] * bool(whole) + [(rest, 1)] * bool(rest)
            tables = [self._plan(n).table(threads, in_order=in_order) for n, _ in parts]
            segments = np.zeros((threads, len(parts), SEGMENT_SIZE // 8), np.int64)
            for i, ((n, steps), table) in enumerate(zip(parts, tables, strict=True)):
                for thread in range(threads):
                    segments[thread, i, :6] = (*table.segments[thread], n, steps)
            work = _Work(key, segments, int(segments.ctypes.data), len(parts), tables)
            self._last_work = work
        return work

    def _plan(self, n: int) -> Plan:
        """Return the plan for batches of n samples; record the step if need be.

        If a step on another batch size is recorded, a failure now is the user's error.
        """
        if n not in self._plans:
            try:
                recording = self._recorded(n)
            except NotRecordableError as error:
                if self._plans and isinstance(error.__cause__, GpunnError):
                    raise error.__cause__ from None
                raise
            settings: Any = {"penalized": self._penalized, "exchange": self._exchange}
            self._plans[n] = Plan(recording, self._optimizer, **settings)
        return self._plans[n]

    def _recorded(self, n: int) -> Recording:
        """Return a recording of a training step or a prediction on n samples."""
        like, place = BatchLike.of(n, self._kind), get_backend("numpy")
        if self._optimizer is None:
            return record_forward(self._model, self._loss, like, place)
        assert self._loss is not None  # noqa: S101
        parts = self._model, self._loss, self._optimizer.parameters
        return record_step(*parts, like, place, parallel=self._optimizer.parallel)

    def _data(self, batch: Batch) -> dict[str, Array | None]:
        """Return the data as the instructions read them."""
        return {
            "x": _as_read(batch.x, self._full_plan.x_dtype),
            "y": _as_read(batch.y, self._full_plan.y_dtype),
            "weight": _as_read(batch.sample_weight, self._dtype),
        }

    def _rows_at_once(self, *, outputs: bool) -> int:
        """Return the number of rows per call, a multiple of the batch size."""
        size, plan = self._batch_size, self._full_plan
        rows = min(size * _WORK_AT_ONCE // max(1, plan.work), _ROWS_AT_ONCE)
        if outputs:
            rows = min(rows, _ENTRIES_AT_ONCE // max(1, math.prod(plan.output_shape)))
        return size * max(1, rows // size)

    def _threads(self, alone: OneThread) -> int:
        """Return the number of threads to use: as many as BLAS would, within the limits."""
        if self._max_threads == 1:
            return 1
        wanted = min(alone.count(), self._max_threads)
        return crew.available(wanted) if alone.of_all_threads() else 1

    def _max_useful_threads(self) -> int:
        """Return the largest number of threads that speeds up such steps."""
        n, plan = self._batch_size, self._full_plan
        if is_small(plan.largest_product):
            return 1
        threads = plan.work // _MIN_WORK_PER_THREAD, n // _MIN_ROWS_PER_THREAD, _MAX_THREADS
        return max(1, min(threads))


def _as_read(part: Any, dtype: Any) -> Array | None:
    """Return a part of the data as the instructions read it; None if they do not read it."""
    if part is None or dtype is None:
        return None
    if part.dtype == dtype and part.flags.c_contiguous and part.flags.aligned:
        return part  # the usual case: `require` is slow
    return np.require(part, dtype, ["C_CONTIGUOUS", "ALIGNED"])


def why_not_here() -> str | None:
    """Return why recorded steps cannot be compiled here; None if they can."""
    return None if one_thread() is not None else "threadpoolctl is not installed"
