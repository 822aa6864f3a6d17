"""Outdated machine code in numba's cache files."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def forget_stale_code(folders: Sequence[Path]) -> None:
    """Delete numba's cache files in these folders if a source file there is newer.

    numba recompiles a function when its own file changes, but not when the file of a function that
    it calls changes.
    """
    with suppress(OSError):  # no such folder, or no permission
        kept = [index for folder in folders for index in (folder / "__pycache__").glob("*.nbi")]
        if not kept:
            return
        sources = [source for folder in folders for source in folder.glob("*.py")]
        newest = max(source.stat().st_mtime for source in sources)
        if newest > min(index.stat().st_mtime for index in kept):
            for index in kept:
                index.unlink(missing_ok=True)
