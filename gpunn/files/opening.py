"""Open a file for reading, with errors that explain what is wrong."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from gpunn.errors import MissingFileError, PathError

if TYPE_CHECKING:
    from pathlib import Path


@contextmanager
def opened(owner: str, path: Path) -> Iterator[BinaryIO]:
    """Open a file; explain errors of the operating system, also while it is read.

    Raises
    ------
    MissingFileError
        If there is no such file.
    PathError
        If it is a folder, a device or a pipe, or cannot be read.
    """
    try:
        _check_kind(owner, path)
        with path.open("rb") as file:
            yield file
    except PathError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(f"{owner}: there is no file {path!s:.300}") from error
    except OSError as error:
        raise PathError(f"{owner}: cannot read {path!s:.300}: {error.strerror or error}") from error


def _check_kind(owner: str, path: Path) -> None:
    """Refuse anything but a regular file. Opening a pipe would block until someone writes to it."""
    try:
        kind = path.stat().st_mode
    except ValueError as error:  # a null character
        raise PathError(f"{owner}: cannot read {str(path)[:300]!r}: {error}") from error
    if stat.S_ISDIR(kind):
        raise PathError(f"{owner}: {path} is a folder; name a file in it")
    if not stat.S_ISREG(kind):
        raise PathError(f"{owner}: {path} is a device, a pipe or a socket; name a file")
