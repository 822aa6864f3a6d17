"""Kernels of layers and losses that record their calls."""

from __future__ import annotations

import math
from typing import Any

from gpunn._typing import Array, Shape
from gpunn.kernels.declared import kernel_of
from gpunn.kernels.formulas import ActivationFormula
from gpunn.program.recorder import Recorder, Traced, is_batch, value_of
from gpunn.program.stand_ins_convolution import RecordingConvolutions
from gpunn.program.stand_ins_norm import RecordingNorms
from gpunn.program.stand_ins_prelu import RecordingPReLU
from gpunn.program.stand_ins_sequences import RecordingSequences
from gpunn.program.values import Key, Value, refuse


class RecordingKernels(
    RecordingConvolutions, RecordingNorms, RecordingPReLU, RecordingSequences, Recorder
):
    """All kernels, recording their calls; its bases add those of some subjects."""

    # Layers

    def product(self, x: Any, y: Any, into: Array | None = None) -> Any:
        """Record x @ y: batch @ weight, or batch.T @ batch as for a weight's gradient."""
        if is_batch(x) and not isinstance(y, Traced):
            return self._add("product", (x, y), (x.shape[0], y.shape[1]), x.dtype, into=into)
        if isinstance(x, Traced) and x.transposed and is_batch(y):
            shape = x.shape[0], y.shape[1]
            return self._add(
                "product_over_batch", (x.T, y), shape, y.dtype, into=into, by_sample=False
            )
        return refuse("a product that is neither batch @ weight nor batch.T @ batch")

    def activation(self, x: Any, formula: ActivationFormula) -> Any:
        """Record h = f(x)."""
        if _kernel_name(formula) == "identity":
            return x
        return self._add("activation", (x,), x.shape, x.dtype, formula=formula)

    def bias_activation(
        self, z: Any, bias: Array | None, formula: ActivationFormula
    ) -> tuple[Any, Any]:
        """Record h = f(z + bias); h overwrites z if f's gradient needs only h."""
        kernel = _kernel_name(formula)
        if bias is None and kernel == "identity":
            return z, z
        result = Value(z.shape, z.dtype, by_sample=True, storage=z.value)
        if formula.saves_output:
            self._append("bias_activation", (z, bias), (result,), formula)
            return (Traced(result, self),) * 2
        h = Value(z.shape, z.dtype, by_sample=True)
        self._append("bias_activation", (z, bias), (h, result), formula)
        return Traced(h, self), Traced(result, self)

    def activation_backward(self, grad: Any, saved: Any, formula: ActivationFormula) -> Any:
        """Record dJ/dx of h = f(x)."""
        if _kernel_name(formula) == "identity":
            return grad
        return self._add(
            "activation_backward", (grad, saved), grad.shape, grad.dtype, formula=formula
        )

    def bias_activation_backward(
        self, grad: Any, saved: Any, formula: ActivationFormula, into: Array | None = None
    ) -> tuple[Any, Any]:
        """Record dJ/dz and its column sums, the gradient of the bias."""
        if _kernel_name(formula) == "identity":
            return grad, self.column_sums(grad, into)
        dz = Value(grad.shape, grad.dtype, by_sample=True)
        sums = self._result(into, grad.shape[1:], grad.dtype)
        self._append("bias_activation_backward", (grad, saved), (dz, value_of(sums)), formula)
        return Traced(dz, self), sums

    def column_sums(self, x: Any, into: Array | None = None) -> Any:
        """Record the sums over the batch."""
        return self._add("column_sums", (x,), x.shape[1:], x.dtype, into=into, by_sample=False)

    def convert(self, x: Any, dtype: Any) -> Any:
        """Record a change of dtype."""
        return x if x.dtype == dtype else self._add("convert", (x,), x.shape, dtype)

    def dropout(self, x: Any, key: Any, rate: float) -> tuple[Any, Any]:
        """Record x times a mask, and the mask."""
        if not isinstance(key, Key):
            refuse("a random mask with a key that the tape did not draw")
        y, mask = (Value(x.shape, x.dtype, by_sample=True) for _ in range(2))
        self._append("dropout", (x, key), (y, mask), settings={"rate": rate})
        return Traced(y, self), Traced(mask, self)

    def add(self, x: Any, y: Any) -> Any:
        """Record x + y, of equal shapes."""
        return self._add_elementwise("add", x, y)

    def multiply(self, x: Any, y: Any) -> Any:
        """Record x * y, of equal shapes."""
        return self._add_elementwise("multiply", x, y)

    def accumulate(self, total: Any, x: Any) -> None:
        """Record total += x, of a gradient and another part of it."""
        if not isinstance(x, Traced) or x.transposed or x.value.by_sample:
            refuse("adding something other than a gradient to a gradient")
        self._append("accumulate", (x,), (value_of(total),))

    def reshape(self, x: Any, shape: Shape) -> Any:
        """Return the same memory in another shape that keeps each sample's entries together."""
        if not is_batch(x) or shape[0] % self.batch_size or math.prod(shape) != x.size:
            refuse("a change of shape that mixes samples")
        return Traced(Value(tuple(shape), x.dtype, by_sample=True, storage=x.value), self)

    # Losses

    def loss(
        self, formula: Any, prediction: Any, target: Any, scale: Any, *, summed: bool
    ) -> tuple[Any, Any]:
        """Record the cost, or the scaled loss of each sample, and the gradient."""
        if kernel_of(formula) is None:
            refuse(f"the formula of {type(formula).__name__}")
        cost = Value(() if summed else prediction.shape[:1], prediction.dtype, by_sample=not summed)
        grad = Value(prediction.shape, prediction.dtype, by_sample=True)
        inputs = (prediction, target, scale)
        self._append("loss", inputs, (cost, grad), formula, {"summed": summed})
        return Traced(cost, self), Traced(grad, self)

    def class_mass(self, target: Any, class_weight: Array) -> Any:
        """Record the weight of each sample's class."""
        shape = target.shape[:1]
        return self._add("class_mass", (target, class_weight), shape, class_weight.dtype)

    def count_labels(self, labels: Any, ignored: int, like: Any) -> Any:
        """Record the number of labels of each sample that are not `ignored`."""
        mass = Value(labels.shape[:1], like.dtype, by_sample=True)
        self._append("count_labels", (labels,), (mass,), settings={"ignored": ignored})
        return Traced(mass, self)

    def mean_scale(self, weight: Any, mass: Any) -> Any:
        """Record the factor of each loss in a weighted mean."""
        like = mass if weight is None else weight
        return self._add("mean_scale", (weight, mass), like.shape, like.dtype)


def _kernel_name(formula: Any) -> str:
    """Return the kernel that a formula names; refuse a formula without one."""
    kernel = kernel_of(formula)
    return refuse(f"the formula of {type(formula).__name__}") if kernel is None else kernel


def batch_input(recorder: RecordingKernels, shape: Shape, dtype: Any) -> Traced:
    """Return a stand-in for an array of the batch."""
    recorder.batch_size = shape[0]
    return Traced(Value(shape, dtype, by_sample=True), recorder)
