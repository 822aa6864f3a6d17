"""Stream capture: the kernels that the readable step launches become a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any, NamedTuple

import cupy
import numpy as np

from gpunn._typing import Array
from gpunn.arrays.facts import is_out_of_memory
from gpunn.arrays.memory import copy_of
from gpunn.kernels import kernels
from gpunn.kernels.cublas_handle import CaptureHandle, one_capture_at_a_time, workspace_bytes
from gpunn.kernels.cupy_launch import forget_scratch
from gpunn.kernels.cupy_rounding import KeptFactors, NotedFactors, WeightCopies
from gpunn.kernels.cupy_step import StepBoard, copy_rows
from gpunn.kernels.update import Slots
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.optim.base import Optimizer
from gpunn.program.factors import Factor, factors_of
from gpunn.program.record import KeyTape, backpropagate, gradients_kept
from gpunn.program.sources import FedBatches, StoredRows
from gpunn.program.values import NotRecordableError, Recording

_ATTEMPTS = 4


class CapturedStep(NamedTuple):
    """A step as one graph, or as two with a sum of gradients over processes in between.

    Attributes
    ----------
    graphs : list of cupy.cuda.Graph
    has_totals : bool
        Whether its mean divides by a sum of weights.
    total : float, array or None
        The weight of its gradient among those of other processes; see `DataParallel.sum`.
    present : list of int
        The parameters that have a gradient.
    """

    graphs: list[Any]
    has_totals: bool
    total: Any
    present: list[int]


class _PassResults(NamedTuple):
    """The results of a step's forward and backward passes."""

    prediction: Array
    cost: Array | None
    total: Array | None
    squares: Array | None
    tape: KeyTape | None


