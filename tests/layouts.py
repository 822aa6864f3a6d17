"""Matrices on a GPU, in every layout that a factor of a product may have."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np


def draw(n: int, p: int, dtype: str, seed: int = 0) -> Any:
    drawn = np.random.default_rng(seed).standard_normal((n, p)).astype(dtype)
    return importlib.import_module("cupy").asarray(drawn)


def fortran(n: int, p: int, dtype: str) -> Any:
    return importlib.import_module("cupy").asfortranarray(draw(n, p, dtype))


def repeated(n: int, p: int, dtype: str) -> Any:
    return importlib.import_module("cupy").broadcast_to(draw(1, p, dtype), (n, p))


#: Each makes an array of n rows and p columns.
LAYOUTS: dict[str, Callable[[int, int, str], Any]] = {
    "rows": draw,
    "transposed": lambda n, p, dtype: draw(p, n, dtype).T,
    "Fortran's": fortran,
    "rows of a batch": lambda n, p, dtype: draw(n + 3, p, dtype)[2 : 2 + n],
    # cuBLAS does not take these as they are.
    "columns": lambda n, p, dtype: draw(n, p + 3, dtype)[:, 1 : 1 + p],
    "every other row": lambda n, p, dtype: draw(2 * n, p, dtype)[::2],
    "backwards": lambda n, p, dtype: draw(n, p, dtype)[::-1],
    "one row, repeated": repeated,
}
#: n, p and q of the product of (n, p) and (p, q).
SIZES = [(1, 1, 1), (1, 7, 5), (7, 1, 5), (7, 5, 1), (1, 9, 1), (3, 4, 5), (64, 33, 17)]
