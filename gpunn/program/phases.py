"""Divide a step into phases, between which its threads must meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

# How the threads share the memory that an instruction reads or writes.
#: Each thread uses its own rows of the batch.
ROWS = "rows"
#: Each thread has its own copy.
OWN = "own"
#: Each thread uses all of it.
ALL = "all"


def in_parts(n: int) -> tuple[str, int]:
    """Return the sharing in which each thread uses its part of the n rows of a weight."""
    return "parts", n


class Memory(NamedTuple):
    """The memory of an array that outlives the step, from its first byte to past its last."""

    start: int
    stop: int


class Access(NamedTuple):
    """A read or write by an instruction, and how the threads share the memory.

    Attributes
    ----------
    place : Memory or object
        Two memories conflict if they overlap, two other objects if they are identical.
    sharing : str or tuple
        `ROWS`, `OWN`, `ALL`, or the result of `in_parts`.
    """

    place: Any
    sharing: Any


class Accessing(Protocol):
    """Anything with accesses, such as an instruction."""

    reads: Sequence[Access]
    writes: Sequence[Access]


def phases(instructions: Sequence[Any], threads: int) -> list[list[Any]]:
    """Return the instructions in phases; the threads meet after each phase.

    Within a phase, threads run independently. So an instruction joins a phase only if every value
    that it shares with an earlier one, and that one of the two writes, is divided among the
    threads in the same way by both: then a thread depends on its own work only. Other instructions
    wait for a later phase, and so do those that depend on them.
    """
    if threads == 1:
        return [list(instructions)]
    found: list[list[Any]] = []
    waiting = list(instructions)
    while waiting:
        phase: list[Any] = []
        later: list[Any] = []
        for instruction in waiting:
            joins = not any(_depends(instruction, other) for other in later)
            if joins and all(_is_independent(instruction, other) for other in phase):
                phase.append(instruction)
            else:
                later.append(instruction)
        found.append(phase)
        waiting = later
    return found


def _depends(one: Accessing, other: Accessing) -> bool:
    """Return whether the order of two instructions matters."""
    return any(True for _ in _conflicts(one, other))


def _is_independent(one: Accessing, other: Accessing) -> bool:
    """Return whether a thread can run both in order without waiting for another thread."""
    return all(a.sharing == b.sharing and a.sharing is not ALL for a, b in _conflicts(one, other))


def _conflicts(one: Accessing, other: Accessing) -> Any:
    """Yield pairs of accesses to the same place, at least one of which writes."""
    for writes, others in ((one.writes, (*other.reads, *other.writes)), (other.writes, one.reads)):
        for a in writes:
            for b in others:
                if _overlap(a.place, b.place):
                    yield a, b


def _overlap(a: Any, b: Any) -> bool:
    if isinstance(a, Memory) and isinstance(b, Memory):
        return a.start < b.stop and b.start < a.stop
    return a is b
