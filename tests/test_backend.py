"""The choice of a backend: names, blocks, what is missing and how to mend it, moves, imports."""

from __future__ import annotations

import contextlib
import contextvars
import importlib.machinery
import importlib.util
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import gpunn as gn
from gpunn.arrays import backend as module
from gpunn.arrays.memory import copy_of
from gpunn.errors import BackendUnavailableError, DeviceError, DTypeError, SettingError
from tests.conftest import OnlyDLPack, Place

OTHER = "array-api-strict:1"


def outside(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function as if no `with use(...)` block were around it."""
    return contextvars.Context().run(function, *arguments)


@pytest.fixture(autouse=True)
def _as_if_just_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_process_uses", [])
    module._cupy_works.cache_clear()
    yield
    module._cupy_works.cache_clear()


class TestNames:
    @pytest.mark.parametrize(
        ("name", "library", "index"),
        [
            ("numpy", "numpy", 0),
            ("array-api-strict", "array-api-strict", 0),
            (OTHER, "array-api-strict", 1),
            pytest.param("cupy:0", "cupy", 0, marks=pytest.mark.gpu),
        ],
    )
    def test_a_name_gives_its_backend(self, name: str, library: str, index: int) -> None:
        if library == "cupy":
            pytest.importorskip("cupy")
        backend = gn.get_backend(name)
        assert (backend.package, backend.index) == (library, index)
        assert gn.get_backend(str(backend)) == gn.get_backend(backend) == backend
        assert gn.backend_of(backend.asarray([1.0])) == backend

    @pytest.mark.gpu
    def test_cupy_has_the_devices_of_the_machine_and_no_more(self) -> None:
        cupy = pytest.importorskip("cupy")
        count = cupy.cuda.runtime.getDeviceCount()
        for index in range(count):
            x = gn.get_backend(f"cupy:{index}").asarray([1.0, 2.0])
            assert x.device.id == gn.backend_of(x).index == index
            with cupy.cuda.Device(index):
                assert gn.get_backend("cupy").index == index
                assert str(gn.get_backend("auto")) == f"cupy:{index}"
        with pytest.raises(BackendUnavailableError, match=f"no device cupy:{count}; .*cupy:0"):
            gn.get_backend(f"cupy:{count}")

    @pytest.mark.parametrize(
        "name", ["cuda", "NumPy", "", "numpy:", "cupy:", "cupy:x", "cupy:-1", "auto:0", "cupy:0:1"]
    )
    def test_an_unknown_name_is_told_the_known(self, name: str) -> None:
        with pytest.raises(SettingError) as caught:
            gn.get_backend(name)
        assert all(part in str(caught.value) for part in (repr(name), *module.KNOWN))
        with pytest.raises(SettingError, match="must be a name such as 'numpy' or 'cupy', got 3"):
            gn.get_backend(3)  # type: ignore[arg-type]

    @pytest.mark.parametrize("asked", [None, "auto"])
    def test_the_environment_chooses_where_nobody_else_does(
        self, monkeypatch: pytest.MonkeyPatch, asked: str | None
    ) -> None:
        assert str(outside(gn.get_backend)) == "numpy"
        monkeypatch.setenv(module.ENVIRONMENT_VARIABLE, OTHER)
        assert str(outside(gn.get_backend, asked)) == OTHER
        assert str(gn.get_backend("numpy")) == "numpy"
        monkeypatch.setenv(module.ENVIRONMENT_VARIABLE, "abacus")
        with pytest.raises(SettingError, match="'abacus'; known are auto, numpy"):
            outside(gn.get_backend, asked)


class TestUse:
    def test_a_block_ends_where_it_ends(self) -> None:
        with gn.use(backend=OTHER) as outer:
            assert gn.get_backend() == outer
            with contextlib.suppress(ZeroDivisionError), gn.use(backend="numpy") as inner:
                assert gn.get_backend() == inner != outer
                raise ZeroDivisionError
            assert gn.get_backend() == outer
        assert str(gn.get_backend()) == "numpy"

    def test_one_object_serves_several_blocks(self) -> None:
        block = gn.use(backend=OTHER)
        with block, gn.use(backend="numpy"), block:
            assert str(gn.get_backend()) == OTHER
        with block:
            assert str(gn.get_backend()) == OTHER
        assert str(outside(gn.get_backend)) == "numpy"

    def test_without_a_block_it_holds_for_the_process(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(module.ENVIRONMENT_VARIABLE, "array-api-strict:2")
        gn.use(backend=OTHER)
        assert str(outside(gn.get_backend)) == OTHER
        with gn.use(backend="numpy"):
            assert str(gn.get_backend()) == "numpy"
        assert str(outside(gn.get_backend)) == OTHER
        gn.use(backend="numpy")
        assert str(outside(gn.get_backend)) == "numpy"

    def test_a_wrong_name_changes_nothing(self) -> None:
        with pytest.raises(SettingError):
            gn.use(backend="abacus")
        assert str(outside(gn.get_backend)) == "numpy"

    def test_threads_choose_for_themselves(self) -> None:
        made, inside, seen = threading.Barrier(2), threading.Barrier(3), {}

        def work(name: str) -> None:
            block = gn.use(backend=name)
            made.wait(10)  # both exist, and neither is entered
            with block:
                inside.wait(10)
                seen[name] = str(gn.get_backend())
                inside.wait(10)

        names = [OTHER, "array-api-strict:2"]
        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        inside.wait(10)
        here = str(outside(gn.get_backend))
        inside.wait(10)
        for thread in threads:
            thread.join(10)
        assert seen == dict(zip(names, names, strict=True))
        assert here == str(outside(gn.get_backend)) == "numpy"

    @pytest.mark.parametrize(
        "bear",
        [
            lambda **where: gn.Dense(2, 3, **where).weight.value,
            lambda **where: gn.logistic_regression(2, **where)[0].bias.value,  # type: ignore[union-attr]
            lambda **where: gn.Loader(np.eye(2), batch_size=2, **where).first_row().x,
        ],
        ids=["Dense", "logistic_regression", "Loader"],
    )
    def test_arrays_are_born_where_it_says(self, bear: Callable[..., Any]) -> None:
        assert str(gn.backend_of(bear())) == "numpy"
        assert str(gn.backend_of(bear(backend=OTHER))) == OTHER
        with gn.use(backend=OTHER):
            assert str(gn.backend_of(bear())) == OTHER
            assert str(gn.backend_of(bear(backend="numpy"))) == "numpy"


class _RuntimeError(RuntimeError):
    def __init__(self, status: int) -> None:
        super().__init__(f"cudaError{status}")
        self.status = status


def install(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    state: str | int | BaseException | None,
    rocm: bool = False,
) -> None:
    """Make CuPy absent (None), a module of that source, or one that counts devices or fails to.

    The source "folder" stands for a folder without one.
    """
    if isinstance(state, str):
        if state == "folder":
            (folder / "cupy").mkdir()
        else:
            (folder / "cupy.py").write_text(state)
        monkeypatch.syspath_prepend(folder)
        # Set first, so that the end of the test removes what this one is to import.
        monkeypatch.setitem(sys.modules, "cupy", None)  # type: ignore[arg-type]
        monkeypatch.delitem(sys.modules, "cupy")
        return

    def count() -> Any:
        if isinstance(state, BaseException):
            raise state
        return state

    runtime = SimpleNamespace(CUDARuntimeError=_RuntimeError, getDeviceCount=count, is_hip=rocm)
    cuda = SimpleNamespace(runtime=runtime, Device=lambda: SimpleNamespace(id=0))
    fake = None if state is None else SimpleNamespace(cuda=cuda)
    monkeypatch.setitem(sys.modules, "cupy", fake)  # type: ignore[arg-type]


UNAVAILABLE = {
    "missing": (None, ["cupy is not installed", 'pip install "cupy-cuda12x[ctk]"']),
    "broken": (
        "raise ImportError('libnvrtc.so.12 is not there')",
        ["installed but cannot be imported", "libnvrtc.so.12", "reinstall", "pip install"],
    ),
    "incomplete": (
        "import a_module_that_is_not_there",
        ["installed but cannot be imported", "a_module_that_is_not_there", "reinstall"],
    ),
    "crashing": ("[][0]", ["installed but cannot be imported", "index out of range"]),
    "stray": ("", ["is not CuPy", "has no attribute 'cuda'", "cupy.py", "pip install"]),
    "stray folder": ("folder", ["/cupy is not CuPy", "has no attribute 'cuda'", "rename it"]),
    "no driver": (_RuntimeError(35), ["no working NVIDIA driver", "cudaError35", "nvidia-smi"]),
    "no device": (_RuntimeError(100), ["no CUDA device", "nvidia-smi", "CUDA_VISIBLE_DEVICES"]),
    "none counted": (0, ["no CUDA device", "nvidia-smi", "CUDA_VISIBLE_DEVICES"]),
}


class TestUnavailable:
    @pytest.mark.parametrize(("state", "parts"), UNAVAILABLE.values(), ids=UNAVAILABLE)
    def test_which_it_is_and_what_mends_it(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        state: Any,
        parts: list[str],
    ) -> None:
        """The error says so where CuPy was asked for, and for "auto" the log does, once."""
        install(monkeypatch, tmp_path, state)
        with pytest.raises(BackendUnavailableError) as caught:
            gn.get_backend("cupy")
        assert [part for part in parts if part not in str(caught.value)] == []
        with caplog.at_level(logging.INFO, logger="gpunn"):
            assert {str(gn.get_backend("auto")) for _ in range(3)} == {"numpy"}
        said = [record.getMessage() for record in caplog.records]
        assert said == [f"backend 'auto' is numpy, since {caught.value}"]

    def test_auto_says_once_that_it_is_cupy(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        install(monkeypatch, tmp_path, 1)
        monkeypatch.setenv(module.ENVIRONMENT_VARIABLE, "auto")
        with caplog.at_level(logging.INFO, logger="gpunn"):
            assert {str(outside(gn.get_backend, name)) for name in ("auto", None)} == {"cupy:0"}
        said = [record.getMessage() for record in caplog.records]
        assert said == ["backend 'auto' is cupy, since CuPy and a device work"]

    def test_auto_is_the_current_device_of_the_moment(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        install(monkeypatch, tmp_path, 2)
        for index in (1, 0, 1):
            device = SimpleNamespace(id=index)
            monkeypatch.setattr(sys.modules["cupy"].cuda, "Device", lambda device=device: device)
            assert str(gn.get_backend("auto")) == str(gn.get_backend("cupy")) == f"cupy:{index}"

    @pytest.mark.parametrize("status", [35, 100])
    def test_on_rocm_nothing_is_said_of_nvidias(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int
    ) -> None:
        install(monkeypatch, tmp_path, _RuntimeError(status), rocm=True)
        with pytest.raises(BackendUnavailableError, match="`rocm-smi` lists") as caught:
            gn.get_backend("cupy")
        assert not re.search("nvidia|cuda_", str(caught.value), flags=re.IGNORECASE)

    @pytest.mark.parametrize("works_before", [False, True])
    def test_a_forked_process_is_told_to_be_spawned(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, works_before: bool
    ) -> None:
        """Also by "auto", which may not fall back to NumPy there."""
        if works_before:
            install(monkeypatch, tmp_path, 1)
            assert str(gn.get_backend("auto")) == "cupy:0"
        install(monkeypatch, tmp_path, _RuntimeError(3))
        for name in ("cupy", "cupy:0", "auto"):
            with pytest.raises(DeviceError, match=r"forked after .*get_context\('spawn'\)"):
                gn.get_backend(name)
        assert str(gn.get_backend("numpy")) == "numpy"

    @pytest.mark.parametrize(("count", "known"), [(1, "cupy:0"), (3, "cupy:0 to cupy:2")])
    def test_a_wrong_index_lists_the_devices(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, count: int, known: str
    ) -> None:
        install(monkeypatch, tmp_path, count)
        assert gn.get_backend(f"cupy:{count - 1}").index == count - 1
        with pytest.raises(BackendUnavailableError, match=f"no device cupy:{count}; .* {known}$"):
            gn.get_backend(f"cupy:{count}")

    @pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
    def test_cupy_is_missing_here(self) -> None:
        with pytest.raises(BackendUnavailableError, match="cupy is not installed: pip install"):
            gn.get_backend("cupy:0")

    def test_of_other_libraries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("numpy:1", "array-api-strict:9"):
            with pytest.raises(BackendUnavailableError, match=name):
                gn.get_backend(name)
        monkeypatch.setitem(sys.modules, "array_api_strict", None)  # type: ignore[arg-type]
        with pytest.raises(BackendUnavailableError, match="pip install array-api-strict"):
            gn.get_backend(OTHER)

    @pytest.mark.gpu
    def test_cupy_tells_its_errors_apart_as_we_do(self) -> None:
        runtime = pytest.importorskip("cupy").cuda.runtime
        assert runtime.CUDARuntimeError(100).status == 100


class Tracked:
    """An array that wants to be detached before it is read, as torch's may."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        raise RuntimeError("call detach() first")

    def detach(self) -> Any:
        return OnlyDLPack(np.arange(3))


class TestToNumpy:
    @pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
    def test_of_every_backend(self, place: Place, dtype: str) -> None:
        values = np.arange(6).reshape(2, 3)
        x = gn.to_numpy(place.array(values, dtype))
        assert type(x) is np.ndarray
        assert x.dtype == dtype
        assert x.tolist() == values.astype(dtype).tolist()
        assert gn.to_numpy(x) is x

    @pytest.mark.parametrize(
        "x", [[0, 1, 2], range(3), OnlyDLPack(np.arange(3)), Tracked(), memoryview(b"\0\1\2")]
    )
    def test_of_what_is_no_array_of_ours(self, x: Any) -> None:
        assert gn.to_numpy(x).tolist() == [0, 1, 2]
        for name in ("numpy", OTHER):
            backend = gn.get_backend(name)
            assert gn.backend_of(backend.asarray(x, "float32")) == backend

    def test_of_torch(self, torch: Any) -> None:
        x = torch.arange(3.0, requires_grad=True)
        assert gn.to_numpy(x).tolist() == [0.0, 1.0, 2.0]

    @pytest.mark.gpu
    def test_of_what_lies_on_a_gpu(self) -> None:
        cupy = pytest.importorskip("cupy")
        x = cupy.arange(6.0)[::2]
        foreign = SimpleNamespace(__cuda_array_interface__=x.__cuda_array_interface__)
        assert gn.to_numpy(foreign).tolist() == [0.0, 2.0, 4.0]


SHARED = HealthCheck.function_scoped_fixture  # a place may serve all examples
BITS = b"\x01\0\xf8\x7f\x01\0\xf0\x7f\0\0\0\x80\0\0\0\x80\x01\0\0\0\0\0\0\0"  # NaNs, -0, subnormals


class TestMoves:
    @example(BITS)
    @given(st.binary(min_size=8, max_size=64).map(lambda bits: bits[: len(bits) // 8 * 8]))
    @settings(deadline=None, max_examples=30, suppress_health_check=[SHARED])
    @pytest.mark.parametrize("dtype", ["float32", "float64", "int64", ">f8"])
    def test_a_way_keeps_every_bit(self, place: Place, dtype: str, bits: bytes) -> None:
        x = np.frombuffer(bits, dtype)
        here = place.backend.asarray(x)
        assert gn.to_numpy(here).dtype.isnative
        there = gn.get_backend(OTHER).asarray(here)
        back = gn.to_numpy(place.backend.asarray(there))
        assert back.tobytes() == x.astype(x.dtype.newbyteorder("=")).tobytes()
        assert x.tobytes() == bits

    @pytest.mark.gpu
    def test_from_one_gpu_to_the_next(self) -> None:
        cupy = pytest.importorskip("cupy")
        last = cupy.cuda.runtime.getDeviceCount() - 1
        x = gn.get_backend("cupy:0").asarray(np.frombuffer(BITS, "float64"))
        moved = gn.get_backend(f"cupy:{last}").asarray(x)
        assert moved.device.id == last
        assert gn.to_numpy(moved).tobytes() == BITS
        assert gn.get_backend("cupy:0").asarray(x) is x

    @pytest.mark.parametrize("x", [np.float32(3), np.ma.array([3.0]), 3.0], ids=type)
    def test_an_array_is_no_scalar_and_no_subclass(self, place: Place, x: Any) -> None:
        made = place.backend.asarray(x)
        assert type(made) is type(place.backend.xp.asarray([1.0]))
        assert gn.to_numpy(made).ravel().tolist() == [3.0]

    def test_what_is_there_already_stays(self, place: Place) -> None:
        x = place.backend.asarray(np.ones(3, "float32"))
        assert place.backend.asarray(x) is x
        assert place.backend.asarray(x, "float32") is x
        assert str(place.backend.asarray(x, "float64").dtype).endswith("float64")
        with pytest.raises(SettingError, match="unknown dtype 'float99'"):
            place.backend.asarray(x, "float99")

    def test_a_copy_is_of_an_array(self, place: Place) -> None:
        x = place.array([1.0, 2.0])
        copy = copy_of(x)
        copy += 1.0
        assert gn.to_numpy(x).tolist() == [1.0, 2.0]
        assert gn.backend_of(copy) == place.backend
        with pytest.raises(DTypeError, match="array of a known library, got list"):
            copy_of([1.0])


def test_an_unknown_name_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUNN_BACKEND", "nump")
    with pytest.raises(
        gn.errors.SettingError, match="variable GPUNN_BACKEND: unknown backend 'nump'"
    ):
        gn.get_backend("auto")
