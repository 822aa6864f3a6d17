"""Arrays that come in chunks of rows, such as Dask's: a chunk is computed when a row is wanted."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpunn.errors import DataError, DTypeError

#: So many chunks are kept for rows that come later: those of a window of blocks, and one more.
_KEPT = 17


class Chunked:
    """The rows of a Dask array.

    Parameters
    ----------
    x : dask.array.Array
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
        self._x = x.rechunk(dict.fromkeys(range(1, x.ndim), -1))
        self.shape: tuple[int, ...] = tuple(map(int, x.shape))
        self.dtype, self.ndim = x.dtype, x.ndim
        self._stops = np.cumsum(self._x.chunks[0])
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
            self._kept[i] = np.asarray(self._x.blocks[i].compute())
        self._kept.move_to_end(i)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[i]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:  # noqa: FBT001 (NumPy's)
        """Return all rows."""
        return np.asarray(self._x.compute(), dtype=dtype)


def is_chunked(x: Any) -> bool:
    """Return whether `x` is an array of Dask, without an import of it."""
    return type(x).__module__.partition(".")[0] == "dask" and hasattr(x, "chunks")
