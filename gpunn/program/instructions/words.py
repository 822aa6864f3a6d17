"""The words of an instruction and of a thread's context, and the registry of instructions.

An instruction is a row of sixteen words of eight bytes, `WORDS`; the first is the address of its
function. The function takes the address of the row, the address of the thread's context, and 1 in
the dtype of the program, and returns nothing. The context is a row of words, `CONTEXT`, some of
which change from step to step.

A function is compiled when a program first needs it, and cached in a file for the next process: an
unused instruction costs nothing, and a new one does not recompile the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from gpunn._typing import Array
from gpunn.kernels.native import SETTINGS, array_at, compiled

#: The words of an instruction: sizes, addresses and integers, then four doubles.
WORDS = (
    *("function", "m", "n", "k", "a", "b", "c", "d", "e", "flag", "pitch", "limit"),
    *("p", "q", "r", "s"),
)
M, N, K, A, B, C, D, E, FLAG, PITCH, LIMIT = range(1, 12)
P, Q, R, S = range(12, 16)
#: The bytes of an instruction.
SIZE = 8 * len(WORDS)

#: The words of a thread's context. `order` is 0 for rows in stored order; `start` is the turn of
#: the batch's first row, and `turn` that of the first row of `outputs`, which is 0 if they are not
#: wanted; `factor` is a double, by which clipping multiplies gradients; the data come last.
CONTEXT = (
    *("order", "start", "step", "rates", "decays", "costs", "penalties", "totals"),
    *(
        "outputs",
        "turn",
        "keys",
        "thread",
        "threads",
        "workspace",
        "factor",
        "steps_done",
        "epsilons",
    ),
    *("x", "y", "weight"),
)
ORDER, START, STEP, RATES, DECAYS, COSTS, PENALTIES, TOTALS = range(8)
OUTPUTS, TURN, KEYS, THREAD, THREADS, WORKSPACE, FACTOR, STEPS_DONE, EPSILONS = range(8, 17)

_SIGNATURES = {
    np.dtype("float32"): types.void(types.intp, types.intp, types.float32),
    np.dtype("float64"): types.void(types.intp, types.intp, types.float64),
}
_sources: dict[str, Callable[..., None]] = {}
_compiled: dict[tuple[str, Any], Any] = {}


def register(name: str, function: Callable[..., None]) -> None:
    """Register a function as the instruction of that name."""
    _sources[name] = function


def instruction(function: Callable[..., None]) -> Callable[..., None]:
    """Register a function as an instruction under its own name."""
    register(function.__name__, function)
    return function


def address_of(name: str, dtype: Any) -> int:
    """Return the address of an instruction's function for a dtype; compile it if need be."""
    function = _compiled.get((name, dtype))
    if function is None:
        signature, source = _SIGNATURES[dtype], _sources[name]
        try:
            function = numba.cfunc(signature, nopython=True, cache=True, **SETTINGS)(source)
        except RuntimeError:  # there is no writable cache folder
            function = numba.cfunc(signature, nopython=True, **SETTINGS)(source)
        _compiled[name, dtype] = function
    address: int = function.address
    return address


def names() -> list[str]:
    """Return the names of all instructions."""
    return list(_sources)


@compiled
def integers(place: int, n: int) -> Array:
    """Return n integers at an address."""
    return array_at(place, (n,), np.int64(0))


@compiled
def doubles(place: int, n: int) -> Array:
    """Return n doubles at an address."""
    return array_at(place, (n,), np.float64(0))


@compiled
def words_of(op: int) -> Array:
    """Return an instruction's words as integers."""
    return integers(op, 16)


@compiled
def numbers_of(op: int) -> Array:
    """Return an instruction's words as doubles."""
    return doubles(op, 16)


@compiled
def context_of(ctx: int) -> Array:
    """Return the words of a context."""
    return integers(ctx, 20)


@compiled
def entries(place: int, n: int, one: Any) -> Array:
    """Return n numbers of the program's dtype at an address; none at the address 0."""
    return array_at(place, (n if place else 0,), one)


@compiled
def rows_of(place: int, m: int, n: int, one: Any) -> Array:
    """Return a C-contiguous matrix of the program's dtype at an address."""
    return array_at(place, (m, n), one)
