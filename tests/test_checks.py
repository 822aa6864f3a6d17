"""The checks of settings: what passes, and what the error says."""

from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn.arrays import checks
from gpunn.errors import SettingError


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", [0, 0.5, np.float32(0.25), Fraction(1, 2)], [1, 1.5, -1e-9]),
        ("(0, 1]", [1, 1e-300], [0, 1.0000001]),
        ("(0, inf)", [1e300, 1], [0, 10**400, math.inf]),
        ("[0, inf)", [0], [-1, math.inf]),
        ("(-inf, inf)", [-5], [10**400, -(10**400), math.inf, -math.inf]),
    ],
)
def test_numbers_in_an_interval(interval: str, inside: list[Any], outside: list[Any]) -> None:
    for value in inside:
        result = checks.number("SGD", "momentum", value, interval)
        assert type(result) is float
        assert result == value
    for value in [*outside, math.nan, None, "0.5", True, [0.5], np.array([0.5]), 1j]:
        with pytest.raises(SettingError, match=r"^SGD: momentum must be a .*number.*, got "):
            checks.number("SGD", "momentum", value, interval)


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ("[0, 1)", r"a number in \[0, 1\)"),
        ("(0, inf)", "a number above 0"),
        ("[0, inf)", "a number of at least 0"),
        ("(-inf, inf)", "a finite number"),
    ],
)
def test_the_interval_in_words(interval: str, words: str) -> None:
    with pytest.raises(SettingError, match=f"^A: b must be {words}, got nan$"):
        checks.number("A", "b", math.nan, interval)
    with pytest.raises(SettingError, match=f"^A: b must be None or {words}, got '1'$"):
        checks.optional_number("A", "b", "1", interval)
    assert checks.optional_number("A", "b", None, interval) is None


def test_whole_numbers() -> None:
    assert checks.whole_number("TopK", "k", np.int8(3)) == 3
    assert checks.whole_number("A", "b", 0, least=0) == 0
    for value in (0, -1, 2.0, "3", None, True, np.array([3]), np.array(3)):
        with pytest.raises(SettingError, match=r"^TopK: k must be a whole number above 0, got "):
            checks.whole_number("TopK", "k", value)
    with pytest.raises(SettingError, match="a whole number of at least 2, got 1"):
        checks.whole_number("A", "b", 1, least=2)


def test_one_of_a_few() -> None:
    assert checks.one_of("A", "b", "sum", ("mean", "sum")) == "sum"
    assert checks.one_of("A", "b", None, ("mean", None)) is None
    for value in ("Sum", 1, None, ["sum"], np.array(["sum", "mean"])):
        with pytest.raises(SettingError, match=r"^A: b must be one of 'mean', 'sum'; got "):
            checks.one_of("A", "b", value, ("mean", "sum"))


@pytest.mark.parametrize(
    ("one", "other", "written"),
    [
        (gn.Backend("cupy", 1), gn.Backend("cupy"), "Backend(package='cupy', index=1)"),
        (
            gn.EarlyStopping(3),
            gn.EarlyStopping(3, restore_best=False),
            (
                "EarlyStopping(patience=3, tolerance=0.0001, monitor=None, restore_best=True, "
                "higher_is_better=None)"
            ),
        ),
    ],
)
def test_settings_given_once_are_a_value(one: Any, other: Any, written: str) -> None:
    for twin in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):  # noqa: S301
        assert twin == one
        assert hash(twin) == hash(one)
        assert twin != other
    assert repr(one) == written
    name = next(iter(vars(one)))
    before = dict(vars(one))
    with pytest.raises(AttributeError, match="is immutable; create another one"):
        setattr(one, name, 1)
    with pytest.raises(AttributeError, match="is immutable"):
        delattr(one, name)
    assert vars(one) == before


def test_what_errors_show_is_short_and_never_fails() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError("not to be shown")

    inner: list[Any] = []
    for _ in range(10**5):
        inner = [inner]
    for value in (Mute(), inner, 10**5000, "x" * 10**6, [Mute()] * 10**6, np.zeros((99, 99))):
        assert 0 < len(checks.shown(value)) < 1500
    for value in ("relu", [0.5, 1], {"a": (1, 2)}, None, 10**50, np.float32(2)):
        assert checks.shown(value) == repr(value)
