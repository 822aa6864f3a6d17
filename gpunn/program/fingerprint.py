"""Fingerprint a model's parts, to notice when a recording is out of date."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable
from types import FunctionType, MethodType
from typing import Any

import numpy as np

from gpunn.arrays.backend import Backend
from gpunn.kernels.declared import may_record
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.nn.parameter import Held

#: Types whose instances cannot change: comparing identities is enough.
_CONSTANTS = {
    *(type(None), bool, int, float, complex, str, bytes, type),
    *(FunctionType, MethodType, Backend),
}
#: The same, subclasses included.
_CONSTANT_BASES = (*_CONSTANTS, np.dtype, np.generic)


class Fingerprint:
    """All objects that the parts of a model consist of, compared by identity.

    It notices when a setting, a layer, an array or a method is replaced, on an object or on its
    class. The numbers in an array may change.

    Parameters
    ----------
    parts : iterable of Layer or Loss
        Inspected recursively.
    """

    def __init__(self, parts: Iterable[Any]) -> None:
        self._pieces: list[Any] = []
        #: For each piece with contents: the function that lists them, the piece, and the list. If
        #: no list has changed, neither has anything below, so nothing is traversed again. Holding
        #: the pieces keeps their identities unique.
        self._contents: dict[int, tuple[_Reader, Any, list[Any]]] = {}
        for part in parts:
            self._inspect(part)
        classes = dict.fromkeys(type(piece) for piece in self._pieces if _is_part(piece))
        #: A base that several classes share is inspected once.
        self._orders = [(kind, kind.__mro__) for kind in classes]
        bases = dict.fromkeys(base for _, order in self._orders for base in order[:-1])
        bodies = [vars(base) for base in bases]
        self._bodies = [(body, tuple(body), tuple(body.values())) for body in bodies]

    def _inspect(self, piece: Any) -> None:
        """Store a piece and, recursively, its contents."""
        if type(piece) in _CONSTANTS:  # most are names
            return
        self._pieces.append(piece)
        read = _reader_of(piece)
        if read is None or id(piece) in self._contents:
            return
        content = list(read(piece))
        self._contents[id(piece)] = read, piece, content
        for item in content:
            self._inspect(item)

    def why_not(self) -> str | None:
        """Return why a part cannot be recorded; None if all can.

        Either its class does not declare that it records, or it could change unnoticed.
        """
        for piece in self._pieces:
            kind = type(piece).__name__
            if _is_part(piece) and not may_record(piece):
                return f"{kind} does not say in its own class body that it records"
            if not _is_known(piece):
                return f"an attribute of the class {kind} may change without being noticed"
        return None

    def holds(self) -> bool:
        """Return whether the parts are unchanged."""
        for read, piece, content in self._contents.values():
            now = read(piece)
            if len(now) != len(content) or not all(map(operator.is_, now, content)):
                return False
        for kind, order in self._orders:
            if kind.__mro__ is not order:
                return False
        for body, names, values in self._bodies:
            if tuple(body) != names or not all(map(operator.is_, body.values(), values)):
                return False
        return True


def _is_part(piece: Any) -> bool:
    return isinstance(piece, (Layer, Loss, Held))


def _is_known(piece: Any) -> bool:
    """Return whether a change of a piece would be noticed; the numbers in arrays may change."""
    if _is_part(piece) or isinstance(piece, (list, tuple, dict, *_CONSTANT_BASES)):
        return True
    return hasattr(piece, "shape") and hasattr(piece, "dtype")


#: A function that lists a piece's contents in a fixed order.
_Reader = Callable[[Any], Collection[Any]]


def _reader_of(piece: Any) -> _Reader | None:
    """Return the function that lists a piece's contents; None if it has none."""
    if isinstance(piece, Held):
        return _content_of_held
    if isinstance(piece, (Layer, Loss)):
        return _content_of_part
    if isinstance(piece, (list, tuple)):  # subclasses too, as in `nn.tree.children`
        return _content_of_sequence
    return _content_of_dict if isinstance(piece, dict) else None


def _content_of_held(piece: Held) -> Collection[Any]:
    return type(piece), piece.value, getattr(piece, "decay", None)


def _content_of_part(piece: Layer | Loss) -> Collection[Any]:
    own = vars(piece)
    return type(piece), *own, *own.values()


def _content_of_sequence(piece: Collection[Any]) -> Collection[Any]:
    return piece


def _content_of_dict(piece: dict[Any, Any]) -> Collection[Any]:
    return *piece, *piece.values()
