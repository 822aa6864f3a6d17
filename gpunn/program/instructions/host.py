"""The instruction that calls a Python function."""

from __future__ import annotations

from typing import Any

from gpunn.kernels.native import call_at
from gpunn.program.instructions.words import A, instruction, words_of


@instruction
def call_host(op: int, ctx: int, one: Any) -> None:
    """Call the function at address a with an instruction's arguments; do nothing if a is 0."""
    function = words_of(op)[A]
    if function != 0:
        call_at(function, op, ctx, one)
