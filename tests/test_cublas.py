"""Products by cuBLAS: layouts, threads, streams and devices."""

from __future__ import annotations

import gc
import importlib
import sys
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from tests.at_once import in_threads
from tests.conftest import get_place
from tests.layouts import LAYOUTS, SIZES, draw

pytestmark = pytest.mark.gpu
cupy: Any = None
cublas: Any = None
handles: Any = None


@pytest.fixture(autouse=True)
def _cupy() -> None:
    global cupy, cublas, handles  # noqa: PLW0603
    get_place("cupy")  # or skip
    cupy = pytest.importorskip("cupy")
    cublas = importlib.import_module("gpunn.kernels.cublas")
    handles = importlib.import_module("gpunn.kernels.cublas_handle")


@pytest.fixture
def no_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a product fail that does not go to cuBLAS directly."""
    if cupy.cuda.runtime.is_hip:
        pytest.skip("there is no cuBLAS for AMD's devices")
    monkeypatch.setattr(cupy, "dot", None)


@pytest.fixture
def _no_library() -> Iterator[None]:
    """Forget what was found before the test, and afterwards what was found in it."""
    for found in (cublas.loaded_library, cublas._plan):
        found.cache_clear()
    yield
    for found in (cublas.loaded_library, cublas._plan):
        found.cache_clear()


def assert_is_product(z: Any, x: Any, y: Any) -> None:
    """Check each sum of products, relative to what rounding may do to it."""
    x, y, z = (gn.to_numpy(a).astype("float64") for a in (x, y, z.astype("float64")))
    eps = 2.0**-24 if z.dtype == "float32" else 2.0**-23
    assert z.shape == (x @ y).shape
    assert np.all(np.abs(z - x @ y) <= 4 * x.shape[-1] * eps * (np.abs(x) @ np.abs(y)) + 1e-300)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.usefixtures("no_dot")
def test_every_layout_goes_to_the_library(left: str, right: str, dtype: str) -> None:
    for n, p, q in SIZES:
        x, y = LAYOUTS[left](n, p, dtype), LAYOUTS[right](p, q, dtype)
        z = cublas.product(x, y)
        assert_is_product(z, x, y)
        assert z.dtype == dtype
        assert z.flags.c_contiguous
        into = cupy.full((n, q), np.nan, dtype)
        assert cublas.product(x, y, into) is into
        assert_is_product(into, x, y)


@pytest.mark.usefixtures("no_dot")
def test_a_vector_is_one_row() -> None:
    x, y = draw(1, 6, "float32")[0], draw(6, 4, "float32")
    assert_is_product(cublas.product(x, y), x, y)
    into = cupy.empty(4, "float32")
    assert cublas.product(x, y, into) is into
    assert_is_product(into, x, y)


@pytest.mark.parametrize(("n", "p", "q"), [(0, 3, 2), (3, 0, 2), (3, 2, 0), (0, 0, 0)])
def test_an_empty_product_is_zero(n: int, p: int, q: int) -> None:
    z = cublas.product(cupy.ones((n, p), "float32"), cupy.ones((p, q), "float32"))
    np.testing.assert_array_equal(gn.to_numpy(z), np.zeros((n, q)))


@pytest.mark.parametrize(("x", "y"), [("float16", "float16"), ("float32", "float64")])
def test_other_dtypes_are_cupys(x: str, y: str) -> None:
    left, right = draw(3, 4, x), draw(4, 5, y)
    z = cublas.product(left, right)
    assert z.dtype == np.result_type(x, y)
    np.testing.assert_allclose(gn.to_numpy(z), gn.to_numpy(left) @ gn.to_numpy(right), rtol=2e-3)


def test_what_does_not_fit_is_an_error_as_before() -> None:
    x, y = draw(3, 4, "float32"), draw(5, 2, "float32")
    with pytest.raises(ValueError, match="mismatch"):
        cublas.product(x, y)
    for into in (cupy.empty((3, 3), "float32"), cupy.empty((3, 2), "float64")):
        with pytest.raises(ValueError, match=r"invalid size|dtype"):
            cublas.product(x, y[:4], into)
    with pytest.raises(ValueError, match="C-contiguous"):
        cublas.product(x, y[:4], cupy.empty((2, 3), "float32").T)


@pytest.mark.usefixtures("no_dot")
def test_a_failure_names_the_status_and_the_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(3, 3, "float32")
    cublas.product(x, x)
    monkeypatch.setattr(handles.current_handle(0), "gemm", lambda *_: 15)
    wanted = r"cublasGemmEx .* 15 \(CUBLAS_STATUS_NOT_SUPPORTED\), for \(3, 3\) @ \(3, 3\) in f"
    with pytest.raises(RuntimeError, match=wanted):
        cublas.product(x, x)


@pytest.mark.usefixtures("no_dot")
def test_a_handle_without_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles.Handle, "_create", lambda _: 3)
    with pytest.raises(MemoryError, match="cuBLAS has no memory to work with on device 0"):
        handles.Handle()


@pytest.mark.usefixtures("_no_library")
class TestWithoutTheLibrary:
    def assert_falls_back(self) -> None:
        assert cublas.loaded_library() is None
        x, y = draw(3, 4, "float32"), draw(4, 2, "float32")
        assert_is_product(cublas.product(x, y), x, y)

    def test_amds_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cublas.runtime, "is_hip", True)
        self.assert_falls_back()

    def test_no_package_that_finds_it(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
        with caplog.at_level("INFO", "gpunn"):
            self.assert_falls_back()
        assert "products go through cupy.dot, since" in caplog.text

    def test_no_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cublas.ctypes, "CDLL", lambda _: (_ for _ in ()).throw(OSError("gone")))
        self.assert_falls_back()


class TestStreams:
    def test_a_product_follows_the_current_stream(self) -> None:
        """What it reads is written in that stream just before, and nothing waits."""
        y = draw(64, 64, "float32")
        cupy.cuda.Device().synchronize()
        streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
        results = []
        for i in range(6):
            with streams[i % 2]:
                x = cupy.full((64, 64), float(i), "float32")
                results.append(cublas.product(x, y))
        cupy.cuda.Device().synchronize()
        for i, z in enumerate(results):
            np.testing.assert_allclose(
                gn.to_numpy(z)[0], i * gn.to_numpy(y).sum(axis=0), rtol=1e-3, atol=1e-4
            )

    def test_a_stream_that_came_after_another_one_ended(self) -> None:
        y = draw(8, 8, "float32")
        cupy.cuda.Device().synchronize()
        for i in range(20):
            stream = cupy.cuda.Stream(non_blocking=True)
            with stream:
                z = cublas.product(cupy.full((8, 8), float(i), "float32"), y)
            stream.synchronize()
            assert_is_product(z, cupy.full((8, 8), float(i), "float32"), y)
            del stream

    def test_operands_may_go_while_the_product_is_to_come(self) -> None:
        y = draw(32, 32, "float32")
        z = cublas.product(cupy.full((32, 32), 2.0, "float32"), y)
        for _ in range(8):
            cupy.full((32, 32), np.nan, "float32")
        assert_is_product(z, np.full((32, 32), 2.0, "float32"), y)


class TestThreads:
    @pytest.mark.parametrize("default", ["null", "ptds", "own"])
    def test_each_has_a_handle_of_its_own(self, default: str) -> None:
        y = draw(16, 16, "float32")
        cupy.cuda.Device().synchronize()

        def work(i: int) -> Any:
            stream = cupy.cuda.Stream(non_blocking=True)
            with stream if default == "own" else getattr(cupy.cuda.Stream, default):
                for k in range(50):
                    x = cupy.full((16, 16), float(i + k), "float32")
                    z = cublas.product(x, y)
                cupy.cuda.get_current_stream().synchronize()
            if cublas.loaded_library() is None:
                return z, i
            return z, weakref.ref(handles.current_handle(0))

        (first, handle), (second, other) = in_threads(work)
        for i, z in enumerate((first, second)):
            assert_is_product(z, np.full((16, 16), i + 49.0, "float32"), y)
        assert handle is not other

    @pytest.mark.usefixtures("no_dot")
    def test_its_handle_ends_with_a_thread(self) -> None:
        x = draw(4, 4, "float32")

        def work(_: int) -> Any:
            cublas.product(x, x)
            return weakref.ref(handles.current_handle(0))

        (handle,) = in_threads(work, 1)
        gc.collect()
        assert handle() is None

    @pytest.mark.usefixtures("no_dot")
    @pytest.mark.parametrize("fails", [False, True])
    def test_none_is_destroyed_while_a_step_is_captured(
        self, monkeypatch: pytest.MonkeyPatch, fails: bool
    ) -> None:
        """That waits for the device; a collection may do it at any time, in any thread."""
        destroyed: list[Any] = []
        monkeypatch.setattr(handles, "_destroy", lambda *handle: destroyed.append(handle))
        kept = [handles.Handle(), handles.Handle()]
        pointers = [handle.pointer for handle in kept]
        kept.pop()
        assert [handle[1] for handle in destroyed] == pointers[1:]
        with suppress(OSError), handles.one_capture_at_a_time():
            kept.pop()
            assert len(destroyed) == 1
            if fails:
                raise OSError
        assert [handle[1] for handle in destroyed] == pointers[::-1]
        monkeypatch.undo()
        for handle in destroyed:
            handles._destroy(*handle)


@pytest.mark.two_devices
def test_a_handle_for_each_device() -> None:
    results = []
    for device in (0, 1, 0, 1):
        with cupy.cuda.Device(device):
            x, y = draw(9, 5, "float32", device), draw(5, 4, "float32", device)
            results.append((cublas.product(x, y), x, y))
    for z, x, y in results:
        assert z.device == x.device
        with z.device:
            assert_is_product(z, x, y)
