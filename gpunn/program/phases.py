"""When threads that share the work of a step must meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

#: How the threads share what an instruction reads or writes.
#: Each takes its own rows of the batch.
ROWS = "rows"
#: Each has a copy of its own.
OWN = "own"
#: Each takes all of it.
ALL = "all"


def in_parts(n: int) -> tuple[str, int]:
    """Return the sharing in which each thread takes its part of the n rows of a weight."""
    return "parts", n


class Memory(NamedTuple):
    """Where an array lies that outlives the step: its first byte, and the one after its last."""

    start: int
    stop: int


class Access(NamedTuple):
    """What an instruction reads or writes, and how the threads share it.

    Attributes
    ----------
    place : Memory or object
        Memory overlaps with memory; an object is the same object or something else.
    sharing : str or tuple
        `ROWS`, `OWN`, `ALL`, or what `in_parts` returns.
    """

    place: Any
    sharing: Any


class Accessing(Protocol):
    """What has accesses: an instruction."""

    reads: Sequence[Access]
    writes: Sequence[Access]


def phases(instructions: Sequence[Any], threads: int) -> list[list[Any]]:
    """Return the instructions in phases, after each of which the threads meet.

    Within a phase threads run on their own. So an instruction joins a phase if each value that it
    has in common with an earlier one, and that one of them writes, is shared by both in the same
    way: then a thread meets nothing but its own work. What cannot join waits for a later phase,
    and so does what depends on it.
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
            if joins and all(_on_its_own(instruction, other) for other in phase):
                phase.append(instruction)
            else:
                later.append(instruction)
        found.append(phase)
        waiting = later
    return found


def _depends(one: Accessing, other: Accessing) -> bool:
    """Return whether the order of two instructions matters."""
    return any(True for _ in _conflicts(one, other))


def _on_its_own(one: Accessing, other: Accessing) -> bool:
    """Return whether a thread that runs both, in order, needs no other thread's work between."""
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
