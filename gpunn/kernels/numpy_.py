"""Kernels for NumPy: the same sums with fewer passes over memory and fewer calls.

On small arrays a call costs more than its arithmetic: `np.sum` is a Python function around
`np.add.reduce`, and each temporary is an allocation. `bench/kernels.py` shows what each override
gains; what gains nothing is not here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from threading import RLock
from typing import Any

import numpy as np

from gpunn._typing import Array, Namespace
from gpunn.kernels.declared import kernel_of
from gpunn.kernels.reference import Formula, Kernels, in_one_block, per_row

#: Constant arrays are kept in so many shapes; who uses more shapes makes them anew.
_MOST_CONSTANTS = 64

#: Constant arrays have at most so many entries, or one row.
_PIECE = 1 << 14

#: Products of up to so many multiplications are left to one thread.
_WORK_OF_ONE_THREAD = 1 << 21

#: Up to so many classes are summed down a column, term by term; the generic twin sums pairwise.
_FEW_CLASSES = 64

#: A little less than the largest block that glibc's allocator learns from, in bytes.
_LARGE_BLOCK = (32 << 20) - (1 << 16)

# NumPy takes an array without axes sooner than a number.
_ONE = np.ones((), np.int64)
_ZERO, _MINUS_ONE = np.zeros((), np.float32), np.full((), -1.0, np.float32)


class NumpyKernels(Kernels):
    """The kernels that pay for an override; the others are the generic ones."""

    def __init__(self, xp: Namespace) -> None:
        super().__init__(xp)
        self._constants: dict[tuple[Any, ...], Array] = {}
        # glibc hands the top of the heap back to the system and faults it in again at every step,
        # until the first large block is freed: from then on it keeps twice as much as that had.
        np.empty(_LARGE_BLOCK, np.uint8)

    def threads(self, batch_size: int, values: Sequence[Array]) -> AbstractContextManager[Any]:
        """Return a context in which BLAS uses one thread, if the products are too small for more.

        A second thread gains little there, and where another program keeps its core busy, each
        product waits for it. Needs threadpoolctl; without it, BLAS decides.
        """
        limit = one_thread() if is_small(batch_size, values) else None
        return super().threads(batch_size, values) if limit is None else limit.hold()

    def product(self, x: Array, y: Array, into: Array | None = None) -> Array:
        """Return the product by `dot`, which reaches BLAS with fewer checks than `@`."""
        return np.dot(x, y, out=into)

    def bias_activation(
        self, z: Array, bias: Array | None, formula: Formula
    ) -> tuple[Array, Array]:
        """Return h and what its gradient needs, in the place of z where NumPy can."""
        if bias is not None:
            z += bias
        if kernel_of(formula) == "relu":
            self._relu(z)
            return z, z
        h = formula.function(self.xp, z)
        return h, (h if formula.saves_output else z)

    def activation_backward(self, grad: Array, saved: Array, formula: Formula) -> Array:
        """Return dJ/dx; for ReLU in the place of the mask."""
        if kernel_of(formula) != "relu":
            return formula.gradient(self.xp, grad, saved)
        result: Array = (saved > _ZERO).astype(grad.dtype)
        result *= grad
        return result

    def bias_activation_backward(
        self, grad: Array, saved: Array, formula: Formula, into: Array | None = None
    ) -> tuple[Array, Array]:
        """Return dJ/dz and the bias's gradient."""
        grad = self.activation_backward(grad, saved, formula)
        return grad, np.dot(self._row_of_ones(grad.shape[0], grad.dtype), grad, out=into)

    def column_sums(self, x: Array, into: Array | None = None) -> Array:
        """Return the column sums as the product of a row of ones, which BLAS is quick at."""
        if x.ndim != 2:
            return super().column_sums(x, into)
        return np.dot(self._row_of_ones(x.shape[0], x.dtype), x, out=into)

    def convert(self, x: Array, dtype: Any) -> Array:
        """Return `x` in another dtype."""
        return x.astype(dtype)

    def stack(self, arrays: Sequence[Array]) -> Array:
        """Return the arrays as one; they may be NumPy's numbers, which its `stack` is slow at."""
        return np.asarray(arrays)

    def total(self, x: Array) -> Array:
        """Return the sum of all entries."""
        return np.add.reduce(x, axis=None)

    def fused_softmax_cross_entropy(
        self, formula: Any, logits: Array, labels: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the losses and their gradient, for few classes on their side.

        Classes go down and samples across: NumPy reduces over a long last axis in wide steps, over
        a short one entry by entry.
        """
        n, k = logits.shape
        if n == 0 or k > _FEW_CLASSES or labels.dtype != np.int64 or not formula.takes(labels):
            return NotImplemented
        table = self._kept(_one_hot_table, (k, k + 2), logits.dtype)
        target = table.take(labels + _ONE, axis=1, mode="clip")
        z = logits.T.copy()
        z -= np.maximum.reduce(z, axis=0)
        grad = np.exp(z)
        z -= np.log(np.dot(self._row_of_ones(k, z.dtype), grad))  # now z is log softmax
        np.exp(z, out=grad)
        grad -= target
        grad *= scale
        if summed and not getattr(scale, "ndim", 0):
            return np.vdot(target, z) * -scale, grad.T
        target *= z
        losses = np.add.reduce(target, axis=0)
        losses *= -scale
        return (np.add.reduce(losses) if summed else losses), grad.T

    def fused_binary_cross_entropy(
        self, formula: Any, logits: Array, target: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the losses and their gradient, in the place of temporaries.

        With l = log(1 + e^-|z|), the sigmoid is exp(min(z, 0) - l).
        """
        if not formula.from_logits:
            return NotImplemented
        small = np.copysign(logits, _MINUS_ONE)  # -|z|
        log_term = np.log1p(np.exp(small, out=small), out=small)
        losses = np.maximum(logits, _ZERO)
        grad = logits - losses
        grad -= log_term
        np.exp(grad, out=grad)
        grad -= target
        grad *= per_row(scale)
        losses -= target * logits
        losses += log_term
        if summed and not getattr(scale, "ndim", 0):
            return np.add.reduce(losses, axis=None) * scale, grad
        losses = np.add.reduce(losses, axis=1)
        losses *= scale
        return (np.add.reduce(losses) if summed else losses), grad

    def fused_squared_error(
        self,
        formula: Any,  # noqa: ARG002 (as for all losses)
        prediction: Array,
        target: Array,
        scale: Any,
        *,
        summed: bool,
    ) -> Any:
        """Return the losses and their gradient, the sum of squares without a temporary."""
        grad = prediction - target
        losses = np.einsum("np,np->n", grad, grad)
        losses *= 0.5 * scale
        grad *= per_row(scale)
        return (np.add.reduce(losses) if summed else losses), grad

    def lay_out(self, arrays: list[Array]) -> tuple[list[Array], list[Array]]:
        """Return one block, and the arrays as views of it, each at a multiple of 64 bytes."""
        return in_one_block(arrays, np.zeros, 64)

    def sum_of_squares(self, arrays: list[Array]) -> Array:
        """Return the sum of the products of each array with itself, by BLAS."""
        return sum(np.vdot(x, x) for x in arrays)

    def gather(self, arrays: Sequence[Array], indices: Array) -> list[Array]:
        """Return the rows; "clip" spares a copy, and the indices are in range."""
        return [x.take(indices, axis=0, mode="clip") for x in arrays]

    def _row_of_ones(self, n: int, dtype: Any) -> Array:
        """Return n ones; kept, since batches come in few sizes."""
        return self._kept(np.ones, n, dtype)

    def _relu(self, z: Array) -> None:
        """Write max(z, 0) over z.

        NumPy takes the larger of two arrays several times as quickly as of an array and a number.
        """
        if z.ndim != 2:
            np.maximum(z, 0.0, out=z)
            return
        rows = max(1, _PIECE // (z.shape[1] or 1))
        if rows >= z.shape[0]:
            np.maximum(z, self._kept(np.zeros, z.shape, z.dtype), out=z)
            return
        zeros = self._kept(np.zeros, (rows, z.shape[1]), z.dtype)
        for start in range(0, z.shape[0], rows):
            piece = z[start : start + rows]
            np.maximum(piece, zeros[: piece.shape[0]], out=piece)

    def _kept(self, make: Callable[..., Array], shape: Any, dtype: Any) -> Array:
        """Return an array that is always the same, made when it is first asked for."""
        key = (make, shape, dtype)
        constant = self._constants.get(key)
        if constant is None:
            if len(self._constants) >= _MOST_CONSTANTS:
                self._constants.clear()
            constant = self._constants[key] = make(shape, dtype)
        return constant


def is_small(batch_size: int, values: Sequence[Array]) -> bool:
    """Return whether the products of batches with these are better left to one thread."""
    largest: int = max(value.size for value in values)
    return batch_size * largest <= _WORK_OF_ONE_THREAD


class OneThread:
    """The limit of one thread of BLAS, for as long as any thread of the process holds it.

    The number belongs to the process: who set it back while another is still at work, or in another
    order than it was set, would leave a number that nobody asked for.
    """

    def __init__(self, pools: Sequence[Any], let_go: Callable[[], None] | None) -> None:
        self._pools = pools
        self._let_go = let_go
        self._lock = RLock()
        self._holds: set[int] = set()
        #: What each library had before, while the limit is in force.
        self._before: list[int] | None = None

    def count(self) -> int:
        """Return how many threads BLAS has now."""
        return max(self._counts(), default=1)

    def _counts(self) -> list[int]:
        return [pool.num_threads for pool in self._pools]

    def of_all_threads(self) -> bool:
        """Return whether the limit holds in all threads, and not only in the one that sets it."""
        return "openmp" not in [getattr(pool, "threading_layer", "") for pool in self._pools]

    def begin_anew(self) -> None:
        """Forget the holds of threads that are not there: in a process that was forked."""
        self._lock = RLock()
        self._holds.clear()
        if self._before is not None:
            self._set(self._before)
            self._before = None

    def hold(self) -> Hold:
        """Return a context with that limit."""
        return Hold(self)

    def enter(self, hold: Hold) -> None:
        """Set the limit, if nobody has."""
        with self._lock:
            first = not self._holds
            self._holds.add(id(hold))
            if first:
                if self._before is None:  # else an interrupt has kept the last hold from leaving
                    self._before = self._counts()
                self._set([1] * len(self._pools))

    def leave(self, hold: Hold) -> None:
        """Set back what there was before, if nobody else holds the limit."""
        with self._lock:
            self._holds.discard(id(hold))
            if not self._holds and self._before is not None:
                self._set(self._before)
                self._before = None

    def _set(self, counts: list[int]) -> None:
        for pool, count in zip(self._pools, counts, strict=True):
            pool.set_num_threads(count)
        if self._let_go is not None:
            self._let_go()


class Hold:
    """Holds a limit within a `with` block.

    If an interrupt comes just when it lets go, it does so when it is deleted.
    """

    def __init__(self, limit: OneThread) -> None:
        self._limit = limit

    def __enter__(self) -> None:
        self._limit.enter(self)

    def __exit__(self, *exception: object) -> None:
        self._limit.leave(self)

    def __del__(self) -> None:
        self._limit.leave(self)


@cache
def one_thread() -> OneThread | None:
    """Return the limit of one thread of BLAS, or None without threadpoolctl."""
    try:
        import threadpoolctl  # noqa: PLC0415 (optional)
    except ImportError:
        return None
    pools = threadpoolctl.ThreadpoolController().select(user_api="blas")
    # From 3.8 on the first thread that sets a limit is the only one that may, until it lets go.
    openblas = threadpoolctl.OpenBLASController
    let_go = getattr(openblas, "clear_controlling_thread", None)
    limit = OneThread(pools.lib_controllers, let_go)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=limit.begin_anew)
    return limit


def _one_hot_table(shape: tuple[int, int], dtype: Any) -> Array:
    """Return one-hot columns: that of class c at c + 1, with NaN before the first and after."""
    table = np.full(shape, np.nan, dtype)
    table[:, 1:-1] = np.eye(shape[0])
    return table
