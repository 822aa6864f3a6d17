"""Batched matrix products by cuBLAS; see `gpunn.kernels.cublas`."""

from __future__ import annotations

from ctypes import c_longlong, c_void_p

import cupy
from cupy.cuda import runtime

from gpunn._typing import Array
from gpunn.arrays.backend import product_precision
from gpunn.kernels.cublas import BFLOAT16, DEFAULT_ALGORITHM, KINDS
from gpunn.kernels.cublas_handle import current_handle, failure
from gpunn.kernels.cupy_rounding import round_factors


def batched_product(
    x: Array,
    y: Array,
    into: Array | None = None,
    *,
    x_transposed: bool = False,
    y_transposed: bool = False,
) -> Array:
    """Return x @ y for each pair of matrices (B, N, P) and (B, P, Q), on the current device.

    Parameters
    ----------
    x, y : array
        float32 or float64, not empty, in C order. If transposed, they are stored as (B, P, N) and
        (B, Q, P).
    into : array, optional
        (B, N, Q), in C order.
    x_transposed, y_transposed : bool

    Raises
    ------
    RuntimeError
        If the library fails.
    """
    batch, *left = x.shape
    right = list(y.shape[1:])
    n, p = reversed(left) if x_transposed else left
    q = right[0] if y_transposed else right[1]
    if into is None:
        into = cupy.ndarray((batch, n, q), x.dtype)
    kind = KINDS[x.dtype, x.dtype, product_precision()]
    x_start, y_start = x.data.ptr, y.data.ptr
    if kind.operand == BFLOAT16:
        _factors, x_start, y_start = round_factors(x, y)  # kept until the call is queued
    handle = current_handle(runtime.getDevice())
    status = handle.gemm_batched(
        handle.pointer,
        *(int(y_transposed), int(x_transposed), q, n, p, kind.one),
        *(c_void_p(y_start), kind.operand, right[1], c_longlong(right[0] * right[1])),
        *(c_void_p(x_start), kind.operand, left[1], c_longlong(left[0] * left[1]), kind.zero),
        *(c_void_p(into.data.ptr), kind.result, q, c_longlong(n * q)),
        *(batch, kind.compute, DEFAULT_ALGORITHM),
    )
    if status:
        about = f", for {x.shape} @ {y.shape} in {x.dtype}"
        raise failure("cublasGemmStridedBatchedEx", status, about)
    return into
