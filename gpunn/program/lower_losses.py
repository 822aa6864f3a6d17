"""The instructions of losses, and of the weights of samples and classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn.kernels.loops_losses import BY_OUTPUT, parameter_of
from gpunn.losses.class_weight import table_of
from gpunn.program.lower import Lane, Lowering, address_of, kernel_in, lowers, memory_of
from gpunn.program.phases import ALL, OWN, ROWS, Access
from gpunn.program.values import NotRecordableError, Operation, Value


@lowers("loss")
def _loss(low: Lowering, operation: Operation) -> None:
    prediction, target, scale = operation.inputs
    _, grad = operation.outputs
    loss, kernel = operation.formula, kernel_in(operation)
    if not operation.settings["summed"]:
        raise NotRecordableError("the loss is not reduced to one number")
    operands = {"a": prediction}
    settings: dict[str, Any] = {}
    if kernel in ("softmax_cross_entropy", "cross_entropy"):
        plain = loss.class_weight is None and not loss.label_smoothing
        labels = len(target.shape) == 1
        if labels and plain and kernel == "softmax_cross_entropy":
            name = "loss_softmax_labels"
        else:
            if labels or not plain:
                target = _soft(low, loss, target, prediction)
            soft = kernel == "softmax_cross_entropy"
            name = "loss_softmax_soft" if soft else "loss_cross_entropy"
    elif kernel in BY_OUTPUT:
        name, settings["r"] = f"loss_{kernel}", parameter_of(loss)
    else:
        from_logits = "loss_binary" if loss.from_logits else "loss_binary_probabilities"
        names = {"binary_cross_entropy": from_logits, "squared_error": "loss_squared"}
        name = names.get(kernel, "")
    if not name:
        raise NotRecordableError(f"there is no instruction for the loss `{kernel}`")
    if isinstance(scale, Value):
        operands["d"] = scale
    else:
        settings["p"] = float(scale)
    settings["q"] = float(np.finfo(low.dtype).eps)
    low.by_rows(name, operands | {"b": target}, grad, **settings)


def _soft(low: Lowering, loss: Any, target: Value, prediction: Value) -> Value:
    """Append what makes soft targets of labels, or smooths and weights those that are soft."""
    soft = Value(prediction.shape, prediction.dtype, by_sample=True)
    low.sharing[soft] = ROWS
    classes = None
    if loss.class_weight is not None:
        classes = np.asarray(table_of(loss, loss.class_weight, prediction.shape[1]), low.dtype)
        low.held.append(classes)
    name = "soft_labels" if len(target.shape) == 1 else "soft_targets"
    low.by_rows(name, {"b": target}, soft, weights={"d": classes}, p=loss.label_smoothing)
    return soft


@lowers("class_mass")
def _class_mass(low: Lowering, operation: Operation) -> None:
    target, classes = operation.inputs
    (mass,) = operation.outputs
    if len(target.shape) == 1:
        low.sharing[mass] = OWN
        _each(
            low, "mass_of_labels", {"a": target, "c": mass}, n=classes.size, d=address_of(classes)
        )
        low.instructions[-1].reads.append(Access(memory_of(classes), ALL))
    else:
        low.by_rows(
            "mass_of_targets", {"a": target}, mass, weights={"d": classes}, columns=classes.size
        )


@lowers("mean_scale")
def _mean_scale(low: Lowering, operation: Operation) -> None:
    weight, mass = operation.inputs
    (scale,) = operation.outputs
    low.sharing[scale] = OWN
    given = {"a": weight, "b": mass}
    known = {word: value for word, value in given.items() if value is not None}
    _each(low, "mean_scale", known | {"c": scale})


def _each(low: Lowering, name: str, operands: dict[str, Value], **settings: Any) -> None:
    """Append an instruction that each thread runs for itself, over the whole batch."""

    def words(lane: Lane) -> dict[str, Any]:
        places = {word: lane.address(value, ALL) for word, value in operands.items()}
        return {"m": operands["c"].shape[0]} | places | settings

    reads = [low.at(value, ALL) for word, value in operands.items() if word != "c"]
    low.add(name, words, reads, [low.at(operands["c"])])
