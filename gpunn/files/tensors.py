"""Files of named arrays, in the safetensors format, with a digest of all their bytes.

All such files are written by `write` and read by `read`; the format itself is left to the library
`safetensors`. A file written by gpunn has the metadata entry ``gpunn``: JSON with ``sha256``,
``format`` (the name and version of a `Format`) and ``metadata``. It is a single entry because the
library writes several in arbitrary order. ``sha256`` is the SHA-256 of the whole file with those 64
digits set to zeros. A file that has it is read only if it is right. It detects damage; it is not a
signature, since anyone who changes a file on purpose can recompute it.
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

#: NumPy's name for each dtype of the file format.
_NUMPY_DTYPES = {
    **{f"F{bits}": f"float{bits}" for bits in (64, 32, 16)},
    **{f"I{bits}": f"int{bits}" for bits in (64, 32, 16, 8)},
    **{f"U{bits}": f"uint{bits}" for bits in (64, 32, 16, 8)},
    "C64": "complex64",
    "BOOL": "bool",
}

#: The key of the metadata in a header, and of gpunn's entry in them.
_METADATA, _ENTRY = "__metadata__", "gpunn"

#: The placeholder for the digest while it is computed, and the digest at the entry's beginning.
_ZEROS = "0" * 64
_STATED = re.compile(rb'"\{\\"sha256\\":\\"([0-9a-f]{64})\\"')


class Format(NamedTuple):
    """A file format: its name, and the newest version that this gpunn reads and writes."""

    name: str
    version: int

    def __str__(self) -> str:
        """Return the format as written in a file's metadata."""
        return f"{self.name} {self.version}"


#: The format for a model's parameters and buffers. Version 1 had no digest.
WEIGHTS = Format("gpunn", 2)


class Stored(NamedTuple):
    """An array in a file; `array` is None if NumPy does not support its dtype."""

    dtype: str
    shape: tuple[int, ...]
    array: Any


class File(NamedTuple):
    """The contents of a file: all names, the requested arrays, and the metadata.

    Attributes
    ----------
    names : list of str
    found : dict from str to Stored
    written_by : str
        The format that the file states; empty if it states none.
    guarded : bool
        Whether the file states a digest; it has been verified.
    metadata : dict from str to JSON
        The metadata passed to `write`; empty if another program wrote the file.
    """

    names: list[str]
    found: dict[str, Stored]
    written_by: str
    guarded: bool
    metadata: dict[str, Any]

    def part(self, prefix: str) -> File:
        """Return the arrays whose names have a prefix, with the prefix removed."""
        names = [name.removeprefix(prefix) for name in self.names if name.startswith(prefix)]
        known = {name: self.found.get(prefix + name) for name in names}
        found = {name: stored for name, stored in known.items() if stored is not None}
        return self._replace(names=names, found=found)


def write(
    owner: str,
    path: Path,
    kind: Format,
    arrays: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a file of arrays, replacing any old one: all of it, or nothing.

    Parameters
    ----------
    owner : str
        The function named in errors.
    path : Path
        See `replace_file`.
    kind : Format
        Name and version of the contents.
    arrays : mapping from str to array
        On any backend. Equal arrays give equal files.
    metadata : mapping from str to JSON, optional
        Values of dicts with string keys, lists, strings, numbers, booleans and None. They are read
        back unchanged, floats to the last bit, but tuples as lists. Equal values in the same order
        give equal files.

    Raises
    ------
    PathError
        If the file cannot be written.
    FileError
        If the format does not allow the name of an array.
    DTypeError
        If the format does not support the dtype of an array.

    Notes
    -----
    The content is built in memory before it is written, so its digest is right even if another
    thread keeps training meanwhile.
    """
    import json  # noqa: PLC0415 (not needed to import gpunn)

    on_host = {name: _as_stored(owner, name, array) for name, array in arrays.items()}
    entry = {"sha256": _ZEROS, "format": str(kind), "metadata": metadata or {}}
    content = _serialize(owner, path, on_host, json.dumps(entry, separators=(",", ":")))
    begin = content.index(_ZEROS.encode())  # metadata come first in a file, and the digest in them
    digits, rest = _digest(content, begin), memoryview(content)[begin + len(_ZEROS) :]
    replace_file(owner, path, [content[:begin], digits, rest])


def _as_stored(owner: str, name: str, array: Any) -> NDArray[Any]:
    """Return an array on the host and in C order, as the library requires."""
    if name == _METADATA:  # the library would write a file that it cannot read
        raise FileError(f"{owner}: no array can be called {_METADATA} in a safetensors file")
    here = np.asarray(to_numpy(array), order="C")
    if here.dtype.name not in _NUMPY_DTYPES.values():
        raise DTypeError(
            f"{owner}: {name} is {here.dtype}, which a safetensors file cannot hold; "
            f"expected one of {', '.join(_NUMPY_DTYPES.values())}"
        )
    return here


def _serialize(owner: str, path: Path, arrays: dict[str, NDArray[Any]], entry: str) -> bytes:
    """Return the content of a file, as built by the library."""
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
    """Return the digest of a file in which the digits of the digest start at `begin`."""
    import hashlib  # noqa: PLC0415

    view = memoryview(content)
    digest = hashlib.sha256(view[:begin])
    digest.update(_ZEROS.encode())
    digest.update(view[begin + len(_ZEROS) :])
    return digest.hexdigest().encode()


def read(owner: str, path: Path, wanted: Collection[str] | None = None) -> File:
    """Read arrays of a file that gpunn or another program wrote; None means all.

    During reading, the file is in memory twice: as a whole, and as arrays. Arrays that are not
    wanted may have any dtype.

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
            f"{owner}: {path} is not a safetensors file, or is damaged: {error!s:.500}"
        ) from error


