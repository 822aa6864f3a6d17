"""Checks of settings: one helper for each kind of value, so that all errors read alike.

Each names who speaks (a class or function), the setting, what was wanted and what came.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

from gpunn.errors import SettingError


def number(owner: str, name: str, value: Any, interval: str) -> float:
    """Return a setting as a float, if it is a number in an interval.

    Parameters
    ----------
    owner, name : str
        Who speaks, and the setting: ``"SGD", "momentum"``.
    value : number
        An `int`, `float` or a number of NumPy's; neither a `bool` nor an array.
    interval : str
        As mathematics writes it: ``"[0, 1)"``, ``"(0, inf)"``. NaN is in none.

    Raises
    ------
    SettingError
        If it is no number, or outside of the interval.
    """
    return _checked(owner, name, value, interval, "")


def optional_number(owner: str, name: str, value: Any, interval: str) -> float | None:
    """Return a setting as a float, or None; see `number`."""
    return None if value is None else _checked(owner, name, value, interval, "None or ")


def whole_number(owner: str, name: str, value: Any, least: int = 1, *, otherwise: str = "") -> int:
    """Return a setting as an int, if it is a whole number that is large enough.

    Parameters
    ----------
    owner, name : str
        Who speaks, and the setting: ``"TopK", "k"``.
    value : int
        Or an integer of NumPy's; neither a `bool` nor an array.
    least : int, default 1
        The smallest that is allowed.
    otherwise : str, optional
        What else would do, such as ``"None or "``: the caller has seen that it is not that.

    Raises
    ------
    SettingError
        If it is anything else.
    """
    if is_whole(value) and int(value) >= least:
        return int(value)
    wanted = "above 0" if least == 1 else f"of at least {least}"
    raise SettingError(f"{owner}: {name} must be {otherwise}a whole number {wanted}, got {value!r}")


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, Python's or NumPy's; a `bool` is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def one_of(
    owner: str, name: str, value: Any, choices: Collection[Any], *, otherwise: str = ""
) -> Any:
    """Return a setting that must be one of a few.

    Raises
    ------
    SettingError
        If it is none of them; they are listed.
    """
    for choice in choices:
        if value is choice or (isinstance(value, type(choice)) and value == choice):
            return choice
    listed = ", ".join(map(repr, choices))
    raise SettingError(f"{owner}: {name} must be {otherwise}one of {listed}; got {value!r}")


def flag(owner: str, name: str, value: Any) -> bool:
    """Return a setting that must be True or False: a `bool`, or one of an array library's.

    Raises
    ------
    SettingError
        If it is anything else, numbers included.
    """
    if isinstance(value, bool):
        return value
    if getattr(value, "shape", None) == () and str(getattr(value, "dtype", "")) == "bool":
        return bool(value)
    raise SettingError(f"{owner}: {name} must be True or False, got {value!r}")


def float_dtype(owner: str, dtype: Any) -> str:
    """Return the name of a dtype that must be float32 or float64; one of NumPy's is taken, too."""
    if str(dtype) in ("float32", "float64"):
        return str(dtype)
    raise SettingError(f"{owner}: dtype must be 'float32' or 'float64', got {dtype!r}")


def sample_shape(owner: str, input_shape: Any) -> tuple[int, ...]:
    """Return the shape of one sample as a tuple; a number n stands for (n,)."""
    lengths = input_shape if isinstance(input_shape, (tuple, list)) else (input_shape,)
    for length in lengths:
        if not is_whole(length) or length < 0:
            raise SettingError(
                f"{owner}: input_shape must be whole numbers of at least 0, got {input_shape!r}"
            )
    return tuple(int(length) for length in lengths)


def _checked(owner: str, name: str, value: Any, interval: str, otherwise: str) -> float:
    if isinstance(value, Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # an int that is larger than any float
            converted = float(value)
            if _contains(interval, converted):
                return converted
    wanted = otherwise + _in_words(interval)
    raise SettingError(f"{owner}: {name} must be {wanted}, got {value!r}")


@lru_cache(maxsize=64)
def _bounds(interval: str) -> tuple[float, float, bool, bool]:
    """Return both ends of an interval, and whether each belongs to it."""
    lowest, highest = (float(end) for end in interval[1:-1].split(","))
    return lowest, highest, interval[0] == "[", interval[-1] == "]"


def _contains(interval: str, value: float) -> bool:
    lowest, highest, closed_below, closed_above = _bounds(interval)
    if math.isnan(value):
        return False
    above = value > lowest or (closed_below and value == lowest)
    return above and (value < highest or (closed_above and value == highest))


@lru_cache(maxsize=64)
def _in_words(interval: str) -> str:
    lowest, highest, closed_below, _ = _bounds(interval)
    if math.isinf(highest) and not math.isinf(lowest):
        return f"a number {'of at least' if closed_below else 'above'} {lowest:g}"
    if math.isinf(highest):
        return "a finite number"
    return f"a number in {interval}"
