"""Lower the operations of dense layers, activations and dropout."""

from __future__ import annotations

import math
from typing import Any

from gpunn.kernels.activation_kinds import KINDS
from gpunn.program.lower import Lane, Lowering, kernel_in, lowers, moved
from gpunn.program.phases import ALL, ROWS
from gpunn.program.rewrite import BY_ROW
from gpunn.program.values import NotRecordableError, Operation, Value

#: Numbers of the activations whose gradient and column sums are one instruction.
_IN_ONE_PASS = {"relu": 0, "tanh": 1, "sigmoid": 2}


@lowers("product")
def _product(low: Lowering, operation: Operation) -> None:
    x, weight = operation.inputs
    (z,) = operation.outputs
    low.check(weight, x.dtype)
    low.count(x.shape[0] * weight.size)
    transposed = not weight.flags.c_contiguous
    name = "product_transposed" if transposed else "product"
    low.by_rows(name, {"a": x}, z, weights={"b": weight.T if transposed else weight}, k=x.width)


@lowers("product_over_batch")
def _product_over_batch(low: Lowering, operation: Operation) -> None:
    x, grad = operation.inputs
    (result,) = operation.outputs
    inputs, outputs, size = x.width, grad.width, low.dtype.itemsize
    low.count(x.shape[0] * inputs * outputs)
    target, place = low.target(result, inputs)

    def words(lane: Lane) -> dict[str, Any]:
        start, stop = lane.part(inputs)
        return {
            "m": stop - start,
            "n": outputs,
            "k": x.shape[0],
            "pitch": inputs,
            "a": moved(lane.address(x, ALL), start * size),
            "b": lane.address(grad, ALL),
            "c": place(lane) + start * outputs * size,
        }

    low.add("product_over_batch", words, [low.at(x, ALL), low.at(grad, ALL)], [target])


@lowers("bias_activation")
def _bias_activation(low: Lowering, operation: Operation) -> None:
    z, bias = operation.inputs
    h = operation.outputs[0]
    kernel = kernel_in(operation)
    done = kernel == "identity"
    if bias is not None:
        low.check(bias, low.dtype)
        done = done or (kernel == "relu" and len(operation.outputs) == 1)
        relu = done and kernel == "relu"
        if not low.fuse_bias(z, bias, relu=relu):
            low.by_rows("add_bias", {"a": z}, z, weights={"b": bias}, flag=int(relu))
    if not done:
        _activate(low, kernel, operation.formula, z, h)


@lowers("activation")
def _activation(low: Lowering, operation: Operation) -> None:
    (x,), (h,) = operation.inputs, operation.outputs
    _activate(low, kernel_in(operation), operation.formula, x, h)


def _activate(low: Lowering, kernel: str, formula: Any, x: Value, h: Value) -> None:
    name = kernel if kernel in BY_ROW else f"activation_{kernel}"
    low.by_rows(name, {"a": x}, h, **_sizes(kernel, h), p=_parameter(kernel, formula))


@lowers("activation_backward")
def _activation_backward(low: Lowering, operation: Operation) -> None:
    (grad, saved), (result,) = operation.inputs, operation.outputs
    kernel = kernel_in(operation)
    name = f"{kernel}_slope" if kernel in BY_ROW else f"slope_{kernel}"
    p = _parameter(kernel, operation.formula)
    low.by_rows(name, {"a": grad, "b": saved}, result, **_sizes(kernel, result), p=p)


@lowers("bias_activation_backward")
def _bias_activation_backward(low: Lowering, operation: Operation) -> None:
    (grad, saved), (dz, sums) = operation.inputs, operation.outputs
    kernel = kernel_in(operation)
    if kernel not in _IN_ONE_PASS:
        _activation_backward(
            low, Operation("activation_backward", (grad, saved), (dz,), operation.formula)
        )
        column_sums(low, Operation("column_sums", (dz,), (sums,)))
        return
    parts, place = low.parts_of_sum(sums, dz.width)
    per_sample = dz.shape[0] // low.n

    def words(lane: Lane) -> dict[str, Any]:
        return {
            "m": lane.rows * per_sample,
            "n": dz.width,
            "a": lane.address(grad, ROWS),
            "b": lane.address(saved, ROWS),
            "c": lane.address(dz, ROWS),
            "d": place(lane),
            "flag": _IN_ONE_PASS[kernel],
        }

    low.add("slope_and_sums", words, [low.at(grad), low.at(saved)], [low.at(dz), parts])
    low.add_up(parts, sums, dz.width)


@lowers("column_sums")
def column_sums(low: Lowering, operation: Operation) -> None:
    """Append instructions that sum the rows of a batch."""
    (x,), (sums,) = operation.inputs, operation.outputs
    parts, place = low.parts_of_sum(sums, x.width)
    per_sample = x.shape[0] // low.n

    def words(lane: Lane) -> dict[str, Any]:
        sizes = {"m": lane.rows * per_sample, "n": x.width}
        return sizes | {"a": lane.address(x, ROWS), "d": place(lane)}

    low.add("column_sums", words, [low.at(x)], [parts])
    low.add_up(parts, sums, x.width)


@lowers("add")
def _add(low: Lowering, operation: Operation) -> None:
    (x, y), (result,) = operation.inputs, operation.outputs
    low.by_rows("add", {"a": x, "b": y}, result)


@lowers("multiply")
def _multiply(low: Lowering, operation: Operation) -> None:
    (x, y), (result,) = operation.inputs, operation.outputs
    low.by_rows("multiply", {"a": x, "b": y}, result)


@lowers("dropout")
def _dropout(low: Lowering, operation: Operation) -> None:
    (x, key), (y, mask) = operation.inputs, operation.outputs
    rate, per_sample = operation.settings["rate"], y.shape[0] // low.n
    low.by_rows(
        "dropout",
        {"a": x, "d": mask},
        y,
        k=key.index,
        e=low.recording.n_keys,
        flag=lambda lane: lane.first * per_sample,
        limit=round(rate * 2**32),
        p=1.0 / (1.0 - rate),
    )
    low.instructions[-1].writes.append(low.at(mask))


@lowers("accumulate")
def _accumulate(low: Lowering, operation: Operation) -> None:
    (x,), (total,) = operation.inputs, operation.outputs
    n, width, size = x.shape[0], x.width, low.dtype.itemsize
    source, place = low.target(x, n)
    target, into = low.target(total, n)

    def words(lane: Lane) -> dict[str, Any]:
        start, stop = lane.part(n)
        skipped = start * width * size
        m = (stop - start) * width
        return {"m": m, "a": place(lane) + skipped, "c": into(lane) + skipped}

    low.add("accumulate", words, [source, target], [target])


@lowers("convert")
def _convert(low: Lowering, operation: Operation) -> None:
    (x,), (result,) = operation.inputs, operation.outputs
    y = low.recording.y
    if y is None or low.root(x) is not y or result.dtype != low.dtype:
        raise NotRecordableError("only targets are converted in a recorded step")
    low.y_dtype = low.dtype
    low.sharing[y] = ROWS
    low.alias(result, y)


def _sizes(kernel: str, value: Value) -> dict[str, Any]:
    """Return the number and length of the rows, for an activation of whole rows."""
    if kernel not in BY_ROW:
        return {}
    return {"rows": math.prod(value.shape[:-1]), "columns": value.shape[-1]}


def _parameter(kernel: str, formula: Any) -> float:
    name = KINDS[kernel].parameter if kernel in KINDS else None
    return 0.0 if name is None else float(getattr(formula, name))
