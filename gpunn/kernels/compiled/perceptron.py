"""Which networks, losses and optimizers `run_steps` serves, and epochs of these."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpunn._typing import Array
from gpunn.adam import Adam
from gpunn.data import Batch
from gpunn.kernels.compiled import crew, loops, steps
from gpunn.kernels.compiled.blas import ROOM
from gpunn.kernels.compiled.steps import LAYER, PLAN
from gpunn.kernels.generic import Stretch
from gpunn.kernels.numpy_ import OneThread, is_small, one_thread
from gpunn.layer import Layer
from gpunn.layers.activation import Activation, Identity, ReLU, Sigmoid, Tanh
from gpunn.layers.compose import Sequential
from gpunn.layers.dense import Dense
from gpunn.loss import Loss
from gpunn.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    MeanSquaredError,
    SoftmaxCrossEntropy,
)
from gpunn.optim import Optimizer, Slots
from gpunn.parameter import Parameter
from gpunn.sgd import SGD

_ACTIVATIONS: dict[type[Activation], int] = {
    ReLU: loops.RELU,
    Tanh: loops.TANH,
    Sigmoid: loops.SIGMOID,
    Identity: loops.IDENTITY,
}
_LOSSES: dict[type[Loss], int] = {
    SoftmaxCrossEntropy: steps.SOFTMAX,
    BinaryCrossEntropy: steps.BINARY,
    MeanSquaredError: steps.SQUARED,
}

#: What training would call, and what it is in the classes that are served.
_METHODS = frozenset({"forward", "backward", "cost", "per_sample", "match", "step"})
_FUNCTIONS: dict[type, list[tuple[str, Any]]] = {
    kind: [(name, getattr(kind, name)) for name in _METHODS if hasattr(kind, name)]
    for kind in (Dense, Sequential, SGD, Adam, *_ACTIVATIONS, *_LOSSES)
}

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


class Stage(NamedTuple):
    """A layer, its parameters, and the activation that follows it, by number."""

    layer: Dense
    weight: Parameter
    bias: Parameter | None
    activation: int

    @classmethod
    def of(cls, layer: Dense, activation: Activation) -> Stage:
        """Return a layer followed by an activation."""
        return cls(layer, layer.weight, layer.bias, _ACTIVATIONS[type(activation)])

    def parameters(self) -> list[Parameter]:
        """Return the weight, and the bias if there is one."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


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
    stages, slots = _stages(model), optimizer.slots()
    if not stages or slots is None or one_thread() is None:
        return None
    if not _known(loss) or not _plain(optimizer, slots) or _work(stages, batch_size) > _MOST_WORK:
        return None
    own = [id(parameter) for stage in stages for parameter in stage.parameters()]
    trained = {id(parameter) for parameter in optimizer.parameters}
    if len(own) != len(trained) or set(own) != trained or not _fits(batch, stages, loss):
        return None
    parts = stages, loss, optimizer, slots, batch, batch_size
    if isinstance(before, CompiledSteps) and before.known_by(*parts):
        return before
    return CompiledSteps(*parts)


def _known(loss: Loss) -> bool:
    """Return whether the loss is one of ours, from logits, with all classes alike."""
    if type(loss) not in _LOSSES or loss.reduction == "none" or not _untouched(loss):
        return False
    if isinstance(loss, CrossEntropy):
        return not loss.class_weight and not loss.label_smoothing
    return loss.from_logits or not isinstance(loss, BinaryCrossEntropy)


def _plain(optimizer: Optimizer, slots: Slots) -> bool:
    """Return whether the optimizer is one of ours, and takes gradients as they are."""
    if type(optimizer) not in (SGD, Adam) or not _untouched(optimizer):
        return False
    if isinstance(optimizer, SGD) and optimizer.momentum and not slots.states:
        return False
    return optimizer.clip_norm is None and optimizer.clip_value is None


def _untouched(part: object) -> bool:
    """Return whether its methods are those we know: nobody has put others in their place."""
    known = _FUNCTIONS[type(part)]
    return _METHODS.isdisjoint(vars(part)) and all(
        getattr(type(part), name) is function for name, function in known
    )


def _stages(model: Layer) -> list[Stage]:
    """Return the model as layers with activations, or an empty list if it has anything else."""
    stages: list[Stage] = []
    for part in _flat(model):
        if type(part) not in _FUNCTIONS or not _untouched(part):
            return []
        if isinstance(part, Dense) and type(part.activation) in _ACTIVATIONS:
            stages.append(Stage.of(part, part.activation))
        elif isinstance(part, Activation) and _awaits(stages):
            stages[-1] = Stage.of(stages[-1].layer, part)
        else:
            return []
    return stages


def _awaits(stages: Sequence[Stage]) -> bool:
    """Return whether an activation may be added to the last layer."""
    return bool(stages) and stages[-1].activation == loops.IDENTITY


def _flat(model: Layer) -> Iterator[Layer]:
    """Yield the layers in the order in which they apply."""
    if type(model) is Sequential and _untouched(model):
        for layer in model.layers:
            yield from _flat(layer)
    else:
        yield model


def _work(stages: Sequence[Stage], rows: int) -> int:
    """Return how many multiplications a step has, most of them in its three products a layer."""
    weights = sum(stage.weight.value.size for stage in stages)
    return (3 * rows + _WORK_OF_AN_UPDATE) * weights


def _fits(batch: Batch, stages: Sequence[Stage], loss: Loss) -> bool:
    """Return whether features and targets are arrays of NumPy's that go with layers and loss."""
    x, y, weight = batch
    if type(x) is not np.ndarray or type(y) is not np.ndarray or x.ndim != 2:
        return False
    if len(y) != len(x) or (weight is not None and weight.dtype != x.dtype):
        return False
    inputs = x.shape[1]
    for layer, own_weight, bias, _ in stages:
        outputs = layer.out_features
        if not _is(own_weight, (inputs, outputs), x.dtype) or layer.in_features != inputs:
            return False
        if bias is not None and not _is(bias, (outputs,), x.dtype):
            return False
        inputs = outputs
    if isinstance(loss, SoftmaxCrossEntropy):
        return y.ndim == 1 and y.dtype.kind in "iu"
    return y.size == y.shape[0] * inputs


def _is(parameter: Parameter, shape: tuple[int, ...], dtype: Any) -> bool:
    """Return whether a parameter's value has that shape and dtype."""
    value = parameter.value
    return value.shape == shape and value.dtype == dtype


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
    found = {"loss": _LOSSES[type(loss)], "mean": loss.reduction == "mean"}
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
