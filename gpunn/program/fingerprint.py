"""What a recording depends on, and whether it is still the same."""

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

#: What cannot change without being replaced: it is made of nothing, and its identity says all.
_CONSTANTS = {
    *(type(None), bool, int, float, complex, str, bytes, type),
    *(FunctionType, MethodType, Backend),
}
#: The bases of others.
_CONSTANT_BASES = (*_CONSTANTS, np.dtype, np.generic)


class Fingerprint:
    """All that the parts of a model are made of, compared by identity.

    A setting, a layer, an array or a method that was replaced is noticed, on an object or on its
    class; what an array holds may change.

    Parameters
    ----------
    parts : iterable of Layer or Loss
        Looked into, layer by layer.
    """

    def __init__(self, parts: Iterable[Any]) -> None:
        self._pieces: list[Any] = []
        #: Each piece that is made of others: how to list these, and what the list was. If all lists
        #: are the same, so is what they lead to, and nothing has to be followed again. The pieces
        #: are held, so that no identity comes twice.
        self._contents: dict[int, tuple[_Reader, Any, list[Any]]] = {}
        for part in parts:
            self._look_into(part)
        classes = dict.fromkeys(type(piece) for piece in self._pieces if _is_part(piece))
        #: Bases that several have in common are looked at once.
        self._orders = [(kind, kind.__mro__) for kind in classes]
        bases = dict.fromkeys(base for _, order in self._orders for base in order[:-1])
        bodies = [vars(base) for base in bases]
        self._bodies = [(body, tuple(body), tuple(body.values())) for body in bodies]

    def _look_into(self, piece: Any) -> None:
        """Keep a piece and what it is made of."""
        if type(piece) in _CONSTANTS:  # most are names
            return
        self._pieces.append(piece)
        read = _reader_of(piece)
        if read is None or id(piece) in self._contents:
            return
        content = list(read(piece))
        self._contents[id(piece)] = read, piece, content
        for each in content:
            self._look_into(each)

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
    """Return whether a change of a piece is noticed: parts and containers are looked into.

    What arrays hold may change.
    """
    if _is_part(piece) or isinstance(piece, (list, tuple, dict, *_CONSTANT_BASES)):
        return True
    return hasattr(piece, "shape") and hasattr(piece, "dtype")


#: Lists what a piece is made of, in a fixed order.
_Reader = Callable[[Any], Collection[Any]]


def _reader_of(piece: Any) -> _Reader | None:
    """Return what lists the content of a piece; None if it has none."""
    if isinstance(piece, Held):
        return _content_of_held
    if isinstance(piece, (Layer, Loss)):
        return _content_of_part
    if isinstance(piece, (list, tuple)):  # of any kind: `nn.tree.children` looks in there, too
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
