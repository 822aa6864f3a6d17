"""No two values of a step use the same bytes while both are needed, whichever thread is ahead."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba", reason="steps are compiled by numba")
pytestmark = pytest.mark.skipif(
    os.environ.get("GPUNN_COMPILED") == "0", reason="GPUNN_COMPILED=0: nothing is compiled"
)

from gpunn.program import table as tables  # noqa: E402
from gpunn.program.instructions.words import SIZE  # noqa: E402
from gpunn.program.lower import Lane, Patch  # noqa: E402
from gpunn.program.phases import ALL, OWN, ROWS  # noqa: E402
from gpunn.program.table import Table  # noqa: E402
from gpunn.program.values import Value  # noqa: E402
from gpunn.training.epoch import feed_of  # noqa: E402
from tests.runs import RUNS, Block, Run  # noqa: E402
from tests.turns import integers_at  # noqa: E402


class Use(NamedTuple):
    """Bytes that a thread reads or writes, and when."""

    value: Value
    start: int
    stop: int
    thread: int
    phase: int
    position: int
    writes: bool

    def is_before(self, other: Use) -> bool:
        """Return whether this is over when the other begins, in every run."""
        if self.thread == other.thread:
            return self.position < other.position
        return self.phase < other.phase


def table_of(run: Run, threads: int, *, last: bool = False) -> Table:
    """Return the instructions of a run's step on a whole batch, or on what is left at the end."""
    trainer, loader = run.trainer(), run.loader()
    steps = trainer._program.prepare(
        trainer.model,
        trainer.loss,
        trainer.optimizer,
        feed_of(loader, loader.n_turns),
        penalized=bool(run.weight_decay),
    )
    assert trainer._program.why_not == ""
    rest = loader.n_samples % loader.batch_size
    n = rest if last and rest else loader.batch_size
    return steps._plan(n).table(threads, in_order=run.shuffle is False)


