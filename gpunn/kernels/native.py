"""What compiled code needs and numba has no words for: arrays by address, counters of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba.extending
from llvmlite import ir
from numba import carray, types

from gpunn._typing import Array

_F = TypeVar("_F", bound=Callable[..., Any])

#: Sums may be reordered, and products and sums joined; NaN and infinity mean what they mean.
_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

SETTINGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": _FASTMATH}


def compiled(function: _F, **settings: Any) -> _F:
    """Return the function, to be compiled at its first call and kept in a file for the next run."""
    settings = SETTINGS | settings
    try:
        made: _F = numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # no folder that it could write to
        made = numba.njit(**settings)(function)
    return made


def inlined(function: _F) -> _F:
    """Return the function, to be compiled within the one that calls it, which is sooner done."""
    made: _F = numba.njit(inline="always", **SETTINGS)(function)
    return made


def intrinsic(function: Callable[..., Any]) -> Any:
    """Return what compiled code calls for instructions: the function says which."""
    return numba.extending.intrinsic(function)


@compiled
def array_at(place: int, shape: Any, like: Any) -> Array:
    """Return the array of that shape which begins at an address, of the type of a number."""
    return carray(_pointer(place, like), shape)


@intrinsic
def _pointer(_: Any, place: Any, like: Any) -> Any:
    """Return an integer as a pointer to numbers of the type of `like`."""
    pointer = types.CPointer(like)

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(place, like), generate


@intrinsic
def itemsize(_: Any, like: Any) -> Any:
    """Return how many bytes a number takes."""

    def generate(context: Any, _: Any, __: Any, ___: Any) -> Any:
        return context.get_constant(types.int64, like.bitwidth // 8)

    return types.int64(like), generate


@intrinsic
def count_up(_: Any, place: Any) -> Any:
    """Add 1 to the integer at an address, where other threads may do so, too."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        integer = context.get_value_type(types.int64)
        pointer = builder.inttoptr(arguments[0], integer.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(integer, 1), "seq_cst")

    return types.int64(place), generate


@intrinsic
def read(_: Any, place: Any) -> Any:
    """Return the integer at an address as it is now, whichever thread has written it."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        integer = context.get_value_type(types.int64)
        pointer = builder.inttoptr(arguments[0], integer.as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(place), generate


@intrinsic
def power_of_two(_: Any, exponent: Any) -> Any:
    """Return 2 to a whole number, which is given as a float: from the bits of its exponent."""
    bits, mantissa, bias = (64, 52, 1023) if exponent == types.float64 else (32, 23, 127)

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        integer = ir.IntType(bits)
        n = builder.add(builder.fptosi(arguments[0], integer), ir.Constant(integer, bias))
        shifted = builder.shl(n, ir.Constant(integer, mantissa))
        return builder.bitcast(shifted, context.get_value_type(exponent))

    return exponent(exponent), generate
