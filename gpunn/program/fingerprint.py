"""What a recording depends on, and whether it is still the same."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from gpunn.arrays.backend import Backend
from gpunn.kernels.declared import has_its_functions, may_record
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.nn.parameter import Held

#: What cannot change without being replaced.
_CONSTANTS = (
    *(type(None), bool, int, float, complex, str, bytes, type),
    *(FunctionType, MethodType, Backend, np.dtype, np.generic),
)


class Fingerprint:
    """All that the parts of a model are made of, compared by identity.

    A setting, a layer, an array or a method that was replaced is noticed; what an array holds may
    change.

    Parameters
    ----------
    parts : iterable of Layer or Loss
        Looked into, layer by layer.
    """

    def __init__(self, parts: Iterable[Any]) -> None:
        self._parts = list(parts)
        self._pieces = list(_pieces(self._parts))  # held, so that no identity comes twice
        declared = [getattr(piece, "_declared", None) for piece in self._pieces if _is_part(piece)]
        self._declared = list({id(one): one for one in declared if one is not None}.values())

    def why_not(self) -> str | None:
        """Return which part cannot be recorded; None if all can.

        Either its class does not say that it records, or it may change without being noticed.
        """
        for piece in self._pieces:
            kind = type(piece).__name__
            if _is_part(piece) and not may_record(piece):
                return f"{kind} does not say in its own class body that it records"
            if not _is_known(piece):
                return f"an attribute of the class {kind} may change without being noticed"
        return None

    def holds(self) -> bool:
        """Return whether the parts are still made of the same."""
        now = list(_pieces(self._parts))
        same = len(now) == len(self._pieces) and all(map(operator.is_, now, self._pieces))
        return same and all(map(has_its_functions, self._declared))


def _is_part(piece: Any) -> bool:
    return isinstance(piece, (Layer, Loss, Held))


def _is_known(piece: Any) -> bool:
    """Return whether a change of a piece is noticed: parts and containers are looked into.

    What arrays hold may change.
    """
    if _is_part(piece) or isinstance(piece, (list, tuple, dict, *_CONSTANTS)):
        return True
    return hasattr(piece, "shape") and hasattr(piece, "dtype")


def _pieces(items: Iterable[Any]) -> Iterator[Any]:
    """Yield items and what they are made of, in a fixed order."""
    for item in items:
        yield item
        if isinstance(item, Held):
            yield type(item)
            yield item.value
            yield getattr(item, "decay", None)
        elif isinstance(item, (Layer, Loss)):
            yield type(item)
            yield from vars(item)
            yield from _pieces(vars(item).values())
        elif isinstance(item, (list, tuple)):  # of any kind: `nn.tree.children` looks in there, too
            yield from _pieces(item)
        elif isinstance(item, dict):
            yield from item
            yield from _pieces(item.values())
