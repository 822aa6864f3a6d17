"""Arrays in chunks of rows, Dask's and Zarr's: a chunk is computed or read when a row is wanted."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpunn.errors import DataError, DTypeError, ShapeError

#: So many chunks are kept for rows that come later: those of a window of blocks, and one more.
_KEPT = 17


class Chunked:
    """The rows of a Dask array, or of one of Zarr.

    Parameters
    ----------
    x : dask.array.Array or zarr.Array
        Chunks that divide other axes than the first are joined.

    Attributes
    ----------
    shape, dtype, ndim
        As of an array.

    Raises
    ------
    DTypeError
        If it does not hold real numbers.
    DataError
        If the lengths of its chunks are not known.
    """

    def __init__(self, x: Any) -> None:
        if x.dtype.kind not in "biuf":
            raise DTypeError(f"Loader: x must hold real numbers, got {x.dtype}")
        if any(math.isnan(length) for length in x.shape):
            raise DataError(
                "Loader: the lengths of x's chunks are not known; say x.compute_chunk_sizes()"
            )
        if x.ndim == 0:
            raise ShapeError("Loader: x must have a first axis, the samples; got a single number")
        self.shape: tuple[int, ...] = tuple(map(int, x.shape))
        self.dtype, self.ndim = x.dtype, x.ndim
        of = _of_dask if _library_of(x) == "dask" else _of_zarr
        #: Where each chunk ends, and what returns one.
        self._stops, self._read = of(x)
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def __getitem__(self, rows: Any) -> Any:
        """Return rows as a NumPy array; `rows` is a slice or an array of indices."""
        wanted = np.arange(self.shape[0])[rows] if isinstance(rows, slice) else np.asarray(rows)
        homes = np.searchsorted(self._stops, wanted, side="right")
        result = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        for home in np.unique(homes):
            chunk, own = self._chunk(int(home)), homes == home
            start = self._stops[home] - len(chunk)
            result[own] = chunk[wanted[own] - start]
        return result

    def chunks(self) -> Iterator[Any]:
        """Compute one chunk after another."""
        return (self._chunk(i) for i in range(len(self._stops)))

    def _chunk(self, i: int) -> Any:
        if i not in self._kept:
            self._kept[i] = self._read(i)
        self._kept.move_to_end(i)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[i]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:  # noqa: FBT001 (NumPy's)
        """Return all rows."""
        every = np.concatenate(list(map(self._read, range(len(self._stops)))))
        return every if dtype is None else every.astype(dtype, copy=False)


def is_chunked(x: Any) -> bool:
    """Return whether `x` is an array of Dask or Zarr, without an import of them."""
    return _library_of(x) in ("dask", "zarr") and hasattr(x, "chunks")


def _library_of(x: Any) -> str:
    return type(x).__module__.partition(".")[0]


def _of_dask(x: Any) -> tuple[Any, Callable[[int], Any]]:
    joined = x.rechunk(dict.fromkeys(range(1, x.ndim), -1))
    return np.cumsum(joined.chunks[0]), lambda i: np.asarray(joined.blocks[i].compute())


def _of_zarr(x: Any) -> tuple[Any, Callable[[int], Any]]:
    n, size = x.shape[0], x.chunks[0]
    stops = np.minimum(np.arange(size, n + size, size), n)
    return stops, lambda i: np.asarray(x[i * size : (i + 1) * size])
