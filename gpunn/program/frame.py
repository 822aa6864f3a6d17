"""The memory that the interpreter uses in a call, apart from the data and the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gpunn._typing import Array
from gpunn.program.instructions.words import CONTEXT
from gpunn.program.interpreter import CONTEXT_SIZE

_SLOT = {word: i for i, word in enumerate(CONTEXT)}
_START, _TURN = _SLOT["start"], _SLOT["turn"]


class Sums(NamedTuple):
    """The results of each step of a call, in arrays (S,)."""

    costs: Array
    penalties: Array
    totals: Array


class Frame:
    """The numbers of each step of a call, and the threads' contexts, which point to them.

    A call like the one before reuses its frame.

    Parameters
    ----------
    steps, threads : int
        Of the call.
    workspaces : array
        A row for each thread.

    Attributes
    ----------
    place, meeting_place : int
        The addresses of the contexts and of `meeting`.
    steps_done : array of int64 (1,)
        The number of steps that the last call completed.
    meeting : array of int64 (2,)
        Where the threads wait for each other; see `gpunn.program.crew.run`.
    """

    def __init__(self, steps: int, threads: int, workspaces: Array) -> None:
        self.steps, self.threads = steps, threads
        self._results = np.zeros(steps * (2 * threads + 1))
        parts = 2 * steps * threads
        self._by_thread = self._results[:parts].reshape(2, steps, threads)
        self._totals = self._results[parts:]
        self._given = np.zeros((3, steps))
        self._counts = np.zeros(3, np.int64)
        self.steps_done, self.meeting = self._counts[:1], self._counts[1:]
        self._contexts = np.zeros((threads, CONTEXT_SIZE // 8), np.int64)
        self.place, self.meeting_place = _address(self._contexts), _address(self.meeting)
        #: Memoryviews: writing to them takes a third of the time.
        self._views = [context.data for context in self._contexts]
        costs, penalties = self._by_thread
        rates, decays, epsilons = self._given
        arrays: dict[str, Array] = {"rates": rates, "decays": decays, "epsilons": epsilons}
        arrays |= {"costs": costs, "penalties": penalties, "totals": self._totals}
        arrays |= {"steps_done": self.steps_done}
        for word, array in arrays.items():
            self._contexts[:, _SLOT[word]] = _address(array)
        self._contexts[:, _SLOT["threads"]] = threads
        self._contexts[:, _SLOT["thread"]] = range(threads)
        self._contexts[:, _SLOT["workspace"]] = [_address(row) for row in workspaces[:threads]]

    def begin(
        self,
        start: int,
        numbers: tuple[Sequence[float], ...] | None,
        arrays: Mapping[str, Array | None],
    ) -> None:
        """Prepare a call.

        Parameters
        ----------
        start : int
            The first turn.
        numbers : tuple of three sequences of float, or None
            `Optimizer.numbers` of each step; None if nothing is trained.
        arrays : mapping from str to array or None
            Further arrays that the contexts point to, by word.
        """
        self._results.fill(0.0)
        self._counts.fill(0)
        if numbers is not None:
            for given, kept in zip(numbers, self._given, strict=True):
                _copy(given, kept)
        places = {word: 0 if x is None else _address(x) for word, x in arrays.items()}
        for context in self._views:
            context[_START] = context[_TURN] = start
            for word, place in places.items():
                context[_SLOT[word]] = place

    def read(self) -> Sums:
        """Return the results of the last call."""
        by_thread = self._by_thread
        one = self.threads == 1
        costs, penalties = by_thread[..., 0].copy() if one else by_thread.sum(axis=2)
        return Sums(costs, penalties, self._totals.copy())


def _address(array: Array) -> int:
    return int(array.ctypes.data)


def _copy(numbers: Sequence[float], into: Array) -> None:
    """Copy numbers into an array; equal numbers much faster than NumPy does."""
    if numbers.count(numbers[0]) == len(numbers) == len(into):
        into.fill(numbers[0])
    else:
        into[:] = numbers
