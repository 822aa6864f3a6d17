"""Training steps under stream capture: what the readable step launches becomes a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any

import cupy
import numpy as np

from gpunn._typing import Array
from gpunn.arrays.facts import is_out_of_memory
from gpunn.arrays.memory import copy_of
from gpunn.kernels import kernels
from gpunn.kernels.cublas import CaptureHandle, workspace_bytes
from gpunn.kernels.cupy_launch import forget_scratch
from gpunn.kernels.cupy_step import StepBoard, copy_rows
from gpunn.kernels.update import Slots
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.optim.base import Optimizer
from gpunn.program.record import KeyTape, backpropagate, gradients_kept
from gpunn.program.sources import FedBatches, StoredRows

#: What one thread does to capture a step may end the capture of another.
_one_at_a_time = Lock()
_ATTEMPTS = 4


class StepCapture:
    """Captures the steps of a training run, on batches of one size or another.

    The graphs' memory comes from a pool of their own, so that nobody else writes there between two
    launches.

    Parameters
    ----------
    model, loss, optimizer
        What to train, and how.
    source : StoredRows or FedBatches
        Where the step finds its batch.
    board : StepBoard
        Where it finds its numbers, and writes its results.
    collected : array or None
        Where the model's outputs go, a row for each sample since the board was loaded.
    penalized : bool
        Whether the sum of squares of what decays is wanted.

    Attributes
    ----------
    has_totals : bool
        Whether the mean divides by a sum of weights.
    """

    def __init__(
        self,
        parts: tuple[Layer, Loss, Optimizer],
        source: StoredRows | FedBatches,
        board: StepBoard,
        collected: Array | None,
        *,
        penalized: bool,
    ) -> None:
        self._parts = parts
        self._source, self._board, self._collected = source, board, collected
        self._penalized = penalized
        self._pool = _pool_of_ones_own()
        self._device = cupy.cuda.Device()
        self._stream = cupy.cuda.Stream(non_blocking=True)
        with cupy.cuda.using_allocator(self._pool.malloc), self._stream:
            workspace = cupy.empty(workspace_bytes(), np.uint8)
        with _one_at_a_time:  # to make a handle waits for the device
            self._products = CaptureHandle(self._stream, workspace)
        self.has_totals = False

    def graph_of(self, n: int) -> Any:
        """Return the graph of a step on n samples."""
        user, stream = cupy.cuda.get_current_stream(), self._stream
        parameters = self._parts[0].parameters()
        stream.wait_event(user.record())
        try:
            with (
                _one_at_a_time,
                stream,
                cupy.cuda.using_allocator(self._pool.malloc),
                self._products,
                gradients_kept(parameters),
            ):
                self._rehearse(n)  # loads kernels, and fills caches and the pool
                return self._capture_in_spite_of_others(n)
        finally:
            user.wait_event(stream.record())

    def _rehearse(self, n: int) -> None:
        """Run a step that changes scratch arrays only: kernels are loaded then."""
        keys = np.zeros(len(self._board.keys), np.uint64)
        self._board.load([0], [0.0], [0.0], keys)
        with _buffers_aside(self._parts[0]):
            self._step(n, _scratch(self._parts[2].blocks()))

    def _capture_in_spite_of_others(self, n: int) -> Any:
        """Return the graph; try again if it fails, unless memory runs out.

        A thread that waits for the whole device meanwhile ends the capture.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._capture(n)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
            for parameter in self._parts[0].parameters():
                parameter.grad = None
        return self._capture(n)

    def _capture(self, n: int) -> Any:
        stream = self._stream
        forget_scratch()  # what follows belongs to the graph
        try:
            # Relaxed: other threads may ask for memory meanwhile, and so may the pool.
            stream.begin_capture(cupy.cuda.runtime.streamCaptureModeRelaxed)
            self._step(n)
        except BaseException:
            with suppress(Exception):
                stream.end_capture()
            raise
        return stream.end_capture()

    def __del__(self) -> None:
        """Give the memory back: a pool that is dropped keeps what is free in it."""
        with suppress(Exception), self._device:  # such as in a process that was forked
            vars(self).pop("_products", None)
            self._pool.free_all_blocks()

    def _step(self, n: int, scratch: Slots | None = None) -> None:
        """Launch all that a step does, in the current stream."""
        (model, loss, optimizer), board = self._parts, self._board
        x, y, weight = self._source.batch(n, board.row)
        squares = optimizer.sum_of_squares() if self._penalized else None
        tape = KeyTape(iter(board.keys), optimizer.parameters)
        prediction, cost = backpropagate(model, loss, tape, x, y, weight)
        total = loss.total_weight(prediction, y, weight)
        self.has_totals = total is not None
        if total is not None:  # whole numbers as targets make it float64, whatever the model is
            total = kernels(total).convert(total, np.float64)
        if self._collected is not None:
            copy_rows(prediction, self._collected, board.row)
        optimizer.update_by(board.rates, scratch)
        tape.commit()
        for parameter in model.parameters():
            parameter.grad = None
        board.finish(cost, total, squares)


@contextmanager
def _buffers_aside(model: Layer) -> Iterator[None]:
    """Let a step change copies of the model's buffers."""
    before = [(buffer, buffer.value) for buffer in model.buffers()]
    try:
        for buffer, value in before:
            buffer.value = copy_of(value)
        yield
    finally:
        for buffer, value in before:
            buffer.value = value


def _pool_of_ones_own() -> Any:
    """Return a pool that takes no more than CuPy's own may still take."""
    pool, usual = cupy.cuda.MemoryPool(), cupy.get_default_memory_pool()
    limit = usual.get_limit()
    if limit:
        pool.set_limit(max(1, limit - usual.total_bytes()))  # 0 would be none
    return pool


def _scratch(slots: Slots) -> Slots:
    """Return arrays of one entry, as many as the slots' first has."""
    like = slots.values[0]
    value, grad, *states = (cupy.zeros(1, like.dtype) for _ in range(2 + len(slots.states)))
    return Slots([value], [grad], [[state] for state in states], [1.0])
