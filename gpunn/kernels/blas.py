"""The number of threads that BLAS uses while a network trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from threading import RLock
from typing import Any
from weakref import ref

#: Maximum multiplications in a product that one thread computes alone.
_WORK_OF_ONE_THREAD = 1 << 21


def is_small(work: int) -> bool:
    """Return whether a product of `work` multiplications is too small for threads."""
    return work <= _WORK_OF_ONE_THREAD


class OneThread:
    """Limits BLAS to one thread for as long as any thread of the process holds the limit.

    The number of threads belongs to the whole process. So the limit is set by the first holder and
    lifted by the last one; nested or overlapping holders would otherwise restore the wrong number.

    Parameters
    ----------
    pools : sequence of threadpoolctl's controllers
        The BLAS libraries of this process.
    release_control : function or None
        Called after each change, so that another thread may make the next one.
    """

    def __init__(self, pools: Sequence[Any], release_control: Callable[[], None] | None) -> None:
        self._pools = pools
        self._release_control = release_control
        self._lock = RLock()
        #: The holders; the references remove those that an interrupt has kept from leaving.
        self._holds: dict[int, ref[Hold]] = {}
        #: Each library's number of threads before the limit; None while there is no limit.
        self._before: list[int] | None = None

    def count(self) -> int:
        """Return the number of threads that BLAS currently uses."""
        return max(self._counts(), default=1)

    def _counts(self) -> list[int]:
        return [pool.num_threads for pool in self._pools]

    def of_all_threads(self) -> bool:
        """Return whether the limit holds in all threads; OpenMP's holds in the caller only."""
        return "openmp" not in [getattr(pool, "threading_layer", "") for pool in self._pools]

    def reset_after_fork(self) -> None:
        """Lift the limit in a forked process, where the threads that held it do not exist."""
        self._lock = RLock()
        self._holds.clear()
        if self._before is not None:
            self._set(self._before)
            self._before = None

    def hold(self) -> Hold:
        """Return a context in which the limit holds."""
        return Hold(self)

    def enter(self, hold: Hold) -> None:
        """Register a holder; the first one sets the limit."""
        with self._lock:
            first, key = not self._holds, id(hold)
            self._holds[key] = ref(hold, lambda _: self._remove(key))
            if first:
                if self._before is None:  # else an interrupt left the last limit in place
                    self._before = self._counts()
                self._set([1] * len(self._pools))

    def leave(self, hold: Hold) -> None:
        """Remove a holder; the last one lifts the limit."""
        self._remove(id(hold))

    def _remove(self, key: int) -> None:
        with self._lock:
            if self._before is not None and not self._holds.keys() - {key}:
                self._set(self._before)
                self._before = None
            self._holds.pop(key, None)  # last: if an interrupt comes first, it is done again

    def _set(self, counts: list[int]) -> None:
        for pool, count in zip(self._pools, counts, strict=True):
            pool.set_num_threads(count)
        if self._release_control is not None:
            self._release_control()


class Hold:
    """Holds a limit within a `with` block.

    If an interrupt prevents the block from releasing it, the limit notices that the holder is gone.
    A `__del__` would run after every block, and Python swallows an interrupt that arrives in one.
    """

    def __init__(self, limit: OneThread) -> None:
        self._limit = limit

    def __enter__(self) -> None:
        self._limit.enter(self)

    def __exit__(self, *exception: object) -> None:
        self._limit.leave(self)


@cache
def one_thread() -> OneThread | None:
    """Return the limit of one BLAS thread, or None without threadpoolctl."""
    try:
        import threadpoolctl  # noqa: PLC0415 (optional)
    except ImportError:
        return None
    pools = threadpoolctl.ThreadpoolController().select(user_api="blas")
    # Since 3.8, only the first thread that sets a number may change it, until it releases control.
    openblas = threadpoolctl.OpenBLASController
    release_control = getattr(openblas, "clear_controlling_thread", None)
    limit = OneThread(pools.lib_controllers, release_control)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=limit.reset_after_fork)
    return limit
