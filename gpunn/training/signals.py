"""Signals that end training between two batches rather than at any instant."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Ending:
    """A signal handler that notes a request to end training.

    Attributes
    ----------
    asked_by : int
        The signal's number; 0 if there was none.
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
    """Return a context in which Ctrl-C and SIGTERM are only noted, for the caller to act on.

    At its end Ctrl-C is dropped, since the caller has stopped training; SIGTERM is raised again for
    the previous handler. Python allows this only in the main thread of the main interpreter;
    elsewhere, and unless `wanted`, signals take effect as usual.
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
        if signal.getsignal(number) is not signal.SIG_IGN  # as in a background program
    }
    try:
        yield ending
    finally:
        for number, handler in before.items():
            # None: the handler was not installed from Python, which cannot restore it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if ending.asked_by == signal.SIGTERM:  # also after an error
            signal.raise_signal(signal.SIGTERM)
