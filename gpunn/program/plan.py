"""A step on batches of one size, for any number of threads."""

from __future__ import annotations

from typing import Any

from gpunn._typing import Array
from gpunn.optim.base import Optimizer
from gpunn.program import (  # noqa: F401 (they register themselves)
    lower_batch_norm,
    lower_convolution,
    lower_layers,
    lower_losses,
    lower_norm,
    lower_prelu,
    lower_sequences,
)
from gpunn.program.exchange import Exchange
from gpunn.program.instructions import names
from gpunn.program.lower import Lowering
from gpunn.program.lower_update import Piece, lower_average, lower_update
from gpunn.program.table import Table
from gpunn.program.values import NotRecordableError, Recording

#: The update of one weight takes as long as this many multiplications.
_WORK_OF_AN_UPDATE = 24
#: Up to this many numbers are updated together at the end of the step. With more, each array is
#: updated after the last use of its gradient, which is then still in the cache.
_MAX_UPDATED_TOGETHER = 1 << 16


class Plan:
    """The program of a step on batches of one size, for any number of threads.

    Parameters
    ----------
    recording : Recording
    optimizer : Optimizer or None
        Its update is the end of the step; None for a forward pass.
    penalized : bool
        Whether the costs include the weight decay penalty.
    exchange : Exchange or None
        Sums gradients over processes before the update, if there are several.
    """

    def __init__(
        self,
        recording: Recording,
        optimizer: Optimizer | None,
        *,
        penalized: bool,
        exchange: Exchange | None,
    ) -> None:
        self.recording, self._exchange = recording, exchange
        self._optimizer = optimizer
        self._penalized = penalized
        self._lowerings: dict[int, Lowering] = {}
        self._tables: dict[tuple[int, bool], Table] = {}
        lowering = self._lowering(1)
        known = names()
        for instruction in lowering.instructions:
            if instruction.name not in known:
                raise NotRecordableError(f"there is no instruction `{instruction.name}`")
        self.work, self.largest_product = lowering.work, lowering.largest_product
        self.n_instructions = len(lowering.instructions)
        #: Whether the mean divides by a sum of weights.
        self.has_totals = any(step.kernel == "mean_scale" for step in recording.operations)
        self.x_dtype, self.y_dtype = lowering.x_dtype, lowering.y_dtype
        #: The number of random masks that a step draws, and the shape of an output.
        self.n_keys = recording.n_keys
        assert recording.prediction is not None  # noqa: S101
        self.output_shape = recording.prediction.shape[1:]

    def table(self, threads: int, *, in_order: bool) -> Table:
        """Return the instructions for the given number of threads."""
        key = threads, in_order
        if key not in self._tables:
            self._tables[key] = Table(self._lowering(threads), in_order=in_order)
        return self._tables[key]

    def _lowering(self, threads: int) -> Lowering:
        if threads not in self._lowerings:
            self._lowerings[threads] = self._lowered(threads)
        return self._lowerings[threads]

    def _lowered(self, threads: int) -> Lowering:
        lowering = Lowering(self.recording, threads)
        if self._optimizer is not None:
            pieces = _pieces(self._optimizer, self.recording, threads)
            lowering.work += _WORK_OF_AN_UPDATE * sum(piece.value.size for piece in pieces)
            if self._exchange is not None:
                self._exchange.lower(lowering, pieces, self.recording)
            lower_update(lowering, self._optimizer, pieces, penalized=self._penalized)
            averaged = _averaged(self._optimizer, threads)
            lower_average(lowering, self._optimizer.average, averaged)
        prediction = self.recording.prediction
        assert prediction is not None  # noqa: S101
        n = _copy_place(lowering, prediction)
        lowering.by_rows(
            "copy_out",
            {"a": prediction},
            prediction,
            flag=lambda lane: lane.first,
        )
        copy = lowering.instructions.pop()
        copy.writes = []
        lowering.instructions.insert(n, copy)
        return lowering


def _copy_place(lowering: Lowering, prediction: Any) -> int:
    """Return the index after the instruction that completes the prediction."""
    root = lowering.root(prediction)
    written = [
        i
        for i, instruction in enumerate(lowering.instructions)
        if any(access.place is root for access in instruction.writes)
    ]
    return written[-1] + 1 if written else 0


def _pieces(optimizer: Optimizer, recording: Recording, threads: int) -> list[Piece]:
    """Return the pieces to update: the optimizer's blocks, or its arrays one by one."""
    slots = optimizer.slots()
    assert slots is not None  # noqa: S101 (`RecordedSteps` has checked)
    for i, grad in recording.grads.items():
        if grad is not slots.grads[i]:
            raise NotRecordableError(
                f"the gradient of a parameter of shape {slots.values[i].shape} is not in the "
                "parameter's buffer; compute it with `into=parameter.grad_buffer`"
            )
    every = len(recording.grads) == len(slots.values)
    if every and _fit_together(slots.values, threads):
        slots, chosen = optimizer.blocks(), None
    else:
        chosen = sorted(recording.grads)
    found = [
        Piece(value, grad, [state[i] for state in slots.states], bool(decays))
        for i, (value, grad, decays) in enumerate(
            zip(slots.values, slots.grads, slots.decays, strict=True)
        )
    ]
    return found if chosen is None else [found[i] for i in chosen]


def _averaged(optimizer: Optimizer, threads: int) -> list[Piece]:
    """Return the pieces of an average to update: blocks, or arrays one by one."""
    slots = optimizer.averaged(in_blocks=_fit_together(optimizer.averages(), threads))
    pairs = zip(slots.values, slots.grads, strict=True)
    return [Piece(average, value, [], decays=False) for average, value in pairs]


def _fit_together(values: list[Array], threads: int) -> bool:
    return threads == 1 and sum(value.size for value in values) <= _MAX_UPDATED_TOGETHER
