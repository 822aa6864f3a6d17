"""Which processes train together."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from gpunn.data.batch import Batch
from gpunn.training.one_rank import Ranks


def ranks_of(optimizer: Any) -> Ranks:
    """Return the processes that train with an optimizer."""
    if optimizer.parallel is None:
        return Ranks()
    from gpunn.training.several_ranks import SeveralRanks  # noqa: PLC0415 (few programs need it)

    return SeveralRanks(optimizer.parallel.communicator)


def in_step(optimizer: Any, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """Return batches of a loader that makes its own; stop all ranks if one has no more.

    Raises
    ------
    DataError
        On every rank. Names those that have run out.
    """
    if optimizer.parallel is None:
        return batches
    from gpunn.training.several_ranks import together  # noqa: PLC0415 (as above)

    return together(optimizer.parallel.communicator, batches)
