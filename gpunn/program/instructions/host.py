"""The instruction that calls a function of Python's."""

from __future__ import annotations

from typing import Any

from gpunn.kernels.native import call_at
from gpunn.program.instructions.words import A, by_name, words_of


@by_name
def call_host(op: int, ctx: int, one: Any) -> None:
    """Call the function at address a, as an instruction is called; nothing if it is 0."""
    function = words_of(op)[A]
    if function != 0:
        call_at(function, op, ctx, one)
