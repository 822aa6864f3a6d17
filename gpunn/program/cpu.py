"""Recorded steps on the CPU: many of them in one compiled call, on one thread or several."""

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
from gpunn.program.products import ROOM
from gpunn.program.record import record_forward, record_step
from gpunn.program.results import StepResults
from gpunn.program.steps import RecordedSteps
from gpunn.program.table import Table
from gpunn.program.values import BatchLike, NotRecordableError, Recording, kind_of

#: Minimum work per thread, in multiplications per step, and minimum rows per thread.
_WORK_OF_A_THREAD, _ROWS_OF_A_THREAD = 1 << 20, 16
#: With more threads, BLAS shares its products out better.
_MOST_THREADS = 8
#: A call makes about so many multiplications, or takes so many rows: then an interrupt is heard.
_WORK_AT_ONCE, _ROWS_AT_ONCE = 1 << 31, 1 << 20
#: And so many numbers of the network's outputs, if they are wanted.
_ENTRIES_AT_ONCE = 1 << 20
#: What calls of up to so many steps need is kept for the next call.
_MOST_STEPS_KEPT = 1 << 12


#: All that there are, for a process that is forked while another thread holds a lock.
_alive: WeakSet[CpuSteps] = WeakSet()


def _unlock_all() -> None:
    for steps in _alive:
        steps._lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_all)


class _Work(NamedTuple):
    """What the threads of a call run.

    Attributes
    ----------
    asked : tuple
        For what: the number of rows and threads, and whether rows come as they stand.
    segments : array
        See `gpunn.program.interpreter.run_program`.
    place, n_segments : int
        Where these begin, and how many each thread has.
    tables : list of Table
        The instructions, which the segments have the addresses of.
    """

    asked: tuple[int, int, bool]
    segments: Array
    place: int
    n_segments: int
    tables: list[Table]


