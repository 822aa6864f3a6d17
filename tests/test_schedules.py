"""Learning rates that change, against tables and against each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import gpunn as gn

rates = st.floats(1e-6, 1e3)
steps = st.integers(0, 10_000)


class TestSchedules:
    @pytest.mark.parametrize(
        ("schedule", "table"),
        [
            (gn.Constant(0.1), [0.1, 0.1, 0.1]),
            (gn.StepDecay(0.8, every=2, factor=0.5), [0.8, 0.8, 0.4, 0.4, 0.2]),
            (gn.ExponentialDecay(1.0, factor=0.25, steps=2), [1.0, 0.5, 0.25, 0.125]),
            (
                gn.Cosine(1.0, steps=4, final=0.2),
                [1.0, 0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.6 - 0.4 * math.sqrt(0.5), 0.2, 0.2],
            ),
            (gn.WarmUp(2, 0.5), [0.25, 0.5, 0.5, 0.5]),
            (
                gn.WarmUp(4, gn.StepDecay(0.8, every=2, factor=0.5)),
                [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.4, 0.4, 0.2],
            ),
        ],
        ids=repr,
    )
    def test_by_hand(self, schedule: gn.Schedule, table: list[float]) -> None:
        assert_allclose([schedule(step) for step in range(len(table))], table, rtol=1e-12)
        assert repr(eval(repr(schedule), vars(gn))) == repr(schedule)  # noqa: S307

    @given(
        st.one_of(
            st.builds(gn.Constant, rates),
            st.builds(gn.StepDecay, rates, every=st.integers(1, 99), factor=st.floats(0.01, 1)),
            st.builds(
                gn.ExponentialDecay, rates, factor=st.floats(0.01, 1), steps=st.integers(1, 99)
            ),
            st.builds(gn.Cosine, rates, steps=st.integers(1, 9999)),
        ),
        steps,
    )
    def test_decay_never_rises_and_stays_in_range(self, schedule: gn.Constant, step: int) -> None:
        alpha = schedule.learning_rate
        now, then = schedule(step), schedule(step + 1)
        assert schedule(0) == pytest.approx(alpha)
        assert 0 <= then <= now * (1 + 1e-12) <= alpha * (1 + 1e-11)

    @given(st.integers(1, 500), rates, steps)
    def test_warm_up_rises_to_what_follows(self, length: int, alpha: float, step: int) -> None:
        after = gn.Cosine(alpha, steps=100)
        schedule = gn.WarmUp(length, after)
        assert schedule(0) > 0
        assert schedule(length - 1) == pytest.approx(alpha)
        assert schedule(length + step) == after(step)
        assert step + 1 >= length or schedule(step) < schedule(step + 1)

    def test_reduce_on_plateau(self) -> None:
        schedule = gn.ReduceOnPlateau(1.0, factor=0.5, patience=2, tolerance=0.1, minimum=0.3)
        rates = []
        for loss in [1.0, 0.95, 0.92, 0.85, 0.8, math.nan, 0.7, 0.7, 0.7]:
            schedule.observe(loss)
            rates.append(schedule(7))
        assert rates == [1.0, 1.0, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3, 0.3]

    def test_warm_up_passes_losses_on(self) -> None:
        schedule = gn.WarmUp(2, gn.ReduceOnPlateau(1.0, patience=1))
        for loss in (1.0, 1.0):
            gn.schedules.observe(schedule, loss)
        assert [schedule(step) for step in (0, 1, 5)] == [0.25, 0.5, 0.5]
        gn.schedules.observe(gn.WarmUp(2, 0.1), 1.0)  # one that does not listen

    @pytest.mark.parametrize(
        "make",
        [
            lambda: gn.StepDecay(1.0, every=0),
            lambda: gn.StepDecay(1.0, every=1, factor=0.0),
            lambda: gn.ExponentialDecay(1.0, factor=1.5),
            lambda: gn.Cosine(1.0, steps=3, final=2.0),
            lambda: gn.WarmUp(0, 1.0),
            lambda: gn.ReduceOnPlateau(1.0, patience=0),
            lambda: gn.ReduceOnPlateau(1.0, minimum=2.0),
            lambda: gn.ReduceOnPlateau(1.0, tolerance=-1.0),
        ],
    )
    def test_settings_that_make_no_sense(self, make: Callable[[], object]) -> None:
        with pytest.raises(gn.errors.SettingError, match="must be"):
            make()
