"""The sum of gradients over processes, as an instruction of the CPU's programs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpunn.losses.base import Loss
from gpunn.optim.base import Optimizer
from gpunn.program.instructions.words import CONTEXT, FLAG, STEP, TOTALS, WORDS, K, M, N
from gpunn.program.lower import Instruction, Lane, Lowering, memory_of
from gpunn.program.lower_update import Piece, after_last_use
from gpunn.program.phases import ALL, OWN, Access, Memory
from gpunn.program.values import Recording

#: What weights a rank's gradient: its rows, the sum of its weights, or nothing if costs are sums.
_ROWS, _WEIGHTS, _NOTHING = range(3)
#: The two kinds of instruction: start a bucket's sum, or wait for all sums.
_START, _FINISH = range(2)
_KINDS = {"float32": ctypes.c_float, "float64": ctypes.c_double}


class Exchange:
    """Sums gradients over processes when an instruction of the program calls it.

    Parameters
    ----------
    optimizer : Optimizer
        With `parallel` set.
    loss : Loss
    dtype : dtype
        Of the program.

    Attributes
    ----------
    meeting : array or None
        Of the current call; see `gpunn.program.frame.Frame`.
    """

    def __init__(self, optimizer: Optimizer, loss: Loss, dtype: Any) -> None:
        self._optimizer, self._loss = optimizer, loss
        self.meeting: Any = None
        self._error: BaseException | None = None
        self._present: list[list[int]] = []
        kind = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, _KINDS[str(np.dtype(dtype))])
        self._function = kind(self._run)
        self._address = ctypes.cast(self._function, ctypes.c_void_p).value

    def lower(self, low: Lowering, pieces: Sequence[Piece], recording: Recording) -> None:
        """Insert the instructions that sum the gradients, ahead of the update of `pieces`.

        The sum of a bucket starts after the last instruction that touches its memory; the last
        instruction waits for all sums.
        """
        weighted = any(operation.kernel == "mean_scale" for operation in recording.operations)
        weighting = _WEIGHTS if weighted else _ROWS
        weighting = _NOTHING if self._loss.reduction == "sum" else weighting
        self._present.append(sorted(recording.grads))
        numbers = {"m": low.n, "n": len(self._present) - 1, "flag": weighting}
        buckets = self._optimizer.parallel.buckets()
        starts: list[tuple[int, Instruction]] = []
        for bucket in [] if buckets is None else buckets.arrays():
            own = memory_of(bucket)
            place = max(after_last_use(low, [own]), starts[-1][0] if starts else 0)
            starts.append((place, self._instruction([own], numbers | {"k": _START})))
        for place, instruction in reversed(starts):
            low.instructions.insert(place, instruction)
        grads = [memory_of(piece.grad) for piece in pieces]
        low.instructions.append(self._instruction(grads, numbers | {"k": _FINISH}))

    def _instruction(self, grads: Sequence[Memory], numbers: dict[str, int]) -> Instruction:
        """Return the instruction that calls `_run`, in the first thread."""

        def words(lane: Lane) -> dict[str, Any]:
            return {"a": 0 if lane.thread else self._address} | numbers

        accesses = [Access("exchange", OWN), *(Access(grad, ALL) for grad in grads)]
        return Instruction("call_host", accesses, accesses, words)

    def _run(self, op: int, ctx: int, _: float) -> None:
        """Start or finish the sum of a step's gradients; stop all threads if that fails."""
        if self._error is not None:
            return
        parallel = self._optimizer.parallel
        try:
            words = np.ctypeslib.as_array((ctypes.c_int64 * len(WORDS)).from_address(op))
            context = np.ctypeslib.as_array((ctypes.c_int64 * len(CONTEXT)).from_address(ctx))
            total: float | None = float(words[M])
            if words[FLAG] == _WEIGHTS:
                place = int(context[TOTALS]) + 8 * int(context[STEP])
                total = ctypes.c_double.from_address(place).value
            elif words[FLAG] == _NOTHING:
                total = None
            if words[K] == _START:
                parallel.buckets().start(total, in_place=True)
            else:
                parallel.sum_in_place(total, self._present[words[N]])
        except BaseException as error:  # noqa: BLE001 (raised by `finish`)
            self._error = error
            self.meeting[1] = 1
            parallel.abandon()
            for grad in self._optimizer.blocks().grads:
                grad[...] = 0.0

    def finish(self) -> None:
        """Raise the error that stopped the last call, if any."""
        error, self._error = self._error, None
        if error is not None:
            raise error
