"""Every kernel, in the functions of the Array API standard: the reference for all overrides.

Names: N samples (the first axis, always), K classes, P features. `grad` is the gradient of the
cost J with respect to an output. An argument marked as *owned* may be overwritten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any, ClassVar, Protocol

from array_api_compat import device

from gpunn._typing import Array, Namespace, Shape
from gpunn.kernels.declared import kernel_of
from gpunn.kernels.update import Update


class Formula(Protocol):
    """An activation function and its gradient, in the functions of the standard."""

    saves_output: bool

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return h = f(x)."""

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return dJ/dx, from dJ/dh and either h or x, whichever `saves_output` says."""


class LossFormula(Protocol):
    """A loss and its gradient, as written."""

    def compute(
        self, prediction: Array, target: Array, scale: Any, *, summed: bool
    ) -> tuple[Array, Array]:
        """Return scale * L (N,), or if `summed` its sum, and the gradient of the sum."""


class Rule(Protocol):
    """What an optimizer makes of a gradient, in the functions of the standard."""

    def update(
        self, xp: Namespace, value: Array, grad: Array, states: list[Array], step_size: float
    ) -> None:
        """Update a value and what is kept beside it, in place; the gradient is used up."""


class Kernels:
    """The kernels over one library's namespace `xp`.

    Where a kernel takes `into`, it writes its result there, or for None makes a new array.
    """

    #: Whether what is called often is compiled on this machine: recorded steps are, too, then.
    compiled: ClassVar[bool] = False

    def __init__(self, xp: Namespace) -> None:
        self.xp = xp
        #: Fused forms of losses and updates, by the kernel that their class names: the methods
        #: `fused_...`, which return NotImplemented for arguments that they do not serve.
        self._fused: dict[str | None, Callable[..., Any]] = {
            name.removeprefix("fused_"): getattr(self, name)
            for name in dir(type(self))
            if name.startswith("fused_")
        }

    def threads(
        self,
        batch_size: int,  # noqa: ARG002
        values: Sequence[Array],  # noqa: ARG002
    ) -> AbstractContextManager[Any]:
        """Return a context for the products of batches with these: the number of host threads."""
        return nullcontext()

    # Layers

    def product(self, x: Array, y: Array, into: Array | None = None) -> Array:
        """Return the matrix product of x (N, P) and y (P, Q)."""
        return _written(x @ y, into)

    def activation(self, x: Array, formula: Formula) -> Array:
        """Return h = f(x), with x left as it is."""
        return formula.function(self.xp, x)

    def bias_activation(
        self, z: Array, bias: Array | None, formula: Formula
    ) -> tuple[Array, Array]:
        """Return h = f(z + bias), and what the gradient of f needs: h or z + bias.

        `z` (N, P) is owned; `bias` is (P,) or None.
        """
        if bias is not None:
            z += bias
        h = formula.function(self.xp, z)
        return h, (h if formula.saves_output else z)

    def activation_backward(self, grad: Array, saved: Array, formula: Formula) -> Array:
        """Return dJ/dx of h = f(x)."""
        return formula.gradient(self.xp, grad, saved)

    def bias_activation_backward(
        self, grad: Array, saved: Array, formula: Formula, into: Array | None = None
    ) -> tuple[Array, Array]:
        """Return dJ/dz of h = f(z + bias), and dJ/d bias, which may go `into`."""
        grad = self.activation_backward(grad, saved, formula)
        return grad, self.column_sums(grad, into)

    def column_sums(self, x: Array, into: Array | None = None) -> Array:
        """Return the sums over the first axis."""
        return _written(self.xp.sum(x, axis=0), into)

    def convert(self, x: Array, dtype: Any) -> Array:
        """Return `x` in another dtype."""
        return self.xp.astype(x, dtype)

    def stack(self, arrays: Sequence[Array]) -> Array:
        """Return arrays of one shape as one, with a new first axis."""
        return self.xp.stack(arrays)

    def total(self, x: Array) -> Array:
        """Return the sum of all entries, 0-d, on the device."""
        return self.xp.sum(x)

    def dropout(self, x: Array, key: int, rate: float) -> tuple[Array, Array]:
        """Return x times a mask, and the mask: 0 with probability `rate`, else 1 / (1 - rate).

        Entry i of the flattened mask depends on `key` and i alone, in integer arithmetic, so it
        is the same on every backend.
        """
        xp = self.xp
        bits = splitmix64(xp, key, math.prod(x.shape), device(x))
        mask = xp.astype((bits >> 32) >= round(rate * 2**32), x.dtype)
        mask *= 1.0 / (1.0 - rate)
        mask = xp.reshape(mask, x.shape)
        return x * mask, mask

    def add(self, x: Array, y: Array) -> Array:
        """Return x + y, of arrays of one shape."""
        return x + y

    def multiply(self, x: Array, y: Array) -> Array:
        """Return x * y, of arrays of one shape."""
        return x * y

    def accumulate(self, total: Array, x: Array) -> None:
        """Add x to a sum, in place."""
        total += x

    def reshape(self, x: Array, shape: Shape) -> Array:
        """Return the entries of x in another shape."""
        return self.xp.reshape(x, shape)

    # Losses

    def loss(
        self, formula: LossFormula, prediction: Array, target: Array, scale: Any, *, summed: bool
    ) -> tuple[Array, Array]:
        """Return the loss of each sample times its scale (N,), or their sum; and its gradient.

        `scale` is a number, 0-d, or an array (N,); it carries the mean's 1/N and the weights.
        """
        fused = self._fused.get(kernel_of(formula))
        if fused is not None:
            result = fused(formula, prediction, target, scale, summed=summed)
            if result is not NotImplemented:
                computed: tuple[Array, Array] = result
                return computed
        return formula.compute(prediction, target, scale, summed=summed)

    def class_mass(self, target: Array, class_weight: Array) -> Array:
        """Return the weight of each sample's class (N,): sum_k y_k c_k.

        `target` is (N,), labels, or (N, K); `class_weight` is (K,). A label out of range has the
        weight of the nearest class: its loss is NaN in any case.
        """
        xp = self.xp
        if target.ndim == 2:
            return xp.sum(target * class_weight, axis=1)
        labels = xp.astype(target, xp.int64, copy=False)
        labels = self.clip(labels, 0, class_weight.shape[0] - 1)
        return xp.take(class_weight, labels, axis=0)

    def mean_scale(self, weight: Array | None, mass: Array | None) -> Array:
        """Return what multiplies each loss in a mean: w_i / sum_i w_i m_i, 0-d without weights.

        If no sample counts for anything it is 0 / 1, not 0 / 0.
        """
        total = self.total_mass(weight, mass)
        total = total + self.xp.astype(total == 0, total.dtype)
        return (1.0 if weight is None else weight) / total

    def total_mass(self, weight: Array | None, mass: Array | None) -> Array:
        """Return what a mean divides by, 0-d: the sum of weights, masses or their products."""
        if mass is None:
            return self.total(weight)
        return self.total(mass if weight is None else weight * mass)

    def one_hot(self, labels: Array, like: Array) -> Array:
        """Return labels (N,) as rows of zeros with a one, in the shape and dtype of `like` (N, K).

        The row of a label outside of [0, K) is NaN, so that it cannot pass for a number.
        """
        xp = self.xp
        labels = xp.astype(labels, xp.int64, copy=False)  # int8 cannot count to K = 200
        classes = xp.arange(like.shape[1], dtype=xp.int64, device=device(like))
        onehot = xp.astype(labels[:, None] == classes[None, :], like.dtype)
        valid = (labels >= 0) & (labels < like.shape[1])
        return xp.where(valid[:, None], onehot, math.nan)

    # Optimizers

    def lay_out(self, arrays: list[Array]) -> tuple[list[Array], list[Array]]:
        """Return blocks of memory that hold copies of the arrays, and each copy, a view of a block.

        The arrays are of one dtype, in one place. A kernel that runs over one block instead of many
        small arrays is called once. The standard knows no views: here each copy is a block.
        """
        copies = [self.xp.asarray(x, copy=True) for x in arrays]
        return copies, copies

    def sum_of_squares(self, arrays: list[Array]) -> Array:
        """Return the sum of the squares of all entries of all arrays, 0-d, on the device."""
        return sum(self.xp.sum(x * x) for x in arrays)

    def gradient_norm(self, grads: list[Array]) -> Array:
        """Return the Euclidean norm of all gradients taken together, 0-d, on the device."""
        return self.xp.sqrt(self.sum_of_squares(grads))

    def update(self, rule: Rule, update: Update) -> None:
        """Update all arrays of an update in place, by a rule; the gradients are used up.

        g is the gradient, clipped to +-clip_value, then scaled so that the norm of all is at most
        clip_norm, plus decay * value.
        """
        fused = self._fused.get(kernel_of(rule))
        if fused is not None and fused(rule, update) is not NotImplemented:
            return
        values, _, states, _ = update.slots
        for i, (value, grad) in enumerate(zip(values, self._regularised(update), strict=True)):
            kept = [state[i] for state in states]
            rule.update(self.xp, value, grad, kept, update.step_size)

    def _regularised(self, update: Update) -> list[Array]:
        """Return what a rule takes for the gradients: clipped, then decayed."""
        values, grads, _, decays = update.slots
        if update.clip_norm is not None or update.clip_value is not None:
            grads = self._clipped(grads, update.clip_norm, update.clip_value)
        for value, grad, decay in zip(values, grads, decays, strict=True):
            if decay:
                grad += decay * value
        return grads

    def _clipped(
        self, grads: list[Array], clip_norm: float | None, clip_value: float | None
    ) -> list[Array]:
        """Return the gradients, each entry in +-clip_value, all of norm clip_norm at most."""
        if clip_value is not None:
            grads = [self.clip(grad, -clip_value, clip_value) for grad in grads]
        if clip_norm is not None:
            # 1 where the norm is below clip_norm; it stays on the device, so nothing waits for it.
            shrink = clip_norm / self.xp.maximum(self.gradient_norm(grads), clip_norm)
            grads = [grad * shrink for grad in grads]
        return grads

    # Data

    def clip(self, x: Array, lowest: float, highest: float) -> Array:
        """Return `x` brought into [lowest, highest]; NaN stays NaN.

        Not the standard's `clip`, which array-api-compat builds for CuPy from boolean masks: the
        host waits for the device to count each of them.
        """
        return self.xp.minimum(self.xp.maximum(x, lowest), highest)

    def gather(self, arrays: Sequence[Array], indices: Array) -> list[Array]:
        """Return the rows of each array at `indices` (N,), all in range, as new arrays."""
        return [self.xp.take(x, indices, axis=0) for x in arrays]


def per_row(scale: Any) -> Any:
    """Return a loss's scale shaped to multiply rows: (N,) as a column (N, 1), a number as it is."""
    return scale[:, None] if getattr(scale, "ndim", 0) else scale


