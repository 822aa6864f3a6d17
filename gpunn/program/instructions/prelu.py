"""Instructions of PReLU: `m` rows of `n` channels, and `k` slopes at d."""

from __future__ import annotations

from typing import Any

from gpunn.kernels import loops_prelu
from gpunn.program.instructions.words import (
    LIMIT,
    A,
    B,
    C,
    D,
    K,
    M,
    N,
    entries,
    instruction,
    rows_of,
    words_of,
)


@instruction
def prelu(op: int, ctx: int, one: Any) -> None:
    """C = a where a > 0, else d a."""
    w = words_of(op)
    x, h = rows_of(w[A], w[M], w[N], one), rows_of(w[C], w[M], w[N], one)
    loops_prelu.prelu(x, entries(w[D], w[K], one), h)


@instruction
def prelu_backward(op: int, ctx: int, one: Any) -> None:
    """C = dJ/dx from a = dJ/dh and b = x; this thread's part of dJ/dd goes to `limit`.

    Either result may be absent.
    """
    w = words_of(op)
    grad, x = rows_of(w[A], w[M], w[N], one), rows_of(w[B], w[M], w[N], one)
    if w[LIMIT]:
        loops_prelu.prelu_sums(grad, x, entries(w[LIMIT], w[K], one))
    if w[C]:
        result = rows_of(w[C], w[M], w[N], one)
        loops_prelu.prelu_backward(grad, x, entries(w[D], w[K], one), result)
