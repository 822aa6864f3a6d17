"""Files of arrays by name, in the safetensors format, with a digest of all their bytes.

`write` and `read` are the one way in which gpunn writes and reads such files; the format itself is
the library `safetensors`'s. What gpunn wrote says so in its metadata: the entry ``gpunn`` is JSON
with ``sha256``, ``format``, the name and version of a `Format`, and ``metadata``. All is in one
entry because the library writes several in any order. ``sha256`` is the SHA-256 of the whole file
in which its own 64 digits are zeros. A file that states it is read only if it is right. It finds
damage; it is no signature, since whoever changes a file on purpose can compute it anew.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpunn.arrays.exchange import to_numpy
from gpunn.errors import DTypeError, FileError
from gpunn.files.atomic import replace_file
from gpunn.files.opening import opened

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

#: The names of types in a file, with those of NumPy.
_NUMPY_DTYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (64, 32, 16)},
    **{f"I{bits}": f"int{bits}" for bits in (64, 32, 16, 8)},
    **{f"U{bits}": f"uint{bits}" for bits in (64, 32, 16, 8)},
    "C64": "complex64",
    "BOOL": "bool",
}

#: Where a header has metadata, and the entry of gpunn's in them.
_METADATA, _ENTRY = "__metadata__", "gpunn"

#: What stands for the digest while it is computed, and where it is: the entry begins with it.
_ZEROS = "0" * 64
_STATED = re.compile(rb'"\{\\"sha256\\":\\"([0-9a-f]{64})\\"')


class Format(NamedTuple):
    """What a file of gpunn's is, and the newest version of it that this gpunn reads and writes."""

    name: str
    version: int

    def __str__(self) -> str:
        """Return what the metadata of a file say."""
        return f"{self.name} {self.version}"


#: The parameters and buffers of a model. Version 1 had no digest.
WEIGHTS = Format("gpunn", 2)


class Stored(NamedTuple):
    """An array of a file; `array` is None if NumPy does not support its dtype."""

    dtype: str
    shape: tuple[int, ...]
    array: Any


class File(NamedTuple):
    """The contents of a file: all names, the wanted arrays, and what the metadata say.

    Attributes
    ----------
    names : list of str
    found : dict from str to Stored
    written_by : str
        The format that the file states; empty if it states none.
    guarded : bool
        Whether it states a digest, which is right then.
    metadata : dict from str to JSON
        What `write` was given; empty if another program wrote the file.
    """

    names: list[str]
    found: dict[str, Stored]
    written_by: str
    guarded: bool
    metadata: dict[str, Any]

    def part(self, beginning: str) -> File:
        """Return what has names with this beginning, by the rest of its name."""
        names = [name.removeprefix(beginning) for name in self.names if name.startswith(beginning)]
        known = {name: self.found.get(beginning + name) for name in names}
        found = {name: stored for name, stored in known.items() if stored is not None}
        return self._replace(names=names, found=found)


