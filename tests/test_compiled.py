"""What compiled steps are made of: exponentials, activations, products, and code that is kept."""

from __future__ import annotations

import itertools
import math
import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("numba", reason="numba compiles them")

from gpunn.kernels import loops
from gpunn.kernels.native import compiled
from gpunn.kernels.stale import forget_stale_code
from gpunn.program import products


class TestMachineCodeThatIsKept:
    @pytest.mark.parametrize("newer", ["source", "code"])
    def test_it_goes_when_any_source_has_changed(self, newer: str, tmp_path: Any) -> None:
        (tmp_path / "__pycache__").mkdir()
        files = [tmp_path / "a.py", tmp_path / "b.py", *self.code(tmp_path)]
        for i, file in enumerate(files):
            file.touch()
            os.utime(file, (i, i) if newer == "code" or i else (99, 99))
        forget_stale_code([tmp_path])
        assert [file.exists() for file in self.code(tmp_path)] == [newer == "code"] * 2
        forget_stale_code([tmp_path])

    def code(self, folder: Any) -> list[Any]:
        return [folder / "__pycache__" / name for name in ("a.f-1.nbi", "b.g-2.nbi")]


class TestLoops:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_exponentials(self, dtype: str) -> None:
        x = np.concatenate([-np.geomspace(1e-30, 80, 10_000), [0.0, -0.0]]).astype(dtype)
        found = x.copy()
        loops.exponentiate(found)
        wanted = np.exp(x.astype("float64"))
        assert_allclose(found, wanted, rtol=2 * np.finfo(dtype).eps)
        odd = np.array([-np.inf, -1e4, np.nan], dtype)
        loops.exponentiate(odd)
        assert odd[0] == odd[1] <= 1e-37
        assert np.isnan(odd[2])

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize(
        ("kind", "exact"),
        [(loops.TANH, np.tanh), (loops.SIGMOID, lambda x: 1 / (1 + np.exp(-x)))],
    )
    def test_activations(self, dtype: str, kind: int, exact: Any) -> None:
        size = np.geomspace(1e-30, 80, 10_000)
        x = np.concatenate([-size, size, [0.0, np.inf, -np.inf, 1e30, np.nan]]).astype(dtype)
        found = x.copy()
        loops.activate(kind, found)
        with np.errstate(over="ignore"):
            wanted = exact(x.astype("float64"))
        assert_allclose(found, wanted, rtol=6 * np.finfo(dtype).eps, atol=1e-37)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True)])
    @given(
        shape=st.tuples(st.integers(1, 300), st.integers(1, 300), st.integers(1, 600)),
        wider=st.integers(0, 5),
    )
    def test_products(
        self, dtype: str, transposed: tuple[bool, bool], shape: Any, wider: int
    ) -> None:
        """Also of parts of wider matrices, and of more terms, rows and columns than a block has."""
        self.check(dtype, transposed, shape, wider)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("transposed", list(itertools.product((False, True), repeat=2)))
    @given(shape=st.tuples(st.integers(1, 20), st.integers(1, 400), st.integers(1, 400)))
    def test_products_of_few_rows(self, dtype: str, transposed: Any, shape: Any) -> None:
        """One row times many entries is a product of a vector; few are not worth a copy."""
        self.check(dtype, transposed, shape, 3)

    @pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True)])
    def test_large_products(self, transposed: Any) -> None:
        """They are one call of BLAS."""
        shape = (700, 500, 800)
        assert math.prod(shape) * 4 > products._LARGE
        self.check("float32", transposed, shape, 1)

    def check(self, dtype: str, transposed: Any, shape: Any, wider: int) -> None:
        """Compare a product with NumPy's, and what lies beside it with what was there before."""
        m, n, k = shape
        rng = np.random.default_rng(0)

        def matrix(rows: int, columns: int) -> Any:
            return rng.standard_normal((rows, columns + wider)).astype(dtype)[:, :columns]

        a = matrix(k, m) if transposed[0] else matrix(m, k)
        b = matrix(n, k) if transposed[1] else matrix(k, n)
        c = matrix(m, n)
        beside = c.base[:, n:].copy()
        workspace = np.zeros(products.WORKSPACE_BYTES // 8)
        places = [(x.ctypes.data, x.strides[0] // x.itemsize) for x in (a, b, c)]
        _multiply(shape, transposed, *places, workspace.ctypes.data, np.dtype(dtype).type(1))
        wanted = (a.T if transposed[0] else a) @ (b.T if transposed[1] else b)
        assert_allclose(c, wanted, rtol=1e-9 if dtype == "float64" else 1e-3, atol=1e-3)
        assert_array_equal(c.base[:, n:], beside)


@compiled
def _multiply(
    shape: Any, transposed: Any, a: Any, b: Any, c: Any, arguments: int, one: Any
) -> None:
    first, second = products.matrix(*a), products.matrix(*b)
    first = products.transpose(first) if transposed[0] else first
    second = products.transpose(second) if transposed[1] else second
    products.product(shape, first, second, products.matrix(*c), arguments, one)
