"""Reading IDX files, the format of MNIST and Fashion-MNIST.

A file is a header and then the entries, all big-endian, in C's order. The header is two zero bytes,
a byte for the kind of number, a byte for the number of axes, and the length of each axis as an
unsigned 32-bit number.
"""

from __future__ import annotations

import gzip
import math
import os
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import numpy as np

from gpunn.errors import FileError, PathError, SettingError
from gpunn.files.opening import opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

#: The kinds of number, by the third byte of a file.
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

#: The most axes that NumPy has arrays of.
_MOST_AXES = 64

#: Bytes that are read at a time.
_PIECE = 1 << 20


class _Header(NamedTuple):
    """What the first bytes of a file say."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """The size of the entries, which come after the header."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Return the array in an IDX file, which may be compressed by gzip.

    No more memory is taken than the file can fill, whatever its header announces, and no more is
    unpacked than the header announces, whatever the file holds.

    Parameters
    ----------
    path : path
        Whether the file is compressed is seen by its first bytes, not by its name.

    Returns
    -------
    array : ndarray
        In the byte order of the machine, and in C's order; unsigned bytes for images and labels.

    Raises
    ------
    MissingFileError
        If there is no such file.
    PathError
        If it cannot be read.
    FileError
        If it is not an IDX file, is cut off, is longer than its header says, or is damaged.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise SettingError(f"read_idx: expected a path, got {type(path).__name__}")
    path = Path(path)
    if path.is_dir():
        raise PathError(f"read_idx: {path} is a folder; load_idx reads the four files in one")
    with _unpacked(path) as file:
        header = _read_header(path, file)
        content = _read_entries(path, file, header)
    stored = np.frombuffer(content, header.dtype).reshape(header.shape)
    return stored.astype(header.dtype.newbyteorder("="), copy=False)


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    """Open a file; unpack it, if it is compressed, as it is read."""
    with opened("read_idx", path) as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not compressed:
            yield file
            return
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield cast("BinaryIO", unpacked)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FileError(
                f"read_idx: {path} is damaged, or cut off: {error}. Download it again"
            ) from error


def _read_header(path: Path, file: BinaryIO) -> _Header:
    """Read the header; check that such an array can exist."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        raise FileError(
            f"read_idx: {path} is not an IDX file: it begins with {magic.hex(' ') or 'nothing'}; "
            "an IDX file begins with two zero bytes and the kind of number, 08 to 0e"
        )
    n_axes = magic[3]
    if not 1 <= n_axes <= _MOST_AXES:
        raise FileError(f"read_idx: {path} announces {n_axes} axes; 1 to {_MOST_AXES} are possible")
    lengths = file.read(4 * n_axes)
    if len(lengths) < 4 * n_axes:
        raise FileError(f"read_idx: {path} is cut off in its header")
    shape = tuple(np.frombuffer(lengths, ">u4").tolist())
    header = _Header(np.dtype(_DTYPES[magic[2]]), shape)
    # NumPy counts an axis of length 0 as 1 where it asks whether an array can be addressed.
    if math.prod(max(n, 1) for n in shape) * header.dtype.itemsize > sys.maxsize:
        raise FileError(
            f"read_idx: the header of {path} is damaged: it announces an array of shape {shape}"
        )
    return header


def _read_entries(path: Path, file: BinaryIO, header: _Header) -> bytearray:
    """Read as many bytes as the header announces; check that there are no more and no fewer."""
    content = bytearray()
    while len(content) < header.n_bytes:
        piece = file.read(min(_PIECE, header.n_bytes - len(content)))
        if not piece:
            raise FileError(
                f"read_idx: {path} is cut off: its header announces an array of shape "
                f"{header.shape}, {header.n_bytes:,} bytes, and {len(content):,} are there"
            )
        content += piece
    if file.read(1):
        raise FileError(
            f"read_idx: {path} goes on after its last entry: its header announces an array of "
            f"shape {header.shape}, {header.n_bytes:,} bytes. It is damaged, or not an IDX file"
        )
    return content
