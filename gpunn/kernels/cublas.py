"""Matrix products by cuBLAS, called directly.

`cupy.dot` costs the host six times as much as the cuBLAS call that it ends in, and CuPy refuses
that call while a stream is being captured. Products that are not served here go to `cupy.dot`:
other dtypes, empty arrays, and machines without the library.

cuBLAS is column-major, so it sees a matrix in C order as its transpose. It computes
Z^T = Y^T X^T, and copies neither operand, whether in C order or transposed.
"""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_float, c_void_p
from functools import lru_cache
from typing import Any, NamedTuple

import cupy
import numpy as np
from cupy.cuda import runtime

from gpunn._typing import Array
from gpunn.arrays.backend import product_precision
from gpunn.arrays.precision import DEFAULT, PRECISIONS, Precision
from gpunn.errors import SettingError
from gpunn.kernels.cublas_handle import current_handle, failure, loaded_library

_get_device = runtime.getDevice  # looked up once: attributes cost as much as the call

_MAX_SIDE = 2**31 - 1  # the library's sizes are 32-bit integers
DEFAULT_ALGORITHM = -1
BFLOAT16 = 14  # its number in the library


class _Kind(NamedTuple):
    """The library's numbers for a product's types, and pointers to 1 and 0 of the scalar type."""

    operand: int
    result: int
    compute: int
    one: Any
    zero: Any


def _kind(operand: int, result: int, compute: int, scalar: type[Any]) -> _Kind:
    numbers = [ctypes.pointer(scalar(number)) for number in (1, 0)]  # the casts keep them alive
    return _Kind(operand, result, compute, *(ctypes.cast(number, c_void_p) for number in numbers))


_FLOAT32, _FLOAT64 = np.dtype("float32"), np.dtype("float64")
#: By the operands' dtype, the result's dtype, and the precision of the factors. Factors are rounded
#: to bfloat16 before the call.
KINDS: dict[tuple[Any, Any, Precision], _Kind] = {
    (_FLOAT32, _FLOAT32, "float32"): _kind(0, 0, 68, c_float),  # COMPUTE_32F
    (_FLOAT32, _FLOAT32, "tf32"): _kind(0, 0, 77, c_float),  # COMPUTE_32F_FAST_TF32
    (_FLOAT32, _FLOAT32, "bfloat16"): _kind(BFLOAT16, 0, 68, c_float),
    **{(_FLOAT64, _FLOAT64, any_): _kind(1, 1, 70, c_double) for any_ in PRECISIONS},  # COMPUTE_64F
}


