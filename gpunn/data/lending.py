"""Which code may see a loader's own memory: only gpunn's, which never writes to a batch.

On NumPy, views of the data are read-only, and any code may see them. Arrays on a GPU cannot be
read-only, so code outside gpunn gets copies there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of
from gpunn.arrays.memory import copy_of, read_only
from gpunn.nn.layer import Layer
from gpunn.nn.tree import children

_T = TypeVar("_T")

#: The models, losses and metrics that read the batches of the iteration that is starting.
_readers: ContextVar[tuple[object, ...] | None] = ContextVar("gpunn_readers", default=None)


def lend(iterate: Callable[[], _T], *readers: object) -> _T:
    """Start an iteration whose batches only these models, losses and metrics see.

    Within ``iterate()``, `is_lent` tells whether copies can be saved.
    """
    token = _readers.set(readers)
    try:
        return iterate()
    finally:
        _readers.reset(token)


def is_lent() -> bool:
    """Return whether only gpunn's own code sees the batches of this iteration."""
    readers = _readers.get()
    return readers is not None and all(map(is_ours, readers))


def is_ours(part: object) -> bool:
    """Return whether a loss, a metric, or a layer and all layers in it are gpunn's own."""
    return _of_gpunn(part) and _has_only_ours(part, set())


def _has_only_ours(value: Any, seen: set[int]) -> bool:
    for _, item in children(value):
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Layer) and not _of_gpunn(item):
            return False
        if not _has_only_ours(item, seen):
            return False
    return True


def _of_gpunn(part: object) -> bool:
    return type(part).__module__.partition(".")[0] == "gpunn"


def kept_apart(x: Array) -> Array:
    """Return an array for code outside gpunn: a read-only view on NumPy, elsewhere a copy."""
    place = backend_of(x)
    return read_only(x) if place is not None and place.package == "numpy" else copy_of(x)
