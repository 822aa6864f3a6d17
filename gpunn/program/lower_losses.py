"""Lower losses, and the weights of samples and classes."""

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
        raise NotRecordableError("the loss is not reduced to a single number")
    if kernel in ("softmax_cross_entropy", "cross_entropy"):
        name, target = _cross_entropy(low, loss, kernel, target, prediction)
        settings: dict[str, Any] = {}
    elif kernel == "sequence_cross_entropy":
        name = "loss_sequence"
        sizes = {"k": prediction.shape[1], "columns": prediction.shape[2]}
        settings = sizes | {"limit": loss.ignore_label, "r": loss.label_smoothing}
    else:
        name, settings = _instruction_of(loss, kernel)
    operands = {"a": prediction, "b": target}
    if isinstance(scale, Value):
        operands["d"] = scale
    else:
        settings["p"] = float(scale)
    settings["q"] = float(np.finfo(low.dtype).eps)
    low.by_rows(name, operands, grad, **settings)


def _instruction_of(loss: Any, kernel: str) -> tuple[str, dict[str, Any]]:
    """Return the instruction of a loss that reads its target unchanged, and its words."""
    if kernel in BY_OUTPUT:
        return f"loss_{kernel}", {"r": parameter_of(loss)}
    if kernel == "squared_error":
        return "loss_squared", {}
    if kernel == "binary_cross_entropy":
        return "loss_binary" if loss.from_logits else "loss_binary_probabilities", {}
    if kernel == "cosine_distance":
        return "loss_cosine", {"r": loss.epsilon}
    if kernel == "kl_divergence":
        return ("loss_softmax_soft", {"flag": 1}) if loss.from_logits else ("loss_logarithms", {})
    raise NotRecordableError(f"there is no instruction for the loss `{kernel}`")


def _cross_entropy(
    low: Lowering, loss: Any, kernel: str, target: Value, prediction: Value
) -> tuple[str, Value]:
    """Return the instruction of a cross-entropy, and the target that it reads."""
    plain = loss.class_weight is None and not loss.label_smoothing
    labels, of_logits = len(target.shape) == 1, kernel == "softmax_cross_entropy"
    if labels and plain and of_logits:
        return "loss_softmax_labels", target
    if labels or not plain:
        target = _soft_target(low, loss, target, prediction)
    return "loss_softmax_soft" if of_logits else "loss_cross_entropy", target


def _soft_target(low: Lowering, loss: Any, target: Value, prediction: Value) -> Value:
    """Append an instruction that smooths and weights targets, which may be labels; return them."""
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
        operands = {"a": target, "c": mass}
        _add_per_thread(low, "mass_of_labels", operands, n=classes.size, d=address_of(classes))
        low.instructions[-1].reads.append(Access(memory_of(classes), ALL))
    else:
        low.by_rows(
            "mass_of_targets", {"a": target}, mass, weights={"d": classes}, columns=classes.size
        )


@lowers("count_labels")
def _count_labels(low: Lowering, operation: Operation) -> None:
    (labels,), (mass,) = operation.inputs, operation.outputs
    ignored = operation.settings["ignored"]
    low.by_rows("count_labels", {"a": labels}, mass, columns=labels.width, limit=ignored)


@lowers("mean_scale")
def _mean_scale(low: Lowering, operation: Operation) -> None:
    weight, mass = operation.inputs
    (scale,) = operation.outputs
    low.sharing[scale] = OWN
    given = {"a": weight, "b": mass}
    known = {word: value for word, value in given.items() if value is not None}
    _add_per_thread(low, "mean_scale", known | {"c": scale})


def _add_per_thread(low: Lowering, name: str, operands: dict[str, Value], **settings: Any) -> None:
    """Append an instruction that every thread runs over the whole batch."""

    def words(lane: Lane) -> dict[str, Any]:
        places = {word: lane.address(value, ALL) for word, value in operands.items()}
        return {"m": operands["c"].shape[0]} | places | settings

    reads = [low.at(value, ALL) for word, value in operands.items() if word != "c"]
    low.add(name, words, reads, [low.at(operands["c"])])
