"""Programs for the CPU's interpreter: instructions with the addresses of their operands."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.program.instructions import address_of
from gpunn.program.instructions.words import CONTEXT, SIZE, WORDS
from gpunn.program.lower import Instruction, Lane, Lowering, Patch
from gpunn.program.phases import ALL, OWN, ROWS, phases
from gpunn.program.placement import Span, aligned, consecutive, plan
from gpunn.program.values import Value

_PLACE = {word: i for i, word in enumerate(WORDS)}
_FLOATS = frozenset("pqrs")


class Table:
    """The instructions of a step on batches of one size, for every thread.

    Parameters
    ----------
    lowering : Lowering
        The step's instructions, and the number of threads.
    in_order : bool
        Whether batches are rows in stored order, read in place; otherwise rows are gathered.

    Attributes
    ----------
    segments : list of tuple of int
        For each thread, the address and number of its instructions, and of its patches.
    """

    def __init__(self, lowering: Lowering, *, in_order: bool) -> None:
        self._lowering = lowering
        self._in_order = in_order
        self._parts = _parts_of(lowering)
        recording = lowering.recording
        #: The dtypes that features and targets are converted to.
        self._batch_dtypes = {recording.x: lowering.x_dtype, recording.y: lowering.y_dtype}
        gathers = [] if in_order else self._gathers()
        found = phases([*gathers, *lowering.instructions], lowering.threads)
        self._order = [instruction for phase in found for instruction in phase]
        self._place_values()
        self._held: list[Array] = [self._block]
        self.segments = [self._write(thread, found) for thread in range(lowering.threads)]

    # The memory of values

    def _place_values(self) -> None:
        """Plan the memory of all values.

        A value of which each thread reads only what it wrote itself lies in the threads' lanes,
        where later values may reuse its memory. A value that all threads read has its own memory:
        threads run at different speeds, and one could overwrite what another has yet to read.
        """
        low = self._lowering
        threads = low.threads
        spans: dict[Value, list[int]] = {}
        shared: dict[Value, None] = {}
        for i, instruction in enumerate(self._order):
            for access in (*instruction.reads, *instruction.writes):
                value = access.place
                if type(value) is not Value or (self._in_order and value in self._parts):
                    continue
                spans.setdefault(value, [i, i])[1] = i
                own = value.by_sample or low.sharing.get(value) is OWN
                if threads > 1 and (access.sharing is ALL or not own):
                    shared[value] = None
        lanes = [value for value in spans if value not in shared]
        sizes = [self._row_size(value) * self._rows_in_lane(value) for value in lanes]
        offsets, lane_size = plan(
            [Span(size, *spans[value]) for value, size in zip(lanes, sizes, strict=True)]
        )
        whole_sizes = [
            self._row_size(value) * (low.n if value.by_sample else value.shape[0])
            for value in shared
        ]
        starts, total = consecutive(whole_sizes)
        self._lane_size = aligned(lane_size) + 128  # no two threads share a cache line
        self._block = np.zeros(total + threads * self._lane_size + 64, np.uint8)
        first = self._block.ctypes.data
        first += -first % 64
        self._shared = {value: first + start for value, start in zip(shared, starts, strict=True)}
        self._lanes = {
            value: first + total + offset for value, offset in zip(lanes, offsets, strict=True)
        }

    def _rows_in_lane(self, value: Value) -> int:
        """Return the number of a value's rows in a lane."""
        if not value.by_sample:
            return value.shape[0]
        if self._is_whole(value, self._lowering.threads):
            return self._lowering.n
        return -(-self._lowering.n // self._lowering.threads)

    def _is_whole(self, value: Value, threads: int) -> bool:
        """Return whether a lane contains all rows of a value."""
        return threads == 1 or self._lowering.sharing.get(value) is OWN

    def _row_size(self, value: Value) -> int:
        """Return the bytes of a sample, or of a row if the value has no samples."""
        dtype = self._dtype(value)
        size = math.prod(value.shape)
        return (size // self._lowering.n if value.by_sample else value.width) * int(dtype.itemsize)

    def _dtype(self, value: Value) -> Any:
        """Return the dtype in which the instructions read a value."""
        return self._batch_dtypes.get(value, value.dtype)

    def _address(self, value: Value, sharing: Any, thread: int, first: int) -> int | Patch:
        """Return the address of a thread's rows of a value, or of all its rows."""
        low = self._lowering
        value = low.root(value)
        row = self._row_size(value)
        own = 0 if sharing is ALL or not value.by_sample else first * row
        if self._in_order and value in self._parts:
            return Patch(self._parts[value], own, row)
        if value in self._shared:
            return self._shared[value] + own
        start = self._lanes[value] + thread * self._lane_size
        return start + own if self._is_whole(value, low.threads) else start

    # The instructions

    def _gathers(self) -> list[Instruction]:
        """Return the instructions that gather the rows of a batch."""
        low, found = self._lowering, []
        accesses = (access for i in low.instructions for access in (*i.reads, *i.writes))
        used = {access.place for access in accesses}
        for value, part in self._parts.items():
            if value not in used:
                continue
            name = "gather_labels" if self._dtype(value) == np.int64 else "gather"
            whole = low.n if low.sharing[value] is OWN else 0
            words = partial(_gather_words, value, CONTEXT.index(part), whole)
            found.append(Instruction(name, [], [low.at(value)], words))
        return found

    def _write(self, thread: int, found: list[list[Instruction]]) -> tuple[int, int, int, int]:
        """Write a thread's instructions; return their address and number, and the patches'."""
        low = self._lowering
        first = low.n * thread // low.threads
        last = low.n * (thread + 1) // low.threads

        def address(value: Value, sharing: Any) -> int | Patch:
            return self._address(value, sharing, thread, first)

        lane = Lane(thread, low.threads, first, last, address)
        meetings = len(found) if low.threads > 1 else 0
        table = np.zeros((len(self._order) + meetings, len(WORDS)), np.int64)
        numbers, patches, i = table.view(np.float64), [], 0
        for phase in found:
            for instruction in phase:
                table[i, 0] = address_of(instruction.name, low.dtype)
                for word, value in instruction.words(lane).items():
                    column = _PLACE[word]
                    if word in _FLOATS:
                        numbers[i, column] = value
                    elif type(value) is Patch:
                        place = table.ctypes.data + i * SIZE + 8 * column
                        slot = CONTEXT.index(value.part)
                        patches.append((place, slot, value.offset, value.row_size))
                    else:
                        table[i, column] = value
                i += 1
            i += bool(meetings)
        kept = np.array(patches, np.int64).reshape(-1, 4)
        self._held += [table, kept]
        return table.ctypes.data, len(table), kept.ctypes.data, len(kept)


def _gather_words(value: Value, slot: int, whole: int, lane: Lane) -> dict[str, Any]:
    """Return the words of an instruction that gathers a part of the batch.

    If `whole` is not 0, each thread gathers all rows, `whole` in number; otherwise its own rows.
    """
    sizes = {"k": value.width, "a": slot}
    if whole:
        return sizes | {"m": whole, "c": lane.address(value, ALL), "flag": 0}
    return sizes | {"m": lane.rows, "c": lane.address(value, ROWS), "flag": lane.first}


def _parts_of(lowering: Lowering) -> dict[Value, str]:
    """Return the name of the part for each value that comes with the batch."""
    recording = lowering.recording
    parts = {"x": recording.x, "y": recording.y, "weight": recording.sample_weight}
    return {value: part for part, value in parts.items() if value is not None}
