"""How the CUDA kernels divide their work among threads, which must not show in any result."""

from __future__ import annotations

import importlib
from itertools import product
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn.kernels import kernels
from gpunn.kernels.cuda import grids
from gpunn.kernels.cuda.grids import PACK, THREADS
from gpunn.kernels.update import Slots, Update
from tests.conftest import Place, get_place
from tests.test_kernels import assert_plain

SIZES = [1, 2, 3, 31, 32, 33, 255, 256, 257, 1000, 1024, 5000]
LARGE = 300_000_000


class TestGrids:
    @pytest.mark.parametrize("size", [*SIZES, LARGE])
    def test_every_entry_has_a_thread(self, size: int) -> None:
        (blocks, _), block = grids.over_entries(size)
        assert block == (THREADS, 1)
        least = -(-size // (THREADS * PACK))
        assert blocks == least if size < LARGE else 60_000 < blocks < least

    @pytest.mark.parametrize(("n", "width"), [*product(SIZES, SIZES)])
    def test_every_row_and_every_place_in_it_have_threads(self, n: int, width: int) -> None:
        (x, y), (lanes, rows) = grids.over_rows(n, width)
        assert lanes * rows == THREADS
        assert (x - 1) * rows < n <= x * rows
        assert (y - 1) * lanes < width <= y * lanes
        assert lanes < 2 * width

    def test_a_grid_keeps_to_the_limits_of_cuda(self) -> None:
        assert grids.over_rows(LARGE, 1)[0] == (65_536, 1)
        assert grids.over_rows(1, LARGE)[0] == (1, 65_535)

    @pytest.mark.parametrize("p", [*SIZES, 4096, LARGE])
    def test_every_column_has_a_block(self, p: int) -> None:
        for n in (1, 256, 1024):
            launch = grids.over_columns(n, p)
            if launch is not None:
                (blocks, _), (lanes, rows) = launch
                assert lanes * rows == THREADS
                assert (blocks - 1) * lanes < p <= blocks * lanes

    def test_a_narrow_matrix_is_spread_over_many_blocks(self) -> None:
        launch = grids.over_columns(128, 256)
        assert launch is not None
        assert launch[0] == (32, 1)

    @pytest.mark.parametrize(
        ("n", "p", "is_one_launch"),
        [
            (256, 1, True),
            (257, 504, False),
            (257, 505, True),
            (1024, 512, True),
            (1025, 512, False),
            (1024, 4096, True),
        ],
    )
    def test_few_blocks_do_not_get_many_rows(self, n: int, p: int, is_one_launch: bool) -> None:
        assert (grids.over_columns(n, p) is not None) == is_one_launch


@pytest.fixture
def cupy() -> Place:
    return get_place("cupy")


@pytest.mark.gpu
class TestFewBlocks:
    """Blocks go through all the work even where there are more pieces of it than blocks."""

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize(("n", "p"), [(5, 2100), (2100, 5), (40, 333)])
    @pytest.mark.parametrize(
        "name", ["activation", "activation_backward", "bias_activation", "dropout", "gather"]
    )
    def test_results_are_the_same(
        self,
        cupy: Place,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        n: int,
        p: int,
        dtype: str,
    ) -> None:
        monkeypatch.setattr(grids, "_MAX_BLOCKS", 2)
        monkeypatch.setattr(grids, "_MAX_BLOCKS_Y", 2)
        assert_plain(cupy, name, n, p, "contiguous", dtype)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("sizes", [(600 * 4096 + 5,), (300 * 4096, 3, 250 * 4096 + 1)])
    def test_the_norm_of_many_numbers(
        self, cupy: Place, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...], dtype: str
    ) -> None:
        launch = importlib.import_module("gpunn.kernels.cupy_launch")
        grid_of_norm = []

        def watched(name: str, *settings: Any) -> Any:
            def start(grid: Any, *arguments: Any) -> None:
                if name == "squared_norm":
                    grid_of_norm.append(grid)
                kernel(grid, *arguments)

            kernel = real(name, *settings)
            return start

        real = launch.optimizer_kernel
        monkeypatch.setattr(launch, "optimizer_kernel", watched)
        rng = np.random.default_rng(0)
        values, grads = ([rng.standard_normal(n).astype(dtype) for n in sizes] for _ in range(2))
        norm = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in grads))
        placed = [[cupy.array(x) for x in each] for each in (values, grads)]
        update = Update(Slots(*placed, [], [0.0] * len(sizes)), 1.0, 10.0, None)
        kernels(placed[0][0]).update(gn.SGD([gn.Parameter(np.zeros(1))]), update)
        # Each block of the update adds up as many partial sums.
        assert grid_of_norm == [(512, 1)]
        for got, value, grad in zip(placed[0], values, grads, strict=True):
            want = value - grad * np.float64(10.0 / norm)
            # The value and its change round once each, and both are below 8.
            bound = 8 * np.finfo(dtype).eps
            np.testing.assert_allclose(gn.to_numpy(got), want, rtol=0, atol=bound)

    def test_columns_by_the_wider_tile(self, cupy: Place) -> None:
        for n in (1, 130):
            assert_plain(cupy, "bias_activation_backward", n, 4103, "contiguous", "float32")
