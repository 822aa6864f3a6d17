"""Files of arrays by name, in the safetensors format, with a digest of all their bytes.

`write` and `read` are the one way in which gpunn writes and reads such files. What gpunn wrote says
so in its metadata: ``format`` is the name and version of a `Format`, and ``gpunn.sha256`` the
SHA-256 of the whole file in which the 64 digits of this digest itself are zeros. A file that states
the digest is read only if it is right. It finds damage; it is no signature, since whoever changes a
file on purpose can compute it anew.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from gpunn.arrays.exchange import to_numpy
from gpunn.errors import DTypeError, FileError, SettingError
from gpunn.files.atomic import replace_file
from gpunn.files.header import LONGEST, NUMPY_DTYPES, Entry, Header, compose, lay_out, parse
from gpunn.files.opening import opened

if TYPE_CHECKING:
    from hashlib import _Hash
    from pathlib import Path

    from numpy.typing import NDArray

#: Where the metadata have the digest, and what stands for it while it is computed.
_DIGEST, _ZEROS = "gpunn.sha256", "0" * 64

#: Bytes that are read at a time.
_PIECE = 1 << 20


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
    """The contents of a file: all names, the wanted arrays, and the metadata, as text."""

    names: list[str]
    found: dict[str, Stored]
    metadata: dict[str, str]

    @property
    def written_by(self) -> str:
        """The format that the file states; empty if it states none."""
        return self.metadata.get("format", "")

    def part(self, beginning: str) -> File:
        """Return what has names with this beginning, by the rest of its name."""
        names = [name.removeprefix(beginning) for name in self.names if name.startswith(beginning)]
        known = {name: self.found.get(beginning + name) for name in names}
        found = {name: stored for name, stored in known.items() if stored is not None}
        return File(names, found, self.metadata)


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
        were, floats to the last bit, but tuples as lists. All keys are strings.

    Raises
    ------
    PathError
        If the file cannot be written.
    DTypeError
        If the format has no numbers like those of an array.
    """
    import hashlib  # noqa: PLC0415
    import json  # noqa: PLC0415

    if {"format", _DIGEST} & set(metadata or {}):
        raise SettingError(f"{owner}: the metadata 'format' and {_DIGEST!r} are written here")
    # Copies, so that the digest is right even if another thread trains on meanwhile.
    copies = {name: _copied(owner, name, array) for name, array in arrays.items()}
    texts = {name: json.dumps(value) for name, value in (metadata or {}).items()}
    entries = lay_out(copies)
    header = compose(Header(entries, {"format": str(kind), _DIGEST: _ZEROS, **texts}))
    pieces = [copies[name].reshape(-1).view(np.uint8).data for name in entries]
    digest = hashlib.sha256(header)
    for piece in pieces:
        digest.update(piece)
    # The first zeros in a row are those: only the format stands before them.
    header = header.replace(_ZEROS.encode(), digest.hexdigest().encode(), 1)
    replace_file(owner, path, [header, *pieces])


def _copied(owner: str, name: str, array: Any) -> NDArray[Any]:
    """Return a copy of an array as a file has it: in C's order, the lowest byte first."""
    copy = np.array(to_numpy(array), order="C")
    if copy.dtype.name not in NUMPY_DTYPES.values():
        raise DTypeError(
            f"{owner}: {name} is {copy.dtype}, of which a safetensors file has no numbers; "
            f"expected one of {', '.join(NUMPY_DTYPES.values())}"
        )
    return copy.astype(copy.dtype.newbyteorder("<"), copy=False)


def read(owner: str, path: Path, wanted: Collection[str] | None = None) -> File:
    """Read arrays of a file that gpunn or another program wrote; None means all.

    No more memory is taken than the arrays have bytes in the file. Those that are not wanted may
    have any dtype.

    Raises
    ------
    MissingFileError
        If the file does not exist.
    PathError
        If it cannot be read.
    FileError
        If it is not a safetensors file, or is damaged.
    """
    with opened(owner, path) as file:
        try:
            return _read(file, wanted)
        except ValueError as error:
            raise FileError(
                f"{owner}: {path} is no safetensors file, or is damaged: {error!s:.500}"
            ) from error


