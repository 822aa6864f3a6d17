"""Host threads that run one compiled function in parallel."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

#: Each calling thread has its own workers: two callers that shared workers could deadlock.
_local = threading.local()


def available(threads: int) -> int:
    """Return the number of threads that `run` can use, at most the number given."""
    if hasattr(os, "sched_getaffinity"):  # threads busy-wait: each needs its own processor
        threads = min(threads, len(os.sched_getaffinity(0)))
    if threads <= 1:
        return 1
    try:
        _crew(threads - 1)
    except RuntimeError:  # the system has no more threads, or the interpreter is shutting down
        return 1
    return threads


def run(
    function: Callable[..., Any], threads: int, meeting: Any, *arguments: Any, held: Any = None
) -> None:
    """Call ``function(thread, threads, *arguments)`` in each thread; the caller is thread 0.

    Parameters
    ----------
    function : function
        Compiled, and run without the interpreter's lock. Its threads may wait for each other.
    threads : int
        The number that `available` returned in this thread.
    meeting : ndarray of int64 (2,)
        Zeros, for the threads to wait by. The second entry becomes 1 when an exception, such as an
        interrupt, ends a thread: the others must stop waiting for it.
    *arguments
        Passed to every thread.
    held : object
        Kept alive until all threads have finished: the objects whose addresses are arguments.
    """
    if threads == 1:
        function(0, 1, *arguments)
        return
    crew = _crew(threads - 1)
    crew.avoid_this_processor()

    def work(thread: int, held: Any = held) -> None:  # noqa: ARG001
        try:
            function(thread, threads, *arguments)
        except BaseException:
            meeting[1] = 1
            raise

    tasks: list[_Task] = []
    try:
        tasks.extend(crew.submit(partial(work, thread)) for thread in range(1, threads))
        work(0)
    except BaseException:
        meeting[1] = 1
        _local.crew = None  # a worker may be running a task that is not in `tasks`
        raise
    finally:
        try:
            _wait_for_all(tasks)
        except BaseException:  # an interrupt: raise it once no thread uses the memory
            _wait_for_all(tasks)
            raise
    for task in tasks:
        if task.error is not None:
            raise task.error


class _Task:
    """A function call for a worker, and the error that it raised."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work: Callable[[], None] | None = work
        self._running = threading.Lock()  # unlike an Event, it survives an interrupt
        self._running.acquire()
        self.error: BaseException | None = None

    def do(self) -> None:
        try:
            assert self._work is not None  # noqa: S101
            self._work()
        except BaseException as error:  # noqa: BLE001 (`run` raises it)
            self.error = error
        self._work = None  # release the objects that it holds
        self._running.release()

    def wait(self) -> None:
        """Wait until the task is done."""
        with self._running:
            pass


def _wait_for_all(tasks: list[_Task]) -> None:
    for task in tasks:
        task.wait()


class _Crew:
    """Worker threads that keep off the processor of the thread they work for.

    The system may queue a woken thread on its waker's processor although others are idle, and the
    waker, which busy-waits for it, never yields.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.process = os.getpid()
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._avoided: tuple[int, frozenset[int]] | None = None
        # Not called at the end of the process: an `atexit` function may still train.
        weakref.finalize(self, _dismiss, self._tasks, size).atexit = False
        workers = [
            threading.Thread(target=_serve, args=(self._tasks,), name="gpunn", daemon=True)
            for _ in range(size)
        ]
        for worker in workers:
            worker.start()
        self._ids = [worker.native_id for worker in workers]

    def submit(self, work: Callable[[], None]) -> _Task:
        """Queue a call for the next free worker."""
        task = _Task(work)
        self._tasks.put(task)
        return task

    def avoid_this_processor(self) -> None:
        """Keep the workers off this thread's processor, where the system can."""
        if _sched_getcpu is None:
            return
        here = _sched_getcpu(), frozenset(os.sched_getaffinity(0))
        others = here[1] - {here[0]}
        if here != self._avoided and others:
            for worker in self._ids:
                with suppress(OSError):  # not permitted
                    os.sched_setaffinity(worker or 0, others)
            self._avoided = here


def _serve(tasks: SimpleQueue[_Task | None]) -> None:
    """Run tasks until told to stop, in a worker thread."""
    while (task := tasks.get()) is not None:
        task.do()
        del task


def _dismiss(tasks: SimpleQueue[_Task | None], size: int) -> None:
    """Stop the workers."""
    for _ in range(size):
        tasks.put(None)


def _crew(size: int) -> _Crew:
    """Return this thread's workers; a forked process starts its own."""
    crew: _Crew | None = getattr(_local, "crew", None)
    if crew is None or crew.size != size or crew.process != os.getpid():
        crew = _local.crew = _Crew(size)
    return crew


def _find_sched_getcpu() -> Callable[[], int] | None:
    if not hasattr(os, "sched_setaffinity"):
        return None
    found: Callable[[], int] | None = getattr(ctypes.CDLL(None), "sched_getcpu", None)
    return found


_sched_getcpu = _find_sched_getcpu()
