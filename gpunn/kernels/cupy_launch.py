"""Launches of the CUDA kernels in `gpunn/kernels/cuda/`: their arguments, tables and grids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import cupy
import numpy as np

from gpunn._typing import Array
from gpunn.kernels.cuda import MOST_ARRAYS, MOST_PARTS, REAL, UNITS, options, source
from gpunn.kernels.cuda.grids import MOST_PARTIALS, THREADS, over_rows
from gpunn.kernels.update import Slots, Update

_PIECE = 4096  # entries per block of the optimizer, as in optimizer.cu

# The structs of optimizer.cu and data.cu. All fields have eight bytes, so there are no gaps.
_UPDATE_TABLE = np.dtype(
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
_GATHER_TABLE = np.dtype(
    [
        ("from", np.uint64, MOST_PARTS),
        ("to", np.uint64, MOST_PARTS),
        ("width", np.int64, MOST_PARTS),
        ("count", np.int64),
    ]
)


def launch_update(name: str, update: Update, settings: tuple[float, ...]) -> Any:
    """Launch a kernel of optimizer.cu for each table of arrays; `clip_norm` takes another launch.

    Returns
    -------
    None or NotImplemented
        The latter if the kernels do not serve these arrays.
    """
    values, grads, states, _ = update.slots
    arrays = [x for each in (values, grads, *states) for x in each]
    kinds = {x.dtype for x in arrays}
    if len(kinds) != 1 or not kinds <= REAL.keys() or not all(x.flags.c_contiguous for x in arrays):
        return NotImplemented
    with values[0].device:
        _launch_tables(name, update, _tables(update.slots), settings)
    return None


def _launch_tables(
    name: str, update: Update, tables: list[tuple[Any, int]], settings: tuple[float, ...]
) -> None:
    dtype = update.slots.values[0].dtype
    # The kernel reads the bits of a double, so this must not be an int.
    limit = math.inf if update.clip_value is None else float(update.clip_value)
    partial, partials = None, 0
    if update.clip_norm is not None:
        shares = [min(blocks, MOST_PARTIALS) for _, blocks in tables]
        partial = cupy.empty(sum(shares), dtype)
        for (table, _), share in zip(tables, shares, strict=True):
            cuda_kernel("optimizer", "squared_norm", dtype, MOST=str(MOST_ARRAYS))(
                (share,), (THREADS,), (table, partial, partials, limit)
            )
            partials += share
    limits = limit, float(update.clip_norm or 0.0)
    for table, blocks in tables:
        cuda_kernel("optimizer", name, dtype, MOST=str(MOST_ARRAYS))(
            (blocks,), (THREADS,), (table, partial, partials, *limits, *settings)
        )


def _tables(slots: Slots) -> list[tuple[Any, int]]:
    """Return tables of the optimizer's arrays, as kernel arguments, each with its grid size."""
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
        tables.append((_table(_UPDATE_TABLE, columns), sum(blocks)))
    return tables


def launch_gather(arrays: Sequence[Array], indices: Array) -> list[Array]:
    """Return the rows of all arrays at `indices`, by one kernel of data.cu."""
    results = [cupy.empty((indices.size, *x.shape[1:]), x.dtype) for x in arrays]
    row_bytes = [x.nbytes // x.shape[0] for x in arrays]
    sources, targets = [x.data.ptr for x in arrays], [x.data.ptr for x in results]
    # A view may start anywhere, and a device reads numbers only at multiples of their size.
    unit = next(unit for unit in UNITS if not any(n % unit for n in (*row_bytes, *sources)))
    columns = {"from": sources, "to": targets, "width": [n // unit for n in row_bytes]}
    kernel = cuda_kernel("data", "gather", None, UNIT=UNITS[unit], MOST=str(MOST_PARTS))
    launch = over_rows(indices.size, max(row_bytes) // unit)
    kernel(*launch, (_table(_GATHER_TABLE, columns), indices, indices.size))
    return results


def _table(layout: Any, columns: dict[str, list[Any]]) -> Any:
    """Return a struct as a kernel argument: its columns, and the length of the first as `count`."""
    table = np.zeros((), layout)
    for name, column in columns.items():
        table[name][: len(column)] = column
    table["count"] = len(next(iter(columns.values())))
    return table.view(f"V{layout.itemsize}")  # CuPy handles plain bytes faster than a struct


def launch_loss(
    name: str, prediction: Array, target: Array, scale: Any, **macros: str
) -> tuple[Array, Array]:
    """Return the losses and their gradient, by one kernel of loss.cu.

    Up to 256 threads share a row; a block takes several rows if they are short.
    """
    n, k = prediction.shape
    prediction, target = cupy.ascontiguousarray(prediction), cupy.ascontiguousarray(target)
    losses, grad = cupy.empty(n, prediction.dtype), cupy.empty_like(prediction)
    is_array = hasattr(scale, "shape")
    pointer = cupy.ascontiguousarray(scale) if is_array else None
    stride = 1 if is_array and scale.ndim else 0
    lanes = min(THREADS, 1 << (k - 1).bit_length())
    rows = max(1, 128 // lanes)
    cuda_kernel("loss", name, prediction.dtype, **macros)(
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


def cuda_kernel(file: str, name: str, dtype: Any, **macros: str) -> Any:
    """Return a kernel of a file in `cuda/`, compiled at the first request."""
    return _compiled(file, name, dtype, *macros.items())


@cache
def _compiled(file: str, name: str, dtype: Any, *macros: tuple[str, str]) -> Any:
    real = {} if dtype is None else {"REAL": REAL[dtype]}
    return cupy.RawKernel(source(file), name, options(file, dict(macros) | real))
