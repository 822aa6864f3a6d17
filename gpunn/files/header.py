"""The header of a safetensors file: which arrays it holds, where they lie, and metadata.

A file is the length of its header in bytes (an unsigned 64-bit number, the lowest byte first), the
header as JSON, and the arrays one after another, without gaps, in C's order, the lowest byte first.
The header has an entry for each array, by name, and strings by name in ``__metadata__``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

#: The names of types in a file, with those of NumPy.
NUMPY_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}

#: Bits of a number, also of those that NumPy lacks.
_BITS = {
    **{code: 8 * np.dtype(name).itemsize for code, name in NUMPY_DTYPES.items()},
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "BF16": 16,
    "F4": 4,
}

#: The most axes that NumPy has arrays of.
_MOST_AXES = 64

#: The longest header that the format allows, in bytes.
LONGEST = 100_000_000

#: Arrays begin at a multiple of this many bytes in a file, where all have wide numbers.
_ALIGNMENT = 8

_METADATA = "__metadata__"


class Entry(NamedTuple):
    """An array in a file: its type there, its shape, and its place, in bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What a header says: entries by name, in the order of their places, and metadata by name."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def lay_out(arrays: Mapping[str, Any]) -> dict[str, Entry]:
    """Return entries for NumPy arrays: the widest numbers first, so that all are aligned."""
    codes = {name: code for code, name in NUMPY_DTYPES.items()}
    entries, begin = {}, 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):
        array = arrays[name]
        entries[name] = Entry(codes[array.dtype.name], array.shape, begin, begin + array.nbytes)
        begin += array.nbytes
    return entries


def compose(header: Header) -> bytes:
    """Return the bytes of a header, with its length before it."""
    import json  # noqa: PLC0415 (not needed to import gpunn)

    said: dict[str, Any] = {_METADATA: header.metadata}
    for name, (dtype, shape, begin, end) in header.entries.items():
        said[name] = {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def parse(text: bytes, data_size: int) -> Header:
    """Read a header, without its length; check that it describes so many bytes of arrays.

    Raises
    ------
    ValueError
        If the header is not one, or does not fit; the message says why.
    """
    import json  # noqa: PLC0415

    try:
        said = json.loads(text.decode(), object_pairs_hook=_without_doubles)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(said, dict):
        raise ValueError("its header is not a table of names")  # noqa: TRY004
    metadata = said.pop(_METADATA, None) or {}
    if not _is_of(metadata, dict) or not all(_is_of(text, str) for text in metadata.values()):
        raise ValueError("its metadata are not strings by name")
    entries = {name: _entry(name, entry) for name, entry in said.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    reached = 0
    for name, entry in ordered.items():
        if entry.begin != reached:
            raise ValueError(f"{name} begins at byte {entry.begin}, where {reached} was expected")
        reached = entry.end
    if reached != data_size:
        raise ValueError(f"its header announces {reached} bytes of arrays, and {data_size} follow")
    return Header(ordered, metadata)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a table of JSON; refuse names that come twice, of which one would be lost."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name comes twice in its header")
    return table


def _entry(name: str, said: Any) -> Entry:
    """Read and check the entry of an array, on its own."""
    if not _is_of(said, dict):
        raise ValueError(f"the entry of {name} is not a table")
    dtype, shape, place = (said.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not _is_of(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{name} is of no known type")
    if not _are_lengths(shape) or len(shape) > _MOST_AXES:
        raise ValueError(f"{name} has an impossible shape")
    if not _are_lengths(place) or len(place) != 2:
        raise ValueError(f"{name} has an impossible place")
    # NumPy counts an axis of length 0 as 1 where it asks whether an array can be addressed.
    if math.prod(max(n, 1) for n in shape) * _BITS[dtype] > 8 * sys.maxsize:
        raise ValueError(f"{name} is larger than any memory")
    if math.prod(shape) * _BITS[dtype] != 8 * (place[1] - place[0]):
        raise ValueError(
            f"{name} is {dtype} of shape {tuple(shape)}, which does not fill bytes {place[0]} to "
            f"{place[1]}"
        )
    return Entry(dtype, tuple(shape), *place)


def _is_of(value: Any, kind: type) -> bool:
    """Return whether a value of JSON is of a kind; True is no number."""
    return type(value) is kind


def _are_lengths(value: Any) -> bool:
    """Return whether a value of JSON is a list of numbers of bytes or entries."""
    return _is_of(value, list) and all(_is_of(n, int) and 0 <= n <= sys.maxsize for n in value)
