"""Launches of the CUDA kernels in `gpunn/kernels/cuda/`: their arguments, tables and grids."""

from __future__ import annotations

import ctypes
import math
import operator
import threading
from collections.abc import Sequence
from functools import cache
from itertools import accumulate, chain
from typing import Any, NamedTuple

import cupy
import numpy as np
from cupy.cuda import runtime

from gpunn._typing import Array
from gpunn.kernels.cell import Cell
from gpunn.kernels.cuda import MOST_ARRAYS, MOST_PARTS, REAL, UNITS
from gpunn.kernels.cuda.grids import MOST_PARTIALS, THREADS, over_rows
from gpunn.kernels.cuda_kernel import CudaKernel
from gpunn.kernels.rules import Fused
from gpunn.kernels.update import Slots, Update

_PIECE = 4096  # entries per block of the optimizer, as in optimizer.cu


# Looked up once: three attributes cost as much as the call.
_get_device, _get_stream = runtime.getDevice, cupy.cuda.get_current_stream


class Struct:
    """The layout of a struct of arrays, passed to a kernel; all fields have eight bytes.

    Parameters
    ----------
    fields : dict of str to int
        The length of each array, in the order of the struct. A number ``count`` comes last.
    """

    def __init__(self, fields: dict[str, int]) -> None:
        *starts, self.count = accumulate(fields.values(), initial=0)
        self.starts = dict(zip(fields, starts, strict=True))
        size = self.count + 1
        self.integers, self.doubles = ctypes.c_uint64 * size, ctypes.c_double * size


# As in optimizer.cu and data.cu.
_ARRAYS = Struct(
    {
        "value": MOST_ARRAYS,
        "grad": MOST_ARRAYS,
        "first": MOST_ARRAYS,
        "second": MOST_ARRAYS,
        "third": MOST_ARRAYS,
        "rounded": MOST_ARRAYS,
        "size": MOST_ARRAYS,
        "decay": MOST_ARRAYS,
        "first_block": MOST_ARRAYS + 1,
    }
)
_STATES = ("first", "second", "third")
_ROWS = Struct({"from": MOST_PARTS, "to": MOST_PARTS, "width": MOST_PARTS})


class Table:
    """A struct of arrays in host memory, and its address."""

    def __init__(self, struct: Struct) -> None:
        self._struct = struct
        self._memory: Any = struct.integers()
        self.address = ctypes.addressof(self._memory)

    def write(self, name: str, column: list[int]) -> None:
        """Write the first entries of an array of integers or pointers."""
        start = self._struct.starts[name]
        self._memory[start : start + len(column)] = column

    def write_doubles(self, name: str, column: list[float]) -> None:
        """Write the first entries of an array of floating-point numbers."""
        start = self._struct.starts[name]
        doubles: Any = self._struct.doubles.from_buffer(self._memory)
        doubles[start : start + len(column)] = column

    def write_count(self, count: int) -> None:
        """Write the number of valid entries in each array."""
        self._memory[self._struct.count] = count


class _Prepared(NamedTuple):
    """The tables of an optimizer's arrays, each with its number of blocks, and the arrays."""

    dtype: Any
    tables: list[tuple[Table, int]]
    arrays: list[Array]
    decays: list[float]
    copies: Any

    def serves(self, slots: Slots, copies: Any) -> bool:
        """Return whether the arrays and the decays are still the same."""
        values, grads, states, decays = slots
        arrays = [*values, *grads, *chain.from_iterable(states)]
        return (
            len(arrays) == len(self.arrays)
            and all(map(operator.is_, arrays, self.arrays))
            and decays == self.decays
            and copies is self.copies
        )


def launch_update(rule: Fused, update: Update) -> bool:
    """Launch the kernel of optimizer.cu for each table of arrays; `clip_norm` takes another launch.

    It also writes the copies of the values in bfloat16, if there are any.

    Returns
    -------
    bool
        False if the kernels do not serve these arrays.
    """
    slots, copies = update.slots, update.copies
    prepared = slots.prepared
    if prepared is None or not prepared.serves(slots, copies):
        prepared = slots.prepared = _prepare(slots, rule.places, copies)
    if prepared is None:
        return False
    if copies is not None:
        copies.are_written = True
    first = prepared.arrays[0]
    if first.data.device_id == _get_device():
        _launch_tables(rule, update, prepared)
    else:
        with first.device:
            _launch_tables(rule, update, prepared)
    return True


