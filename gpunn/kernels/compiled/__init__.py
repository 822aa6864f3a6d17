"""What numba compiles: loops over arrays, and whole steps of training."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def forget_what_is_old(folder: Path) -> None:
    """Remove the machine code that numba has kept of a folder, if a source file there is newer.

    numba makes a function anew when the file that it is written in changes, but not when one does
    whose functions it calls.
    """
    kept = list((folder / "__pycache__").glob("*.nbi"))
    if not kept:
        return
    newest = max(source.stat().st_mtime for source in folder.glob("*.py"))
    if newest > min(index.stat().st_mtime for index in kept):
        for index in kept:
            index.unlink(missing_ok=True)


with suppress(OSError):  # nothing there, or no permission
    forget_what_is_old(Path(__file__).parent)
