"""Processes that train together, as threads of one process: their communicator, and a launcher."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np


class Threads:
    """A communicator whose ranks are threads.

    Parameters
    ----------
    group : Group
        What all of them share.
    rank : int
    """

    def __init__(self, group: Group, rank: int) -> None:
        self.rank, self.size = rank, group.size
        self._group = group
        self.n_sums, self.n_bytes = 0, 0

    def broadcast(self, array: Any, root: int = 0) -> None:
        self._group.meet(self.rank, array, lambda arrays: arrays[root])

    def allreduce(self, array: Any) -> None:
        self.n_sums += 1
        self.n_bytes += array.nbytes
        self._group.meet(self.rank, array, lambda arrays: sum(arrays[1:], arrays[0]))

    def start_allreduce(self, array: Any) -> Started:
        return Started(self, array)

    def barrier(self) -> None:
        self._group.wait()

    def doing(self, what: str) -> Any:
        return nullcontext()


class Started:
    """A sum that is computed when it is waited for; until then the array is NaN."""

    def __init__(self, communicator: Threads, array: Any) -> None:
        self._communicator, self._array, self._sent = communicator, array, np.array(array)
        array[...] = np.nan

    def advance(self) -> None:
        pass

    def wait(self) -> None:
        self._communicator.allreduce(self._sent)
        assert np.isnan(self._array).all(), "somebody has written to it"
        self._array[...] = self._sent


class Group:
    """Where threads meet, and what they bring."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size, timeout=20)
        self._brought: list[Any] = [None] * size

    def wait(self) -> None:
        self._barrier.wait()

    def abort(self) -> None:
        self._barrier.abort()

    def meet(self, rank: int, array: Any, combine: Callable[[list[Any]], Any]) -> None:
        self._brought[rank] = array
        self.wait()
        kinds = {(each.shape, each.dtype.str) for each in self._brought}
        assert len(kinds) == 1, f"ranks make different calls: {kinds}"
        result = np.array(combine(self._brought))
        self.wait()
        array[...] = result
        self.wait()


def run_ranks(size: int, program: Callable[[Threads], Any]) -> list[Any]:
    """Run a program on `size` ranks; return each rank's result, or the error it raises.

    An error that only some ranks raise keeps the others waiting, and is raised here.
    """
    group, results = Group(size), [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = program(Threads(group, rank))
        except threading.BrokenBarrierError:
            return
        except Exception as error:  # noqa: BLE001 (raised below, or returned)
            results[rank] = error
            if not common(error):
                group.abort()

    def common(error: Exception) -> bool:
        return type(error).__module__ == "gpunn.errors"

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    odd = [each for each in results if isinstance(each, Exception) and not common(each)]
    if odd:
        raise odd[0]
    return results
