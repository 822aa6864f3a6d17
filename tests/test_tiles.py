"""Tiles of sums in registers, with vectors of each size that some processor has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose

numba = pytest.importorskip("numba")

from gpunn.kernels import tiles  # noqa: E402
from gpunn.kernels.vectors import generated  # noqa: E402


@pytest.mark.parametrize("size", [0, 8, 16, 32, 64])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_tile(size: int, dtype: str) -> None:
    tile = generated(tiles._tile, size, 9)

    @numba.njit
    def run(given: Any, one: Any) -> None:
        tile(given, one, one)

    rng = np.random.default_rng(0)
    itemsize = np.dtype(dtype).itemsize
    columns = 2 * size // itemsize or 1
    taps, terms = 2, 3
    rows = rng.standard_normal((tiles.ROWS, taps, 5)).astype(dtype)
    factors = rng.standard_normal((taps * terms, columns + 1)).astype(dtype)
    start = rng.standard_normal(columns).astype(dtype)
    sums = rng.standard_normal((tiles.ROWS, columns)).astype(dtype)
    table = np.array(
        [x.ctypes.data + r * x.strides[0] for x in (rows, sums) for r in range(tiles.ROWS)]
    )
    offsets = np.arange(taps) * rows.strides[1]
    products = rows[:, :, :terms].reshape(tiles.ROWS, -1) @ factors[:, :columns]
    close: Any = {"rtol": 1e-5, "atol": 1e-5} if dtype == "float32" else {"rtol": 1e-12}

    def given(start: int, relu: int) -> tuple[int, ...]:
        places = table.ctypes.data, offsets.ctypes.data
        return (
            *places,
            taps,
            terms,
            itemsize,
            factors.ctypes.data,
            factors.strides[0],
            start,
            relu,
        )

    wanted = sums + products
    run(given(0, 0), start.dtype.type(1))
    assert_allclose(sums, wanted, **close)
    run(given(start.ctypes.data, 1), start.dtype.type(1))
    assert_allclose(sums, np.maximum(start + products, 0), **close)


@pytest.mark.parametrize("columns", [1, 7, 8, 45])
@pytest.mark.parametrize("n", [1, 5, 6, 13])
def test_any_number_of_rows_and_columns(n: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((n, 4)), rng.standard_normal((4, columns))
    c, start, table = np.full((n, columns), np.nan), np.zeros(columns), np.zeros(12, np.int64)
    own, out = np.arange(n) * a.strides[0], np.arange(n) * c.strides[0]
    zero = np.zeros(1, np.int64)
    tiles.add_products(
        n,
        (a.ctypes.data, own.ctypes.data),
        (c.ctypes.data, out.ctypes.data),
        (zero.ctypes.data, 1, 4, 8),
        (b.ctypes.data, b.strides[0]),
        columns,
        start.ctypes.data,
        0,
        table.ctypes.data,
        np.float64(1),
    )
    assert_allclose(c, a @ b, rtol=1e-12, atol=1e-12)