def in_one_block(
    arrays: list[Array], zeros: Callable[..., Array], alignment: int
) -> tuple[list[Array], list[Array]]:
    """Return one block with copies of the arrays, and each copy, a view of it.

    For libraries that know views. Each begins at a multiple of `alignment` bytes; what lies between
    them is zero.
    """
    step = alignment // arrays[0].itemsize
    starts = [0, *accumulate(-(-x.size // step) * step for x in arrays)]
    block = zeros(starts.pop(), arrays[0].dtype)
    places = zip(starts, arrays, strict=True)
    views = [block[start : start + x.size].reshape(x.shape) for start, x in places]
    for view, x in zip(views, arrays, strict=True):
        view[...] = x
    return [block], views


def _written(x: Array, into: Array | None) -> Array:
    """Return `x`, or `into` with the values of `x`."""
    if into is None:
        return x
    into[...] = x
    return into


def splitmix64(xp: Namespace, key: int, size: int, on: Any) -> Array:
    """Return `size` pseudo-random 64-bit integers; entry i depends on `key` and i alone.

    SplitMix64 is a counter that advances by an odd constant, followed by a mixing function of
    two multiplications and three shifts, modulo 2^64. A counter can be evaluated anywhere, in
    any order: on a GPU by one thread an entry.

    References
    ----------
    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    z = xp.arange(1, size + 1, dtype=xp.uint64, device=on)
    z *= 0x9E3779B97F4A7C15
    z += key
    z ^= z >> 30
    z *= 0xBF58476D1CE4E5B9
    z ^= z >> 27
    z *= 0x94D049BB133111EB
    z ^= z >> 31
    return z
