"""Kernels for CuPy: what a step of training does, in as few launches as its data flow allows.

A launch costs the host several microseconds, so a small network's step costs what its launches
cost. The CUDA sources are in `gpunn/kernels/cuda/`. They serve float32 and float64; other dtypes
take the generic twin. Nothing here waits for the device or reads a value back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, wraps
from itertools import accumulate
from typing import Any, TypeVar, cast

import cupy
import numpy as np

from gpunn._typing import Array, Namespace
from gpunn.kernels.cuda import FORMULAS, MOST_ARRAYS, MOST_PARTS, REAL, UNITS, options, source
from gpunn.kernels.declared import kernel_of
from gpunn.kernels.reference import Formula, Kernels, in_one_block
from gpunn.kernels.update import Slots, Update

_Method = TypeVar("_Method", bound=Callable[..., Any])

_THREADS = 256
_PIECE = 4096  # numbers a block of the optimizer, as in optimizer.cu
_FEW_ROWS = 1024  # up to here a block may walk down the columns; beyond, a product is faster


def _there(method: _Method) -> _Method:
    """Make the device of a kernel's first array the current one, if it is not.

    A launch on another device would read memory that it cannot reach, which ends all work of the
    process on that device.
    """

    @wraps(method)
    def on_its_device(self: Any, x: Any, *rest: Any, **settings: Any) -> Any:
        first = x[0] if isinstance(x, (list, tuple)) else x
        if first.data.device_id == cupy.cuda.runtime.getDevice():
            return method(self, x, *rest, **settings)
        with first.device:
            return method(self, x, *rest, **settings)

    return cast("_Method", on_its_device)


def _there_after_formula(method: _Method) -> _Method:
    """Do the same for a kernel whose first array is its second argument."""

    @wraps(method)
    def on_its_device(self: Any, formula: Any, x: Any, *rest: Any, **settings: Any) -> Any:
        if x.data.device_id == cupy.cuda.runtime.getDevice():
            return method(self, formula, x, *rest, **settings)
        with x.device:
            return method(self, formula, x, *rest, **settings)

    return cast("_Method", on_its_device)


class CupyKernels(Kernels):
    """The kernels that have a CUDA source; what they do not serve goes to the generic twin."""

    def __init__(self, xp: Namespace) -> None:
        super().__init__(xp)
        self._ones: dict[tuple[int, Any, int, int], Array] = {}

    # Layers

    @_there
    def product(self, x: Array, y: Array, into: Array | None = None) -> Array:
        """Return x @ y; the library of products knows the current device only."""
        return cupy.dot(x, y, out=into)

    @_there
    def activation(self, x: Array, formula: Formula) -> Array:
        """Return f(x), in one launch."""
        known = _known(formula, x)
        if known is None:
            return super().activation(x, formula)
        name, a = known
        x = cupy.ascontiguousarray(x)
        h = cupy.empty_like(x)
        kernel = _kernel("activation", "activation", x.dtype, ACTIVATION=name)
        kernel(_blocks(x.size), (_THREADS,), (x, h, x.size, a))
        return h

    @_there
    def bias_activation(
        self, z: Array, bias: Array | None, formula: Formula
    ) -> tuple[Array, Array]:
        """Return f(z + bias) and what its gradient needs, in one launch."""
        known = _known(formula, z, z if bias is None else bias)
        if known is None or not z.flags.c_contiguous:
            return super().bias_activation(z, bias, formula)
        name, a = known
        if name == "identity" and bias is None:
            return z, z
        bias = None if bias is None else cupy.ascontiguousarray(bias)
        h = z if formula.saves_output else cupy.empty_like(z)
        kernel = _kernel("activation", "bias_activation", z.dtype, ACTIVATION=name)
        kernel(_blocks(z.size), (_THREADS,), (z, bias, h, z.size, z.shape[1], a))
        return h, (h if formula.saves_output else z)

    @_there
    def activation_backward(self, grad: Array, saved: Array, formula: Formula) -> Array:
        """Return dJ/dx of h = f(x), in one launch; none for the identity."""
        known = _known(formula, grad, saved)
        if known is None:
            return super().activation_backward(grad, saved, formula)
        name, a = known
        if name == "identity":
            return grad
        grad, saved = cupy.ascontiguousarray(grad), cupy.ascontiguousarray(saved)
        result = cupy.empty_like(grad)
        kernel = _kernel("activation", "activation_backward", grad.dtype, ACTIVATION=name)
        kernel(_blocks(grad.size), (_THREADS,), (grad, saved, result, grad.size, a))
        return result

    @_there
    def bias_activation_backward(
        self, grad: Array, saved: Array, formula: Formula, into: Array | None = None
    ) -> tuple[Array, Array]:
        """Return dJ/dz and the bias's gradient: one launch for few rows, else one and a product."""
        known = _known(formula, grad, saved)
        if known is None or known[0] == "identity" or grad.shape[0] > _FEW_ROWS:
            grad = self.activation_backward(grad, saved, formula)
            return grad, self.column_sums(grad, into)
        name, a = known
        n, p = grad.shape
        grad, saved = cupy.ascontiguousarray(grad), cupy.ascontiguousarray(saved)
        result = cupy.empty_like(grad)
        sums = cupy.empty(p, grad.dtype) if into is None else into
        kernel = _kernel("activation", "activation_backward_sums", grad.dtype, ACTIVATION=name)
        kernel((-(-p // 32),), (32, 8), (grad, saved, result, sums, n, p, a))
        return result, sums

    @_there
    def column_sums(self, x: Array, into: Array | None = None) -> Array:
        """Return the column sums as the product of a row of ones: one library call."""
        if x.size == 0 or x.dtype not in REAL:
            return super().column_sums(x, into)
        return cupy.dot(self._row_of_ones(x), x, out=into)

    @_there
    def dropout(self, x: Array, key: int, rate: float) -> tuple[Array, Array]:
        """Return x times its mask, and the mask, in one launch."""
        if x.dtype not in REAL or x.size == 0:
            return super().dropout(x, key, rate)
        x = cupy.ascontiguousarray(x)
        y, mask = cupy.empty_like(x), cupy.empty_like(x)
        kept = 1.0 / (1.0 - rate)
        arguments = (x, y, mask, x.size, np.uint64(key), round(rate * 2**32), kept)
        _kernel("dropout", "dropout", x.dtype)(_blocks(x.size), (_THREADS,), arguments)
        return y, mask

    # Losses

    @_there_after_formula
    def fused_softmax_cross_entropy(
        self, formula: Any, logits: Array, target: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the losses and their gradient in one launch, a group of threads a row."""
        if not _served(logits, *_arrays(scale)):
            return NotImplemented
        if formula.takes(target):
            labels = target.astype(np.int64, copy=False)
            losses, grad = _by_row("softmax_cross_entropy", logits, labels, scale, LABELS="1")
        else:
            soft = formula.soft(logits, target)
            if not _served(logits, soft):
                return NotImplemented
            losses, grad = _by_row("softmax_cross_entropy", logits, soft, scale)
        return (self.total(losses) if summed else losses), grad

    @_there_after_formula
    def fused_binary_cross_entropy(
        self, formula: Any, logits: Array, target: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the losses and their gradient in one launch, a group of threads a row."""
        if not (formula.from_logits and _served(logits, target, *_arrays(scale))):
            return NotImplemented
        losses, grad = _by_row("sigmoid_binary_cross_entropy", logits, target, scale)
        return (self.total(losses) if summed else losses), grad

    @_there_after_formula
    def fused_squared_error(
        self,
        formula: Any,  # noqa: ARG002 (as for all losses)
        prediction: Array,
        target: Array,
        scale: Any,
        *,
        summed: bool,
    ) -> Any:
        """Return the losses and their gradient in one launch, a group of threads a row."""
        if not _served(prediction, target, *_arrays(scale)):
            return NotImplemented
        losses, grad = _by_row("squared_error", prediction, target, scale)
        return (self.total(losses) if summed else losses), grad

    # Optimizers

    @_there
    def lay_out(self, arrays: list[Array]) -> tuple[list[Array], list[Array]]:
        """Return one block, and the arrays as views of it, each where a fresh one might be."""
        return in_one_block(arrays, cupy.zeros, 512)

    def fused_sgd(self, rule: Any, update: Update) -> Any:
        """Update all arrays in one launch; clipping by norm takes another."""
        momentum = float(rule.momentum) if update.slots.states else 0.0
        return _update("sgd", update, (float(update.step_size), momentum, int(rule.nesterov)))

    def fused_adam(self, rule: Any, update: Update) -> Any:
        """Update all arrays in one launch; clipping by norm takes another."""
        betas = float(rule.beta_1), float(rule.beta_2)
        return _update("adam", update, (float(update.step_size), *betas, float(rule.epsilon)))

    # Data

    @_there
    def gather(self, arrays: Sequence[Array], indices: Array) -> list[Array]:
        """Return the rows of all arrays at `indices`, in one launch."""
        rows = all(x.flags.c_contiguous and x.size for x in arrays)
        if not rows or len(arrays) > MOST_PARTS or indices.size == 0:
            return super().gather(arrays, indices)
        results = [cupy.empty((indices.size, *x.shape[1:]), x.dtype) for x in arrays]
        sizes = [x.nbytes // x.shape[0] for x in arrays]
        froms, tos = [x.data.ptr for x in arrays], [x.data.ptr for x in results]
        # A view may start anywhere, and a device reads numbers only at multiples of their size.
        unit = next(unit for unit in UNITS if not any(n % unit for n in (*sizes, *froms)))
        table = _table(_ROWS, {"from": froms, "to": tos, "width": [n // unit for n in sizes]})
        indices = cupy.ascontiguousarray(indices, dtype=np.int64)
        kernel = _kernel("data", "gather", None, UNIT=UNITS[unit], MOST=str(MOST_PARTS))
        blocks = _blocks(max(sizes) // unit * indices.size)
        kernel(blocks, (_THREADS,), (table, indices, indices.size))
        return results

    def _row_of_ones(self, like: Array) -> Array:
        """Return ones, one a row of `like`; kept, since batches come in few sizes.

        By stream, too: what one stream fills, another must not read without waiting.
        """
        stream = cupy.cuda.get_current_stream().ptr
        where = (like.shape[0], like.dtype, like.device.id, stream)
        if where not in self._ones:
            if len(self._ones) >= 16:
                self._ones.clear()
            self._ones[where] = cupy.ones(like.shape[0], like.dtype)
        return self._ones[where]


# As the structs in optimizer.cu and data.cu lay them out: eight bytes each, so there are no gaps.
_ARRAYS = np.dtype(
    [
        ("value", np.uint64, MOST_ARRAYS),
        ("grad", np.uint64, MOST_ARRAYS),
        ("first", np.uint64, MOST_ARRAYS),
        ("second", np.uint64, MOST_ARRAYS),
        ("size", np.int64, MOST_ARRAYS),
        ("decay", np.float64, MOST_ARRAYS),
        ("first_block", np.int64, MOST_ARRAYS + 1),
        ("count", np.int64),
    ]
)
_ROWS = np.dtype(
    [
        ("from", np.uint64, MOST_PARTS),
        ("to", np.uint64, MOST_PARTS),
        ("width", np.int64, MOST_PARTS),
        ("count", np.int64),
    ]
)


def _update(name: str, update: Update, settings: tuple[float, ...]) -> Any:
    """Launch a kernel of optimizer.cu for each table, after one for the norm if that is limited."""
    values, grads, states, _ = update.slots
    arrays = [x for each in (values, grads, *states) for x in each]
    kinds = {x.dtype for x in arrays}
    if len(kinds) != 1 or not kinds <= REAL.keys() or not all(x.flags.c_contiguous for x in arrays):
        return NotImplemented
    with values[0].device:
        _launch_update(name, update, _tables(update.slots), settings)
    return None


def _launch_update(
    name: str, update: Update, tables: list[tuple[Any, int]], settings: tuple[float, ...]
) -> None:
    dtype = update.slots.values[0].dtype
    # An int would arrive as other bits.
    limit = math.inf if update.clip_value is None else float(update.clip_value)
    partial, partials = None, 0
    if update.clip_norm is not None:
        partial = cupy.empty(sum(blocks for _, blocks in tables), dtype)
        for table, blocks in tables:
            _kernel("optimizer", "squared_norm", dtype, MOST=str(MOST_ARRAYS))(
                (blocks,), (_THREADS,), (table, partial, partials, limit)
            )
            partials += blocks
    limits = limit, float(update.clip_norm or 0.0)
    for table, blocks in tables:
        _kernel("optimizer", name, dtype, MOST=str(MOST_ARRAYS))(
            (blocks,), (_THREADS,), (table, partial, partials, *limits, *settings)
        )


def _tables(slots: Slots) -> list[tuple[Any, int]]:
    """Return the optimizer's arrays as kernel parameters, with the number of blocks of each."""
    values, grads, states, decays = slots
    firsts, seconds = [*states, [], []][:2]
    tables = []
    held = [i for i, value in enumerate(values) if value.size]
    for start in range(0, len(held), MOST_ARRAYS):
        chosen = held[start : start + MOST_ARRAYS]
        blocks = [-(-values[i].size // _PIECE) for i in chosen]
        columns = {
            "value": [values[i].data.ptr for i in chosen],
            "grad": [grads[i].data.ptr for i in chosen],
            "first": [firsts[i].data.ptr if firsts else 0 for i in chosen],
            "second": [seconds[i].data.ptr if seconds else 0 for i in chosen],
            "size": [values[i].size for i in chosen],
            "decay": [decays[i] for i in chosen],
            "first_block": [0, *accumulate(blocks)],
        }
        tables.append((_table(_ARRAYS, columns), sum(blocks)))
    return tables


def _table(layout: Any, columns: dict[str, list[Any]]) -> Any:
    """Return a struct as a kernel's parameter: its columns, and the length of the first."""
    table = np.zeros((), layout)
    for name, column in columns.items():
        table[name][: len(column)] = column
    table["count"] = len(next(iter(columns.values())))
    return table.view(f"V{layout.itemsize}")  # of a struct, CuPy would ask for all fields


def _arrays(scale: Any) -> tuple[Array, ...]:
    """Return a scale if it is an array: none for a number."""
    return (scale,) if hasattr(scale, "shape") else ()


def _by_row(
    name: str, prediction: Array, target: Array, scale: Any, **macros: str
) -> tuple[Array, Array]:
    """Launch a kernel of loss.cu: a block of threads takes as many rows as it has room for."""
    n, k = prediction.shape
    prediction, target = cupy.ascontiguousarray(prediction), cupy.ascontiguousarray(target)
    losses, grad = cupy.empty(n, prediction.dtype), cupy.empty_like(prediction)
    is_array = hasattr(scale, "shape")
    pointer = cupy.ascontiguousarray(scale) if is_array else None
    stride = 1 if is_array and scale.ndim else 0
    lanes = min(_THREADS, 1 << (k - 1).bit_length())
    rows = max(1, 128 // lanes)
    _kernel("loss", name, prediction.dtype, **macros)(
        (-(-n // rows),),
        (lanes, rows),
        (
            prediction,
            target,
            pointer,
            stride,
            0.0 if is_array else float(scale),
            losses,
            grad,
            n,
            k,
        ),
        shared_mem=lanes * rows * prediction.itemsize,
    )
    return losses, grad


def _served(*arrays: Array) -> bool:
    """Return whether the kernels serve these arrays: real numbers, all of one dtype, and any."""
    dtype = arrays[0].dtype
    return dtype in REAL and arrays[0].size > 0 and all(x.dtype == dtype for x in arrays[1:])


def _known(formula: Formula, *arrays: Array) -> tuple[str, float] | None:
    """Return the name and parameter of a formula that activation.cu has for these arrays."""
    kernel = kernel_of(formula)
    if kernel not in FORMULAS or not _served(*arrays):
        return None
    name, parameter = FORMULAS[kernel]
    return name, 0.0 if parameter is None else float(getattr(formula, parameter))


def _blocks(size: int) -> tuple[int]:
    """Return a grid with a thread for each number, up to where threads had better loop."""
    return (min(-(-size // _THREADS), 65_536),)


def _kernel(file: str, name: str, dtype: Any, **macros: str) -> Any:
    """Return a kernel, compiled when it is first asked for."""
    return _compiled(file, name, dtype, *macros.items())


@cache
def _compiled(file: str, name: str, dtype: Any, *macros: tuple[str, str]) -> Any:
    real = {} if dtype is None else {"REAL": REAL[dtype]}
    return cupy.RawKernel(source(file), name, options(file, dict(macros) | real))
