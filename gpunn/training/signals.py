"""Signals that end training between two batches rather than at any instant."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Ending:
    """Whether a signal has asked for the end.

    Attributes
    ----------
    asked_by : int
        The signal; 0 if there was none.
    """

    def __init__(self) -> None:
        self.asked_by = 0

    def __call__(self, number: int, _: Any) -> None:
        """Note a signal; the second one takes effect at once."""
        if not self.asked_by:
            self.asked_by = number
            return
        import signal  # noqa: PLC0415 (as below)

        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)


@contextmanager
def heard(*, wanted: bool) -> Iterator[Ending]:
    """Return a context in which Ctrl-C and SIGTERM are noted, and take effect at its end.

    At its end Ctrl-C does nothing more: who asks has seen it. SIGTERM is raised again, for who
    handled it before. Python lets only the main thread of the main interpreter do this; elsewhere,
    and unless it is `wanted`, signals take effect as always.
    """
    ending = Ending()
    if not wanted:
        yield ending
        return
    import signal  # noqa: PLC0415 (not needed to import gpunn, nor without checkpoints)

    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    before = {
        number: signal.signal(number, ending)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN  # as of a program in the background
    }
    try:
        yield ending
    finally:
        for number, handler in before.items():
            # None: it was not installed from Python, and cannot be put back from there.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if ending.asked_by == signal.SIGTERM:  # after an error, too
            signal.raise_signal(signal.SIGTERM)
