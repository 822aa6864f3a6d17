"""Locks that let one thread at a time train a parameter, or swap in its average."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock, RLock, get_ident

from gpunn.errors import BusyError
from gpunn.nn.parameter import Parameter
from gpunn.optim.average import averaged
from gpunn.optim.base import Optimizer

#: Parameter id -> (id of the thread that trains it, number of that thread's nested calls).
_owners: dict[int, tuple[int, int]] = {}
_lock = Lock()
#: Held by the thread that computes with averaged weights.
_averaging = RLock()


def _forget_all() -> None:
    """Reset all locks in a forked process, where the training threads do not exist."""
    global _lock, _averaging
    _owners.clear()
    _lock, _averaging = Lock(), RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


@contextmanager
def trained_alone(owner: str, parameters: Iterable[Parameter]) -> Iterator[None]:
    """Return a context in which only this thread may train these parameters.

    Raises
    ------
    BusyError
        If another thread is in such a context with one of them.
    """
    me, keys = get_ident(), {id(parameter) for parameter in parameters}
    with _lock:
        if any(_owners.get(key, (me,))[0] != me for key in keys):
            raise BusyError(
                f"{owner}: another thread is training this model; wait for it, or train a copy "
                "(copy.deepcopy(model)) with an optimizer of its own"
            )
        for key in keys:
            _owners[key] = me, _owners.get(key, (me, 0))[1] + 1
    try:
        yield
    finally:
        with _lock:
            for key in keys:
                _, calls = _owners.pop(key)
                if calls > 1:
                    _owners[key] = me, calls - 1


@contextmanager
def by_average(owner: str, optimizer: Optimizer) -> Iterator[None]:
    """Return a context in which the average, if any, takes the place of the weights.

    Since it is written into the parameters, threads that want averages wait for each other.

    Raises
    ------
    BusyError
        If there is an average, and another thread is training these weights.
    """
    if optimizer.average is None:
        yield
        return
    with _averaging, trained_alone(owner, optimizer.parameters), averaged(optimizer):
        yield
