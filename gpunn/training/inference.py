"""Passes over data without training: predictions, the loss and the metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from gpunn._typing import Array
from gpunn.arrays.backend import scope_of
from gpunn.arrays.memory import copy_of, may_overlap
from gpunn.data.batch import Batch
from gpunn.data.lending import lend
from gpunn.data.loader import Loader
from gpunn.kernels import kernels
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.program import Program
from gpunn.program.results import StepResults
from gpunn.training.epoch import pieces_of, sample_of
from gpunn.training.readings import Readings

#: Minimum work of a pass that is worth recording, in multiplications, and minimum number of rows.
_MIN_RECORDED_WORK, _MIN_RECORDED_ROWS = 1 << 22, 32


def predict(model: Layer, loader: Loader, program: Program) -> Array:
    """Return the outputs for all samples, in stored order, as one array.

    Parameters
    ----------
    model : Layer
        What predicts.
    loader : Loader
        The features.
    program : Program
        From earlier predictions; recorded again if it no longer holds.
    """
    recorded = _recorded_pass(program, model, None, loader, outputs=True)
    if recorded is not None:
        return join([results.outputs for results, _ in recorded])
    return forward_all(model, (batch.x for batch in lend(loader.in_order, model)))


def forward_all(model: Layer, inputs: Iterable[Array]) -> Array:
    """Return the outputs for all inputs, one after another, as one array of its own memory."""
    outputs = []
    for x in inputs:
        outputs.append(model(x))
        last = x
    # A model may return its input.
    if len(outputs) == 1 and may_overlap(outputs[0], last):
        with scope_of(last):
            return copy_of(outputs[0])
    return join(outputs)


def evaluate(
    model: Layer, loader: Loader, readings: Readings, program: Program, *, outputs: bool = False
) -> list[Array]:
    """Add the loss and the metrics of all batches, in stored order, to `readings`.

    Parameters
    ----------
    model : Layer
        What is evaluated.
    loader : Loader
        The data.
    readings : Readings
        The loss and the metrics.
    program : Program
        From earlier evaluations; recorded again if it no longer holds.
    outputs : bool, default False
        Whether to return the outputs.

    Returns
    -------
    list of array
        The outputs in order, for `join`; empty unless asked for.
    """
    loss, found = readings.loss, []
    wanted = outputs or bool(readings.metrics)
    recorded = _recorded_pass(program, model, loss, loader, outputs=wanted)
    if recorded is not None:
        for results, data in recorded:
            readings.add_many(results, data, None, loader.batch_size)
            if outputs:
                found.append(results.outputs)
        return found
    values = [parameter.value for parameter in model.parameters()]
    threads = kernels(values[0]).threads(loader.batch_size, values)
    with loader.backend.scope(), threads:
        for x, y, weight in lend(loader.in_order, model, loss, *readings.metrics):
            prediction = model.forward(x)
            readings.add(loss.forward(prediction, y, None, weight), prediction, y, weight)
            if outputs:
                found.append(prediction)
    return found


def join(outputs: list[Any]) -> Array:
    """Return arrays as one, along the first axis."""
    if len(outputs) == 1:
        return outputs[0]
    with scope_of(outputs[0]):
        return kernels(outputs[0]).xp.concat(outputs)


def _recorded_pass(
    program: Program, model: Layer, loss: Loss | None, loader: Loader, *, outputs: bool
) -> Iterator[tuple[StepResults, Batch]] | None:
    """Return the results of a recorded pass over all samples, with their data.

    None if the pass is not recorded. Without a loss, the model only predicts.
    """
    if loader.n_samples < _MIN_RECORDED_ROWS:  # to check a recording would cost more than it saves
        return None
    work = loader.n_samples * sum(math.prod(p.value.shape) for p in model.parameters())
    if not program.is_recorded and work < _MIN_RECORDED_WORK:
        return None
    steps = program.prepare(model, loss, None, sample_of(loader), loader.batch_size)
    if steps is None:
        return None
    return _run(steps, loader, outputs=outputs)


def _run(steps: Any, loader: Loader, *, outputs: bool) -> Iterator[tuple[StepResults, Batch]]:
    for data, rows, stop in pieces_of(loader, None, loader.n_samples):
        for results in steps.run(data, rows, stop, (), outputs=outputs):
            yield results, data