def _read(content: bytes, wanted: Collection[str] | None) -> File:
    """Read arrays of a file; raise an error if it is damaged."""
    from safetensors import deserialize  # noqa: PLC0415

    guarded = _is_guarded(content)
    entries = dict(sorted(deserialize(content)))  # type: ignore[no-untyped-call]
    written_by, metadata = _read_metadata(content)
    order = entries if wanted is None else [name for name in wanted if name in entries]
    found = {name: _decode(name, entries[name]) for name in order}
    return File(list(entries), found, written_by, guarded, metadata)


def _is_guarded(content: bytes) -> bool:
    """Return whether a file states a digest; raise ValueError if the digest is wrong."""
    header = min(8 + int.from_bytes(content[:8], "little"), len(content))
    stated = _STATED.search(content, 8, header)
    if stated is None:
        return False
    if stated[1] != _digest(content, stated.start(1)):
        raise ValueError(
            "its bytes do not have the digest sha256 that its metadata state. Restore it from a "
            "copy; a program that changes it on purpose must remove the digest"
        )
    return True


def _read_metadata(content: bytes) -> tuple[str, dict[str, Any]]:
    """Return the format that a file states, and gpunn's metadata; the library returns neither."""
    import json  # noqa: PLC0415

    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    texts = header.get(_METADATA) or {}
    if _ENTRY not in texts:
        return texts.get("format", ""), {}
    entry = json.loads(texts[_ENTRY])
    entry = entry if isinstance(entry, dict) else {}
    written_by, metadata = entry.get("format"), entry.get("metadata")
    if type(written_by) is not str or type(metadata) is not dict:
        raise ValueError(f"the entry {_ENTRY} of its metadata lacks a format or metadata")
    return written_by, metadata


def read_as(owner: str, path: Path, kind: Format) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read all arrays and the metadata of a file that `write` wrote in a given format.

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
    """Refuse a file of another format, of a newer version, or whose digest is missing."""
    name, _, version = file.written_by.rpartition(" ")
    if name != kind.name or not version.isdecimal() or len(version) > 9:
        raise FileError(
            f"{owner}: {path} is of format {file.written_by[:99]!r}, but {str(kind)!r} is expected"
            + ("; it has weights alone: gpunn.load reads them" if name == "gpunn" else "")
        )
    if int(version) > kind.version:
        raise FileError(
            f"{owner}: {path} is of format {file.written_by!r}, and this gpunn reads those up to "
            f"{str(kind)!r}; a newer gpunn wrote it: update gpunn"
        )
    if not file.guarded and file.written_by != "gpunn 1":
        raise FileError(
            f"{owner}: {path} is damaged: files of format {file.written_by!r} state a digest, as "
            "sha256, and this one does not"
        )


def _decode(name: str, entry: Mapping[str, Any]) -> Stored:
    """Return an array of a file; bfloat16, the upper half of a float32, becomes float32."""
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
    """Return whether a dtype can hold all numbers of an array, apart from rounding."""
    if np.can_cast(array.dtype, dtype, "safe"):
        return True
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
    if converted.dtype.kind == "f":
        return bool((np.isfinite(converted) | ~np.isfinite(array)).all())
    return bool((converted == array).all())
