"""Device memory for the numbers of a captured training step that change between replays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from gpunn._typing import Array
from gpunn.kernels.cell import Cell
from gpunn.kernels.cuda import MOST_PARTS
from gpunn.kernels.cuda.grids import over_entries
from gpunn.kernels.cupy_launch import cuda_kernel, launch_gather


class StepBoard:
    """The numbers that captured steps read, and the results that they write.

    A replayed step always reads the same addresses. They hold the numbers of the current step;
    `finish` replaces them by the next step's, from a table.

    Parameters
    ----------
    dtype : dtype
        Of the results.
    n_keys : int
        The number of random masks in a step.
    capacity : int
        The largest number of steps between two calls of `load`.

    Attributes
    ----------
    row : Cell
        The batch's first row, counted since `load`.
    numbers : array (3,)
        Of the update: the step size, the factor of the decays, and epsilon.
    keys : list of Cell
        The keys of the random masks.
    """

    def __init__(self, dtype: Any, n_keys: int, capacity: int) -> None:
        self._layout = np.dtype(
            [
                ("row", np.int64),
                ("step_size", np.float64),
                ("decay", np.float64),
                ("epsilon", np.float64),
                ("keys", np.uint64, (n_keys,)),
            ]
        )
        width = self._layout.itemsize // 8
        # The number of the step, the current row of the table, and the table, with one row more
        # than steps, since even the last step loads a next row.
        self._block = cupy.zeros(1 + (capacity + 2) * width, np.int64)
        self._step, self._table = self._block[:1], self._block[1 + width :]
        self._present = self._block[1 : 1 + width]
        self._costs, self._penalties = cupy.zeros((2, capacity), dtype)
        self._totals = cupy.zeros(capacity, np.float64)
        self.row = Cell(self._present[:1])
        self.numbers = self._present[1:4].view(np.float64)
        self.keys = [Cell(self._present[4 + i : 5 + i]) for i in range(n_keys)]

    def load(self, rows: Sequence[int], numbers: tuple[Sequence[float], ...], keys: Any) -> None:
        """Upload the numbers of the next steps, in one copy.

        Parameters
        ----------
        rows : sequence of int
            The first row of each batch.
        numbers : tuple of three sequences of float
            The step sizes, the factors of the decays, and the epsilons.
        keys : array (S, n_keys) or None
        """
        n = len(rows)
        table = np.zeros(n + 1, self._layout)
        table["row"][:n] = rows
        for name, column in zip(("step_size", "decay", "epsilon"), numbers, strict=True):
            table[name][:n] = column
        if keys is not None:
            table["keys"][:n] = keys
        words = table.view(np.int64)
        words = np.concatenate((np.zeros(1, np.int64), words[: self._present.size], words))
        self._block[: words.size].set(words)

    def finish(self, cost: Array | None, total: Array | None, squares: Array | None) -> None:
        """Store a step's results, count the step, and load the numbers of the next one.

        Parameters
        ----------
        cost, total, squares : array or None
            0-d: J; the divisor of its mean, float64; and the sum of squares, which times half the
            weight decay is the penalty.
        """
        places = (cost, self._costs), (total, self._totals), (squares, self._penalties)
        for result, place in places:
            if result is not None and result.dtype != place.dtype:
                raise TypeError(f"a result of a step is {result.dtype}, not {place.dtype}")
        kernel = cuda_kernel("step", "finish_step", self._costs.dtype)
        state = *map(_pointer, (self._step, self._present, self._table)), self._present.size
        kernel((1, 1), (32, 1), *state, *(_pointer(x) for pair in places for x in pair))

    def results(self, n: int) -> tuple[Array, Array, Array]:
        """Return the costs, totals and penalties of the first n steps, as new arrays."""
        return self._costs[:n].copy(), self._totals[:n].copy(), self._penalties[:n].copy()


def gather_rows(arrays: Sequence[Array], order: Array, first: Cell, n: int) -> list[Array]:
    """Return rows of up to three non-empty arrays, at n indices of `order`."""
    assert len(arrays) <= MOST_PARTS  # noqa: S101 (a batch has no more)
    return launch_gather(arrays, order, n, first)


def copy_rows(x: Array, to: Array, first: Cell) -> None:
    """Copy the rows of x to rows of `to`, from the position in `first`."""
    if x.dtype != to.dtype or not x.flags.c_contiguous:
        raise TypeError(f"copy_rows: expected an array of {to.dtype} in C order, got {x.dtype}")
    kernel = cuda_kernel("step", "copy_rows", x.dtype)
    width = x.size // x.shape[0]
    kernel(*over_entries(x.size), *map(_pointer, (x, to, first.array)), width, x.size)


def _pointer(x: Array | None) -> int:
    """Return an array's address; 0 for None."""
    return 0 if x is None else x.data.ptr
