"""Bounds of what a call may do, whatever it is given, and of what its error may say."""

from __future__ import annotations

import re
import signal
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

resource = pytest.importorskip("resource")

#: The seconds and bytes that a call may take.
SECONDS, MEMORY = 10, 300 * 2**20


@contextmanager
def bounded() -> Iterator[None]:
    """Fail if the block takes too long or too much memory, or warns."""

    def hang(*_: Any) -> None:
        raise AssertionError(f"it takes more than {SECONDS} seconds")

    # The process's own time: other work on the machine is not counted. Waiting is, by the clock.
    handlers = {number: signal.signal(number, hang) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(12 * SECONDS)
    before = peak()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert peak() - before < MEMORY


def peak() -> int:
    """Return the most memory that the process has taken so far, in bytes."""
    used: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used * 1024


def check_words(error: Exception, names: Iterable[str], odd: Iterable[Any]) -> None:
    """Check that an error is neither terse nor endless, and says one of these names."""
    said = str(error)
    assert 10 < len(said) < 3000, said[:300]
    if any(callable(value) for value in odd):
        return  # it may be the callable's own error
    words = {word for name in names for word in (name, name.removesuffix("s"))}
    assert re.search(rf"\b({'|'.join(map(re.escape, words))})\b", said), said
