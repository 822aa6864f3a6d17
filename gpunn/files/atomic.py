"""Writing a file so that a crash at any instant leaves the old one or the new one."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gpunn.errors import PathError

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What to do about an error, by its number.
_ADVICE = {
    errno.ENOSPC: "free some space, or write to another disk",
    getattr(errno, "EDQUOT", errno.ENOSPC): "free some space, or write to another disk",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or write to another disk",
    errno.EROFS: "name a place that can be written to",
}

#: What a file system says that cannot flush a folder.
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)


def replace_file(owner: str, path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file, in place of any that is there: all of it, or nothing.

    The pieces are written to a file of another name in the same folder and flushed to the disk;
    then that file is renamed, and the folder is flushed. After an error the old file is as it was,
    and no other is left. Only a process that is killed leaves its unfinished file behind, whose
    name is ``.NAME.*.part``; `remove_unfinished` removes those.

    Parameters
    ----------
    owner : str
        Who speaks in errors.
    path : Path
        A file that exists keeps its permissions. Of a symbolic link, the file that it leads to is
        replaced, and the link stays.
    pieces : iterable of bytes or memoryview
        The content. An error in making it is handed on.

    Raises
    ------
    PathError
        If the folder does not exist or cannot be written to, if `path` is a folder, a device or a
        file that is read-only, or if the disk is full.
    """
    try:
        target = Path(os.path.realpath(path))
        old = _old(owner, path, target)
        beside = target.with_name(f"{_beginning(target)}{os.urandom(6).hex()}.part")
        try:
            _write(beside, old, pieces)
            os.replace(beside, target)  # noqa: PTH105
        except BaseException:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise
        _flush_folder(target.parent)
    except PathError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise PathError(_explained(owner, path, error)) from error


def remove_unfinished(path: Path) -> list[Path]:
    """Remove what killed processes left beside a file, and return it.

    Only for a caller who knows that no other process is writing the same file at this time: what
    that one has written so far would be removed, too, and its `replace_file` would raise.
    """
    target = Path(os.path.realpath(path))
    unfinished = re.compile(re.escape(_beginning(target)) + r"[0-9a-f]{12}\.part")
    if not target.parent.is_dir():  # of a link that leads nowhere
        return []
    left = [each for each in target.parent.iterdir() if unfinished.fullmatch(each.name)]
    for each in left:
        each.unlink(missing_ok=True)
    return left


def _beginning(target: Path) -> str:
    """Return how the names of unfinished files begin; 19 more bytes must fit into 255."""
    name = target.name
    if len(os.fsencode(name)) > 230:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}."


def _old(owner: str, path: Path, target: Path) -> os.stat_result | None:
    """Return what is known of the file to be replaced, None if there is none; check the place."""
    folder, old = _stat(target.parent), _stat(target)
    if folder is None or not stat.S_ISDIR(folder.st_mode):
        raise PathError(
            f"{owner}: there is no folder {target.parent} to write {target.name} into; make it "
            "first"
        )
    if old is None:
        return None
    if stat.S_ISDIR(old.st_mode):
        raise PathError(
            f"{owner}: {path} is a folder; name a file, such as {path / 'model.safetensors'}"
        )
    if not stat.S_ISREG(old.st_mode):
        raise PathError(f"{owner}: {path} is a device, a pipe or a socket; name a file")
    # Renaming asks the folder alone: it would replace a file that is protected.
    if not os.access(target, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PathError(
            f"{owner}: {path} may not be written to; allow it (chmod u+w), or name another file"
        )
    return old


def _stat(path: Path) -> os.stat_result | None:
    """Return what is known of what is at a path, None if nothing is."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write(beside: Path, old: os.stat_result | None, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a new file, with the owner and permissions of the old one; flush it to the disk."""
    mode = 0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o777

    def create(name: str, flags: int) -> int:
        # Never readable by more people than the old file, not even while it is empty.
        return os.open(name, flags, mode if old is None else mode & 0o700)

    with open(beside, "xb", opener=create) as file:
        if old is not None:
            with suppress(OSError, AttributeError):  # only root may; Windows has no such thing
                os.chown(beside, old.st_uid, old.st_gid)
            beside.chmod(mode)
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that a new name in it outlasts a loss of power."""
    if os.name != "posix":
        return
    try:
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise


def _explained(owner: str, path: Path, error: OSError | ValueError) -> str:
    """Return the message for an error of the operating system."""
    number = getattr(error, "errno", None)
    advice = _ADVICE.get(number, "") if number is not None else ""
    if number in (errno.EACCES, errno.EPERM):
        advice = (
            f"the folder {path.parent} must be writable, too, since a new file is written there "
            "and then renamed"
        )
    reason = getattr(error, "strerror", None) or str(error)
    return f"{owner}: cannot write {path!s:.300}: {reason}" + (f"; {advice}" if advice else "")
