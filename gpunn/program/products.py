"""Matrix products in compiled code, by SciPy's BLAS."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import llvmlite.binding
import numpy as np
from numba import types
from numba.extending import get_cython_function_address
from scipy.linalg import cython_blas

from gpunn.kernels.native import array_at, compiled, itemsize


class Matrix(NamedTuple):
    """A matrix in C order.

    Attributes
    ----------
    place : int
        The address of its first entry.
    stride : int
        From row to row, in entries.
    transposed : int
        Whether it represents its transpose.
    """

    place: int
    stride: int
    transposed: int


def _signature(name: str) -> bytes:
    """Return the C signature of a function."""
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return get_name(cython_blas.__pyx_capi__[name])


def _function(name: str, integers: int, arguments: int) -> Any:
    """Return a BLAS function of SciPy's interface for compiled code.

    All arguments are pointers, passed as integers. Compiled code refers to the function by a
    symbol: code that contained an address could not be cached in a file.
    """
    if _signature(name).count(b"int *") != integers:
        raise ImportError(f"SciPy's {name} takes integers of another size than int")
    place = get_cython_function_address("scipy.linalg.cython_blas", name)
    llvmlite.binding.add_symbol(f"gpunn_{name}", place)
    return types.ExternalFunction(f"gpunn_{name}", types.void(*[types.intp] * arguments))


_sgemm, _dgemm = _function("sgemm", 6, 13), _function("dgemm", 6, 13)
_sgemv, _dgemv = _function("sgemv", 5, 11), _function("dgemv", 5, 11)

#: OpenBLAS multiplies without copying the factors up to a million multiplications; beyond that it
#: first packs them into its own layout. Where it is faster, a larger product is therefore split
#: into blocks of at most these many terms and columns, and a multiple of four rows. Another BLAS
#: loses little by it.
_SMALL, _TERMS, _COLUMNS, _ROWS = 1_000_000, 256, 128, 4

#: From this number of multiplications on, times the bytes of a number, packing pays for itself:
#: each packed entry is used often enough.
_LARGE = 1 << 30

#: Products with a transposed second factor are slower. Up to `_MAX_COPIED` entries it pays to copy
#: the factor into the other order first, if there are at least `_MIN_ROWS_TO_COPY` rows or so few
#: entries (`_CHEAP_TO_COPY`) that the copy takes less time than the overhead of BLAS.
_MAX_COPIED, _MIN_ROWS_TO_COPY, _CHEAP_TO_COPY = 1 << 14, 16, 1 << 11

#: One row times more entries than this is computed by BLAS's matrix-vector product; for fewer,
#: its matrix product is as fast.
_MATRIX_OF_A_ROW = 1 << 14

#: Up to this many rows and entries, a loop multiplies by one column faster than a BLAS call.
_FEW_ROWS, _FEW_ENTRIES = 4, 64

#: Scratch memory of `product`, in bytes: BLAS's arguments, and a copy of a factor.
WORKSPACE_BYTES = 64 + 8 * _MAX_COPIED


@compiled
def matrix(place: int, stride: int) -> Matrix:
    """Return the matrix at an address, with rows of `stride` entries."""
    return Matrix(place, stride, 0)


@compiled
def transpose(x: Matrix) -> Matrix:
    """Return the transpose of a matrix."""
    return Matrix(x.place, x.stride, 1 - x.transposed)


@compiled
def _part(x: Matrix, skipped: int) -> Matrix:
    """Return the submatrix that begins `skipped` bytes into another matrix."""
    return Matrix(x.place + skipped, x.stride, x.transposed)


@compiled
def product(
    shape: tuple[int, int, int], a: Matrix, b: Matrix, c: Matrix, workspace: int, one: Any
) -> None:
    """Write the product of a and b over c.

    Parameters
    ----------
    shape : (m, n, k)
        c is (m, n), and the sums have k terms.
    a, b, c : Matrix
    workspace : int
        The address of `WORKSPACE_BYTES` bytes that no other thread uses.
    one : float32 or float64
        1, in the dtype of the matrices.
    """
    m, n, k = shape
    size = itemsize(one)
    if n == 1 and b.stride == 1 and _small_product(m, k, a, b, c, one):
        return
    if m == 1 and n * k > _MATRIX_OF_A_ROW:
        _row_product(n, k, a, b, c.place, workspace, one)
        return
    copies = n * k <= (_MAX_COPIED if m >= _MIN_ROWS_TO_COPY else _CHEAP_TO_COPY)
    if b.transposed and copies:
        _write_transpose(b, n, k, workspace + 64, one)
        b = matrix(workspace + 64, n)
    work = m * n * k
    if b.transposed or work <= _SMALL or work * size >= _LARGE:
        add_product(shape, a, b, type(one)(0), c, workspace)
        return
    terms, columns = min(k, _TERMS), min(n, _COLUMNS)
    rows = max(_ROWS, _SMALL // (terms * columns) // _ROWS * _ROWS)
    for p in range(0, k, terms):
        for j in range(0, n, columns):
            for i in range(0, m, rows):
                block = min(rows, m - i), min(columns, n - j), min(terms, k - p)
                skipped = p * a.stride + i if a.transposed else i * a.stride + p
                own_a = _part(a, skipped * size)
                own_b = _part(b, (p * b.stride + j) * size)
                own_c = _part(c, (i * c.stride + j) * size)
                add_product(block, own_a, own_b, one if p else type(one)(0), own_c, workspace)


@compiled
def _small_product(m: int, k: int, a: Matrix, b: Matrix, c: Matrix, one: Any) -> bool:
    """Write the product with one column if it is small; return whether it is."""
    if a.transposed:
        if k > 1 or m > _FEW_ENTRIES:
            return False
        row, y = array_at(a.place, (m,), one), array_at(b.place, (1,), one)[0]
        column = array_at(c.place, (m,), one)
        for i in range(m):
            column[i] = y * row[i]
        return True
    if m > _FEW_ROWS or k > _FEW_ENTRIES:
        return False
    factors = array_at(b.place, (k,), one)
    for i in range(m):
        row = array_at(a.place + i * a.stride * itemsize(one), (k,), one)
        total = type(one)(0)
        for p in range(k):
            total += row[p] * factors[p]
        array_at(c.place, (m,), one)[i] = total
    return True


@compiled
def _row_product(
    n: int, k: int, a: Matrix, b: Matrix, result: int, workspace: int, one: Any
) -> None:
    """Write the product of one row a and b, by BLAS's matrix-vector product.

    It reads b once; the matrix product may first copy b, or read it in blocks.
    """
    numbers, floats = array_at(workspace, (6,), np.int32(0)), array_at(workspace + 32, (2,), one)
    # BLAS is column-major: it sees the transpose of each array.
    numbers[0], numbers[1] = (k, n) if b.transposed else (n, k)
    numbers[2], numbers[3] = b.stride, a.stride if a.transposed else 1
    numbers[4], numbers[5] = 1, 84 if b.transposed else 78  # "T" or "N"
    floats[0], floats[1] = 1.0, 0.0
    i, alpha = workspace, workspace + 32
    beta = alpha + itemsize(one)
    if itemsize(one) == 8:
        _dgemv(i + 20, i, i + 4, alpha, b.place, i + 8, a.place, i + 12, beta, result, i + 16)
    else:
        _sgemv(i + 20, i, i + 4, alpha, b.place, i + 8, a.place, i + 12, beta, result, i + 16)


@compiled
def _write_transpose(x: Matrix, rows: int, columns: int, place: int, one: Any) -> None:
    """Write the transpose of `rows` by `columns` entries of x to an address."""
    given = array_at(x.place, (rows, x.stride), one)
    transposed = array_at(place, (columns, rows), one)
    for i in range(columns):
        for j in range(rows):
            transposed[i, j] = given[j, i]


@compiled
def add_product(
    shape: tuple[int, int, int], a: Matrix, b: Matrix, kept: Any, c: Matrix, workspace: int
) -> None:
    """Compute c = a b + `kept` c by one call of BLAS."""
    m, n, k = shape
    # BLAS is column-major: it computes c' = b' a'.
    numbers, floats = array_at(workspace, (8,), np.int32(0)), array_at(workspace + 32, (2,), kept)
    numbers[0], numbers[1], numbers[2] = n, m, k
    numbers[3], numbers[4], numbers[5] = b.stride, a.stride, c.stride
    numbers[6] = 84 if b.transposed else 78  # "T" or "N"
    numbers[7] = 84 if a.transposed else 78
    floats[0], floats[1] = 1.0, kept
    i, alpha = workspace, workspace + 32
    beta = alpha + itemsize(kept)
    if itemsize(kept) == 8:
        _dgemm(
            *(i + 24, i + 28, i, i + 4, i + 8),
            *(alpha, b.place, i + 12, a.place, i + 16),
            *(beta, c.place, i + 20),
        )
    else:
        _sgemm(
            *(i + 24, i + 28, i, i + 4, i + 8),
            *(alpha, b.place, i + 12, a.place, i + 16),
            *(beta, c.place, i + 20),
        )
