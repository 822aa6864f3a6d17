"""Recorded steps on the CPU: many of them in one compiled call, on one thread or several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from threading import Lock
from typing import Any
from weakref import WeakSet

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.backend import get_backend
from gpunn.data.batch import Batch
from gpunn.data.loader import Loader
from gpunn.kernels.blas import OneThread, is_small, one_thread
from gpunn.nn.init import as_generator
from gpunn.program import crew
from gpunn.program.instructions.words import CONTEXT
from gpunn.program.interpreter import CONTEXT_SIZE, run_program
from gpunn.program.plan import Plan
from gpunn.program.products import ROOM
from gpunn.program.record import record_forward, record_step
from gpunn.program.results import StepResults
from gpunn.program.steps import RecordedSteps
from gpunn.program.table import Table
from gpunn.program.values import BatchLike, kind_of

#: Minimum work per thread, in multiplications per step, and minimum rows per thread.
_WORK_OF_A_THREAD, _ROWS_OF_A_THREAD = 1 << 20, 16
#: With more threads, BLAS shares its products out better.
_MOST_THREADS = 8
#: A call makes about so many multiplications, or takes so many rows: then an interrupt is heard.
_WORK_AT_ONCE, _ROWS_AT_ONCE = 1 << 31, 1 << 20
#: And so many numbers of the network's outputs, if they are wanted.
_ENTRIES_AT_ONCE = 1 << 20


#: All that there are, for a process that is forked while another thread holds a lock.
_alive: WeakSet[CpuSteps] = WeakSet()


def _unlock_all() -> None:
    for steps in _alive:
        steps._lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_all)


class CpuSteps(RecordedSteps):
    """Makes the steps of an epoch, or the predictions for a data set; see `RecordedSteps`."""

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self._most_threads = self._threads_worth()
        self._threads_used = 1
        self._lock = Lock()
        _alive.add(self)
        self._contexts = np.zeros((_MOST_THREADS, CONTEXT_SIZE // 8), np.int64)
        self._workspace = np.zeros((self._most_threads, ROOM // 8), np.int64)

    def prepare(self) -> None:
        """Record a step on a whole batch."""
        self._plans: dict[int, Plan] = {}
        #: What `_segments` returned last, and for what: epochs are alike.
        self._last_cut: tuple[Any, Array, list[Table]] | None = None
        self._plan(self._batch_size)

    def explain(self) -> str:
        """Return what a step is made of."""
        n = self._plan(self._batch_size).n_instructions
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
        rows = None if order is None else np.ascontiguousarray(order, np.int64)
        data = self._data(batch)
        at_once = self._rows_at_once(outputs=outputs)
        for start in range(0, stop, at_once):
            turns = slice(start, min(start + at_once, stop))
            first, last = start // self._batch_size, -(-turns.stop // self._batch_size)
            with self._lock:  # buffers and contexts are those of one call
                results = self._run_turns(
                    turns, rows, data, decays[first:last], outputs=outputs, rng=rng
                )
            yield results

    def _run_turns(
        self,
        turns: slice,
        rows: Array | None,
        data: dict[str, Array],
        decays: Sequence[float],
        *,
        outputs: bool,
        rng: Any,
    ) -> StepResults:
        """Make the steps of some turns."""
        alone = one_thread()
        assert alone is not None  # noqa: S101 (`why_not_here` has seen it)
        plan = self._plan(self._batch_size)
        size = turns.stop - turns.start
        n = -(-size // self._batch_size)
        threads = self._threads(alone)
        with alone.hold():
            if threads > 1 and alone.count() > 1:  # somebody else's limit is in force
                threads = 1
            costs, penalties = np.zeros((n, threads)), np.zeros((n, threads))
            totals = np.zeros(n) if plan.has_totals else None
            made, meeting = np.zeros(1, np.int64), np.zeros(2, np.int64)
            result, keys = None, None
            if outputs:
                assert plan.recording.prediction is not None  # noqa: S101
                shape = (size, *plan.recording.prediction.shape[1:])
                result = np.empty(shape, self._dtype)
            if plan.recording.n_keys:
                keys = as_generator(rng).integers(
                    2**64, size=n * plan.recording.n_keys, dtype=np.uint64
                )
            arrays = {"order": rows, "made": made}
            arrays |= {"costs": costs, "penalties": penalties, "totals": totals}
            arrays |= {"outputs": result, "keys": keys, **data}
            if self._optimizer is not None:
                columns = map(_as_column, self._optimizer.numbers(decays))
                arrays |= zip(("rates", "decays", "epsilons"), columns, strict=True)
            self._threads_used = threads
            self._fill(threads, turns.start, arrays)
            segments, tables = self._segments(size, threads, in_order=rows is None)
            arguments = (
                self._contexts.ctypes.data,
                segments.ctypes.data,
                segments.shape[1],
                meeting.ctypes.data,
                self._dtype.type(1),
            )
            held = (arrays, segments, tables, self._contexts, self._workspace, meeting)
            before = self._steps_so_far()
            try:
                crew.run(run_program, threads, meeting, *arguments, held=held)
            finally:  # after an interrupt, too, and after one that comes right here
                try:
                    self._count(before, int(made[0]))
                except BaseException:
                    self._count(before, int(made[0]))
                    raise
        return StepResults(turns, costs.sum(axis=1), penalties.sum(axis=1), totals, result)

    def _fill(self, threads: int, start: int, arrays: dict[str, Array | None]) -> None:
        """Write the threads' contexts."""
        addresses = {name: 0 if x is None else x.ctypes.data for name, x in arrays.items()}
        addresses |= {"start": start, "turn": start, "threads": threads}
        row = [addresses.get(name, 0) for name in CONTEXT]
        for thread in range(threads):
            self._contexts[thread, : len(row)] = row
            self._contexts[thread, CONTEXT.index("thread")] = thread
            workspace = self._workspace[thread].ctypes.data
            self._contexts[thread, CONTEXT.index("workspace")] = workspace

    def _segments(self, size: int, threads: int, *, in_order: bool) -> tuple[Array, list[Table]]:
        """Return what to run, for each thread: whole batches, and then one that is not."""
        key = size, threads, in_order
        if self._last_cut is not None and self._last_cut[0] == key:
            return self._last_cut[1:]
        whole, rest = divmod(size, self._batch_size)
        parts = [(self._batch_size, whole)] * bool(whole) + [(rest, 1)] * bool(rest)
        tables = [self._plan(n).table(threads, in_order=in_order) for n, _ in parts]
        segments = np.zeros((threads, len(parts), 8), np.int64)
        for i, ((n, steps), table) in enumerate(zip(parts, tables, strict=True)):
            for thread in range(threads):
                segments[thread, i, :6] = (*table.segments[thread], n, steps)
        self._last_cut = key, segments, tables
        return segments, tables

    def _plan(self, n: int) -> Plan:
        """Return the plan for batches of n samples, recorded when it is first asked for."""
        if n not in self._plans:
            like = BatchLike.of(n, self._kind)
            place = get_backend("numpy")
            if self._optimizer is None:
                recording = record_forward(self._model, self._loss, like, place)
            else:
                assert self._loss is not None  # noqa: S101
                parameters = self._optimizer.parameters
                recording = record_step(self._model, self._loss, parameters, like, place)
            self._plans[n] = Plan(recording, self._optimizer, penalized=self._penalized)
        return self._plans[n]

    def _data(self, batch: Batch) -> dict[str, Array]:
        """Return the data as the instructions read them."""
        plan = self._plan(self._batch_size)
        wanted = {"x": plan.x_dtype, "y": plan.y_dtype}
        wanted["weight"] = self._dtype
        parts = {"x": batch.x, "y": batch.y, "weight": batch.sample_weight}
        return {
            name: np.require(part, wanted[name], ["C_CONTIGUOUS", "ALIGNED"])
            for name, part in parts.items()
            if part is not None and wanted[name] is not None
        }

    def _rows_at_once(self, *, outputs: bool) -> int:
        """Return how many rows a call takes: whole batches."""
        size, plan = self._batch_size, self._plan(self._batch_size)
        rows = min(size * _WORK_AT_ONCE // max(1, plan.work), _ROWS_AT_ONCE)
        if outputs:
            assert plan.recording.prediction is not None  # noqa: S101
            rows = min(rows, _ENTRIES_AT_ONCE // max(1, plan.recording.prediction.width))
        return size * max(1, rows // size)

    def _threads(self, alone: OneThread) -> int:
        """Return how many threads to have: as many as BLAS would."""
        if self._most_threads == 1:
            return 1
        wanted = min(alone.count(), self._most_threads)
        return crew.available(wanted) if alone.of_all_threads() else 1

    def _threads_worth(self) -> int:
        """Return how many threads pay for such steps."""
        n, plan = self._batch_size, self._plan(self._batch_size)
        if is_small(plan.largest_product):
            return 1
        return max(1, min(plan.work // _WORK_OF_A_THREAD, n // _ROWS_OF_A_THREAD, _MOST_THREADS))


def _as_column(numbers: Sequence[float]) -> Array:
    """Return numbers as an array, many equal ones in much less time than NumPy takes."""
    if numbers and numbers.count(numbers[0]) == len(numbers):
        return np.full(len(numbers), numbers[0], np.float64)
    return np.array(numbers, np.float64)


def why_not_here() -> str | None:
    """Return what keeps recorded steps from being compiled here; None if nothing does."""
    return None if one_thread() is not None else "threadpoolctl is not installed"
