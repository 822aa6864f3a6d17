"""Data that stay on the device: whether they fit, and how they get there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, backend_of
from gpunn.arrays.facts import dtype_name, is_out_of_memory, size_of
from gpunn.arrays.memory import read_only
from gpunn.data.batch import Batch
from gpunn.data.chunks import Chunked
from gpunn.data.validation import is_sparse
from gpunn.errors import DeviceMemoryError

#: ``resident="auto"`` uses at most this share of the free memory.
_MAX_SHARE_OF_MEMORY = 0.5

#: Larger arrays go to a GPU in pieces of this size: CuPy would upload all of an array as stored,
#: through one pinned block that it keeps, and convert it afterwards.
_PIECE_BYTES = 4 << 20


def fits(stored: Batch, backend: Backend, dtypes: Sequence[str | None]) -> bool:
    """Return whether the data, converted to `dtypes`, should stay on the device.

    Data in files, in chunks and sparse data should not: converted, they may not fit in memory.
    """
    if isinstance(stored.x, (np.memmap, Chunked)) or is_sparse(stored.x):
        return False
    wanted = zip(stored, dtypes, strict=True)
    n_bytes = sum(0 if part is None else _bytes_to_find(part, backend, dt) for part, dt in wanted)
    free = backend.free_bytes()
    return not n_bytes or free is None or n_bytes <= _MAX_SHARE_OF_MEMORY * free


def _bytes_to_find(part: Any, backend: Backend, dtype: str | None) -> int:
    """Return how much memory a part takes beside what it has; 0 if it stays where it is."""
    own = dtype_name(part)
    stays = backend_of(part) == backend and dtype in (None, own)
    if stays and (backend.package != "numpy" or part.flags.c_contiguous):
        return 0
    return int(math.prod(part.shape)) * np.dtype(dtype or own).itemsize


def make_resident(stored: Batch, backend: Backend, dtypes: Sequence[str | None]) -> Batch:
    """Return the data on the device, converted; on NumPy read-only and in C order.

    On a GPU this takes the memory that `fits` counts, and four buffers of `_PIECE_BYTES` at most.

    Raises
    ------
    DeviceMemoryError
        If the device has too little memory.
    """
    try:
        wanted = zip(stored, dtypes, strict=True)
        return Batch(*(part if part is None else _bring(part, backend, dt) for part, dt in wanted))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"Loader: {backend} has no room for all {stored.x.shape[0]} samples; "
            "stream them with resident=False"
        ) from error


def _bring(part: Any, backend: Backend, dtype: str | None) -> Array:
    """Return a part on the device, converted."""
    if backend.package == "numpy":  # batches are rows, so rows should be contiguous
        return read_only(np.ascontiguousarray(backend.asarray(part, dtype)))
    pieces = _pieces(part)
    if backend.package != "cupy" or len(pieces) < 2 or backend_of(part) == backend:
        return backend.asarray(part, dtype)
    if isinstance(part, np.ndarray):
        from gpunn.data.staging import bring  # noqa: PLC0415 (imports CuPy)

        return bring(part, dtype, pieces)
    there = backend.xp.empty(part.shape, dtype=dtype or part.dtype)  # from another GPU
    for rows in pieces:
        there[rows] = backend.asarray(part[rows])
    return there


def _pieces(part: Any) -> list[slice]:
    """Return the rows to bring together, of at most `_PIECE_BYTES` or one row; the most first."""
    n_rows = part.shape[0]
    most = max(1, _PIECE_BYTES * n_rows // (size_of(part) or 1))
    return [slice(start, min(start + most, n_rows)) for start in range(0, n_rows, most)]
