"""Batches for captured steps, always at the same addresses on the device."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any

import cupy
import numpy as np

from gpunn._typing import Array
from gpunn.data.batch import Batch
from gpunn.data.loader import Loader
from gpunn.kernels.cell import Cell
from gpunn.kernels.cupy_launch import have_rows
from gpunn.kernels.cupy_step import gather_rows


class StoredRows:
    """Rows of a data set on the device, which the step gathers itself.

    Parameters
    ----------
    data : Batch
        The whole data set. Captured steps contain its addresses.
    rows : int
        The largest number of rows in an order.
    """

    def __init__(self, data: Batch, rows: int) -> None:
        self._data: Batch | None = data
        self._order = cupy.zeros(rows, np.int64)

    @staticmethod
    def serves(data: Batch) -> bool:
        """Return whether steps can gather rows of these data; some views are laid out otherwise."""
        return have_rows([part for part in data if part is not None])

    def release(self) -> None:
        """Drop the data once all steps are captured; their owner keeps them."""
        self._data = None

    def set_order(self, order: Array | None, turns: slice) -> Array:
        """Copy the rows of some turns to the device and return them; None is the stored order."""
        there = self._order[: turns.stop - turns.start]
        if order is None:
            there[...] = cupy.arange(turns.start, turns.stop, dtype=np.int64)
        else:
            there.set(order[turns])
        return there

    def batch(self, n: int, first: Cell) -> Batch:
        """Gather n rows of the order, from the position in `first`."""
        assert self._data is not None  # noqa: S101 (all is captured before `release`)
        held = {name: part for name, part in self._data._asdict().items() if part is not None}
        parts = gather_rows(list(held.values()), self._order, first, n)
        return Batch(**dict(zip(held, parts, strict=True)))


class FedBatches:
    """Memory for one batch, filled before each step.

    Parameters
    ----------
    like : Batch
        Some samples, for their shape and dtype.
    batch_size : int
        The largest number of samples in a batch.
    """

    def __init__(self, like: Batch, batch_size: int) -> None:
        def place(x: Any) -> Any:
            return None if x is None else cupy.zeros((batch_size, *x.shape[1:]), x.dtype)

        self._place = Batch(*map(place, like))

    def release(self) -> None:
        """Do nothing: the sample is not kept."""

    def batches(self, loader: Loader, order: Array, stop: int) -> Generator[Batch, None, None]:
        """Copy each batch of a loader to the step's memory, and yield it."""
        with closing(loader.batches(order, stop, self._place)) as batches:
            for batch in batches:
                for place, part in zip(self._place, batch, strict=True):
                    if part is not None and part.data.ptr != place.data.ptr:
                        place[: part.shape[0]] = part
                yield batch

    def batch(self, n: int, first: Cell) -> Batch:  # noqa: ARG002 (as for stored rows)
        """Return the first n samples of the current batch."""
        return Batch(*(None if part is None else part[:n] for part in self._place))
