"""Record a training step as a list of operations, by running it once on stand-ins for arrays.

The readable step does all its work in kernels. Running it on stand-ins, which have only a shape, a
dtype and a backend, yields the list of its kernel calls. Anything else that a layer or a loss does
with a stand-in raises, and training falls back to the readable loop: an unknown operation is slow,
never wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from gpunn.arrays.backend import Backend
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.nn.parameter import Parameter
from gpunn.nn.tape import Tape
from gpunn.program.recorder import Traced, is_batch, value_of
from gpunn.program.stand_ins import RecordingKernels, batch_input
from gpunn.program.values import BatchLike, Key, NotRecordableError, Recording, Value, refuse


class KeyTape(Tape):
    """A tape that hands out keys from an iterator.

    Parameters
    ----------
    keys : iterator
        Yields the keys of random masks, or stand-ins for them.
    """

    __slots__ = ("_keys", "n_keys")

    def __init__(self, keys: Iterator[Any], parameters: Sequence[Parameter]) -> None:
        super().__init__(input_grad=False, parameters=frozenset(parameters))
        self._keys = keys
        self.n_keys = 0

    def draw_key(self) -> Any:
        """Return the next key."""
        self.n_keys += 1
        return next(self._keys)


def backpropagate(  # noqa: PLR0917 (a batch is x, y and weights)
    model: Layer, loss: Loss, tape: Tape, x: Any, y: Any, weight: Any
) -> tuple[Any, Any]:
    """Run a step up to the gradients; return the prediction and the cost."""
    prediction = model.forward(x, tape)
    tape.input_grad = tape.misses(model)
    cost = loss.forward(prediction, y, tape, weight)
    model.backward(loss.backward(tape), tape)
    return prediction, cost


def record_step(
    model: Layer,
    loss: Loss,
    parameters: Sequence[Parameter],
    batch: BatchLike,
    place: Backend,
    *,
    parallel: Any = None,
) -> Recording:
    """Return the operations of a step: forward, the loss, backward; not the update.

    Parameters
    ----------
    model, loss
        The model to train, and its loss.
    parameters : sequence of Parameter
        The optimizer's parameters, each with a gradient buffer and without a gradient.
    batch : BatchLike
        The batch.
    place : Backend
        The backend of its arrays.
    parallel : DataParallel, optional
        The optimizer's, if it divides batches over processes.

    Raises
    ------
    NotRecordableError
        If the step does anything other than call kernels.
    """
    recorder, tape = RecordingKernels(place), KeyTape(map(Key, count()), parameters)
    if parallel is not None:
        parallel.prepare(tape)
    with _recording(model.parameters()):
        x, y, weight = _inputs(recorder, batch)
        prediction, cost = backpropagate(model, loss, tape, x, y, weight)
        grads = {i: p.grad for i, p in enumerate(parameters) if p.grad is not None}
        tape.commit()
    if len(grads) < len(parameters):
        raise NotRecordableError("a parameter of the optimizer gets no gradient")
    recording = _recording_of(recorder, x, y, weight, prediction, cost)
    recording.n_keys, recording.grads = tape.n_keys, grads
    return recording


def record_forward(model: Layer, loss: Loss | None, batch: BatchLike, place: Backend) -> Recording:
    """Return the operations of a prediction, and of its cost if there is a loss."""
    recorder = RecordingKernels(place)
    with _recording([]):
        x, y, weight = _inputs(recorder, batch)
        prediction = model.forward(x)
        cost = None if loss is None else loss.forward(prediction, y, None, weight)
    return _recording_of(recorder, x, y, weight, prediction, cost)


def _recording_of(recorder: RecordingKernels, *parts: Any) -> Recording:
    """Return the recording with its x, y, weights, prediction and cost."""
    *batch, cost = parts
    x, y, weight, prediction = map(_batch_value, batch)
    return Recording(recorder.operations, x, y, weight, prediction, value_of(cost))


def _inputs(recorder: RecordingKernels, batch: BatchLike) -> list[Traced | None]:
    parts = (batch.x, batch.y, batch.sample_weight)
    return [None if part is None else batch_input(recorder, *part) for part in parts]


def _batch_value(x: Any) -> Value | None:
    """Return the value behind a stand-in for a batch; None for None."""
    if x is None:
        return None
    if not is_batch(x):
        refuse("a model output that is not a batch")
    value: Value = x.value
    return value


@contextmanager
def gradients_kept(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Restore the gradients afterwards."""
    before = [(parameter, parameter.grad) for parameter in parameters]
    try:
        yield
    finally:
        for parameter, grad in before:
            parameter.grad = grad


@contextmanager
def _recording(parameters: Sequence[Parameter]) -> Iterator[None]:
    """Restore the gradients afterwards; raise any failure as `NotRecordableError`.

    The failure may be the user's mistake: the readable loop runs next, and fails with it.
    """
    with gradients_kept(parameters):
        try:
            yield
        except NotRecordableError:
            raise
        except Exception as error:
            raise NotRecordableError(
                f"the step does something that is not a kernel ({type(error).__name__}: {error})"
            ) from error
