"""Matrix products in compiled code, by the BLAS that SciPy brings along."""

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
    """A matrix in C's order.

    Attributes
    ----------
    place : int
        Where it begins.
    stride : int
        From row to row, in entries.
    transposed : int
        Whether it stands for its transpose.
    """

    place: int
    stride: int
    transposed: int


def _signature(name: str) -> bytes:
    """Return the types of a function, as C has them."""
    get_name = ctypes.pythonapi.PyCapsule_GetName
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return get_name(cython_blas.__pyx_capi__[name])


def _function(name: str, integers: int, arguments: int) -> Any:
    """Return SciPy's function of that name, from the interface that it has for compiled code.

    All arguments are pointers, and are passed as integers. It is known by a symbol's name, since
    code that has an address in it could not be kept in a file.
    """
    if _signature(name).count(b"int *") != integers:
        raise ImportError(f"SciPy's {name} has integers of another size than int")
    place = get_cython_function_address("scipy.linalg.cython_blas", name)
    llvmlite.binding.add_symbol(f"gpunn_{name}", place)
    return types.ExternalFunction(f"gpunn_{name}", types.void(*[types.intp] * arguments))


_sgemm, _dgemm = _function("sgemm", 6, 13), _function("dgemm", 6, 13)
_sgemv, _dgemv = _function("sgemv", 5, 11), _function("dgemv", 5, 11)

#: OpenBLAS has kernels for products of up to a million multiplications, which spare it a copy of
#: both factors; for others it first brings them into an order of its own. So a larger product is
#: made of such, where that is quicker: of so many terms and columns, and a multiple of four rows.
#: Another BLAS loses little by it.
_SMALL, _TERMS, _COLUMNS, _ROWS = 1_000_000, 256, 128, 4

#: From so many multiplications on, times the bytes of a number, the copies cost less than they
#: save: each entry of one is used so often that the order of its own pays.
_LARGE = 1 << 30

#: The kernels for a second factor that is transposed are slower; up to so many entries, it pays to
#: copy it into the other order first. The copy takes as long as the product of some rows, though:
#: it pays for so many rows, or if there are so few entries that even BLAS's overhead is more.
_TURNED, _ROWS_TO_TURN, _QUICKLY_TURNED = 1 << 14, 16, 1 << 11

#: One row times more entries than these is left to BLAS's functions for vectors; for fewer, those
#: for matrices are as quick.
_MATRIX_OF_A_ROW = 1 << 14

#: Up to so many rows and entries, products with one column take less time than a call of BLAS.
_FEW_ROWS, _FEW_ENTRIES = 4, 64

#: What `product` needs for itself, in bytes: for BLAS's arguments, and for a copy.
ROOM = 64 + 8 * _TURNED


@compiled
def matrix(place: int, stride: int) -> Matrix:
    """Return the matrix that begins at an address, with rows of `stride` entries."""
    return Matrix(place, stride, 0)


@compiled
def transpose(x: Matrix) -> Matrix:
    """Return the transpose of a matrix."""
    return Matrix(x.place, x.stride, 1 - x.transposed)


@compiled
def _part(x: Matrix, skipped: int) -> Matrix:
    """Return the matrix that begins so many bytes after another one, within it."""
    return Matrix(x.place + skipped, x.stride, x.transposed)


@compiled
def product(
    shape: tuple[int, int, int], a: Matrix, b: Matrix, c: Matrix, room: int, one: Any
) -> None:
    """Write the product of a and b over c.

    Parameters
    ----------
    shape : (m, n, k)
        c is (m, n), and the sums have k terms.
    a, b, c : Matrix
    room : int
        Where `ROOM` bytes begin, for no other thread.
    one : float32 or float64
        1, in the dtype of the matrices.
    """
    m, n, k = shape
    size = itemsize(one)
    if n == 1 and b.stride == 1 and _of_vectors(m, k, a, b, c, one):
        return
    if m == 1 and n * k > _MATRIX_OF_A_ROW:
        _row_product(n, k, a, b, c.place, room, one)
        return
    turns = n * k <= (_TURNED if m >= _ROWS_TO_TURN else _QUICKLY_TURNED)
    if b.transposed and turns:
        _turn(b, n, k, room + 64, one)
        b = matrix(room + 64, n)
    work = m * n * k
    if b.transposed or work <= _SMALL or work * size >= _LARGE:
        add_product(shape, a, b, type(one)(0), c, room)
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
                add_product(block, own_a, own_b, one if p else type(one)(0), own_c, room)


@compiled
def _of_vectors(m: int, k: int, a: Matrix, b: Matrix, c: Matrix, one: Any) -> bool:
    """Write the product with one column, if it is so small that a call of BLAS takes longer."""
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
def _row_product(n: int, k: int, a: Matrix, b: Matrix, result: int, room: int, one: Any) -> None:
    """Write the product of one row a and b, by BLAS's function for vectors.

    It reads b once; that for matrices may first copy it, or read it in blocks.
    """
    numbers, floats = array_at(room, (6,), np.int32(0)), array_at(room + 32, (2,), one)
    # BLAS has the columns of an array where NumPy has its rows.
    numbers[0], numbers[1] = (k, n) if b.transposed else (n, k)
    numbers[2], numbers[3] = b.stride, a.stride if a.transposed else 1
    numbers[4], numbers[5] = 1, 84 if b.transposed else 78  # "T" or "N"
    floats[0], floats[1] = 1.0, 0.0
    i, alpha = room, room + 32
    beta = alpha + itemsize(one)
    if itemsize(one) == 8:
        _dgemv(i + 20, i, i + 4, alpha, b.place, i + 8, a.place, i + 12, beta, result, i + 16)
    else:
        _sgemv(i + 20, i, i + 4, alpha, b.place, i + 8, a.place, i + 12, beta, result, i + 16)


@compiled
def _turn(x: Matrix, rows: int, columns: int, place: int, one: Any) -> None:
    """Write the transpose of `rows` by `columns` entries of x."""
    given = array_at(x.place, (rows, x.stride), one)
    turned = array_at(place, (columns, rows), one)
    for i in range(columns):
        for j in range(rows):
            turned[i, j] = given[j, i]


@compiled
def add_product(
    shape: tuple[int, int, int], a: Matrix, b: Matrix, kept: Any, c: Matrix, room: int
) -> None:
    """Write the product plus `kept` times c over c, by one call of BLAS."""
    m, n, k = shape
    # BLAS has the columns of an array where NumPy has its rows: there, c' = b' a'.
    numbers, floats = array_at(room, (8,), np.int32(0)), array_at(room + 32, (2,), kept)
    numbers[0], numbers[1], numbers[2] = n, m, k
    numbers[3], numbers[4], numbers[5] = b.stride, a.stride, c.stride
    numbers[6] = 84 if b.transposed else 78  # "T" or "N"
    numbers[7] = 84 if a.transposed else 78
    floats[0], floats[1] = 1.0, kept
    i, alpha = room, room + 32
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
