"""Data that stay on the device: whether they fit, and how they get there."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpunn.arrays.backend import Backend
from gpunn.arrays.facts import is_out_of_memory
from gpunn.arrays.memory import read_only
from gpunn.data.batch import Batch, send
from gpunn.data.validation import is_sparse
from gpunn.errors import DeviceMemoryError

#: ``resident="auto"`` uses at most this share of the free memory.
_MAX_SHARE_OF_MEMORY = 0.5


def fits(stored: Batch, backend: Backend, dtypes: Sequence[str | None]) -> bool:
    """Return whether the data, converted to `dtypes`, should stay on the device.

    Memory-mapped and sparse data should not: they may be larger than memory once converted.
    """
    if isinstance(stored.x, np.memmap) or is_sparse(stored.x):
        return False
    n_bytes = sum(
        math.prod(part.shape) * np.dtype(dtype or str(part.dtype).rpartition(".")[2]).itemsize
        for part, dtype in zip(stored, dtypes, strict=True)
        if part is not None
    )
    free = backend.free_bytes()
    return free is None or n_bytes <= _MAX_SHARE_OF_MEMORY * free


def make_resident(stored: Batch, backend: Backend, dtypes: Sequence[str | None]) -> Batch:
    """Return the data on the device, converted; on NumPy read-only and in C order.

    Raises
    ------
    DeviceMemoryError
        If the device has too little memory.
    """
    try:
        sent = send(stored, backend, dtypes)
        if backend.package != "numpy":
            return sent
        # Batches are rows, so rows should be contiguous.
        return Batch(
            *(part if part is None else read_only(np.ascontiguousarray(part)) for part in sent)
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"Loader: {backend} has no room for all {stored.x.shape[0]} samples; "
            "stream them with resident=False"
        ) from error