def _read(file: BinaryIO, wanted: Collection[str] | None) -> File:
    """Read arrays of an open file; raise ValueError if it is damaged."""
    prefix, header = _read_header(file)
    digest = _begun(prefix, header.metadata)
    found = {}
    for name, entry in header.entries.items():
        if wanted is None or name in wanted:
            found[name] = _stored(name, entry, _read_array(file, entry, digest))
        else:
            _skip(file, entry, digest)
    if digest is not None and digest.hexdigest() != header.metadata[_DIGEST]:
        raise ValueError(
            f"its bytes do not have the digest that its metadata state as {_DIGEST}. Restore it "
            "from a copy; a program that changed it on purpose must leave out the digest"
        )
    order = found if wanted is None else [name for name in wanted if name in found]
    return File(sorted(header.entries), {name: found[name] for name in order}, header.metadata)


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
    import json  # noqa: PLC0415

    file = read(owner, path)
    check_format(owner, path, file, kind)
    try:
        texts = {k: v for k, v in file.metadata.items() if k not in {"format", _DIGEST}}
        metadata = {name: json.loads(text) for name, text in texts.items()}
    except (ValueError, RecursionError) as error:
        raise FileError(f"{owner}: the metadata of {path} are no JSON: {error}") from error
    return {name: stored.array for name, stored in file.found.items()}, metadata


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
    if _DIGEST not in file.metadata and file.written_by != "gpunn 1":
        raise FileError(
            f"{owner}: {path} is damaged: files of format {file.written_by!r} state a digest, as "
            f"{_DIGEST}, and it does not"
        )


def _read_header(file: BinaryIO) -> tuple[bytes, Header]:
    """Read the header, and the bytes up to its end."""
    size = os.fstat(file.fileno()).st_size
    begin = file.read(8)
    length = int.from_bytes(begin, "little")
    if len(begin) < 8 or length > size - 8:
        raise ValueError(f"its {size} bytes are too few for its header")
    if length > LONGEST:
        raise ValueError(f"its header is longer than {LONGEST} bytes")
    text = file.read(length)
    return begin + text, parse(text, size - 8 - length)


def _begun(prefix: bytes, metadata: Mapping[str, str]) -> _Hash | None:
    """Return the digest of the bytes up to the end of the header; None if the file states none."""
    import hashlib  # noqa: PLC0415

    if _DIGEST not in metadata:
        return None
    stated = metadata[_DIGEST].encode()
    if len(stated) != len(_ZEROS) or prefix.count(stated) != 1:
        raise ValueError(f"{_DIGEST} in its metadata is not 64 digits")
    return hashlib.sha256(prefix.replace(stated, _ZEROS.encode()))


def _read_array(file: BinaryIO, entry: Entry, digest: _Hash | None) -> NDArray[np.uint8]:
    """Read the bytes of an array."""
    content = np.empty(entry.end - entry.begin, np.uint8)
    for begin in range(0, len(content), _PIECE):
        piece = content[begin : begin + _PIECE].data
        _fill(file, piece, digest)
    return content


def _skip(file: BinaryIO, entry: Entry, digest: _Hash | None) -> None:
    """Pass over an array that nobody wants."""
    if digest is None:
        file.seek(entry.end - entry.begin, os.SEEK_CUR)
        return
    content = memoryview(bytearray(min(_PIECE, entry.end - entry.begin)))
    for begin in range(entry.begin, entry.end, _PIECE):
        _fill(file, content[: entry.end - begin], digest)


def _fill(file: BinaryIO, piece: memoryview, digest: _Hash | None) -> None:
    """Read as many bytes as there is room for."""
    if file.readinto(piece) != len(piece):  # type: ignore[attr-defined]
        raise ValueError("it became shorter while it was read")
    if digest is not None:
        digest.update(piece)


def _stored(name: str, entry: Entry, content: NDArray[np.uint8]) -> Stored:
    """Return an array of a file; bfloat16 becomes float32, whose upper half it is."""
    dtype, shape = entry.dtype, entry.shape
    if dtype == "BF16":
        halves = content.view("<u2").astype(np.uint32)
        return Stored("bfloat16", shape, (halves << 16).view(np.float32).reshape(shape))
    if dtype not in NUMPY_DTYPES:
        return Stored(dtype, shape, None)
    if dtype == "BOOL" and (content > 1).any():
        raise ValueError(f"{name} is BOOL, with bytes that are neither 0 nor 1")
    stored = np.dtype(NUMPY_DTYPES[dtype]).newbyteorder("<")
    native = content.view(stored).reshape(shape).astype(stored.newbyteorder("="), copy=False)
    return Stored(NUMPY_DTYPES[dtype], shape, native)


def holds(dtype: str, array: NDArray[Any]) -> bool:
    """Return whether a dtype can hold all numbers of an array, up to rounding."""
    if np.can_cast(array.dtype, dtype, "safe"):
        return True
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
    if converted.dtype.kind == "f":
        return bool((np.isfinite(converted) | ~np.isfinite(array)).all())
    return bool((converted == array).all())
