"""Bounds of what a call may do, whatever it is given."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

resource = pytest.importorskip("resource")

#: The seconds and bytes that a call may take.
SECONDS, MEMORY = 10, 300 * 2**20


@contextmanager
def bounded() -> Iterator[None]:
    """Fail if what is done takes too long, or too much memory, or warns."""

    def hang(*_: Any) -> None:
        raise AssertionError(f"it takes more than {SECONDS} seconds")

    before, handler = peak(), signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    assert peak() - before < MEMORY


def peak() -> int:
    """Return the most memory that the process has taken so far, in bytes."""
    used: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used * 1024