def _launch_tables(rule: Fused, update: Update, prepared: _Prepared) -> None:
    dtype, tables = prepared.dtype, prepared.tables
    # The kernel reads the bits of a double, so this must not be an int.
    limit = math.inf if update.clip_value is None else float(update.clip_value)
    partial, partials = 0, 0
    if update.clip_norm is not None:
        shares = [min(blocks, MOST_PARTIALS) for _, blocks in tables]
        sums = cupy.ndarray(sum(shares), dtype)
        partial = sums.data.ptr
        kernel = optimizer_kernel("squared_norm", dtype, rule.name)
        for (table, _), share in zip(tables, shares, strict=True):
            kernel((share, 1), (THREADS, 1), table.address, partial, partials, limit)
            partials += share
    present = 0 if update.present is None else update.present.data.ptr
    clips = limit, float(update.clip_norm or 0.0)
    changing = float(update.step_size), float(update.epsilon), float(update.decay_factor)
    numbers = *clips, *changing, present, int(update.decoupled), *rule.settings
    kernel = optimizer_kernel("update", dtype, rule.name)
    for table, blocks in tables:
        kernel((blocks, 1), (THREADS, 1), table.address, partial, partials, *numbers)


def _prepare(slots: Slots, places: Sequence[int], copies: Any) -> _Prepared | None:
    """Return the tables of these arrays; None if the kernels do not serve them.

    `places` maps each list of states to one of the kernel's states.
    """
    values, grads, states, decays = slots
    arrays = [*values, *grads, *chain.from_iterable(states)]
    dtype = arrays[0].dtype
    if dtype not in REAL or any(x.dtype != dtype or not x.flags.c_contiguous for x in arrays):
        return None
    columns = {"value": values, "grad": grads}
    columns |= {_STATES[place]: state for place, state in zip(places, states, strict=True)}
    tables = []
    held = [i for i, value in enumerate(values) if value.size]
    for start in range(0, len(held), MOST_ARRAYS):
        chosen = held[start : start + MOST_ARRAYS]
        blocks = [-(-values[i].size // _PIECE) for i in chosen]
        table = Table(_ARRAYS)
        for field, column in columns.items():
            table.write(field, [column[i].data.ptr for i in chosen])
        if copies is not None:
            table.write("rounded", [copies.start_of(values[i]) for i in chosen])
        table.write("size", [values[i].size for i in chosen])
        table.write_doubles("decay", [decays[i] for i in chosen])
        table.write("first_block", [0, *accumulate(blocks)])
        table.write_count(len(chosen))
        tables.append((table, sum(blocks)))
    return _Prepared(dtype, tables, arrays, list(decays), copies)


def have_rows(arrays: Sequence[Array]) -> bool:
    """Return whether the arrays have contiguous rows, as `launch_gather` requires."""
    return len(arrays) <= MOST_PARTS and all(x.flags.c_contiguous and x.size for x in arrays)


def launch_gather(
    arrays: Sequence[Array], indices: Array, n: int, first: Cell | None = None
) -> list[Array]:
    """Return the rows of all arrays at n of the `indices`, by one kernel of data.cu.

    They are the first n, or n from the position in a cell. The arrays must satisfy `have_rows`.
    """
    if not have_rows(arrays):  # the kernel would read other memory
        raise ValueError("launch_gather: expected up to three non-empty arrays in C order")
    results = [cupy.ndarray((n, *x.shape[1:]), x.dtype) for x in arrays]
    row_bytes = [x.nbytes // x.shape[0] for x in arrays]
    sources = [x.data.ptr for x in arrays]
    # A view may start anywhere, but a device reads a number only at a multiple of its size.
    divisor = math.gcd(*row_bytes, *sources)
    unit = next(unit for unit in UNITS if divisor % unit == 0)
    table = Table(_ROWS)
    table.write("from", sources)
    table.write("to", [x.data.ptr for x in results])
    table.write("width", [size // unit for size in row_bytes])
    table.write_count(len(sources))
    launch = over_rows(n, max(row_bytes) // unit)
    start = 0 if first is None else first.array.data.ptr
    gather_kernel(UNITS[unit])(*launch, table.address, indices.data.ptr, n, start)
    return results


class _Scratch(threading.local):
    """One thread's memory on each device through which the blocks of a launch communicate.

    Launches in one stream run in sequence, so they share it. It holds a counter, which is 0 before
    and after each launch, and from byte 16 on, numbers of any value.
    """

    def __init__(self) -> None:
        self._by_device: dict[int, tuple[Any, Array]] = {}

    def forget(self) -> None:
        """Drop all memory."""
        self._by_device.clear()

    def pointer(self, n_bytes: int) -> int:
        """Return the address of the current stream's counter, followed by `n_bytes` of numbers."""
        device, stream = _get_device(), _get_stream()
        kept = self._by_device.get(device)
        if kept is None or kept[0] is not stream or kept[1].size < 16 + n_bytes:
            kept = stream, cupy.zeros(max(16 + n_bytes, 4096), np.uint8)
            if not stream.is_capturing():  # else it becomes 0 only when the graph runs
                self._by_device[device] = kept
        pointer: int = kept[1].data.ptr
        return pointer


_scratch = _Scratch()


def forget_scratch() -> None:
    """Allocate new scratch memory at this thread's next launch, as needed before a capture."""
    _scratch.forget()


def launch_loss(
    name: str,
    prediction: Array,
    target: Array,
    scale: Any,
    summed: bool,  # noqa: FBT001 (passed on)
    *settings: float,
    **macros: str,
) -> tuple[Array, Array]:
    """Return the losses, or their sum if `summed`, and the sum's gradient, by a kernel of loss.cu.

    Up to 256 threads share a row; a block takes several rows if they are short.
    """
    n, k = prediction.shape
    dtype = prediction.dtype
    prediction, target = cupy.ascontiguousarray(prediction), cupy.ascontiguousarray(target)
    lanes = min(THREADS, 1 << (k - 1).bit_length())
    rows = max(1, 128 // lanes)
    blocks = -(-n // rows)
    grad = cupy.ndarray((n, k), dtype)
    if hasattr(scale, "shape"):
        scales = cupy.ascontiguousarray(scale)  # first: nothing keeps the scratch memory alive
        factor = scales.data.ptr, min(scale.ndim, 1), 0.0
    else:
        factor = 0, 0, float(scale)
    if summed:
        result = cupy.ndarray((), dtype)
        arrived = _scratch.pointer(blocks * dtype.itemsize)
        outputs = arrived + 16, result.data.ptr, arrived
    else:
        result = cupy.ndarray(n, dtype)
        outputs = result.data.ptr, 0, 0
    cuda_kernel("loss", name, dtype, **macros)(
        (blocks, 1),
        (lanes, rows),
        prediction.data.ptr,
        target.data.ptr,
        *factor,
        *outputs,
        grad.data.ptr,
        n,
        k,
        *settings,
        shared_bytes=lanes * rows * dtype.itemsize,
    )
    return result, grad


@cache
def activation_kernel(name: str, dtype: Any, formula: str) -> CudaKernel:
    """Return a kernel of activation.cu for one of the `FORMULAS`."""
    return cuda_kernel("activation", name, dtype, ACTIVATION=formula)


@cache
def gather_kernel(unit: str) -> CudaKernel:
    """Return the kernel of data.cu that copies rows in units of a type."""
    return cuda_kernel("data", "gather", None, UNIT=unit, MOST=str(MOST_PARTS))


@cache
def optimizer_kernel(name: str, dtype: Any, rule: str) -> CudaKernel:
    """Return a kernel of optimizer.cu for one of the rules."""
    return cuda_kernel("optimizer", name, dtype, MOST=str(MOST_ARRAYS), RULE=rule)


@cache
def cuda_kernel(file: str, name: str, dtype: Any, **macros: str) -> CudaKernel:
    """Return a kernel of a file in `cuda/`, compiled at the first launch."""
    real = {} if dtype is None else {"REAL": REAL[dtype]}
    return CudaKernel(file, name, macros | real)
