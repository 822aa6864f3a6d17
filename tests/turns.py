"""Threads that share every step, and threads that take turns in one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from gpunn.kernels import blas
from gpunn.program import cpu, crew
from gpunn.program.instructions.words import SIZE, START, STEP, STEPS_DONE
from gpunn.program.interpreter import CONTEXT_SIZE, SEGMENT_SIZE


@contextmanager
def threads_for_all(threads: int, rows: int = 1 << 20) -> Iterator[None]:
    """Divide each step among `threads` threads, however small it is; a call takes `rows` rows."""
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(threads, user_api="blas"):
        patch.setattr(blas, "_WORK_OF_ONE_THREAD", 0)
        patch.setattr(cpu, "_MIN_WORK_PER_THREAD", 1)
        patch.setattr(cpu, "_MIN_ROWS_PER_THREAD", 1)
        patch.setattr(cpu, "_ROWS_AT_ONCE", rows)
        yield


@contextmanager
def taking_turns(threads: int, seed: int, rows: int = 1 << 20) -> Iterator[list[int]]:
    """Do the work of all threads in this one, in any order that their meetings allow.

    Whatever a step's memory held before is overwritten with bytes that are NaN, and -1.
    """
    turns = Turns(seed)
    with threads_for_all(1, rows), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu.CpuSteps, "_threads", lambda self, _: min(threads, self._max_threads))
        patch.setattr(crew, "run", turns.run)
        yield turns.calls


class Turns:
    """Stands for `crew.run` and the interpreter."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.calls: list[int] = []

    def run(
        self, _: Any, threads: int, meeting: Any, *arguments: Any, held: Any = None
    ) -> None:  # as `crew.run`
        contexts, segments, n_segments, _, one = arguments
        blocks = [table._block for table in held[1].tables]
        self.calls.append(threads)
        at_work = {i: self._thread(i, contexts, segments, n_segments, one) for i in range(threads)}
        while at_work:
            for block in blocks * self._all_begin_a_step(at_work):
                block[...] = 255
            self._until_they_meet(at_work)

    def _all_begin_a_step(self, at_work: dict[int, Iterator[str]]) -> bool:
        said = {next(thread, "end") for thread in at_work.values()}
        assert len(said) == 1, said
        if said == {"end"}:
            at_work.clear()
        return said == {"step"}

    def _until_they_meet(self, at_work: dict[int, Iterator[str]]) -> None:
        """Run each thread to the next meeting: one after another, or instruction by instruction."""
        going = [int(i) for i in self._rng.permutation(list(at_work))]
        in_a_row = self._rng.random() < 0.5
        while going:
            i = going[0] if in_a_row else int(self._rng.choice(going))
            if next(at_work[i], "met") == "met":
                going.remove(i)

    @staticmethod
    def _thread(
        thread: int, contexts: int, segments: int, n_segments: int, one: Any
    ) -> Iterator[str]:
        """Do what `run_program` does; say "step" or "phase" at the start of each, and "met"."""
        ctx = contexts + CONTEXT_SIZE * thread
        context, step = integers_at(ctx, 20), 0
        steps_done, start = integers_at(context[STEPS_DONE], 1), context[START]
        for i in range(n_segments):
            segment = integers_at(segments + SEGMENT_SIZE * (thread * n_segments + i), 8)
            for _ in range(segment[5]):
                yield "step"
                context[START], context[STEP] = start, step
                for j in range(segment[3]):
                    patch = integers_at(segment[2] + 32 * j, 4)
                    integers_at(patch[0], 1)[0] = context[patch[1]] + patch[2] + patch[3] * start
                for j in range(segment[1]):
                    row = segment[0] + SIZE * j
                    function = integers_at(row, 1)[0]
                    if function:
                        _function(function, one.dtype.char)(row, ctx, one)
                        yield "done"
                    else:
                        yield "met"
                        if j + 1 < segment[1]:
                            yield "phase"
                if segment[1] == 0 or function:
                    yield "met"
                step, start = step + 1, start + segment[4]
                steps_done[0] = step


def integers_at(address: int, n: int) -> Any:
    """Return the whole numbers at an address."""
    return (ctypes.c_int64 * n).from_address(address)


@cache
def _function(address: int, kind: str) -> Callable[..., None]:
    number = {"f": ctypes.c_float, "d": ctypes.c_double}[kind]
    return ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, number)(address)