def write(
    owner: str,
    path: Path,
    kind: Format,
    arrays: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a file of arrays, in place of any that is there: all of it, or nothing.

    Parameters
    ----------
    owner : str
        Who speaks in errors.
    path : Path
        See `replace_file`.
    kind : Format
        Name and version of the contents.
    arrays : mapping from str to array
        On any backend. Equal arrays give equal files.
    metadata : mapping from str to JSON, optional
        Values of dicts, lists, strings, numbers, booleans and None; they are read back as they
        were, floats to the last bit, but tuples as lists. All keys are strings. Equal ones in the
        same order give equal files.

    Raises
    ------
    PathError
        If the file cannot be written.
    FileError
        If the format has no such name of an array.
    DTypeError
        If it has no numbers like those of an array.

    Notes
    -----
    The content is made in memory before it is written, so that its digest is right even if another
    thread trains on meanwhile.
    """
    import json  # noqa: PLC0415 (not needed to import gpunn)

    ordered = {name: _as_stored(owner, name, array) for name, array in arrays.items()}
    said = {"sha256": _ZEROS, "format": str(kind), "metadata": metadata or {}}
    content = _serialized(owner, path, ordered, json.dumps(said, separators=(",", ":")))
    begin = content.index(_ZEROS.encode())  # metadata come first in a file, and the digest in them
    digits, rest = _digest(content, begin), memoryview(content)[begin + len(_ZEROS) :]
    replace_file(owner, path, [content[:begin], digits, rest])


def _as_stored(owner: str, name: str, array: Any) -> NDArray[Any]:
    """Return an array on the host and in C's order, as the library takes it."""
    if name == _METADATA:  # the library would write a file that it cannot read
        raise FileError(f"{owner}: no array can be called {_METADATA} in a safetensors file")
    here = np.asarray(to_numpy(array), order="C")
    if here.dtype.name not in _NUMPY_DTYPES.values():
        raise DTypeError(
            f"{owner}: {name} is {here.dtype}, of which a safetensors file has no numbers; "
            f"expected one of {', '.join(_NUMPY_DTYPES.values())}"
        )
    return here


def _serialized(owner: str, path: Path, arrays: dict[str, NDArray[Any]], entry: str) -> bytes:
    """Return the content of a file, by the library."""
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.numpy import save  # noqa: PLC0415

    try:
        return save(arrays, {_ENTRY: entry})
    except (SafetensorError, ValueError) as error:
        raise FileError(
            f"{owner}: {path} was not written, since the safetensors format cannot hold the "
            f"arrays: {error!s:.500}"
        ) from error


def _digest(content: bytes, begin: int) -> bytes:
    """Return the digest of a file whose own digits of it begin there."""
    import hashlib  # noqa: PLC0415

    view = memoryview(content)
    digest = hashlib.sha256(view[:begin])
    digest.update(_ZEROS.encode())
    digest.update(view[begin + len(_ZEROS) :])
    return digest.hexdigest().encode()


def read(owner: str, path: Path, wanted: Collection[str] | None = None) -> File:
    """Read arrays of a file that gpunn or another program wrote; None means all.

    While it is read, it is in memory twice: as a whole, and as arrays. Those that are not wanted
    may have any dtype.

    Raises
    ------
    MissingFileError
        If the file does not exist.
    PathError
        If it cannot be read.
    FileError
        If it is not a safetensors file, or is damaged.
    """
    from safetensors import SafetensorError  # noqa: PLC0415

    with opened(owner, path) as file:
        content = file.read()
    try:
        return _read(content, wanted)
    except (SafetensorError, ValueError, OverflowError, RecursionError) as error:
        raise FileError(
            f"{owner}: {path} is no safetensors file, or is damaged: {error!s:.500}"
        ) from error


def _read(content: bytes, wanted: Collection[str] | None) -> File:
    """Read arrays of a file; raise an error if it is damaged."""
    from safetensors import deserialize  # noqa: PLC0415

    guarded = _is_guarded(content)
    entries = dict(sorted(deserialize(content)))  # type: ignore[no-untyped-call]
    written_by, metadata = _told(content)
    order = entries if wanted is None else [name for name in wanted if name in entries]
    found = {name: _stored(name, entries[name]) for name in order}
    return File(list(entries), found, written_by, guarded, metadata)


def _is_guarded(content: bytes) -> bool:
    """Return whether a file states a digest; raise ValueError if that is not right."""
    header = min(8 + int.from_bytes(content[:8], "little"), len(content))
    stated = _STATED.search(content, 8, header)
    if stated is None:
        return False
    if stated[1] != _digest(content, stated.start(1)):
        raise ValueError(
            "its bytes do not have the digest sha256 that its metadata state. Restore it from a "
            "copy; a program that changed it on purpose must leave out the digest"
        )
    return True


def _told(content: bytes) -> tuple[str, dict[str, Any]]:
    """Return the format that a file states, and gpunn's metadata; the library returns neither."""
    import json  # noqa: PLC0415

    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    texts = header.get(_METADATA) or {}
    if _ENTRY not in texts:
        return texts.get("format", ""), {}
    said = json.loads(texts[_ENTRY])
    said = said if isinstance(said, dict) else {}
    written_by, metadata = said.get("format"), said.get("metadata")
    if type(written_by) is not str or type(metadata) is not dict:
        raise ValueError(f"the entry {_ENTRY} of its metadata lacks a format or metadata")
    return written_by, metadata


def read_as(owner: str, path: Path, kind: Format) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read all arrays and metadata of a file that `write` wrote as such a format.

    Raises
    ------
    MissingFileError
        If the file does not exist.
    PathError
        If it cannot be read.
    FileError
        If it is of another format or of a newer version, or is damaged.
    """
    file = read(owner, path)
    check_format(owner, path, file, kind)
    return {name: stored.array for name, stored in file.found.items()}, file.metadata


def check_format(owner: str, path: Path, file: File, kind: Format) -> None:
    """Refuse a file of another format, of a newer version, or without the digest it had."""
    name, _, version = file.written_by.rpartition(" ")
    if name != kind.name or not version.isdecimal() or len(version) > 9:
        raise FileError(
            f"{owner}: {path} is of format {file.written_by[:99]!r}, and {str(kind)!r} is expected"
        )
    if int(version) > kind.version:
        raise FileError(
            f"{owner}: {path} is of format {file.written_by!r}, and this gpunn reads those up to "
            f"{str(kind)!r}; a newer gpunn wrote it, and reads it"
        )
    if not file.guarded and file.written_by != "gpunn 1":
        raise FileError(
            f"{owner}: {path} is damaged: files of format {file.written_by!r} state a digest, as "
            "sha256, and it does not"
        )


def _stored(name: str, entry: Mapping[str, Any]) -> Stored:
    """Return an array of a file; bfloat16 becomes float32, whose upper half it is."""
    dtype, shape, data = entry["dtype"], tuple(entry["shape"]), entry["data"]
    if dtype == "BF16":
        halves = np.frombuffer(data, "<u2").astype(np.uint32)
        halves <<= 16
        return Stored("bfloat16", shape, halves.view(np.float32).reshape(shape))
    if dtype not in _NUMPY_DTYPES:
        return Stored(dtype, shape, None)
    if dtype == "BOOL" and (np.frombuffer(data, np.uint8) > 1).any():
        raise ValueError(f"{name} is BOOL, with bytes that are neither 0 nor 1")
    stored = np.dtype(_NUMPY_DTYPES[dtype]).newbyteorder("<")
    array = np.frombuffer(data, stored).reshape(shape)
    return Stored(_NUMPY_DTYPES[dtype], shape, array.astype(stored.newbyteorder("="), copy=False))


def holds(dtype: str, array: NDArray[Any]) -> bool:
    """Return whether a dtype can hold all numbers of an array, up to rounding."""
    if np.can_cast(array.dtype, dtype, "safe"):
        return True
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
    if converted.dtype.kind == "f":
        return bool((np.isfinite(converted) | ~np.isfinite(array)).all())
    return bool((converted == array).all())