def uses(table: Table) -> Iterator[Use]:
    """Yield all uses of the memory that the table has planned."""
    low = table._lowering
    for thread, (start, n_rows, *_) in enumerate(table.segments):
        first, last = (low.n * i // low.threads for i in (thread, thread + 1))

        def address(value: Value, sharing: Any, thread: int = thread, first: int = first) -> Any:
            return table._address(value, sharing, thread, first)

        lane = Lane(thread, low.threads, first, last, address)
        phase, done = 0, 0
        for i in range(n_rows):
            if not integers_at(start + SIZE * i, 1)[0]:
                phase += 1
                continue
            instruction = table._order[done]
            for writes, accesses in ((False, instruction.reads), (True, instruction.writes)):
                for access in accesses:
                    if isinstance(access.place, Value):
                        span = bytes_of(table, access, lane)
                        if span is not None and span[0] < span[1]:
                            yield Use(access.place, *span, thread, phase, done, writes)
            done += 1
        assert done == len(table._order)


def bytes_of(table: Table, access: Any, lane: Lane) -> tuple[int, int] | None:
    """Return the first byte of what a thread accesses, and the one after the last."""
    value, sharing = access
    row = table._row_size(value)
    if value.by_sample and sharing is ROWS:
        place, n = lane.address(value, ROWS), lane.rows
    elif sharing is OWN and not value.by_sample and value in table._shared:  # its part of a sum
        place, n = lane.address(value, ALL) + lane.thread * row, 1
    elif sharing in (OWN, ALL):
        n = table._lowering.n if value.by_sample else value.shape[0]  # a sample may have many rows
        place = lane.address(value, ALL)
    else:  # its part of a gradient
        start, stop = lane.part(sharing[1])
        size = row * value.shape[0] // sharing[1]
        return lane.address(value, ALL) + start * size, lane.address(value, ALL) + stop * size
    return None if isinstance(place, Patch) else (place, place + n * row)


def races(table: Table) -> list[tuple[Use, Use]]:
    """Return pairs of uses that may destroy each other's values."""
    found = list(uses(table))
    start, stop, thread, phase, position, writes = (
        np.array([getattr(use, name) for use in found]) for name in Use._fields[1:]
    )
    numbers: dict[Value, int] = {}
    value = np.array([numbers.setdefault(use.value, len(numbers)) for use in found])
    i, j = np.nonzero((start[:, None] < stop) & (start < stop[:, None]))
    alike = value[i] == value[j]
    races_within = alike & (thread[i] != thread[j]) & (writes[i] | writes[j])
    races_within &= phase[i] == phase[j]
    # Of two values, one has gone from all threads before the other comes to any.
    before = np.where(thread[i] == thread[j], position[i] < position[j], phase[i] < phase[j])
    pair = value[i] * len(numbers) + value[j]
    not_before = set(pair[~alike & ~before])
    turned = value[j] * len(numbers) + value[i]
    both_ways = np.isin(pair, list(not_before & set(turned[~alike & ~before])))
    bad = np.flatnonzero(races_within | (both_ways & ~alike))
    return [(found[i[k]], found[j[k]]) for k in bad]


def strays(table: Table) -> list[Use]:
    """Return uses of bytes outside of the table's block."""
    first = table._block.ctypes.data
    last = first + table._block.nbytes
    return [use for use in uses(table) if use.start < first or last < use.stop]


#: Buffers of many widths, sums over the batch, and gradients that are added up.
DEEP = Run(
    blocks=(
        Block("dense", 7, "gelu"),
        Block("residual", inner=(Block("dense", 2, "tanh"), Block("dropout"))),
        Block("twice", activation="elu"),
        Block("dense", 1, "softplus"),
        Block("dense", 6, "softmax"),
    ),
    n=40,
    optimizer="adam",
    clip_norm=0.1,
    class_weight="tuple",
    weights=True,
    weight_decay=0.1,
)


class TestPlacement:
    @given(run=RUNS, threads=st.integers(1, 5), last=st.booleans())
    @settings(max_examples=50)
    def test_values_do_not_meet(self, run: Run, threads: int, last: bool) -> None:
        table = table_of(run, threads, last=last)
        assert not races(table)
        assert not strays(table)

    @pytest.mark.parametrize("batch_size", [1, 3, 16, 30])
    @pytest.mark.parametrize("threads", [1, 2, 5])
    def test_not_in_a_deep_network(self, threads: int, batch_size: int) -> None:
        run = Run(**(vars(DEEP) | {"batch_size": batch_size}))
        table = table_of(run, threads)
        assert not races(table)
        assert not strays(table)


class TestThatTheTestSees:
    """What it is for: each of these made weights wrong, at times by a little only."""

    def test_lanes_at_one_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tables, "aligned", lambda _: -128)
        assert races(table_of(DEEP, 2))

    def test_lanes_that_overlap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tables, "aligned", lambda size: size // 2 - 128)
        assert races(table_of(DEEP, 3))

    def test_shared_values_at_one_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tables, "consecutive", lambda sizes: ([0] * len(list(sizes)), 1 << 14))
        assert races(table_of(DEEP, 2))

    def test_shared_values_that_follow_each_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Threads are at different instructions, and one writes over what another reads."""
        place = Table._place_values

        def placed(self: Table) -> None:
            place(self)
            spans: dict[Value, list[int]] = {}
            for i, instruction in enumerate(self._order):
                for access in (*instruction.reads, *instruction.writes):
                    if access.place in self._shared:
                        spans.setdefault(access.place, [i, i])[1] = i
            found = [
                tables.Span(self._row_size(value) * value.shape[0], *span)
                for value, span in spans.items()
            ]
            first, offsets = min(self._shared.values()), tables.plan(found)[0]
            self._shared = {v: first + at for v, at in zip(spans, offsets, strict=True)}

        monkeypatch.setattr(Table, "_place_values", placed)
        assert races(table_of(DEEP, 2))
