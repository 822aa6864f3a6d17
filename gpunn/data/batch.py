"""A batch: its three parts, and how they are taken from the data and sent to a device."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, backend_of
from gpunn.arrays.memory import copy_of
from gpunn.data.chunks import Chunked
from gpunn.data.validation import is_floating, is_sparse
from gpunn.kernels import kernels

#: How many rows tell one array from another: of one in chunks fewer, since each may be of another
#: chunk, which has to be read.
_ROWS_READ, _CHUNKS_READ = 64, 4


class Batch(NamedTuple):
    """One minibatch, on the device.

    It always has three parts: unpack it as ``x, y, sample_weight``, even if the loader has no
    weights or no targets, or use the names, ``batch.x`` and ``batch.y``.

    Attributes
    ----------
    x : array
        (N, ...).
    y : array or None
        (N, ...); None if the loader has no targets.
    sample_weight : array or None
        (N,); None for equal weights.
    """

    x: Array
    y: Array | None = None
    sample_weight: Array | None = None


def batch_dtypes(
    stored: Batch, dtype: str | None, *, keep_integers: bool = False
) -> tuple[str | None, str | None, str | None]:
    """Return the dtypes of the parts of a batch; None where the stored dtype is kept.

    `dtype` is for features, weights and floating-point targets. Labels become int64, which every
    device supports; so do features that are integers and kept so. Booleans stay.
    """
    y = stored.y
    target: str | None = None
    if y is not None and is_floating(y):
        target = dtype
    elif y is not None and not str(y.dtype).endswith("bool"):
        target = "int64"
    return "int64" if keep_integers else dtype, target, dtype


def gather(stored: Batch, rows: slice, order: Array | None) -> Batch:
    """Return rows of data on the device; `order` is there, too, or None for rows as stored."""
    if order is None:
        return Batch(*(None if part is None else part[rows, ...] for part in stored))
    held = [part for part in stored if part is not None]
    taken = iter(kernels(held[0]).gather(held, order[rows]))
    return Batch(*(None if part is None else next(taken) for part in stored))


def take(stored: Batch, rows: slice, order: Any) -> Batch:
    """Return rows in the library and on the device of each stored part; `order` is on the host."""
    return Batch(*(_take_part(part, rows, order) for part in stored))


def _take_part(part: Any, rows: slice, order: Any) -> Any:
    if part is None:
        return None
    if isinstance(part, Chunked):
        return part[rows if order is None else order[rows]]
    if is_sparse(part):
        return part[rows if order is None else order[rows]].toarray()
    if isinstance(part, np.ndarray):
        part = np.asarray(part)  # indexing a memmap runs Python code each time
        return part[rows] if order is None else kernels(part).gather([part], order[rows])[0]
    place = backend_of(part)
    assert place is not None  # noqa: S101
    with place.scope():
        if order is None:
            return part[rows, ...]
        return kernels(part).gather([part], place.asarray(order[rows]))[0]


def spread_of(part: Any) -> Any:
    """Return the first row, the last, and some between them, which tell one array from another."""
    n = part.shape[0]
    count = min(n, _CHUNKS_READ if isinstance(part, Chunked) else _ROWS_READ)
    rows = np.arange(count) * (n - 1) // max(1, count - 1)
    return _take_part(part, slice(count), rows)


def send(batch: Batch, backend: Backend, dtypes: Sequence[str | None]) -> Batch:
    """Return the batch on a device, converted there."""
    wanted = zip(batch, dtypes, strict=True)
    return Batch(
        *(None if part is None else backend.asarray(part, dtype) for part, dtype in wanted)
    )


def copies(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """Yield a copy of each batch."""
    with closing(batches):
        for batch in batches:
            yield Batch(*(part if part is None else copy_of(part) for part in batch))
