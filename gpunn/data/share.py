"""A rank's part of every step, when several processes train together."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from gpunn.arrays.checks import whole_number
from gpunn.arrays.state import generator_state, restore_generator
from gpunn.data.batch import Batch
from gpunn.data.validation import check_batch_size
from gpunn.distributed.communicator import Communicator
from gpunn.errors import DataError, SettingError


class Share(NamedTuple):
    """The part of one of several processes.

    The samples of a step stand in one order for all ranks. Rank r takes the r-th of as many runs of
    neighbours, whose lengths differ by one at most; the first ranks have the longer ones.

    Attributes
    ----------
    rank, size : int
        The number of the process, and how many there are.
    """

    rank: int = 0
    size: int = 1

    def count(self, n: int) -> int:
        """Return how many of a step's n samples are this rank's."""
        each, rest = divmod(n, self.size)
        return each + (self.rank < rest)

    def start(self, n: int) -> int:
        """Return where this rank's samples begin among a step's n."""
        each, rest = divmod(n, self.size)
        return self.rank * each + min(self.rank, rest)

    def length(self, n: int, step: int) -> int:
        """Return how many of n rows are this rank's, in steps of `step`."""
        whole, rest = divmod(n, step)
        return whole * self.count(step) + self.count(rest)

    def own(self, order: Any, n: int, step: int) -> tuple[Any, int]:
        """Return this rank's part of n rows in an order, in steps of `step`, and its length.

        Parameters
        ----------
        order : ndarray of shape (n,) or None
            None is the stored order.
        n : int
        step : int
            The samples of a step; the last one may have fewer.
        """
        if self.size == 1:
            return order, n
        rows = np.arange(n) if order is None else np.asarray(order)
        whole, rest = divmod(n, step)
        start, count = self.start(step), self.count(step)
        taken = rows[: whole * step].reshape(whole, step)[:, start : start + count].reshape(-1)
        last = rows[whole * step :][self.start(rest) : self.start(rest) + self.count(rest)]
        mine = np.concatenate([taken, last])
        return mine, len(mine)


def as_share(communicator: Any, n_samples: int) -> Share:
    """Return a process's part of each step; without a communicator, all of it.

    Raises
    ------
    DataError
        If there are fewer samples than processes.
    """
    if communicator is None:
        return Share()
    if not isinstance(communicator, Communicator):
        raise SettingError(
            "Loader: communicator must be None or a communicator, such as gn.get_communicator(); "
            f"got {type(communicator).__name__}"
        )
    if n_samples < communicator.size:
        raise DataError(
            f"Loader: {communicator.size} processes cannot share {n_samples} samples; start at "
            f"most {n_samples}"
        )
    return Share(communicator.rank, communicator.size)


def draw_alike(communicator: Any, rng: np.random.Generator) -> None:
    """Let all processes draw what rank 0 draws, from a generator that none of them has seeded."""
    from gpunn.distributed.agreement import broadcast_value  # noqa: PLC0415 (few programs need it)

    with communicator.doing("Loader"):
        state = broadcast_value(communicator, generator_state(rng))
    restore_generator("Loader", rng, state)


class Sharing:
    """The part of a loader that knows of other processes."""

    n_samples: int
    share: Share
    transform: Any
    #: The number of the process in the keys of a transform's draws.
    stream: int = 0
    _step_size: int

    def first_row(self) -> Batch:
        """Return the first sample as a batch of one."""
        raise NotImplementedError

    @property
    def batch_size(self) -> int:
        """The number of samples in a batch, on this process; the last one may be smaller."""
        return self.share.count(self._step_size)

    @batch_size.setter
    def batch_size(self, batch_size: int | None) -> None:
        n = self.share.size
        most = self.n_samples if batch_size is None else self.n_samples // n
        size = check_batch_size(batch_size, most)
        self._step_size = size if batch_size is None else size * n

    @property
    def step_size(self) -> int:
        """The number of samples in a step: in the batches of all processes together."""
        return self._step_size

    @step_size.setter
    def step_size(self, step_size: int) -> None:
        size = whole_number("Loader", "step_size", step_size)
        if not self.share.size <= size <= self.n_samples:
            raise SettingError(
                f"Loader: step_size must be from {self.share.size}, a sample for each process, to "
                f"the number of samples, {self.n_samples}; got {size}"
            )
        self._step_size = size

    def share_among(self, communicator: Any) -> None:
        """Share the samples among processes if there is one for each; a step stays as it is."""
        size = 1 if communicator is None else communicator.size
        if size <= self.step_size:
            self.share = as_share(communicator, self.n_samples)
            self.stream = self.share.rank

    def own(self, order: Any, n: int) -> tuple[Any, int]:
        """Return this process's part of n rows in an order, and its length; see `Share.own`."""
        return self.share.own(order, n, self.step_size)

    def own_length(self, n: int) -> int:
        """Return how many of n rows are this process's."""
        return self.share.length(n, self.step_size)

    def padded(self, batches: Generator[Batch, None, None], n: int) -> Generator[Batch, None, None]:
        """Return n batches: if the last step has no sample for this process, one without rows."""
        return batches if self.share.size == 1 else self._padded(batches, n)

    def _padded(
        self, batches: Generator[Batch, None, None], n: int
    ) -> Generator[Batch, None, None]:
        with closing(batches):
            for batch in batches:
                n -= 1
                yield batch
        for _ in range(n):
            yield self.no_rows()

    def no_rows(self) -> Batch:
        """Return a batch without rows, for a step that is too small for all processes.

        A transform draws for it as for any other batch, so that it draws as often in each process.
        """
        return Batch(*(part if part is None else part[:0, ...] for part in self.first_row()))

    def draw_for_others(self) -> None:
        """Draw what others drew for the last step of all samples, if this one has none of it."""
        rest = self.n_samples % self.step_size
        if self.transform is not None and rest and not self.share.count(rest):
            self.no_rows()

    def own_transform(self) -> Any:
        """Return the transform; one that draws by an attribute `stream` is told whose turn it is.

        Its generator is the same in all processes, and draws as often, once for each batch.
        """
        if hasattr(self.transform, "stream"):
            self.transform.stream = self.stream
        return self.transform
