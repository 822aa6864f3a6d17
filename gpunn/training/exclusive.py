"""One thread at a time trains a parameter."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock, get_ident

from gpunn.errors import BusyError
from gpunn.nn.parameter import Parameter

#: Which thread trains each parameter, by the parameter's id, and how many of its calls do.
_owners: dict[int, tuple[int, int]] = {}
_lock = Lock()


def _forget_all() -> None:
    """Begin anew in a forked process: the threads that trained are not there."""
    global _lock  # noqa: PLW0603
    _owners.clear()
    _lock = Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


@contextmanager
def trained_alone(owner: str, parameters: Iterable[Parameter]) -> Iterator[None]:
    """Return a context in which no other thread may enter one with the same parameters.

    Raises
    ------
    BusyError
        If another thread has.
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
