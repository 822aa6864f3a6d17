"""Helpers for processes that train together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

from gpunn.data.batch import Batch
from gpunn.errors import DeviceMemoryError, LabelError, ShapeError
from gpunn.training.one_rank import Ranks

_Method = TypeVar("_Method", bound=Callable[..., Any])

_ALONE = nullcontext()


def doing(what: str, optimizer: Any) -> AbstractContextManager[None]:
    """Return a context for an operation `what` of all processes that train together.

    If an error leaves it on one process alone, the others notice in their next operation.
    """
    parallel = optimizer.parallel
    return _ALONE if parallel is None else _named(what, parallel.communicator)


@contextmanager
def _named(what: str, communicator: Any) -> Iterator[None]:
    """Enter such a context; name the rank in errors about its own data or its own device."""
    with communicator.doing(what):
        try:
            yield
        except (DeviceMemoryError, LabelError, ShapeError) as error:
            whose = f"on rank {communicator.rank} of {communicator.size}, by its part of the data: "
            if not str(error).startswith(whose):
                error.args = (f"{whose}{error}", *error.args[1:])
            raise


def by_all_ranks(method: _Method) -> _Method:
    """Declare that all processes call a trainer's method."""

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
    """Return batches from a subclass of `Loader`; stop all ranks if one runs out.

    Raises
    ------
    DataError
        On every rank, naming the ranks that have run out.
    """
    if optimizer.parallel is None:
        return batches
    from gpunn.training.several_ranks import together  # noqa: PLC0415 (as above)

    return together(optimizer.parallel.communicator, batches)