class _Plan(NamedTuple):
    """The constant arguments of a product of two arrays of given shapes.

    Attributes
    ----------
    shape, strides : tuple of int
        Of the result, in C order.
    head, left, right, tail : tuple
        The arguments of `cublasGemmEx` between the handle and the pointers to Y, X, Z, and after.
    rounded : bool
        Whether to round the factors to bfloat16 first.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    head: tuple[Any, ...]
    left: tuple[Any, ...]
    right: tuple[Any, ...]
    tail: tuple[Any, ...]
    rounded: bool


def product(
    x: Array, y: Array, into: Array | None = None, precision: Precision | None = None
) -> Array:
    """Return x @ y, computed on the device of `x`.

    Parameters
    ----------
    x : array
        (N, P), or (P,) for one row.
    y : array
        (P, Q).
    into : array, optional
        Where the result is written; it must not overlap `x` or `y`.
    precision : {"float32", "tf32", "bfloat16"}, optional
        The precision of float32 factors; defaults to the one set by `gpunn.use`.

    Raises
    ------
    RuntimeError
        If the library fails.
    SettingError
        If the precision needs the library, and it is not available.
    """
    device = _get_device()
    if x.data.device_id != device:
        with x.device:
            return product(x, y, into, precision)
    precision = precision or product_precision()
    dtype = x.dtype if into is None else into.dtype
    plan = _plan(x.shape, x.strides, x.dtype, y.shape, y.strides, y.dtype, dtype, precision)
    if plan is None:
        return _other_product(x, y, into, precision)
    shape, strides, head, left, right, tail, rounded = plan
    if into is None:
        into = cupy.ndarray(shape, dtype)
    elif into.shape != shape or (into.strides != strides and not into.flags.c_contiguous):
        return cupy.dot(x, y, out=into)  # it raises a clear error
    handle = current_handle(device)
    x_start, y_start = x.data.ptr, y.data.ptr
    if rounded:
        _factors, x_start, y_start = handle.round(x, y)  # kept until the call is queued
    status = handle.gemm(
        handle.pointer,
        *head,
        c_void_p(y_start),
        *left,
        c_void_p(x_start),
        *right,
        c_void_p(into.data.ptr),
        *tail,
    )
    if status:
        raise failure("cublasGemmEx", status, f", for {x.shape} @ {y.shape} in {dtype}")
    return into


def _other_product(x: Array, y: Array, into: Array | None, precision: Precision) -> Array:
    """Return a product of arrays that the library does not accept.

    If only their strides are the reason, copies are multiplied, in the same precision.
    """
    if loaded_library() is not None:
        left, right = cupy.ascontiguousarray(x), cupy.ascontiguousarray(y)
        if left is not x or right is not y:
            return product(left, right, into, precision)
    elif precision not in ("float32", DEFAULT) and x.dtype == y.dtype == _FLOAT32:
        raise SettingError(
            f"products in {precision} need cuBLAS itself, which is not found (the log says why); "
            "leave out products= in gpunn.use"
        )
    return cupy.dot(x, y, out=into)


@lru_cache(maxsize=1024)  # called for every product; each layer and batch size has a few shapes
def _plan(  # noqa: PLR0917 (properties of three arrays)
    x_shape: tuple[int, ...],
    x_strides: tuple[int, ...],
    x_dtype: Any,
    y_shape: tuple[int, ...],
    y_strides: tuple[int, ...],
    y_dtype: Any,
    dtype: Any,
    precision: Precision,
) -> _Plan | None:
    """Return the plan of a product with a result in `dtype`; None if it is not served here."""
    kind = KINDS.get((x_dtype, dtype, precision))
    if kind is None or x_dtype != y_dtype or len(y_shape) != 2 or loaded_library() is None:
        return None
    matrix = x_shape if len(x_shape) == 2 else (1, *x_shape)
    if len(matrix) != 2 or matrix[1] != y_shape[0]:
        return None  # `cupy.dot` raises a clear error
    n, p, q = *matrix, y_shape[1]
    left = _layout(matrix, (0, *x_strides)[-2:], x_dtype.itemsize)
    right = _layout(y_shape, y_strides, y_dtype.itemsize)
    if left is None or right is None or max(n, p, q) > _MAX_SIDE:
        return None
    size = dtype.itemsize
    return _Plan(
        shape=(*x_shape[:-1], q),
        strides=(q * size, size)[-len(x_shape) :],
        head=(right[0], left[0], q, n, p, kind.one),
        left=(kind.operand, right[1]),
        right=(kind.operand, left[1], kind.zero),
        tail=(kind.result, q, kind.compute, DEFAULT_ALGORITHM),
        rounded=kind.operand == BFLOAT16,
    )


def _layout(shape: tuple[int, ...], strides: tuple[int, ...], size: int) -> tuple[int, int] | None:
    """Return the library's arguments for a matrix of numbers of `size` bytes.

    Returns
    -------
    tuple of int
        The operation, 0 for C order and 1 for a transposed matrix, and the length of its contiguous
        rows or columns. None for other strides and empty arrays.
    """
    (rows, columns), (down, across) = shape, strides
    if not rows or not columns:
        return None
    # The stride of an axis of length 1 may be anything.
    if (across == size or columns == 1) and (down == columns * size or rows == 1):
        return 0, columns
    if (down == size or rows == 1) and (across == rows * size or columns == 1):
        return 1, rows
    return None
