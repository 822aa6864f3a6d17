"""Every kernel, in functions of the Array API standard: the reference for all overrides.

Names: N samples (always the first axis), K classes, P features. `grad` is the gradient of the
cost J with respect to an output. Kernels leave their arguments unchanged, except for those whose
docstring says *owned*: these may be overwritten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, ClassVar

from gpunn._typing import Array, Namespace, Shape
from gpunn.kernels.attention import AttentionKernels
from gpunn.kernels.columns import ColumnKernels
from gpunn.kernels.convolution import ConvolutionKernels
from gpunn.kernels.declared import kernel_of
from gpunn.kernels.formulas import ActivationFormula, LossFormula, UpdateRule
from gpunn.kernels.lookup import LookupKernels
from gpunn.kernels.norm import NormKernels
from gpunn.kernels.pooling import PoolingKernels
from gpunn.kernels.prelu import PReLUKernels
from gpunn.kernels.random import splitmix64
from gpunn.kernels.rules import Fused, fused_rule
from gpunn.kernels.update import Update


class Kernels(
    AttentionKernels,
    ColumnKernels,
    ConvolutionKernels,
    LookupKernels,
    NormKernels,
    PReLUKernels,
    PoolingKernels,
):
    """The kernels for one library's arrays.

    A kernel with an argument `into` writes its result there; if it is None, to a new array.

    A subclass may override a kernel. It may also add *fused* kernels for single formulas: a method
    ``fused_squared_error`` serves the losses whose class declares ``kernel = "squared_error"`` (see
    `gpunn.kernels.declared`). It returns NotImplemented for arguments that it does not serve; the
    formula then runs as written. `_update_fused` serves optimizers' rules.

    Parameters
    ----------
    xp : namespace
        The library's functions of the standard.
    """

    #: Whether numba compiles kernels, and recorded steps, for these arrays.
    compiled: ClassVar[bool] = False

    def __init__(self, xp: Namespace) -> None:
        self.xp = xp
        kind: Any = type(self)
        #: The methods `fused_<name>`, by name.
        self._fused: dict[str | None, Callable[..., Any]] = {
            name.removeprefix("fused_"): getattr(self, name) for name in _fused_in(kind)
        }

    def keep_memory(self) -> None:
        """Keep the memory that a training step frees for the next step, if not automatic."""

    def threads(
        self,
        batch_size: int,  # noqa: ARG002
        values: Sequence[Array],  # noqa: ARG002
    ) -> AbstractContextManager[Any]:
        """Return a context for training or prediction: it sets the number of BLAS threads.

        Parameters
        ----------
        batch_size : int
        values : sequence of array
            The parameters of the model.
        """
        return nullcontext()

    # Layers

    def product(self, x: Array, y: Array, into: Array | None = None) -> Array:
        """Return the matrix product of x (N, P) and y (P, Q)."""
        return _written(x @ y, into)

    def activation(self, x: Array, formula: ActivationFormula) -> Array:
        """Return h = f(x)."""
        return formula.function(self.xp, x)

    def bias_activation(
        self, z: Array, bias: Array | None, formula: ActivationFormula
    ) -> tuple[Array, Array]:
        """Return h = f(z + bias), and the array that the gradient of f needs: h or z + bias.

        `z` (N, P) is owned; `bias` is (P,) or None.
        """
        if bias is not None:
            z += bias
        h = formula.function(self.xp, z)
        return h, (h if formula.saves_output else z)

    def activation_backward(self, grad: Array, saved: Array, formula: ActivationFormula) -> Array:
        """Return dJ/dx for h = f(x)."""
        return formula.gradient(self.xp, grad, saved)

    def bias_activation_backward(
        self, grad: Array, saved: Array, formula: ActivationFormula, into: Array | None = None
    ) -> tuple[Array, Array]:
        """Return dJ/dz for h = f(z + bias), and dJ/d bias (written `into`)."""
        grad = self.activation_backward(grad, saved, formula)
        return grad, self.column_sums(grad, into)

    def column_sums(self, x: Array, into: Array | None = None) -> Array:
        """Return the sums over the first axis."""
        return _written(self.xp.sum(x, axis=0), into)

    def convert(self, x: Array, dtype: Any) -> Array:
        """Return `x` in another dtype."""
        return self.xp.astype(x, dtype)

    def stack(self, arrays: Sequence[Array]) -> Array:
        """Return arrays of equal shapes, joined along a new first axis."""
        return self.xp.stack(arrays)

    def total(self, x: Array) -> Array:
        """Return the sum of all entries, 0-d, on the device."""
        return self.xp.sum(x)

    def dropout(self, x: Array, key: Any, rate: float) -> tuple[Array, Array]:
        """Return x times a mask, and the mask: 0 with probability `rate`, else 1 / (1 - rate).

        Entry i of the flattened mask is computed from `key` and i in integer arithmetic, so it is
        the same on every backend.
        """
        xp = self.xp
        bits = splitmix64(xp, key, math.prod(x.shape), x.device)
        mask = xp.astype((bits >> 32) >= round(rate * 2**32), x.dtype)
        mask *= 1.0 / (1.0 - rate)
        mask = xp.reshape(mask, x.shape)
        return x * mask, mask

    def add(self, x: Array, y: Array) -> Array:
        """Return x + y for arrays of equal shapes."""
        return x + y

    def multiply(self, x: Array, y: Array) -> Array:
        """Return x * y for arrays of equal shapes."""
        return x * y

    def accumulate(self, total: Array, x: Array) -> None:
        """Add x to `total`, in place."""
        total += x

    def reshape(self, x: Array, shape: Shape) -> Array:
        """Return x in another shape."""
        return self.xp.reshape(x, shape)

    # Losses

    def loss(
        self, formula: LossFormula, prediction: Array, target: Array, scale: Any, *, summed: bool
    ) -> tuple[Array, Array]:
        """Return scale * L (N,), or its sum if `summed`; and the gradient of the sum.

        `scale` is a number or an array, 0-d or (N,). It includes the mean's 1/N and the weights.
        """
        fused = self._fused.get(kernel_of(formula))
        if fused is not None:
            result = fused(formula, prediction, target, scale, summed=summed)
            if result is not NotImplemented:
                computed: tuple[Array, Array] = result
                return computed
        return formula.compute(prediction, target, scale, summed=summed)

    def class_mass(self, target: Array, class_weight: Array) -> Array:
        """Return the class weight of each sample (N,): sum_k y_k c_k.

        `target` holds labels (N,) or probabilities (N, K); `class_weight` is (K,). A label out of
        range gets the weight of the nearest class; its loss is NaN in any case.
        """
        xp = self.xp
        if target.ndim == 2:
            return xp.sum(target * class_weight, axis=1)
        labels = xp.astype(target, xp.int64, copy=False)
        labels = self.clip(labels, 0, class_weight.shape[0] - 1)
        return xp.take(class_weight, labels, axis=0)

    def count_labels(self, labels: Array, ignored: int, like: Array) -> Array:
        """Return the number of labels in each row of (N, T) that are not `ignored`, as (N,).

        The dtype is that of `like`.
        """
        xp = self.xp
        labels = xp.astype(labels, xp.int64, copy=False)
        return xp.sum(xp.astype(labels != ignored, like.dtype), axis=1)

    def mean_scale(self, weight: Array | None, mass: Array | None) -> Array:
        """Return the scale of each loss in a weighted mean: w_i / sum_i w_i m_i.

        `weight` w holds sample weights (N,); `mass` m (N,) is a further weight of each sample, of
        its class or its number of labels. None stands for ones; at most one is None. The result is
        0-d without sample weights. A divisor of 0 is replaced by 1: then all weights are 0, and so
        is the mean.
        """
        total = self.total_mass(weight, mass)
        total = total + self.xp.astype(total == 0, total.dtype)
        return (1.0 if weight is None else weight) / total

    def total_mass(self, weight: Array | None, mass: Array | None) -> Array:
        """Return the divisor of a weighted mean, 0-d: sum_i w_i m_i; see `mean_scale`."""
        if mass is None:
            return self.total(weight)
        return self.total(mass if weight is None else weight * mass)

    def one_hot(self, labels: Array, like: Array) -> Array:
        """Return labels (N,) as one-hot rows, in the shape and dtype of `like` (N, K).

        A label outside [0, K) gives a row of NaN, so that the mistake shows in the loss.
        """
        xp = self.xp
        labels = xp.astype(labels, xp.int64, copy=False)  # int8 cannot hold K = 200
        classes = xp.arange(like.shape[1], dtype=xp.int64, device=like.device)
        onehot = xp.astype(labels[:, None] == classes[None, :], like.dtype)
        valid = (labels >= 0) & (labels < like.shape[1])
        return xp.where(valid[:, None], onehot, math.nan)

    # Optimizers

    def copy_to_blocks(self, arrays: list[Array]) -> tuple[list[Array], list[Array]]:
        """Copy arrays into blocks of memory; return the blocks, and each copy as a view of a block.

        The arrays have the same dtype and device. A kernel then runs once over a block, not once
        for each small array. The standard has no views, so here each copy is its own block.
        """
        copies = [self.xp.asarray(x, copy=True) for x in arrays]
        return copies, copies

    def sum_of_squares(self, arrays: list[Array]) -> Array:
        """Return the sum of the squares of all entries of all arrays, 0-d on the device."""
        return sum(self.xp.sum(x * x) for x in arrays)

    def gradient_norm(self, grads: list[Array]) -> Array:
        """Return the Euclidean norm of all gradients taken together, 0-d on the device."""
        return self.xp.sqrt(self.sum_of_squares(grads))

    def update(self, rule: UpdateRule, update: Update) -> None:
        """Apply a rule to all arrays of an update, in place; the gradients are owned.

        The rule gets g: the gradient clipped to +-clip_value, then scaled so that the norm of all
        gradients is at most clip_norm, plus decay * value. If the decay is decoupled, the value
        loses decay * value instead.
        """
        fused = fused_rule(rule)
        if fused is not None and self._update_fused(fused, update):
            return
        if update.present is not None:
            raise TypeError(f"{type(rule).__name__} has no kernel that reads its numbers there")
        values, _, states, _ = update.slots
        for i, (value, grad) in enumerate(zip(values, self._regularised(update), strict=True)):
            kept = [state[i] for state in states]
            rule.update(self.xp, value, grad, kept, update.step_size)

    def _update_fused(self, rule: Fused, update: Update) -> bool:  # noqa: ARG002
        """Do the same in fused kernels, if they know the rule; return whether they did."""
        return False

    def _regularised(self, update: Update) -> list[Array]:
        """Return the clipped gradients for a rule; apply decay to them or to the values."""
        values, grads, _, decays = update.slots
        if update.clip_norm is not None or update.clip_value is not None:
            grads = self._clipped(grads, update.clip_norm, update.clip_value)
        for value, grad, decay in zip(values, grads, decays, strict=True):
            if decay and update.decoupled:
                value *= 1.0 - update.decay_factor * decay
            elif decay:
                grad += update.decay_factor * decay * value
        return grads

    def _clipped(
        self, grads: list[Array], clip_norm: float | None, clip_value: float | None
    ) -> list[Array]:
        """Return the gradients with entries clipped to +-clip_value, then the norm to clip_norm."""
        if clip_value is not None:
            grads = [self.clip(grad, -clip_value, clip_value) for grad in grads]
        if clip_norm is not None:
            # 1 if the norm is below clip_norm; it stays on the device, so the host does not wait.
            shrink = clip_norm / self.xp.maximum(self.gradient_norm(grads), clip_norm)
            grads = [grad * shrink for grad in grads]
        return grads

    # Data

    def clip(self, x: Array, lowest: float, highest: float) -> Array:
        """Return `x` limited to [lowest, highest]; NaN stays NaN.

        This is not the standard's `clip`: array-api-compat builds that for CuPy from boolean masks,
        and the host waits while the device counts each of them.
        """
        return self.xp.minimum(self.xp.maximum(x, lowest), highest)

    def gather(self, arrays: Sequence[Array], indices: Array) -> list[Array]:
        """Return the rows of each array at `indices` (N,), as new arrays; all are in range."""
        return [self.xp.take(x, indices, axis=0) for x in arrays]


@cache
def _fused_in(kind: Any) -> list[str]:
    """Return the names of a class's methods `fused_<name>`; cached for recordings' kernels."""
    return [name for name in dir(kind) if name.startswith("fused_")]


def _written(x: Array, into: Array | None) -> Array:
    """Return `x`, or if `into` is given, `into` with the values of `x` written to it."""
    if into is None:
        return x
    into[...] = x
    return into
