"""What changes from step to step of a captured training step: it is on the device."""

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
    """The numbers that steps read, and the results that they write, for a number of steps.

    A step that is captured once and replayed always reads the same addresses. There it finds the
    numbers of the present step: `finish` copies those of the next one there, from a table.

    Parameters
    ----------
    dtype : dtype
        Of the results.
    n_keys : int
        How many random masks a step makes.
    capacity : int
        The largest number of steps between two calls of `load`.

    Attributes
    ----------
    row : Cell
        Where the batch begins among the rows since `load`.
    numbers : array (3,)
        Of the update: the step size, what multiplies the decays, and epsilon.
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
        # The number of the step, the present row of the table, and the table: one more row than
        # steps, since the last step loads numbers, too.
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
            Where each batch begins.
        numbers : tuple of three sequences of float
            The step sizes, what multiplies the decays, and epsilons.
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
        """Write down a step's results, count the step, and load the numbers of the next one.

        Parameters
        ----------
        cost, total, squares : array or None
            0-d: J; what its mean divides by, float64; the sum of squares whose product with half
            the weight decay is the penalty.
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
    """Return the rows of up to three arrays, not empty, at n indices of `order`."""
    assert len(arrays) <= MOST_PARTS  # noqa: S101 (a batch has no more)
    return launch_gather(arrays, order, n, first)


def copy_rows(x: Array, to: Array, first: Cell) -> None:
    """Copy the rows of x to those of `to` from the number in `first` on."""
    if x.dtype != to.dtype or not x.flags.c_contiguous:
        raise TypeError(f"rows of {x.dtype} in C's order go to {to.dtype} only")
    kernel = cuda_kernel("step", "copy_rows", x.dtype)
    width = x.size // x.shape[0]
    kernel(*over_entries(x.size), *map(_pointer, (x, to, first.array)), width, x.size)


def _pointer(x: Array | None) -> int:
    """Return where an array is; 0 for None."""
    return 0 if x is None else x.data.ptr
