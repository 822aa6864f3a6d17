"""Reduce any error to one line: a broken installation may raise anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gpunn.errors import BackendUnavailableError, SettingError

T = TypeVar("T")

#: Longer lines of an error are truncated to this number of characters.
_MAX_LENGTH = 200


class ProbeError(Exception):
    """An attempt failed; `reason` says why, in one line."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.kind = type(error).__name__
        self.reason = one_line(error)


def attempt(run: Callable[[], T]) -> T:
    """Call a function; turn any exception into a `ProbeError`.

    A `SettingError` is passed on: it means a wrong backend name, not a broken installation.
    """
    try:
        return run()
    except SettingError:
        raise
    except Exception as error:
        raise ProbeError(error) from error


def one_line(error: BaseException | str) -> str:
    """Return the most useful line of an error: compilers and CuPy's import write whole pages."""
    text, cause = str(error), getattr(error, "__cause__", None)
    if isinstance(error, BackendUnavailableError):  # it may quote its whole cause
        return text.replace(str(cause), one_line(cause)) if cause and str(cause) else text
    _, _, original = text.rpartition("Original error:")
    lines = [line.strip(" =-") for line in original.splitlines()]
    lines = [line for line in lines if line]
    telling = [line for line in lines if "error:" in line.lower()] or lines
    line = telling[0] if telling else type(error).__name__
    return line if len(line) <= _MAX_LENGTH else f"{line[:_MAX_LENGTH]}..."