class CpuSteps(RecordedSteps):
    """Makes the steps of an epoch, or the predictions for a data set; see `RecordedSteps`."""

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self._one = self._dtype.type(1)
        self._most_threads = self._threads_worth()
        self._threads_used = 1
        self._lock = Lock()
        _alive.add(self)
        self._workspaces = np.zeros((self._most_threads, ROOM // 8), np.int64)
        self._last_frame: Frame | None = None

    def prepare(self) -> None:
        """Record a step on a whole batch."""
        self._plans: dict[int, Plan] = {}
        self._exchange: Exchange | None = None
        optimizer = self._optimizer
        if optimizer is not None and optimizer.parallel is not None:
            assert self._loss is not None  # noqa: S101 (where an optimizer is, there is a loss)
            self._exchange = Exchange(optimizer, self._loss, self._dtype)
        self._last_work: _Work | None = None
        self._whole = self._plan(self._batch_size)

    def explain(self) -> str:
        """Return what a step is made of."""
        n = self._whole.n_instructions
        threads = "1 thread" if self._threads_used == 1 else f"{self._threads_used} threads"
        return f"{n} compiled instructions on {threads}"

    def run_over(
        self, loader: Loader, order: Any, stop: int, decays: Sequence[float], **settings: Any
    ) -> Iterator[tuple[StepResults, Batch | None, Any]]:
        """Make steps; the whole data set at once if it is in memory, else by groups of batches."""
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
        """Make a step for each batch of the rows before `stop`, in an order or as they stand."""
        assert kind_of(batch) == self._kind  # noqa: S101 (else memory would be read as what it is not)
        arrays: dict[str, Array | None] = self._data(batch)
        arrays["order"] = None if order is None else np.ascontiguousarray(order, np.int64)
        at_once = self._rows_at_once(outputs=outputs)
        for start in range(0, stop, at_once):
            turns = slice(start, min(start + at_once, stop))
            first, last = start // self._batch_size, -(-turns.stop // self._batch_size)
            with self._lock:  # buffers and frames are those of one call
                numbers, failure = self._numbers(decays[first:last])
                turns = self._before(turns, numbers)
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
        """Make the steps of some turns."""
        alone = one_thread()
        assert alone is not None  # noqa: S101 (`why_not_here` has seen it)
        plan = self._whole
        size = turns.stop - turns.start
        n = -(-size // self._batch_size)
        result = np.empty((size, *plan.output_shape), self._dtype) if outputs else None
        keys = None
        if plan.n_keys:
            keys = as_generator(rng).integers(2**64, size=n * plan.n_keys, dtype=np.uint64)
            keys += np.uint64(self._stream() * BETWEEN_STREAMS % 2**64)
        threads = self._threads(alone)
        with alone.hold():
            if threads > 1 and alone.count() > 1:  # somebody else's limit is in force
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
            finally:  # after an interrupt, too, and after one that comes right here
                try:
                    self._count(before, int(frame.made[0]))
                except BaseException:
                    self._count(before, int(frame.made[0]))
                    raise
        if self._exchange is not None:
            self._exchange.finish()
        sums = frame.read()
        totals = sums.totals if plan.has_totals else None
        return StepResults(turns, sums.costs, sums.penalties, totals, result)

    def _frame(self, steps: int, threads: int) -> Frame:
        """Return the frame of a call: that of the last one, if it is like it.

        After an interrupt it is a new one, since a thread may still be at work in the other.
        """
        frame = self._last_frame
        alike = frame is not None and (frame.steps, frame.threads) == (steps, threads)
        if frame is None or not alike or frame.meeting[1]:
            frame = Frame(steps, threads, self._workspaces)
            self._last_frame = frame if steps <= _MOST_STEPS_KEPT else None
        return frame

    def _work(self, size: int, threads: int, *, in_order: bool) -> _Work:
        """Return what the threads run: whole batches, and then one that is not."""
        work, asked = self._last_work, (size, threads, in_order)
        if work is None or work.asked != asked:
            whole, rest = divmod(size, self._batch_size)
            parts = [(self._batch_size, whole)] * bool(whole) + [(rest, 1)] * bool(rest)
            tables = [self._plan(n).table(threads, in_order=in_order) for n, _ in parts]
            segments = np.zeros((threads, len(parts), SEGMENT_SIZE // 8), np.int64)
            for i, ((n, steps), table) in enumerate(zip(parts, tables, strict=True)):
                for thread in range(threads):
                    segments[thread, i, :6] = (*table.segments[thread], n, steps)
            work = _Work(asked, segments, int(segments.ctypes.data), len(parts), tables)
            self._last_work = work
        return work

    def _plan(self, n: int) -> Plan:
        """Return the plan for batches of n samples, recorded when it is first asked for.

        If other batches are recorded, the reason why this one is not is an error of the user's.
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
        """Return a recording of a step on n samples, or of a prediction for them."""
        like, place = BatchLike.of(n, self._kind), get_backend("numpy")
        if self._optimizer is None:
            return record_forward(self._model, self._loss, like, place)
        assert self._loss is not None  # noqa: S101
        parts = self._model, self._loss, self._optimizer.parameters
        return record_step(*parts, like, place, parallel=self._optimizer.parallel)

    def _data(self, batch: Batch) -> dict[str, Array | None]:
        """Return the data as the instructions read them."""
        return {
            "x": _as_read(batch.x, self._whole.x_dtype),
            "y": _as_read(batch.y, self._whole.y_dtype),
            "weight": _as_read(batch.sample_weight, self._dtype),
        }

    def _rows_at_once(self, *, outputs: bool) -> int:
        """Return how many rows a call takes: whole batches."""
        size, plan = self._batch_size, self._whole
        rows = min(size * _WORK_AT_ONCE // max(1, plan.work), _ROWS_AT_ONCE)
        if outputs:
            rows = min(rows, _ENTRIES_AT_ONCE // max(1, math.prod(plan.output_shape)))
        return size * max(1, rows // size)

    def _threads(self, alone: OneThread) -> int:
        """Return how many threads to have: as many as BLAS would."""
        if self._most_threads == 1:
            return 1
        wanted = min(alone.count(), self._most_threads)
        return crew.available(wanted) if alone.of_all_threads() else 1

    def _threads_worth(self) -> int:
        """Return how many threads pay for such steps."""
        n, plan = self._batch_size, self._whole
        if is_small(plan.largest_product):
            return 1
        return max(1, min(plan.work // _WORK_OF_A_THREAD, n // _ROWS_OF_A_THREAD, _MOST_THREADS))


def _as_read(part: Any, dtype: Any) -> Array | None:
    """Return a part of the data as the instructions read it; None if they do not."""
    if part is None or dtype is None:
        return None
    if part.dtype == dtype and part.flags.c_contiguous and part.flags.aligned:
        return part  # the usual case, and `require` is slow
    return np.require(part, dtype, ["C_CONTIGUOUS", "ALIGNED"])


def why_not_here() -> str | None:
    """Return what keeps recorded steps from being compiled here; None if nothing does."""
    return None if one_thread() is not None else "threadpoolctl is not installed"
