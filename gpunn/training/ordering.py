"""Ordering of a trainer's GPU work relative to other streams."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from gpunn.arrays.backend import backend_of
from gpunn.arrays.streams import finish, follow_default_stream
from gpunn.nn.layer import first_parameter

_Method = TypeVar("_Method", bound=Callable[..., Any])


def in_order(method: _Method) -> _Method:
    """Make a trainer's method wait for the default stream's work, and finish its own.

    It runs on the current stream. Its results and the model may then be used on any stream, even
    after an error, since a model whose training has diverged gets its best weights back.
    """

    @wraps(method)
    def ordered(trainer: Any, *arguments: Any, **settings: Any) -> Any:
        first = first_parameter(trainer.model)
        place = None if first is None else backend_of(first.value)
        follow_default_stream(place)
        try:
            return method(trainer, *arguments, **settings)
        finally:
            finish(place)

    return cast("_Method", ordered)
