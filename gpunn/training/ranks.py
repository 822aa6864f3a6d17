"""Which processes train together."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

from gpunn.data.batch import Batch
from gpunn.training.one_rank import Ranks

_Method = TypeVar("_Method", bound=Callable[..., Any])

_ALONE = nullcontext()


def doing(what: str, optimizer: Any) -> AbstractContextManager[None]:
    """Return a context in which all processes that train together do this.

    An error that leaves it on one of them alone is found in their next operation.
    """
    parallel = optimizer.parallel
    return _ALONE if parallel is None else parallel.communicator.doing(what)


def by_all_ranks(method: _Method) -> _Method:
    """Say of a method of a trainer that all processes call it."""

    @wraps(method)
    def called(trainer: Any, *arguments: Any, **settings: Any) -> Any:
        with doing(f"Trainer.{method.__name__}", trainer.optimizer):
            return method(trainer, *arguments, **settings)

    return cast("_Method", called)


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
