"""Recorded steps leave what the readable loop leaves, for random networks, losses and data."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba", reason="steps are compiled by numba")
pytestmark = pytest.mark.skipif(
    os.environ.get("GPUNN_COMPILED") == "0", reason="GPUNN_COMPILED=0: nothing is compiled"
)

from tests.runs import (  # noqa: E402
    RUNS,
    Run,
    assert_alike,
    assert_same_bits,
    assume_settled,
    one_by_one,
)
from tests.turns import taking_turns, threads_for_all  # noqa: E402


@given(run=RUNS, threads=st.integers(1, 2), rows=st.sampled_from([1, 30, 1000]))
@settings(max_examples=80)
def test_whatever_is_trained(run: Run, threads: int, rows: int) -> None:
    with threads_for_all(threads, rows):
        many = run.run()
        assume_settled(many[1])
        with one_by_one():
            few = run.run()
    assert many[0].why_not_recorded == ""
    assert few[0].why_not_recorded
    assert_alike(many, few, run.dtype)


@given(run=RUNS, threads=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(max_examples=60)
def test_whichever_thread_is_first(run: Run, threads: int, seed: int) -> None:
    """Threads may be at any instruction between two meetings: it changes no bit."""
    with taking_turns(threads, seed) as calls:
        many, again = run.run(), run.run()
    assert_same_bits(many, again)
    assert many[0].why_not_recorded == ""
    assert calls
    assume_settled(many[1])
    with one_by_one():
        few = run.run()
    assert_alike(many, few, run.dtype)
