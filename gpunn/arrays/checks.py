"""Checks of settings: one function for each kind of value, so that errors are uniform.

An error names the class or function, the setting, the expected value and the given one.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Sized
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

import numpy as np

from gpunn.errors import SettingError

#: Settings are stored in files, and read by compiled code, in 64 bits.
MOST = 2**63 - 1

_brief = reprlib.Repr()
_brief.maxlevel = 4
_brief.maxlist = _brief.maxtuple = _brief.maxset = _brief.maxfrozenset = _brief.maxdict = 20
_brief.maxstring = _brief.maxother = 300
_brief.maxlong = 60


def shown(value: Any) -> str:
    """Return a value's `repr` for an error: never long, and never failing."""
    try:
        return _brief.repr(value)
    except Exception:  # noqa: BLE001 (a user's class may raise anything)
        return f"<{type(value).__name__}>"


def number(owner: str, name: str, value: Any, interval: str) -> float:
    """Check that a setting is a number in an interval; return it as a float.

    Parameters
    ----------
    owner, name : str
        The class or function, and the setting: ``"SGD", "momentum"``.
    value : number
        An `int`, a `float` or a NumPy scalar; not a `bool` or an array.
    interval : str
        In mathematical notation: ``"[0, 1)"``, ``"(0, inf)"``. No interval contains NaN.

    Raises
    ------
    SettingError
        If it is not a number, or outside the interval.
    """
    return _check_number(owner, name, value, interval, "")


def optional_number(owner: str, name: str, value: Any, interval: str) -> float | None:
    """Check that a setting is None or a number in an interval; see `number`."""
    return None if value is None else _check_number(owner, name, value, interval, "None or ")


def whole_number(
    owner: str, name: str, value: Any, least: int = 1, most: int = MOST, *, otherwise: str = ""
) -> int:
    """Check that a setting is a whole number of at least `least`; return it as an int.

    Parameters
    ----------
    owner, name : str
        The class or function, and the setting: ``"TopK", "k"``.
    value : int
        Or a NumPy integer; not a `bool` or an array.
    least, most : int, default 1 and 2**63 - 1
        The smallest and largest numbers allowed.
    otherwise : str, optional
        Other values that the caller accepts, for the error: ``"None or "``.

    Raises
    ------
    SettingError
        If it is anything else.
    """
    if is_whole(value) and least <= value <= most:
        return int(value)
    wanted = "above 0" if least == 1 else f"of at least {least}"
    if is_whole(value) and value > most:
        wanted += f" and at most {_power(most)}"
    raise SettingError(
        f"{owner}: {name} must be {otherwise}a whole number {wanted}, got {shown(value)}"
    )


def _power(most: int) -> str:
    return "2**63 - 1" if most == MOST else str(most)


def integer(owner: str, name: str, value: Any) -> int:
    """Check that a setting is a whole number of 64 bits, of any sign; return it as an int.

    Raises
    ------
    SettingError
        If it is anything else.
    """
    if is_whole(value) and -MOST <= value <= MOST:
        return int(value)
    raise SettingError(f"{owner}: {name} must be a whole number of 64 bits, got {shown(value)}")


#: Types that Python and NumPy count as numbers, but that are no valid settings.
_NO_NUMBERS = (bool, np.timedelta64)


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number of Python or NumPy; a `bool` is not."""
    return isinstance(value, Integral) and not isinstance(value, _NO_NUMBERS)


def is_sized(value: Any) -> bool:
    """Return whether a value has a length; a 0-d array and a class have none."""
    return isinstance(value, Sized) and getattr(value, "shape", None) != ()


def one_of(
    owner: str, name: str, value: Any, choices: Collection[Any], *, otherwise: str = ""
) -> Any:
    """Check that a setting is one of a few values; return that value.

    Raises
    ------
    SettingError
        If it is not; the error lists them.
    """
    for choice in choices:
        if value is choice or (isinstance(value, type(choice)) and value == choice):
            return choice
    listed = ", ".join(map(repr, choices))
    raise SettingError(f"{owner}: {name} must be {otherwise}one of {listed}; got {shown(value)}")


def listed(known: Collection[str], given: Any = None) -> str:
    """Return names for an error, sorted, with the closest one to `given` as a suggestion."""
    import difflib  # noqa: PLC0415 (only errors need it)

    names = ", ".join(sorted(known))
    near = difflib.get_close_matches(given.lower(), known, 1) if isinstance(given, str) else []
    return f"{names} (did you mean {near[0]!r}?)" if near else names


def flag(owner: str, name: str, value: Any) -> bool:
    """Check that a setting is True or False, or a boolean scalar of an array library.

    Raises
    ------
    SettingError
        If it is anything else, numbers included.
    """
    if isinstance(value, bool):
        return value
    if getattr(value, "shape", None) == () and str(getattr(value, "dtype", "")) == "bool":
        return bool(value)
    raise SettingError(f"{owner}: {name} must be True or False, got {shown(value)}")


def float_dtype(owner: str, dtype: Any, *, otherwise: str = "") -> str:
    """Check that a dtype is float32 or float64, by name, as a dtype or a type; return its name."""
    for name in (dtype, getattr(dtype, "name", ""), getattr(dtype, "__name__", "")):
        if isinstance(name, str) and name in ("float32", "float64"):
            return str(name)
    raise SettingError(
        f"{owner}: dtype must be {otherwise}'float32' or 'float64', got {shown(dtype)}"
    )


#: NumPy arrays have at most 64 axes, and CuPy arrays 32; one is the sample axis.
_MOST_AXES = 31


def sample_shape(owner: str, shape: Any, name: str = "input_shape") -> tuple[int, ...]:
    """Check the shape of one sample; return it as a tuple. A number n stands for (n,)."""
    lengths = shape if isinstance(shape, (tuple, list)) else (shape,)
    if len(lengths) > _MOST_AXES or not all(is_whole(n) and 0 <= n <= MOST for n in lengths):
        raise SettingError(
            f"{owner}: {name} must be a shape, whole numbers of at least 0 (up to {_MOST_AXES} of "
            f"them), got {shown(shape)}"
        )
    return tuple(int(length) for length in lengths)


def _check_number(owner: str, name: str, value: Any, interval: str, otherwise: str) -> float:
    converted = _as_float(value)
    if _contains(interval, converted):
        return converted
    wanted = otherwise + _in_words(interval)
    raise SettingError(f"{owner}: {name} must be {wanted}, got {shown(value)}")


def _as_float(value: Any) -> float:
    """Return a number as a float; NaN for anything else."""
    if not isinstance(value, Real) or isinstance(value, _NO_NUMBERS):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an int that is larger than any float
        return math.inf if value == abs(value) else -math.inf


@lru_cache(maxsize=64)
def _bounds(interval: str) -> tuple[float, float, bool, bool]:
    """Return both ends of an interval, and whether it contains each."""
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
