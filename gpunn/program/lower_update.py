"""Lower the updates of parameters and of their averages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.rules import Fused, fused_rule
from gpunn.program.lower import Instruction, Lane, Lowering, address_of, memory_of
from gpunn.program.phases import ALL, OWN, Access, Memory, in_parts
from gpunn.program.values import NotRecordableError, Value

#: The words of an instruction that hold the states' addresses.
_STATES = ("c", "e", "k")


@dataclass
class Piece:
    """A parameter, or a block of several, that one instruction updates.

    Attributes
    ----------
    value, grad : array
    states : list of array
        The optimizer's state for it.
    decays : bool
        Whether weight decay applies.
    """

    value: Array
    grad: Array
    states: list[Array]
    decays: bool

    @property
    def n_parts(self) -> int:
        """The number of rows, which threads divide among themselves."""
        return int(self.value.shape[0])


def lower_update(
    low: Lowering, optimizer: Any, pieces: Sequence[Piece], *, penalized: bool
) -> None:
    """Insert the instructions that update some pieces, after the norm if gradients are clipped."""
    rule = fused_rule(optimizer)
    if rule is None:
        raise NotRecordableError(f"{type(optimizer).__name__} has no kernel for its update")
    clips = optimizer.clip_norm is not None
    limit = math.inf if optimizer.clip_value is None else optimizer.clip_value
    if clips:
        _clip(low, pieces, limit, optimizer.clip_norm)
    for piece in pieces:
        fixed = {"flag": int(clips), "n": int(optimizer.decoupled), "s": limit}
        added = [_update(low, rule, piece, fixed, clips=clips)]
        if penalized and piece.decays:
            added.insert(0, _penalty(piece))
        i = len(low.instructions) if clips else _after_last_use(low, piece)
        low.instructions[i:i] = added


def lower_average(low: Lowering, average: Any, pieces: Sequence[Piece]) -> None:
    """Insert instructions that move each piece's `value`, an average, towards `grad`, a weight."""
    for piece in pieces:

        def words(lane: Lane, piece: Piece = piece) -> dict[str, Any]:
            m, skipped = _share(lane, piece)
            places = {"a": address_of(piece.value) + skipped, "b": address_of(piece.grad) + skipped}
            return {"m": m, "p": 1.0 - average.decay} | places

        sharing = in_parts(piece.n_parts)
        value, weight = (Access(memory_of(x), sharing) for x in (piece.value, piece.grad))
        i = _after_last_use(low, piece)
        low.instructions.insert(i, Instruction("average", [value, weight], [value], words))


def after_last_use(low: Lowering, own: Sequence[Memory]) -> int:
    """Return the index after the last instruction that reads or writes in some memory."""
    for i in range(len(low.instructions) - 1, -1, -1):
        known = low.instructions[i]
        for access in (*known.reads, *known.writes):
            place = access.place
            if isinstance(place, Memory) and any(
                place.start < end and start < place.stop for start, end in own
            ):
                return i + 1
    return len(low.instructions)


def _after_last_use(low: Lowering, piece: Piece) -> int:
    """Return the first index at which the piece may be updated: there it is still in the cache."""
    return after_last_use(low, [memory_of(piece.value), memory_of(piece.grad)])


def _clip(low: Lowering, pieces: Sequence[Piece], limit: float, clip_norm: float) -> None:
    sums = Value((low.threads, 1), np.dtype("float64"), by_sample=False)

    def own_sum(lane: Lane) -> int:
        address = lane.address(sums, ALL)
        assert isinstance(address, int)  # noqa: S101
        return address + 8 * lane.thread

    for i, piece in enumerate(pieces):

        def words(lane: Lane, piece: Piece = piece, first: int = int(i == 0)) -> dict[str, Any]:
            m, skipped = _share(lane, piece)
            address = address_of(piece.grad) + skipped
            return {"m": m, "a": address, "d": own_sum(lane), "p": limit, "flag": first}

        reads = [Access(memory_of(piece.grad), in_parts(piece.n_parts))]
        low.add("squared_norm", words, [*reads, Access(sums, OWN)], [Access(sums, OWN)])
    low.add(
        "clip_factor",
        lambda lane: {"d": lane.address(sums, ALL), "p": clip_norm},
        [Access(sums, ALL)],
        [Access("factor", OWN)],
    )


def _share(lane: Lane, piece: Piece) -> tuple[int, int]:
    """Return the number of a thread's entries of a piece, and the bytes before them."""
    start, stop = lane.part(piece.n_parts)
    width = piece.value.size // piece.n_parts
    return (stop - start) * width, start * width * piece.value.itemsize


def _penalty(piece: Piece) -> Instruction:
    def words(lane: Lane) -> dict[str, Any]:
        m, skipped = _share(lane, piece)
        return {"m": m, "a": address_of(piece.value) + skipped}

    value = Access(memory_of(piece.value), in_parts(piece.n_parts))
    return Instruction("penalty", [value], [Access("penalty", OWN)], words)


def _update(
    low: Lowering, rule: Fused, piece: Piece, fixed: dict[str, Any], *, clips: bool
) -> Instruction:
    arrays = {"a": piece.value, "b": piece.grad}
    arrays |= dict.fromkeys(_STATES, piece.value)  # not read where the rule has none
    arrays |= {_STATES[i]: state for i, state in zip(rule.places, piece.states, strict=True)}
    settings = dict(zip("pqr", rule.settings, strict=True))

    def words(lane: Lane) -> dict[str, Any]:
        m, skipped = _share(lane, piece)
        places = {word: address_of(array) + skipped for word, array in arrays.items()}
        return {"m": m, "d": int(piece.decays)} | places | settings | fixed

    own = [piece.value, piece.grad, *piece.states]
    for array in own:
        low.check(array, low.dtype)
    sharing = in_parts(piece.n_parts)
    accesses = [Access(memory_of(array), sharing) for array in own]
    reads = [*accesses, Access("factor", OWN)] if clips else accesses
    return Instruction(rule.name, reads, accesses, words)
