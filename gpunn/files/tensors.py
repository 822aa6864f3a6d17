"""Reading files in the safetensors format, as NumPy arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpunn.errors import FileError, PathError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

#: NumPy dtypes by their names in safetensors.
_DTYPES = {
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


class Stored(NamedTuple):
    """An array of a file; `array` is None if NumPy does not support its dtype."""

    dtype: str
    shape: tuple[int, ...]
    array: Any


class File(NamedTuple):
    """The contents of a file: all names, the wanted arrays, and the writer if it is stated."""

    names: list[str]
    found: dict[str, Stored]
    written_by: str


def read(path: Path, wanted: Collection[str]) -> File:
    """Read a file. Arrays that are not wanted may have any dtype."""
    # Not needed to import gpunn, and slow to import.
    import json  # noqa: PLC0415

    from safetensors import SafetensorError, deserialize  # noqa: PLC0415

    if path.is_dir():
        raise PathError(f"load: {path} is a folder, and no file of weights")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise PathError(f"load: cannot read {path}: {error.strerror or error}") from error
    try:
        entries = deserialize(content)  # type: ignore[no-untyped-call]
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__") or {}
        found = {name: _stored(entry) for name, entry in entries if name in wanted}
    except (SafetensorError, ValueError, TypeError) as error:
        raise FileError(f"load: {path} is no safetensors file, or is damaged: {error}") from error
    order = [name for name in wanted if name in found]
    names = sorted(name for name, _ in entries)  # they come in any order
    return File(names, {name: found[name] for name in order}, str(metadata.get("format", "")))


def _stored(entry: Mapping[str, Any]) -> Stored:
    """Return an array of a file; bfloat16 becomes float32, whose upper half it is."""
    name, data, shape = str(entry["dtype"]), entry["data"], tuple(entry["shape"])
    if name == "BF16":
        halves = np.frombuffer(data, "<u2").astype(np.uint32)
        return Stored("bfloat16", shape, (halves << 16).view(np.float32).reshape(shape))
    if name not in _DTYPES:
        return Stored(name, shape, None)
    array = np.frombuffer(data, np.dtype(_DTYPES[name]).newbyteorder("<")).reshape(shape)
    return Stored(_DTYPES[name], shape, array)


def holds(dtype: str, array: NDArray[Any]) -> bool:
    """Return whether a dtype can hold all numbers of an array, up to rounding."""
    if np.can_cast(array.dtype, dtype, "safe"):
        return True
    with np.errstate(all="ignore"):
        converted = array.astype(dtype)
    if converted.dtype.kind == "f":
        return bool((np.isfinite(converted) | ~np.isfinite(array)).all())
    return bool((converted == array).all())
