"""Building blocks of compiled code that numba lacks: arrays by address, atomic counters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba.extending
import numpy as np
from llvmlite import ir
from numba import carray, types

from gpunn._typing import Array

_F = TypeVar("_F", bound=Callable[..., Any])

#: Sums may be reordered and fused with products; NaN and infinity are respected.
_FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

SETTINGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": _FASTMATH}


def compiled(function: _F, **settings: Any) -> _F:
    """Return the function, compiled at its first call and cached in a file."""
    settings = SETTINGS | settings
    try:
        result: _F = numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # there is no writable cache folder
        result = numba.njit(**settings)(function)
    return result


def inlined(function: _F) -> _F:
    """Return the function, inlined into its callers, which shortens compilation."""
    result: _F = numba.njit(inline="always", **SETTINGS)(function)
    return result


def intrinsic(function: Callable[..., Any]) -> Any:
    """Return a function for compiled code, whose instructions `function` generates."""
    return numba.extending.intrinsic(function)


@compiled
def array_at(place: int, shape: Any, like: Any) -> Array:
    """Return the array at an address, with a shape and the dtype of the number `like`."""
    return carray(_pointer(place, like), shape)


@compiled
def integers_at(place: int, n: int) -> Array:
    """Return n integers at an address."""
    return array_at(place, (n,), np.int64(0))


@intrinsic
def _pointer(_: Any, place: Any, like: Any) -> Any:
    """Return an integer as a pointer to numbers of the dtype of `like`."""
    pointer = types.CPointer(like)

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(place, like), generate


@intrinsic
def itemsize(_: Any, like: Any) -> Any:
    """Return the size of a number in bytes."""

    def generate(context: Any, _: Any, __: Any, ___: Any) -> Any:
        return context.get_constant(types.int64, like.bitwidth // 8)

    return types.int64(like), generate


@intrinsic
def count_up(_: Any, place: Any) -> Any:
    """Add 1 to the integer at an address, atomically."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        integer = context.get_value_type(types.int64)
        pointer = builder.inttoptr(arguments[0], integer.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(integer, 1), "seq_cst")

    return types.int64(place), generate


@intrinsic
def read(_: Any, place: Any) -> Any:
    """Read the integer at an address, atomically."""

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        integer = context.get_value_type(types.int64)
        pointer = builder.inttoptr(arguments[0], integer.as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(place), generate


@intrinsic
def power_of_two(_: Any, exponent: Any) -> Any:
    """Return 2 to the power of an integral float, by setting exponent bits."""
    bits, mantissa, bias = (64, 52, 1023) if exponent == types.float64 else (32, 23, 127)

    def generate(context: Any, builder: Any, _: Any, arguments: Any) -> Any:
        integer = ir.IntType(bits)
        n = builder.add(builder.fptosi(arguments[0], integer), ir.Constant(integer, bias))
        shifted = builder.shl(n, ir.Constant(integer, mantissa))
        return builder.bitcast(shifted, context.get_value_type(exponent))

    return exponent(exponent), generate


@intrinsic
def call_at(_: Any, function: Any, instruction: Any, context: Any, one: Any) -> Any:
    """Call the function at an address with an instruction, a context and 1."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        integer, number = (target.get_value_type(kind) for kind in (types.int64, signature.args[3]))
        kind = ir.FunctionType(ir.VoidType(), [integer, integer, number])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return target.get_dummy_value()

    return types.void(function, instruction, context, one), generate
