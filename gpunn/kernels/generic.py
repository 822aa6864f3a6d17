"""Every kernel, in the functions of the Array API standard: the reference for all overrides.

Names: N samples (the first axis, always), K classes, P features. `grad` is the gradient of the
cost J with respect to an output. An argument marked as *owned* may be overwritten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

from array_api_compat import device

from gpunn._typing import Array, Namespace


class Formula(Protocol):
    """An activation function and its gradient, in the functions of the standard."""

    saves_output: bool

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return h = f(x)."""

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return dJ/dx, from dJ/dh and either h or x, whichever `saves_output` says."""


class Stretch(NamedTuple):
    """Some consecutive steps of an epoch, as they were made.

    Attributes
    ----------
    rows : slice
        Which turns of the epoch's order they took.
    costs, penalties : array (S,)
        J of each step before its update, and half the weight decay times the sum of squares.
    totals : array (S,) or None
        The sum of each batch's weights, if there are any.
    outputs : array or None
        The network's outputs before the updates, a row for each turn, if they were asked for.
    """

    rows: slice
    costs: Array
    penalties: Array
    totals: Array | None
    outputs: Array | None


class Steps(Protocol):
    """Makes many steps of training at a time."""

    def run(
        self, order: Any, stop: int, decays: Sequence[float], *, outputs: bool
    ) -> Iterator[Stretch]:
        """Train on the rows of the first `stop` turns of an order (None: as the data stand)."""


class Kernels:
    """The kernels over one library's namespace `xp`.

    Where a kernel takes `into`, it writes its result there, or for None makes a new array.
    """

    def __init__(self, xp: Namespace) -> None:
        self.xp = xp

    def threads(
        self,
        batch_size: int,  # noqa: ARG002
        values: Sequence[Array],  # noqa: ARG002
    ) -> AbstractContextManager[Any]:
        """Return a context for the products of batches with these: the number of host threads."""
        return nullcontext()

    def steps(  # noqa: PLR0917 (all that training is made of)
        self,
        model: Any,  # noqa: ARG002
        loss: Any,  # noqa: ARG002
        optimizer: Any,  # noqa: ARG002
        data: Any,  # noqa: ARG002
        batch_size: int,  # noqa: ARG002
        before: Any,  # noqa: ARG002
    ) -> Steps | None:
        """Return what trains a model on rows of the data, many steps at a time.

        That may be the one `before`, if nothing has changed. None says that it is one step after
        the other: always, but for overrides.
        """
        return None

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

    # Losses: each returns the loss of each sample times its scale (N,), or if `summed` the sum of
    # those, 0-d; and the gradient of the sum. `scale` is a number, 0-d, or an array (N,); it
    # carries the mean's 1/N and the weights.

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

    def softmax_cross_entropy(
        self, logits: Array, labels: Array, scale: Any, *, summed: bool = False
    ) -> tuple[Array, Array]:
        """Return scale * -log softmax(logits)[label] and scale * (softmax(logits) - onehot).

        `logits` (N, K); `labels` (N,), integers in [0, K); outside of it both results are NaN.
        """
        targets = self.one_hot(labels, logits)
        return self.softmax_cross_entropy_soft(logits, targets, scale, summed=summed)

    def softmax_cross_entropy_soft(
        self, logits: Array, targets: Array, scale: Any, *, summed: bool = False
    ) -> tuple[Array, Array]:
        """Return scale * -sum_k t_k log softmax(logits)_k, and its gradient.

        `logits` and `targets` (N, K). The targets need not sum to one: the gradient is
        scale * (softmax(logits) * sum_k t_k - t).
        """
        xp = self.xp
        shifted = logits - xp.max(logits, axis=1, keepdims=True)
        exponentials = xp.exp(shifted)
        total = xp.sum(exponentials, axis=1, keepdims=True)
        mass = xp.sum(targets, axis=1, keepdims=True)
        losses = mass[:, 0] * xp.log(total[:, 0]) - xp.sum(targets * shifted, axis=1)
        grad = exponentials * (mass / total)
        grad -= targets
        return self._scaled(losses, grad, scale, summed)

    def sigmoid_binary_cross_entropy(
        self, logits: Array, target: Array, scale: Any, *, summed: bool = False
    ) -> tuple[Array, Array]:
        """Return scale * sum over outputs of log(1 + e^z) - y z, and scale * (sigmoid(z) - y).

        `logits` and `target` (N, P). In the form max(z, 0) - y z + log(1 + e^-|z|) nothing
        overflows.
        """
        xp = self.xp
        small = xp.exp(-xp.abs(logits))
        positive = xp.maximum(logits, 0.0)
        losses = positive - target * logits + xp.log1p(small)
        grad = xp.exp(logits - positive) / (1.0 + small)
        grad -= target
        return self._scaled(xp.sum(losses, axis=1), grad, scale, summed)

    def squared_error(
        self, prediction: Array, target: Array, scale: Any, *, summed: bool = False
    ) -> tuple[Array, Array]:
        """Return scale * 1/2 sum over outputs of (prediction - target)^2, and its gradient."""
        error = prediction - target
        losses = 0.5 * self.xp.sum(error * error, axis=1)
        return self._scaled(losses, error, scale, summed)

    def _scaled(
        self,
        losses: Array,
        grad: Array,
        scale: Any,
        summed: bool,  # noqa: FBT001
    ) -> tuple[Array, Array]:
        """Return the losses (N,) or their sum, and the gradient, times the scale of each sample."""
        losses = scale * losses
        by_row = scale[:, None] if hasattr(scale, "shape") and scale.shape else scale
        return (self.total(losses) if summed else losses), by_row * grad

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

    def sgd(
        self,
        values: list[Array],
        grads: list[Array],
        velocities: list[Array],
        *,
        learning_rate: float,
        momentum: float,
        nesterov: bool,
        decays: list[float],
        clip_norm: float | None,
        clip_value: float | None,
    ) -> None:
        """Update `values` (and `velocities`, if there is momentum) in place; `grads` are owned.

        g is the gradient, clipped to +-clip_value, then scaled so that the norm of all is at most
        clip_norm, plus decay * value. Without momentum, value -= learning_rate * g. With it,
        velocity = momentum * velocity - learning_rate * g, and value += velocity, or with
        Nesterov's look-ahead value += momentum * velocity - learning_rate * g.
        """
        grads = self._regularised(values, grads, decays, clip_norm, clip_value)
        for grad in grads:
            grad *= learning_rate
        if not velocities:
            for value, grad in zip(values, grads, strict=True):
                value -= grad
            return
        for value, grad, velocity in zip(values, grads, velocities, strict=True):
            velocity *= momentum
            velocity -= grad
            value += momentum * velocity - grad if nesterov else velocity

    def adam(
        self,
        values: list[Array],
        grads: list[Array],
        firsts: list[Array],
        seconds: list[Array],
        *,
        rate: float,
        beta_1: float,
        beta_2: float,
        epsilon: float,
        decays: list[float],
        clip_norm: float | None,
        clip_value: float | None,
    ) -> None:
        """Update `values` and their moments in place; `grads` are owned.

        With g as in `sgd`, first = beta_1 * first + (1 - beta_1) * g,
        second = beta_2 * second + (1 - beta_2) * g^2, and
        value -= rate * first / (sqrt(second) + epsilon).
        """
        grads = self._regularised(values, grads, decays, clip_norm, clip_value)
        for value, grad, first, second in zip(values, grads, firsts, seconds, strict=True):
            first *= beta_1
            first += (1.0 - beta_1) * grad
            grad *= grad
            grad *= 1.0 - beta_2
            second *= beta_2
            second += grad
            scale = self.xp.sqrt(second)
            scale += epsilon
            step = rate * first
            step /= scale
            value -= step

    def _regularised(
        self,
        values: list[Array],
        grads: list[Array],
        decays: list[float],
        clip_norm: float | None,
        clip_value: float | None,
    ) -> list[Array]:
        """Return what an update takes for the gradients: clipped, then decayed."""
        if clip_norm is not None or clip_value is not None:
            grads = self._clipped(grads, clip_norm, clip_value)
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
