"""One step of training: the whole of backpropagation."""

from __future__ import annotations

from functools import partial
from typing import Any

from gpunn._typing import RNG, Array
from gpunn.arrays.backend import backend_of, scope_of
from gpunn.arrays.capacity import memory_for
from gpunn.arrays.facts import is_out_of_memory
from gpunn.arrays.memory import copy_of
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.nn.parameter import Parameter
from gpunn.nn.tape import Tape
from gpunn.optim.base import Optimizer
from gpunn.training.accumulation import Accumulation
from gpunn.training.arguments import check_parts, report_newcomers
from gpunn.training.freezing import part_of
from gpunn.training.places import check_places
from gpunn.training.ranks import doing


def train_step(  # noqa: PLR0917 (a batch is x, y and weights)
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    x: Array,
    y: Array,
    sample_weight: Array | None = None,
    *,
    rng: RNG = None,
) -> tuple[Array, Array]:
    """Learn from one batch: forward, the loss, its gradient, backward, and the update.

    Nothing here waits for a device. On a GPU the step is queued on CuPy's current stream, and has
    not run yet when this returns: model, optimizer and batch must be ready for that stream, and
    other streams must wait for it before they use the results.

    On NumPy, labels out of range, targets of `BinaryCrossEntropy` outside [0, 1], and negative soft
    targets raise an error before any parameter changes. On a device, targets are not checked, since
    a check would wait for it: there a label out of range turns the cost into NaN, and the update
    turns all parameters into NaN. Call ``loss.check_target(y, output_shape)`` once for the whole
    data set, as `Trainer` does.

    Parameters
    ----------
    model : Layer
        Updated in place.
    loss : Loss
        The loss J.
    optimizer : Optimizer
        Built on all or some of the model's parameters. The others, and their gradients, do not
        change.
    x, y : array
        The batch, on the model's device.
    sample_weight : array, optional
        Shape (N,).
    rng : None, int or numpy.random.Generator
        For dropout. In a loop, pass a Generator: an int gives the same masks at every step.

    Returns
    -------
    cost : array
        J before the update, 0-d, still on the device; `float` waits for it.
    prediction : array
        The model's output before the update.

    Raises
    ------
    SettingError
        If model, loss or optimizer is of the wrong class.
    DeviceError
        If the arrays are on different devices; no parameter has changed.
    LabelError
        If the loss is not defined for a target on the host; no parameter has changed.
    DeviceMemoryError
        If the device has too little memory; no parameter has changed.

    Notes
    -----
    After an error or an interrupt, the gradients of the optimizer's parameters and the state of
    `rng` are restored, so the step can be repeated with the result that it would have had. After an
    error in the update itself, such as one in an optimizer of your own, parameters may be half
    updated; from Python 3.11 on, the error carries a note that says so.
    """
    undo = _Undo()
    try:
        with doing("train_step", optimizer), scope_of(x):
            undo.note(optimizer, rng)
            return learn(model, loss, optimizer, x, y, sample_weight, rng, unchecked=True)
    except BaseException as error:
        undo.restore()
        if isinstance(error, (AttributeError, TypeError)):
            check_parts("train_step", model, loss, optimizer)
        raise


class _Undo:
    """Restores gradients and the state of `rng` after a failed step."""

    __slots__ = ("_grads", "_rng", "_state")

    def __init__(self) -> None:
        self._grads: list[tuple[Parameter, Array, Array]] = []
        self._rng: Any = None
        self._state: Any = None

    def note(self, optimizer: Optimizer, rng: RNG) -> None:
        """Note the present state; gradients are copied, because a step adds to them in place."""
        for parameter in optimizer.parameters:
            grad = parameter.grad
            if grad is not None:
                with memory_for("train_step, of copies", backend_of(grad), "clear the gradients"):
                    self._grads.append((parameter, grad, copy_of(grad)))
        if hasattr(rng, "bit_generator"):  # a Generator, which keeps its state across steps
            self._rng, self._state = rng, rng.bit_generator.state

    def restore(self) -> None:
        """Restore the noted state."""
        for parameter, grad, values in self._grads:
            with scope_of(grad):
                grad[...] = values  # in place, because it may be a part of the optimizer's block
            parameter.grad = grad
        if self._rng is not None:
            self._rng.bit_generator.state = self._state


def learn(  # noqa: PLR0917 (see above; a loop calls it for each batch)
    model: Layer,
    loss: Loss,
    optimizer: Optimizer,
    x: Array,
    y: Array,
    sample_weight: Array | None,
    rng: RNG,
    *,
    unchecked: bool = False,
    group: Accumulation | None = None,
) -> tuple[Array, Array]:
    """Learn from one batch, as `train_step` does; the device of `x` must be the current one.

    `unchecked` means that the caller has not checked targets, devices, and whether the model has
    changed; only then are they checked here. After an error the optimizer's parameters have no
    gradients. With a `group`, the update waits until the group is complete.
    """
    part = _trained_part(model, optimizer, unchecked=unchecked)
    if unchecked:
        check_places(model, part.held, x, y, sample_weight)
    parallel = optimizer.parallel
    if parallel is not None and group is None:
        group = Accumulation(1)
    updating = False
    try:
        tape = _tape_of(part, rng, parallel)
        prediction = model.forward(x, tape)
        # The first step, or layers were added or removed.
        changed = part.owners is None or (unchecked and part.owners != tape.owners())
        if changed:
            part = part_of(model, optimizer)
            part.owners, part.input_grad = tape.owners(), tape.misses(model)
            tape.parameters, tape.input_grad = part.wanted, part.input_grad
        cost = loss.forward(prediction, y, tape, sample_weight)
        if unchecked:
            loss.check_batch(prediction, y, cost)
        update = optimizer.step if group is None else partial(group.step, optimizer)
        batch = prediction, y, sample_weight
        share = None if group is None else group.begin(optimizer, loss, *batch)
        if part.frozen:
            with part.aside():
                model.backward(loss.backward(tape, share), tape)
        else:
            model.backward(loss.backward(tape, share), tape)
        if changed:
            part.check_grads(optimizer)
        updating = True
        update()
        tape.commit()
    except BaseException as error:
        optimizer.clear()
        if not is_out_of_memory(error):
            if updating:
                _note_half_updated(error)
            raise
        failure = error.with_traceback(None)  # the traceback holds the step's arrays
    else:
        return cost, prediction
    tape, prediction, cost = Tape(), None, None
    from gpunn.nn.memory import explain  # noqa: PLC0415 (most programs never need it)

    raise explain(failure, model, (x, y, sample_weight), updating=updating) from failure


def _trained_part(model: Layer, optimizer: Optimizer, *, unchecked: bool) -> Any:
    """Return the part of the model that the optimizer trains, as noted in an earlier step."""
    part = optimizer.part
    if part is not None and part.model() is model:
        return part
    if unchecked and part is None:
        report_newcomers("train_step", model, optimizer)
    return part_of(model, optimizer)


def _tape_of(part: Any, rng: RNG, parallel: Any) -> Tape:
    """Return a tape for a step that trains a part of a model."""
    tape = Tape(rng=rng, input_grad=part.input_grad, parameters=part.wanted)
    if parallel is not None:
        parallel.prepare(tape)
    return tape


def _note_half_updated(error: BaseException) -> None:
    """Note on an error in the update that parameters may be half updated."""
    if hasattr(error, "add_note"):  # since Python 3.11
        error.add_note("The update had begun: parameters and states may be half updated.")
