"""Data that stay on a device: what they cost on the way there, and what is asked of them there."""

from __future__ import annotations

import gc
import importlib
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn.data.resident import _PIECE_BYTES
from tests.conftest import Place, get_place

try:
    import cudasim  # the emulator's counters
except ImportError:
    cudasim = None

MIB = 1 << 20
#: float64 and integers of 24 MiB each; on the device they are 12, 48 and 24 MiB.
SHAPE = (3 * MIB // 64, 64)
SOURCES = {
    "float64": lambda: np.random.default_rng(0).standard_normal(SHAPE),
    "uint8": lambda: np.random.default_rng(0).integers(0, 255, (8 * SHAPE[0], 64), dtype="uint8"),
    "big-endian": lambda: np.random.default_rng(0).standard_normal(SHAPE).astype(">f8"),
    "Fortran's order": lambda: np.asfortranarray(np.random.default_rng(0).standard_normal(SHAPE)),
    "every second row": lambda: np.random.default_rng(0).standard_normal((2 * SHAPE[0], 64))[::2],
    "wide rows": lambda: np.random.default_rng(0).standard_normal((4, 3 * MIB // 4)),
}


@pytest.fixture
def cupy() -> Any:
    get_place("cupy")  # or skip
    return importlib.import_module("cupy")


@contextmanager
def room_for(cupy: Any, n_bytes: int) -> Iterator[Any]:
    """Let the block have a memory pool of its own, of that size."""
    pool = cupy.cuda.MemoryPool()
    pool.set_limit(size=n_bytes)
    with cupy.cuda.using_allocator(pool.malloc):
        yield pool


@pytest.mark.gpu
class TestTheWayToAGPU:
    @pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
    def test_takes_what_the_data_take_there_and_two_buffers(self, cupy: Any, source: Any) -> None:
        x = source()
        there = x.size * 4
        buffer = max(_PIECE_BYTES, x.nbytes // len(x))
        with room_for(cupy, there + 2 * buffer):
            loader = gn.Loader(x, backend="cupy", resident=True, shuffle=False)
            assert loader.stored.x.flags.c_contiguous
            np.testing.assert_array_equal(loader.stored.x.get(), x.astype("float32"))

    def test_has_room_where_auto_says_so(self, cupy: Any) -> None:
        """They are half of the free memory; as stored they are all of it."""
        pool = cupy.get_default_memory_pool()
        gc.collect()
        pool.free_all_blocks()
        limit = pool.get_limit()
        pool.set_limit(size=pool.total_bytes() + 24 * MIB)
        try:
            assert gn.Loader(SOURCES["float64"](), backend="cupy").resident
        finally:
            pool.set_limit(size=limit)

    def test_keeps_no_pinned_memory(self, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        from gpunn.data import staging  # noqa: PLC0415 (imports CuPy)

        pool = cupy.get_default_pinned_memory_pool()
        kept, buffers = [], []

        def from_the_pool(size: int) -> Any:
            kept.append(size)
            return pool.malloc(size)

        def buffer(shape: Any, dtype: Any) -> Any:
            array = empty(shape, dtype)
            buffers.append((array.nbytes, weakref.ref(array)))
            return array

        empty = staging._empty_pinned
        monkeypatch.setattr(staging, "_empty_pinned", buffer)
        cupy.cuda.set_pinned_memory_allocator(from_the_pool)
        try:
            gn.Loader(SOURCES["float64"](), backend="cupy", resident=True)
        finally:
            cupy.cuda.set_pinned_memory_allocator(pool.malloc)
        assert max(kept, default=0) <= _PIECE_BYTES
        gc.collect()
        assert [(size, array()) for size, array in buffers] == [(_PIECE_BYTES, None)] * 2

    def test_a_file_of_many_rows(self, cupy: Any, tmp_path: Any) -> None:
        x = SOURCES["float64"]()
        there = np.memmap(tmp_path / "x", dtype=x.dtype, mode="w+", shape=x.shape)
        there[:] = x
        with room_for(cupy, 12 * MIB + 2 * _PIECE_BYTES):
            loader = gn.Loader(there, backend="cupy", resident=True)
        np.testing.assert_array_equal(loader.stored.x.get(), x.astype("float32"))

    @pytest.mark.two_devices
    def test_from_another_gpu_takes_no_more(self, cupy: Any) -> None:
        with cupy.cuda.Device(1):
            x = cupy.random.RandomState(0).standard_normal(SHAPE)
        with room_for(cupy, 12 * MIB + 2 * _PIECE_BYTES):
            loader = gn.Loader(x, backend="cupy:0", resident=True)
        np.testing.assert_array_equal(loader.stored.x.get(), x.get().astype("float32"))

    def test_says_where_there_is_no_room(self, cupy: Any) -> None:
        with (
            room_for(cupy, 12 * MIB),
            pytest.raises(gn.errors.DeviceMemoryError, match="no room for all 49152 samples"),
        ):
            gn.Loader(SOURCES["float64"](), backend="cupy", resident=True)


class TestWhatIsThereAlready:
    """It needs no more memory, however little is left."""

    def test_stays(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        x, y = place.array(np.ones((6, 2), "float32")), place.array(np.arange(6))
        monkeypatch.setattr(gn.Backend, "free_bytes", lambda *_, **__: 0)
        for settings in ({}, {"dtype": None}):
            assert gn.Loader(x, y, backend=place.backend, **settings).resident

    def test_what_must_be_converted_does_not(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x = place.array(np.ones((6, 2), "float64"))
        monkeypatch.setattr(gn.Backend, "free_bytes", lambda *_, **__: 0)
        assert not gn.Loader(x, backend=place.backend).resident
        assert gn.Loader(x, backend=place.backend, dtype="float64").resident

    def test_on_numpy_rows_must_be_in_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gn.Backend, "free_bytes", lambda *_, **__: 0)
        assert not gn.Loader(np.ones((6, 4), "float32")[:, ::2]).resident


class TestChecksOfValues:
    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (np.nan, "x has 2 values that are NaN or infinite, the first in sample 1;"),
            (-np.inf, "x has 2 values that are NaN or infinite, the first in sample 1;"),
            (1e39, "x has 2 values that are NaN or infinite in float32, the first in sample 1;"),
        ],
    )
    def test_are_made_where_the_data_are(self, place: Place, value: float, message: str) -> None:
        x = np.ones((5, 3))
        gn.Loader(place.array(x), check_finite=True, backend=place.backend)
        x[1, 2] = x[3, 0] = value
        dtype = "float32" if abs(value) == 1e39 else "float64"
        with pytest.raises(gn.errors.DataError, match=message):
            gn.Loader(place.array(x), check_finite=True, dtype=dtype, backend=place.backend)

    def test_of_no_features(self, place: Place) -> None:
        gn.Loader(place.array(np.ones((5, 0))), check_finite=True, backend=place.backend)


if cudasim is not None:

    @pytest.mark.gpu
    def test_checks_read_one_number_for_each_block(cupy: Any) -> None:
        x = cupy.ones((1 << 19, 5))
        with cudasim.count() as counted:
            gn.Loader(x, check_finite=True)
        assert counted["d2h_bytes"] <= 8 * 3
        assert counted["d2h_copies"] <= 1
