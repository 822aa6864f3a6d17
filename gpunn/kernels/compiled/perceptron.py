"""Epochs of compiled steps: the tables for `run_steps`, its threads, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.adam import Adam
from gpunn.data import Batch
from gpunn.kernels.compiled import crew, steps
from gpunn.kernels.compiled.blas import ROOM
from gpunn.kernels.compiled.served import (
    LOSSES,
    Stage,
    fits,
    knows_loss,
    knows_optimizer,
    stages_of,
)
from gpunn.kernels.compiled.steps import LAYER, PLAN
from gpunn.kernels.generic import Stretch
from gpunn.kernels.numpy_ import OneThread, is_small, one_thread
from gpunn.layer import Layer
from gpunn.loss import Loss
from gpunn.losses import SoftmaxCrossEntropy
from gpunn.optim import Optimizer, Slots
from gpunn.parameter import Parameter
from gpunn.sgd import SGD

#: A thread pays from so many multiplications a step on, and from so many rows.
_WORK_OF_A_THREAD, _ROWS_OF_A_THREAD = 1 << 20, 16
#: Beyond so many multiplications a step, and threads, BLAS shares its products out better.
_MOST_WORK, _MOST_THREADS = 1 << 30, 8
#: A call makes about so many multiplications, or takes so many rows: then an interrupt is heard.
_WORK_AT_ONCE, _ROWS_AT_ONCE = 1 << 31, 1 << 20
#: And so many numbers of the network's outputs, if they are wanted.
_ENTRIES_AT_ONCE = 1 << 20
#: An update takes as long as so many multiplications, for each weight.
_WORK_OF_AN_UPDATE = 24


class Entries:
    """A row of a table for compiled code, and the arrays that it has the addresses of.

    Parameters
    ----------
    row : ndarray (1,)
        Written to.
    """

    def __init__(self, row: Array) -> None:
        self._fields = {name: row[name] for name in row.dtype.names}  # views
        self.arrays: dict[str, Array | None] = {}

    def put(self, **entries: Any) -> None:
        """Write numbers, and where arrays begin; None is 0. Arrays live until others come."""
        for name, entry in entries.items():
            array = entry if isinstance(entry, np.ndarray) else None
            self.arrays[name] = array
            self._fields[name][0] = (entry or 0) if array is None else array.ctypes.data


class CompiledSteps:
    """Makes the steps of an epoch; see `gpunn.kernels.generic.Steps`.

    Parameters
    ----------
    stages : sequence of Stage
    loss : Loss
    optimizer : SGD or Adam
    slots : Slots
        The optimizer's.
    batch : Batch
        All of the data, in the dtype of the weights.
    batch_size : int
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        loss: Loss,
        optimizer: Any,
        slots: Slots,
        batch: Batch,
        batch_size: int,
    ) -> None:
        self._stages = stages
        self._loss = loss
        self._optimizer = optimizer
        self._slots = slots
        self._batch = batch
        self._batch_size = batch_size
        self._dtype = batch.x.dtype
        self._shape = batch.x.shape
        self._outputs = stages[-1].layer.out_features
        self._work = _work(stages, batch_size)
        self._most_threads = self._threads_worth()
        self._layers = np.zeros(len(stages), LAYER)
        self._held = [self._enter(i, stage) for i, stage in enumerate(stages)]
        self._plan = np.zeros(1, PLAN)
        self._entries = Entries(self._plan)
        self._entries.put(**self._room())

    def known_by(
        self,
        stages: Sequence[Stage],
        loss: Loss,
        optimizer: Optimizer,
        slots: Slots,
        batch: Batch,
        batch_size: int,
    ) -> bool:
        """Return whether this was made for just these."""
        same = loss is self._loss and optimizer is self._optimizer and batch is self._batch
        same = same and slots.values is self._slots.values and batch_size == self._batch_size
        same = same and batch.x.shape == self._shape
        return same and stages == self._stages

    def run(
        self, order: Any, stop: int, decays: Sequence[float], *, outputs: bool
    ) -> Iterator[Stretch]:
        """Train on the rows of the first `stop` turns of an order (None: as the data stand)."""
        rows = None if order is None else np.ascontiguousarray(order, np.int64)
        data = _data(self._batch, self._loss, self._outputs)
        self._entries.put(order=rows, **data, **_rule(self._loss, self._optimizer))
        at_once = self._rows_at_once(outputs=outputs)
        for start in range(0, stop, at_once):
            turns = slice(start, min(start + at_once, stop))
            first, last = start // self._batch_size, -(-turns.stop // self._batch_size)
            yield self._stretch(turns, np.array(decays[first:last], np.float64), outputs=outputs)

    def _rows_at_once(self, *, outputs: bool) -> int:
        """Return how many rows a call takes: whole batches."""
        size = self._batch_size
        rows = min(size * _WORK_AT_ONCE // self._work, _ROWS_AT_ONCE)
        if outputs:
            rows = min(rows, _ENTRIES_AT_ONCE // self._outputs)
        return size * max(1, rows // size)

    def _stretch(self, turns: slice, decays: Array, *, outputs: bool) -> Stretch:
        """Make the steps of some turns."""
        alone = one_thread()
        assert alone is not None  # noqa: S101 (`serve` has seen it)
        threads, n = self._threads(alone), len(decays)
        with alone.hold():
            threads = threads if alone.count() == 1 else 1  # somebody else's limit is in force
            costs, penalties, totals = np.empty((n, threads)), np.empty((n, threads)), np.empty(n)
            made, meeting = np.zeros(1, np.int64), np.zeros(2, np.int64)
            rates = np.array(self._optimizer.rates(n))
            shape = turns.stop - turns.start, self._outputs
            result = _empty(shape, self._dtype) if outputs else None
            put = self._entries.put
            put(start=turns.start, stop=turns.stop, steps=n, rates=rates, decays=decays)
            put(costs=costs, penalties=penalties, totals=totals, outputs=result)
            put(made=made, meeting=meeting)
            arguments = self._plan, self._layers, self._dtype.type(1)
            try:
                crew.run(steps.run_steps, threads, meeting, *arguments, held=self._arrays())
            finally:  # after an interrupt, too
                self._optimizer.made(int(made[0]))
        weighted = self._batch.sample_weight is not None
        sums = costs.sum(axis=1), penalties.sum(axis=1)
        return Stretch(turns, *sums, totals if weighted else None, result)

    def _threads(self, alone: OneThread) -> int:
        """Return how many threads to have: as many as BLAS would."""
        wanted = min(alone.count(), self._most_threads)
        return crew.available(wanted) if alone.of_all_threads() else 1

    def _arrays(self) -> list[Any]:
        """Return what the tables have the addresses of, as it is now."""
        return [dict(entries.arrays) for entries in (self._entries, *self._held)]

    def _threads_worth(self) -> int:
        """Return how many threads pay for such steps."""
        n = self._batch_size
        if is_small(n, self._slots.values):
            return 1
        return max(1, min(self._work // _WORK_OF_A_THREAD, n // _ROWS_OF_A_THREAD, _MOST_THREADS))

    def _room(self) -> dict[str, Any]:
        """Return room for a batch, and for as many threads as may come."""
        n, threads, dtype = self._batch_size, self._most_threads, self._dtype
        widest = int(self._layers["outputs"].max())
        return {
            "batch_size": n,
            "widest": widest,
            "own_x": _empty((n, self._batch.x.shape[1]), dtype),
            "own_labels": np.empty(n, np.int64),
            "own_target": _empty((n, self._outputs), dtype),
            "own_weight": _empty((n,), dtype),
            "upstream": _empty((n, widest), dtype),
            "sums": _empty((threads, len(self._stages), widest), dtype),
            "products": _empty((threads, ROOM // 8), np.dtype(np.int64)),
        }

    def _enter(self, i: int, stage: Stage) -> Entries:
        """Write down a layer."""
        layer, weight, bias, activation = stage
        entries = Entries(self._layers[i : i + 1])
        shape = self._batch_size, layer.out_features
        entries.put(inputs=layer.in_features, outputs=layer.out_features, activation=activation)
        entries.put(output=_empty(shape, self._dtype), grad=_empty(shape, self._dtype))
        entries.put(has_bias=bias is not None, **self._of("weight", weight))
        if bias is not None:
            entries.put(**self._of("bias", bias))
        else:
            entries.put(bias=np.zeros(layer.out_features, self._dtype))
        return entries

    def _of(self, name: str, parameter: Parameter) -> dict[str, Any]:
        """Return the entries of a parameter, and of what the optimizer keeps beside it."""
        known = self._optimizer.parameters
        i = next(i for i, other in enumerate(known) if other is parameter)
        values, grads, states, decays = self._slots
        found = {name: values[i], f"{name}_decays": decays[i] != 0}
        if name == "weight":  # a bias's gradient is a column sum
            found["weight_grad"] = grads[i]
        kept = [state[i] for state in states] + [values[i]] * (2 - len(states))
        return found | {f"{name}_state_1": kept[0], f"{name}_state_2": kept[1]}


def serve(
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    batch: Batch,
    batch_size: int,
    before: Any,
) -> CompiledSteps | None:
    """Return what trains the model on all of the data, or None if `run_steps` cannot.

    It is the one `before`, if that was made for the same.
    """
    stages, slots = stages_of(model), optimizer.slots()
    if not stages or slots is None or one_thread() is None:
        return None
    if (
        not knows_loss(loss)
        or not knows_optimizer(optimizer, slots)
        or _work(stages, batch_size) > _MOST_WORK
    ):
        return None
    own = [id(parameter) for stage in stages for parameter in stage.parameters()]
    trained = {id(parameter) for parameter in optimizer.parameters}
    if len(own) != len(trained) or set(own) != trained or not fits(batch, stages, loss):
        return None
    parts = stages, loss, optimizer, slots, batch, batch_size
    if isinstance(before, CompiledSteps) and before.known_by(*parts):
        return before
    return CompiledSteps(*parts)


def _work(stages: Sequence[Stage], rows: int) -> int:
    """Return how many multiplications a step has, most of them in its three products a layer."""
    weights = sum(stage.weight.value.size for stage in stages)
    return (3 * rows + _WORK_OF_AN_UPDATE) * weights


def _data(batch: Batch, loss: Loss, outputs: int) -> dict[str, Any]:
    """Return the entries of the data."""
    x: Array = batch.x
    y: Array = batch.y
    of_classes, weight = isinstance(loss, SoftmaxCrossEntropy), batch.sample_weight
    return {
        "n_samples": x.shape[0],
        "features": x.shape[1],
        "x": _plainly(x, x.dtype),
        "labels": _plainly(y, np.int64) if of_classes else None,
        "target": None if of_classes else _plainly(y.reshape(-1, outputs), x.dtype),
        "weight": None if weight is None else _plainly(weight, x.dtype),
    }


def _rule(loss: Loss, optimizer: SGD | Adam) -> dict[str, Any]:
    """Return the entries of loss and update."""
    found = {"loss": LOSSES[type(loss)], "mean": loss.reduction == "mean"}
    if isinstance(optimizer, SGD):
        return found | {"beta_1": optimizer.momentum, "nesterov": optimizer.nesterov}
    names = ("beta_1", "beta_2", "epsilon")
    return found | {"adam": True} | {name: getattr(optimizer, name) for name in names}


def _plainly(x: Any, dtype: Any) -> Array:
    """Return x in that dtype, in C's order and aligned."""
    return np.require(x, dtype, ["C_CONTIGUOUS", "ALIGNED"])


def _empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Return an array that begins at a multiple of 64 bytes."""
    n, size = math.prod(shape), dtype.itemsize
    room = np.empty(n + 64 // size, dtype)
    skipped = (-room.ctypes.data % 64) // size
    return room[skipped : skipped + n].reshape(shape)
