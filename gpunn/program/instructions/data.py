"""Instructions that copy data into a step, and results out of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.kernels.native import array_at, itemsize
from gpunn.program.instructions.words import (
    FLAG,
    ORDER,
    OUTPUTS,
    START,
    TURN,
    A,
    C,
    K,
    M,
    N,
    context_of,
    instruction,
    integers,
    words_of,
)

# Data


@instruction
def gather(op: int, ctx: int, one: Any) -> None:
    """Copy rows of k numbers from the data, in the epoch's order; `flag` is the first row."""
    w, x = words_of(op), context_of(ctx)
    m, k = w[M], w[K]
    rows = integers(x[ORDER] + 8 * (x[START] + w[FLAG]), m)
    target = array_at(w[C], (m, k), one)
    for i in range(m):
        given = array_at(x[w[A]] + rows[i] * k * itemsize(one), (k,), one)
        for j in range(k):
            target[i, j] = given[j]


@instruction
def gather_labels(op: int, ctx: int, one: Any) -> None:
    """Copy labels, in the epoch's order."""
    w, x = words_of(op), context_of(ctx)
    m, k = w[M], w[K]
    rows = integers(x[ORDER] + 8 * (x[START] + w[FLAG]), m)
    target = array_at(w[C], (m, k), np.int64(0))
    for i in range(m):
        given = integers(x[w[A]] + rows[i] * k * 8, k)
        for j in range(k):
            target[i, j] = given[j]


@instruction
def copy_out(op: int, ctx: int, one: Any) -> None:
    """Copy the predictions to the call's outputs, if wanted; `flag` is the first row."""
    w, x = words_of(op), context_of(ctx)
    if x[OUTPUTS]:
        size = w[M] * w[N]
        turn = x[START] - x[TURN] + w[FLAG]
        given = array_at(w[A], (size,), one)
        kept = array_at(x[OUTPUTS] + turn * w[N] * itemsize(one), (size,), one)
        for i in range(size):
            kept[i] = given[i]
