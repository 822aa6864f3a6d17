"""Passes over data without training: predictions, the loss and the metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of, scope_of
from gpunn.arrays.capacity import memory_for
from gpunn.arrays.facts import is_out_of_memory
from gpunn.arrays.memory import copy_of, may_overlap
from gpunn.data.batch import Batch
from gpunn.data.lending import lend
from gpunn.data.loader import Loader
from gpunn.kernels import kernels
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.program import Program
from gpunn.training.epoch import feed_of, memory_advice
from gpunn.training.readings import Readings

if TYPE_CHECKING:
    from gpunn.program.results import StepResults

#: Minimum work of a pass worth recording, in multiplications, and its minimum number of rows.
_MIN_RECORDED_WORK, _MIN_RECORDED_ROWS = 1 << 22, 32
#: Minimum number of batches of a pass worth capturing on a GPU. With a few large batches, launches
#: take little of the time, and a captured pass would copy rows that already lie in order.
_MIN_CAPTURED_BATCHES = 16


def predict(model: Layer, loader: Loader, program: Program) -> Array:
    """Return the outputs for all samples, in stored order, as one array.

    Parameters
    ----------
    model : Layer
        The model that predicts.
    loader : Loader
        The features.
    program : Program
        The program of earlier predictions; recorded again if it no longer holds.

    Raises
    ------
    DeviceMemoryError
        If the device has too little memory.
    """
    with memory_for("Trainer.predict", loader.backend, memory_advice(loader)):
        every = None, loader.n_samples
        recorded = _recorded_pass(program, model, None, loader, every, outputs=True)
        if recorded is not None:
            return join([results.outputs for results, *_ in recorded])
        outputs = []
        for x, *_ in lend(loader.in_order, model):
            outputs.append(model(x))
        return _owned(outputs, x)


def forward_fitting(
    model: Layer, take: Callable[[int, int], Array], n_samples: int, most: int
) -> Array:
    """Return the outputs for all samples, in as large batches as the memory allows.

    Parameters
    ----------
    model : Layer
    take : function
        Returns samples [start, stop), given start and stop, on the model's device.
    n_samples : int
    most : int
        The largest batch size. If a batch does not fit, the size is halved for the rest.

    Raises
    ------
    DeviceMemoryError
        If not even one sample fits.
    """
    outputs: list[Array] = []
    start, size = 0, most
    while start < n_samples or not outputs:
        stop = min(start + size, n_samples)
        try:
            x = take(start, stop)
            outputs.append(model(x))
        except Exception as error:
            if not is_out_of_memory(error) or stop - start <= 1:
                raise
            size = (stop - start + 1) // 2
        else:
            start = stop
    return _owned(outputs, x)


def _owned(outputs: list[Array], last: Array) -> Array:
    """Return outputs as one array with its own memory, even if the model returned its input."""
    if len(outputs) == 1 and may_overlap(outputs[0], last):
        return copy_of(outputs[0])
    return join(outputs)


def evaluate(
    model: Layer, loader: Loader, readings: Readings, program: Program, *, outputs: bool = False
) -> list[Array]:
    """Add the loss and the metrics of all batches, in stored order, to `readings`.

    If the loader shares its samples among processes, only this process's batches are added.

    Parameters
    ----------
    model : Layer
        The model to evaluate.
    loader : Loader
        The data.
    readings : Readings
        Collects the loss and the metrics.
    program : Program
        The program of earlier evaluations; recorded again if it no longer holds.
    outputs : bool, default False
        Whether to return the outputs.

    Returns
    -------
    list of array
        The outputs in order, for `join`; empty unless `outputs` is True.

    Raises
    ------
    DeviceMemoryError
        If the device has too little memory.
    """
    with memory_for("evaluation", loader.backend, memory_advice(loader)):
        found = _evaluate(model, loader, readings, program, outputs=outputs)
        loader.draw_for_others()
        return found


def _evaluate(
    model: Layer, loader: Loader, readings: Readings, program: Program, *, outputs: bool
) -> list[Array]:
    loss, found = readings.loss, []
    wanted = outputs or bool(readings.metrics)
    rows = loader.own(None, loader.n_samples)
    recorded = _recorded_pass(program, model, loss, loader, rows, outputs=wanted)
    if recorded is not None:
        for results, data, order in recorded:
            readings.add_many(results, data, order, loader.batch_size)
            if outputs:
                found.append(results.outputs)
        return found
    values = [parameter.value for parameter in model.parameters()]
    threads = kernels(values[0]).threads(loader.batch_size, values)
    with loader.backend.scope(), threads:
        read = loader.in_order if loader.share.size == 1 else partial(loader.batches, *rows)
        for x, y, weight in lend(read, model, loss, *readings.metrics):
            prediction = model.forward(x)
            readings.add(loss.forward(prediction, y, None, weight), prediction, y, weight)
            if outputs:
                found.append(prediction)
    return found


def join(outputs: list[Any]) -> Array:
    """Return arrays as one, along the first axis."""
    if len(outputs) == 1:
        return outputs[0]
    speaker, advice = "the outputs of all samples", "ask for those of fewer samples at once"
    with memory_for(speaker, backend_of(outputs[0]), advice), scope_of(outputs[0]):
        return kernels(outputs[0]).xp.concat(outputs)


def _recorded_pass(
    program: Program,
    model: Layer,
    loss: Loss | None,
    loader: Loader,
    rows: tuple[Any, int],
    *,
    outputs: bool,
) -> Iterator[tuple[StepResults, Batch | None, Any]] | None:
    """Return the results of a recorded pass over some rows, with the rows' data and order.

    `rows` holds an order, None for the stored one, and the number of rows. The result is None if
    the pass is not recorded. Without a loss, the model only predicts.
    """
    order, n_rows = rows
    if n_rows < _MIN_RECORDED_ROWS:  # checking a recording would cost more than it saves
        return None
    if loader.backend.package != "numpy":
        if n_rows < _MIN_CAPTURED_BATCHES * loader.batch_size:
            return None
    elif not program.is_recorded:
        work = n_rows * sum(math.prod(p.value.shape) for p in model.parameters())
        if work < _MIN_RECORDED_WORK:
            return None
    steps = program.prepare(model, loss, None, feed_of(loader, n_rows), outputs=outputs)
    if steps is None:
        return None
    results: Iterator[tuple[StepResults, Batch | None, Any]] = steps.run_over(
        loader, order, n_rows, (), outputs=outputs
    )
    return results
