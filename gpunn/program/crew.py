"""Threads of the host that do one compiled function side by side."""

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

#: For each thread that asks: two of them that shared workers would wait for each other.
_local = threading.local()


def available(threads: int) -> int:
    """Return how many threads `run` can have of so many that are wanted."""
    if hasattr(os, "sched_getaffinity"):  # they wait without sleeping: each needs a processor
        threads = min(threads, len(os.sched_getaffinity(0)))
    if threads <= 1:
        return 1
    try:
        _crew(threads - 1)
    except RuntimeError:  # no more threads, or the interpreter is about to end
        return 1
    return threads


def run(
    function: Callable[..., Any], threads: int, meeting: Any, *arguments: Any, held: Any = None
) -> None:
    """Call ``function(thread, threads, *arguments)`` in each of some threads; this one is the 0th.

    Parameters
    ----------
    function : function
        Compiled, without the interpreter's lock. It may wait for the others.
    threads : int
        What `available` returned in this thread.
    meeting : ndarray of int64 (2,)
        What it waits by, zeros. The second entry becomes 1 when a thread has left by an exception,
        such as an interrupt: nobody is to wait for it then.
    *arguments
        The same for all.
    held : object
        Lives until all threads are through: what the arguments have the addresses of.
    """
    if threads == 1:
        function(0, 1, *arguments)
        return
    crew = _crew(threads - 1)
    crew.step_aside()

    def work(thread: int, held: Any = held) -> None:  # noqa: ARG001
        try:
            function(thread, threads, *arguments)
        except BaseException:
            meeting[1] = 1
            raise

    tasks: list[_Task] = []
    try:
        tasks.extend(crew.give_out(partial(work, thread)) for thread in range(1, threads))
        work(0)
    except BaseException:
        meeting[1] = 1
        _local.crew = None  # a worker may be at a task that is not among `tasks`
        raise
    finally:
        try:
            _wait_for_all(tasks)
        except BaseException:  # an interrupt: it is raised when nobody uses the memory any more
            _wait_for_all(tasks)
            raise
    for task in tasks:
        if task.error is not None:
            raise task.error


class _Task:
    """Something to do, and how it ended."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work: Callable[[], None] | None = work
        self._running = threading.Lock()  # an interrupt does not harm it, as it does an Event
        self._running.acquire()
        self.error: BaseException | None = None

    def do(self) -> None:
        try:
            assert self._work is not None  # noqa: S101
            self._work()
        except BaseException as error:  # noqa: BLE001 (who gave it out raises it)
            self.error = error
        self._work = None  # and what it holds
        self._running.release()

    def wait(self) -> None:
        """Wait until it is done."""
        with self._running:
            pass


def _wait_for_all(tasks: list[_Task]) -> None:
    for task in tasks:
        task.wait()


class _Crew:
    """Worker threads, which keep off the processor of the thread that they work for.

    A thread that is woken may be put in the line of the processor that its waker runs on, though
    others are idle, and the waker, which waits for it without sleeping, does not leave.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.process = os.getpid()
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._apart_from: tuple[int, frozenset[int]] | None = None
        # At the end of the process it is not called: a function of `atexit` may train, too.
        weakref.finalize(self, _dismiss, self._tasks, size).atexit = False
        workers = [
            threading.Thread(target=_serve, args=(self._tasks,), name="gpunn", daemon=True)
            for _ in range(size)
        ]
        for worker in workers:
            worker.start()
        self._ids = [worker.native_id for worker in workers]

    def give_out(self, work: Callable[[], None]) -> _Task:
        """Have a worker do something."""
        task = _Task(work)
        self._tasks.put(task)
        return task

    def step_aside(self) -> None:
        """Forbid the workers the processor that this thread is on, where the system knows it."""
        if _sched_getcpu is None:
            return
        here = _sched_getcpu(), frozenset(os.sched_getaffinity(0))
        others = here[1] - {here[0]}
        if here != self._apart_from and others:
            for worker in self._ids:
                with suppress(OSError):  # not allowed
                    os.sched_setaffinity(worker or 0, others)
            self._apart_from = here


def _serve(tasks: SimpleQueue[_Task | None]) -> None:
    """Do one task after the other, as a worker."""
    while (task := tasks.get()) is not None:
        task.do()
        del task


def _dismiss(tasks: SimpleQueue[_Task | None], size: int) -> None:
    """End the workers, when nobody needs them any more."""
    for _ in range(size):
        tasks.put(None)


def _crew(size: int) -> _Crew:
    """Return this thread's workers; a process that was forked has none of its parent's."""
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
