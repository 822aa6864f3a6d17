"""Write a file so that a crash at any instant leaves either the old file or the new one."""

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

#: What to do about an error, by errno.
_ADVICE = {
    errno.ENOSPC: "free some space, or write to another disk",
    getattr(errno, "EDQUOT", errno.ENOSPC): "free some space, or write to another disk",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f), or write to another disk",
    errno.EROFS: "name a place that can be written to",
}

#: Errors of file systems that cannot flush a folder.
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)


def replace_file(owner: str, path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file, replacing any old one: all of it, or nothing.

    The pieces are written to a temporary file in the same folder and flushed to the disk; then that
    file is renamed, and the folder is flushed. After an error the old file is unchanged, and the
    temporary file is gone. Only a killed process leaves its unfinished file, ``.NAME.*.part``,
    behind; `remove_unfinished` removes those.

    Parameters
    ----------
    owner : str
        The function named in errors.
    path : Path
        An existing file keeps its permissions. A symbolic link stays, and the file it points to is
        replaced.
    pieces : iterable of bytes or memoryview
        The content. An error raised while iterating is passed on.

    Raises
    ------
    PathError
        If the folder does not exist or is not writable, if `path` is a folder, a device or a
        read-only file, or if the disk is full.
    """
    try:
        target = Path(os.path.realpath(path))
        old = _check_target(owner, path, target)
        temporary = target.with_name(f"{_temporary_prefix(target)}{os.urandom(6).hex()}.part")
        try:
            _write(temporary, old, pieces)
            os.replace(temporary, target)  # noqa: PTH105
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        _flush_folder(target.parent)
    except PathError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise PathError(_explain(owner, path, error)) from error


def remove_unfinished(path: Path) -> list[Path]:
    """Remove the unfinished files that killed processes left beside a file; return their paths.

    Call this only if no other process is writing the same file: it would remove that process's
    temporary file as well, and its `replace_file` would raise.
    """
    target = Path(os.path.realpath(path))
    unfinished = re.compile(re.escape(_temporary_prefix(target)) + r"[0-9a-f]{12}\.part")
    if not target.parent.is_dir():  # a broken link
        return []
    left = [each for each in target.parent.iterdir() if unfinished.fullmatch(each.name)]
    for each in left:
        each.unlink(missing_ok=True)
    return left


def _temporary_prefix(target: Path) -> str:
    """Return the prefix of temporary names; with 17 more bytes they must fit into 255."""
    name = target.name
    if len(os.fsencode(name)) > 230:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}."


def _check_target(owner: str, path: Path, target: Path) -> os.stat_result | None:
    """Check that a file can be written; return the status of the old one, None if there is none."""
    folder, old = _stat(target.parent), _stat(target)
    if folder is None or not stat.S_ISDIR(folder.st_mode):
        raise PathError(
            f"{owner}: there is no folder {target.parent} to write {target.name} into; create it "
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
    # Renaming needs permission on the folder alone: it would replace a protected file.
    if not os.access(target, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise PathError(
            f"{owner}: {path} may not be written to; allow it (chmod u+w), or name another file"
        )
    return old


def _stat(path: Path) -> os.stat_result | None:
    """Return the status of a path, None if nothing is there."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write(
    temporary: Path, old: os.stat_result | None, pieces: Iterable[bytes | memoryview]
) -> None:
    """Write a new file, with the owner and permissions of the old one; flush it to the disk."""
    mode = 0o666 if old is None else stat.S_IMODE(old.st_mode) & 0o777

    def create(name: str, flags: int) -> int:
        # Never readable by more users than the old file, not even while it is empty.
        return os.open(name, flags, mode if old is None else mode & 0o700)

    with open(temporary, "xb", opener=create) as file:
        if old is not None:
            with suppress(OSError, AttributeError):  # needs root; Windows has no chown
                os.chown(temporary, old.st_uid, old.st_gid)
            temporary.chmod(mode)
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that a new name in it survives a power failure."""
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


def _explain(owner: str, path: Path, error: OSError | ValueError) -> str:
    """Return the message for an error of the operating system."""
    number = getattr(error, "errno", None)
    advice = _ADVICE.get(number, "") if number is not None else ""
    if number in (errno.EACCES, errno.EPERM):
        advice = (
            f"the folder {path.parent} must be writable as well, since a new file is written there "
            "and then renamed"
        )
    reason = getattr(error, "strerror", None) or str(error)
    return f"{owner}: cannot write {path!s:.300}: {reason}" + (f"; {advice}" if advice else "")