class StepCapture:
    """Captures the steps of a training run, or of a pass, for each batch size.

    The graphs have their own memory pool, so that nothing else writes to their memory between
    launches.

    Parameters
    ----------
    parts : (model, loss, optimizer)
        Without an optimizer, the step computes predictions and their loss; without a loss as well,
        predictions only.
    source : StoredRows or FedBatches
        Provides the step's batch.
    board : StepBoard
        Holds the step's settings and receives its results.
    collected : array or None
        Receives the model's outputs, a row for each sample since the board was loaded.
    penalized : bool
        Whether to compute the sum of squares of the decaying parameters.
    """

    def __init__(
        self,
        parts: tuple[Layer, Loss | None, Optimizer | None],
        source: StoredRows | FedBatches,
        board: StepBoard,
        collected: Array | None,
        *,
        penalized: bool,
    ) -> None:
        self._parts = parts
        self._source, self._board, self._collected = source, board, collected
        self._penalized = penalized
        self._pool = _private_pool()
        self._device = cupy.cuda.Device()
        self._stream = cupy.cuda.Stream(non_blocking=True)
        with cupy.cuda.using_allocator(self._pool.malloc), self._stream:
            workspace = cupy.empty(workspace_bytes(), np.uint8)
        with one_capture_at_a_time():  # creating a handle synchronizes the device
            self._products = CaptureHandle(self._stream, workspace)
        self._copies: WeightCopies | None = None

    def refresh_copies(self) -> None:
        """Update the copies of weights that may have been written to."""
        if self._copies is not None:
            self._copies.refresh()

    def graph_of(self, recording: Recording, n: int) -> CapturedStep:
        """Capture and return the recorded step on n samples."""
        user, stream = cupy.cuda.get_current_stream(), self._stream
        parameters = self._parts[0].parameters()
        stream.wait_event(user.record())
        try:
            with (
                one_capture_at_a_time(),
                stream,
                cupy.cuda.using_allocator(self._pool.malloc),
                self._products,
                gradients_kept(parameters),
            ):
                contents = self._rehearse(n, factors_of(recording))
                return self._capture_with_retries(n, contents)
        finally:
            user.wait_event(stream.record())

    def _rehearse(self, n: int, factors: list[tuple[Factor, Factor]]) -> list[tuple[Any, Any]]:
        """Run a step that updates scratch arrays, to load kernels and fill the pool.

        Return the `Factor.content` of the two factors of each rounded product.
        """
        keys = np.zeros(len(self._board.keys), np.uint64)
        self._board.load([0], ([0.0], [0.0], [1.0]), keys)
        noted = NotedFactors()
        self._products.round_by(noted)
        with _on_copied_buffers(self._parts[0]):
            self._complete(self._pass(n), None)
        if self._copies is None:
            self._copies = WeightCopies(self._weights(), [*chain.from_iterable(noted.spans)])
        sizes = [tuple(factor.size for factor in pair) for pair in factors]
        if sizes != noted.sizes:  # a kernel computes further products internally
            return []
        return [(left.content, right.content) for left, right in factors]

    def _weights(self) -> list[Array]:
        """Return the weights that only the update writes: the blocks, and frozen parameters."""
        model, _, optimizer = self._parts
        trained = set() if optimizer is None else set(optimizer.parameters)
        blocks = [] if optimizer is None else optimizer.blocks().values
        return [*blocks, *(p.value for p in model.parameters() if p not in trained)]

    def _capture_with_retries(self, n: int, contents: list[tuple[Any, Any]]) -> Any:
        """Return the captured step; retry after a failure, unless memory runs out.

        A capture fails if another thread synchronizes the device meanwhile.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._capture(n, contents)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
            for parameter in self._parts[0].parameters():
                parameter.grad = None
        return self._capture(n, contents)

    def _capture(self, n: int, contents: list[tuple[Any, Any]]) -> CapturedStep:
        copies, optimizer = self._copies, self._parts[2]
        assert copies is not None  # noqa: S101 (the rehearsal has set it)
        self._products.round_by(KeptFactors(copies, contents))
        forget_scratch()  # scratch memory allocated from here on belongs to the graph
        graphs: list[Any] = []
        with self._capturing(graphs):
            results = self._pass(n)
            if optimizer is None or optimizer.parallel is None:
                self._complete(results, copies)
                total, present = None, []
            else:
                total, present = self._gradient_weight(results, n), self._present_in_place()
        if present:
            with self._capturing(graphs):
                self._complete(results, copies)
        return CapturedStep(graphs, results.total is not None, total, present)

    @contextmanager
    def _capturing(self, graphs: list[Any]) -> Iterator[None]:
        """Capture the launches in the block as a graph, and append it."""
        stream = self._stream
        try:
            # Relaxed, so that other threads and the pool may allocate memory meanwhile.
            stream.begin_capture(cupy.cuda.runtime.streamCaptureModeRelaxed)
            yield
        except BaseException:
            with suppress(Exception):
                stream.end_capture()
            raise
        graphs.append(stream.end_capture())

    def _present_in_place(self) -> list[int]:
        """Return the parameters that have a gradient; refuse gradients that cannot be summed."""
        _, _, optimizer = self._parts
        assert optimizer is not None  # noqa: S101 (called in training only)
        present = [i for i, each in enumerate(optimizer.parameters) if each.grad is not None]
        if not optimizer.has_in_place(present):
            raise NotRecordableError("a gradient is not in the buffer that is summed over ranks")
        return present

    def _gradient_weight(self, results: _PassResults, n: int) -> Any:
        loss = self._parts[1]
        assert loss is not None  # noqa: S101 (called in training only)
        if loss.reduction == "sum":
            return None
        if results.total is None:
            return float(n)
        return kernels(results.total).convert(results.total, results.prediction.dtype)

    def __del__(self) -> None:
        """Free the memory: a deleted pool does not free its unused blocks."""
        with suppress(Exception), self._device:  # it fails in a forked process, for example
            vars(self).pop("_products", None)
            self._pool.free_all_blocks()

    def _pass(self, n: int) -> _PassResults:
        """Launch a step up to its gradients, in the current stream."""
        (model, loss, optimizer), board = self._parts, self._board
        x, y, weight = self._source.batch(n, board.row)
        squares = cost = total = tape = None
        if optimizer is None or loss is None:
            prediction = model.forward(x)
            if loss is not None:
                cost = loss.forward(prediction, y, None, weight)
        else:
            squares = optimizer.sum_of_squares() if self._penalized else None
            tape = KeyTape(iter(board.keys), optimizer.parameters)
            prediction, cost = backpropagate(model, loss, tape, x, y, weight)
        if loss is not None:
            total = loss.total_weight(prediction, y, weight)
        if total is not None:  # integer targets make it float64 for any model
            total = kernels(total).convert(total, np.float64)
        return _PassResults(prediction, cost, total, squares, tape)

    def _complete(self, results: _PassResults, copies: WeightCopies | None) -> None:
        """Launch the rest of a step; in a rehearsal, `copies` is None."""
        board, optimizer = self._board, self._parts[2]
        if optimizer is not None and results.tape is not None:
            self._update(optimizer, copies)
            results.tape.commit()
        if self._collected is not None:
            copy_rows(results.prediction, self._collected, board.row)
        board.finish(results.cost, results.total, results.squares)

    def _update(self, optimizer: Optimizer, copies: WeightCopies | None) -> None:
        """Update the parameters and the copies of weights, or scratch arrays in a rehearsal."""
        scratch = _scratch(optimizer.blocks()) if copies is None else None
        optimizer.update_by(self._board.numbers, scratch, copies)
        if copies is not None and not copies.are_written:
            copies.refresh()
        for parameter in self._parts[0].parameters():
            parameter.grad = None


@contextmanager
def _on_copied_buffers(model: Layer) -> Iterator[None]:
    """Replace the model's buffers by copies, and restore them afterwards."""
    before = [(buffer, buffer.value) for buffer in model.buffers()]
    try:
        for buffer, value in before:
            buffer.value = copy_of(value)
        yield
    finally:
        for buffer, value in before:
            buffer.value = value


def _private_pool() -> Any:
    """Return a pool limited to the memory that CuPy's default pool may still allocate."""
    pool, usual = cupy.cuda.MemoryPool(), cupy.get_default_memory_pool()
    limit = usual.get_limit()
    if limit:
        pool.set_limit(max(1, limit - usual.total_bytes()))  # 0 means no limit
    return pool


def _scratch(slots: Slots) -> Slots:
    """Return slots for a single one-entry parameter, with as many states as the given slots."""
    like = slots.values[0]
    value, grad, *states = (cupy.zeros(1, like.dtype) for _ in range(2 + len(slots.states)))
    return Slots([value], [grad], [[state] for state in states], [1.0])
