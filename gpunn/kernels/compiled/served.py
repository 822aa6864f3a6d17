"""Which networks, losses, optimizers and data compiled steps serve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpunn.adam import Adam
from gpunn.data import Batch
from gpunn.kernels.compiled import loops, steps
from gpunn.kernels.declared import functions_of, is_unchanged
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
LOSSES: dict[type[Loss], int] = {
    SoftmaxCrossEntropy: steps.SOFTMAX,
    BinaryCrossEntropy: steps.BINARY,
    MeanSquaredError: steps.SQUARED,
}

#: All that the classes that are served run, as it was when they were made.
_FUNCTIONS: dict[type, dict[str, Any]] = {
    kind: functions_of(kind)
    for kind in (Dense, Sequential, SGD, Adam, Parameter, *_ACTIVATIONS, *LOSSES)
}


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


def knows_loss(loss: Loss) -> bool:
    """Return whether the loss is one of ours, from logits, with all classes alike."""
    if type(loss) not in LOSSES or loss.reduction == "none" or not _untouched(loss):
        return False
    if isinstance(loss, CrossEntropy):
        return not loss.class_weight and not loss.label_smoothing
    return loss.from_logits or not isinstance(loss, BinaryCrossEntropy)


def knows_optimizer(optimizer: Optimizer, slots: Slots) -> bool:
    """Return whether the optimizer is one of ours, and takes gradients as they are."""
    if type(optimizer) not in (SGD, Adam) or not _untouched(optimizer):
        return False
    if isinstance(optimizer, SGD) and optimizer.momentum and not slots.states:
        return False
    return optimizer.clip_norm is None and optimizer.clip_value is None


def _untouched(part: object) -> bool:
    """Return whether it is of a class that we know, and runs what that class was made with."""
    known = _FUNCTIONS.get(type(part))
    return known is not None and is_unchanged(part, known)


def stages_of(model: Layer) -> list[Stage]:
    """Return the model as layers with activations, or an empty list if it has anything else."""
    stages: list[Stage] = []
    for part in _flat(model):
        if not _untouched(part):
            return []
        if isinstance(part, Dense):
            parameters = (part.weight,) if part.bias is None else (part.weight, part.bias)
            if not all(map(_untouched, (part.activation, *parameters))):
                return []
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


def fits(batch: Batch, stages: Sequence[Stage], loss: Loss) -> bool:
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
