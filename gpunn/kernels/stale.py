"""Machine code that numba has kept on disk, and that no longer fits the sources."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def forget_stale_code(folders: Sequence[Path]) -> None:
    """Remove the machine code that numba has kept of some folders, if a source there is newer.

    numba compiles a function anew when its own file changes, but not when a file does whose
    functions it calls.
    """
    with suppress(OSError):  # nothing there, or no permission
        kept = [index for folder in folders for index in (folder / "__pycache__").glob("*.nbi")]
        if not kept:
            return
        sources = [source for folder in folders for source in folder.glob("*.py")]
        newest = max(source.stat().st_mtime for source in sources)
        if newest > min(index.stat().st_mtime for index in kept):
            for index in kept:
                index.unlink(missing_ok=True)
