"""What `python -m gpunn doctor` says and advises where something fails, or is not CUDA."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpunn.__main__ import main
from gpunn.tools import doctor
from tests.fake_cupy import (
    OTHER,
    CompileException,
    CUDARuntimeError,
    FakeCupy,
    Install,
    OutOfMemoryError,
    fake_in,
    install_in,
    run,
)

driver_version = doctor._driver_version  # before a fixture hides it


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    return install_in(monkeypatch, tmp_path)


@pytest.fixture(autouse=True)
def _no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the driver of this machine from all but CuPy."""
    monkeypatch.setattr(doctor, "_driver_version", lambda: 0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, install: Install) -> Callable[..., FakeCupy]:
    return fake_in(monkeypatch)


PAGE = '''
raise ImportError("""
================================================================
Failed to import CuPy.

If you installed CuPy via wheels, make sure that the package matches.

Original error:
  ImportError: libcuda.so.1: cannot open shared object file
================================================================
""")
'''
#: What stands where CuPy would be (nothing, a module's source, a fake), and the reason given.
UNAVAILABLE: dict[str, tuple[Any, str]] = {
    "missing": (None, 'cupy is not installed: pip install "cupy-cuda12x[ctk]"'),
    "broken": (
        PAGE,
        (
            "installed but cannot be imported (ImportError: libcuda.so.1: cannot open shared "
            "object file); reinstall it: pip install"
        ),
    ),
    "stray": ("", "has no attribute 'cuda'"),
    "no driver": ({"count": CUDARuntimeError(35), "driver": 0}, "no working NVIDIA driver"),
    "no device": ({"count": CUDARuntimeError(100)}, "no CUDA device"),
    "none counted": ({"count": 0}, "no CUDA device"),
}


class TestUnavailable:
    @pytest.mark.parametrize(("state", "why"), UNAVAILABLE.values(), ids=UNAVAILABLE)
    def test_it_is_said_in_a_line(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        fake: Callable[..., FakeCupy],
        state: Any,
        why: str,
    ) -> None:
        if isinstance(state, str):
            (tmp_path / "cupy.py").write_text(state)
            monkeypatch.syspath_prepend(tmp_path)
            # Set first, so that the end of the test removes what this one is to import.
            monkeypatch.setitem(sys.modules, "cupy", None)  # type: ignore[arg-type]
            monkeypatch.delitem(sys.modules, "cupy")
        elif state is None:
            monkeypatch.setitem(sys.modules, "cupy", None)  # type: ignore[arg-type]
        else:
            fake(**state)
        for name, code in {"cupy": 1, "cupy:1": 1, "auto": 0, "numpy": 0}.items():
            exit_code, lines = run(capsys, "--backend", name)
            assert exit_code == code
            assert lines["check"] == ["numpy, product: right"]
            assert (why in lines["result"][0]) is (name != "numpy")
        assert run(capsys)[1]["result"][0].startswith("auto is numpy, which works; CuPy was not ")

    def test_a_forked_process_is_told_so_by_auto_too(
        self, capsys: pytest.CaptureFixture[str], fake: Callable[..., FakeCupy]
    ) -> None:
        """As `get_backend` does, which does not fall back to NumPy there."""
        fake(count=CUDARuntimeError(3))
        for name in ("cupy", "auto"):
            code, lines = run(capsys, "--backend", name)
            assert code == 1
            assert lines["result"][0].startswith(f"{name} does not work: CUDA cannot start in this")
            assert "get_context('spawn')" in lines["result"][0]

    @pytest.mark.parametrize(
        ("driver", "line", "note"),
        [
            (0, "none found", "CuPy needs an NVIDIA GPU and its driver, and no driver was found"),
            (11080, "up to CUDA 11.8", "must support CUDA 12 or later"),
            (12040, "up to CUDA 12.4", 'pip install "cupy-cuda12x[ctk]" matches the driver'),
            (13010, "up to CUDA 13.1", 'pip install "cupy-cuda13x[ctk]" matches the driver'),
        ],
    )
    def test_the_driver_says_which_cupy(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        install: Install,
        driver: int,
        line: str,
        note: str,
    ) -> None:
        monkeypatch.setitem(sys.modules, "cupy", None)  # type: ignore[arg-type]
        monkeypatch.setattr(doctor, "_driver_version", lambda: driver)
        _, lines = run(capsys)
        assert lines["CuPy"] == ["not installed"]
        assert lines["driver"] == [line]
        assert len(lines["note"]) == 1
        assert note in lines["note"][0]

    def test_a_package_that_cannot_be_imported_is_named(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        install: Install,
    ) -> None:
        install(cupy_cuda13x="14.1.0")
        monkeypatch.setitem(sys.modules, "cupy", None)  # type: ignore[arg-type]
        assert run(capsys)[1]["CuPy"] == ["cupy-cuda13x 14.1.0, cannot be imported"]

    def test_of_other_libraries(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "array_api_strict", None)  # type: ignore[arg-type]
        code, lines = run(capsys, "--backend", OTHER)
        assert code == 1
        assert lines["result"][0].endswith("not installed: pip install array-api-strict")


class TestDriver:
    """Without CuPy the driver is asked directly."""

    @pytest.mark.parametrize("version", [12080, None, "no such function"])
    def test_its_version(self, monkeypatch: pytest.MonkeyPatch, version: Any) -> None:
        def get(pointer: Any) -> int:
            pointer._obj.value = version
            return 0

        def load(name: str) -> Any:
            assert name in ("libcuda.so.1", "nvcuda.dll")
            if version is None:
                raise OSError(name)
            return SimpleNamespace(**({"cuDriverGetVersion": get} if version == 12080 else {}))

        monkeypatch.setattr(ctypes, "CDLL", load)
        assert driver_version() == (12080 if version == 12080 else 0)


HEADERS = """
/site-packages/cupy/_core/include/cupy/complex.cuh(94): catastrophic error: cannot open source \
file "cuda_fp16.h"
  #include <cuda_fp16.h>
                        ^

1 catastrophic error detected in the compilation of "/tmp/a.cu".
"""
CTK = 'pip install "cupy-cuda12x[ctk]"'
#: What fails, how, the line about it, and the remedy.
BROKEN: dict[str, tuple[str, Any, str, str]] = {
    "headers": (
        "kernel",
        CompileException(HEADERS),
        (
            "/site-packages/cupy/_core/include/cupy/complex.cuh(94): catastrophic error: cannot "
            'open source file "cuda_fp16.h"'
        ),
        CTK,
    ),
    "compiler": (
        "kernel",
        RuntimeError('Failure finding "libnvrtc.so.12": No such file: libnvrtc.so.12\n'),
        'Failure finding "libnvrtc.so.12": No such file: libnvrtc.so.12',
        CTK,
    ),
    "cuBLAS": (
        "product",
        ImportError('Failure finding "libcublasLt.so.12"'),
        'Failure finding "libcublasLt.so.12"',
        CTK,
    ),
    "old GPU": (
        "kernel",
        CompileException("nvrtc: error: invalid value for --gpu-architecture (-arch)"),
        "nvrtc: error: invalid value for --gpu-architecture (-arch)",
        (
            "install a CuPy for this GPU: cupy-cuda12x supports older GPUs, cupy-cuda13x "
            "compute capability 7.5 and later"
        ),
    ),
    "memory": (
        "product",
        OutOfMemoryError("Out of memory allocating 4,096 bytes"),
        "Out of memory allocating 4,096 bytes",
        "free memory; `nvidia-smi` lists the processes that hold it",
    ),
    "driver": (
        "kernel",
        RuntimeError("CUDA_ERROR_UNSUPPORTED_PTX_VERSION: " + 500 * "x"),
        "CUDA_ERROR_UNSUPPORTED_PTX_VERSION: " + 164 * "x" + "...",
        "update the driver",
    ),
    "unknown": (
        "kernel",
        ZeroDivisionError(),
        "ZeroDivisionError",
        "update the driver, and " + CTK,
    ),
    "wrong kernel": ("kernel", 4, "wrong result", "update the driver, and " + CTK),
    "wrong product": ("product", 1, "wrong result", "update the driver, and " + CTK),
}


class TestBroken:
    @pytest.mark.parametrize(("what", "how", "said", "remedy"), BROKEN.values(), ids=BROKEN)
    def test_what_failed_and_what_mends_it(
        self,
        capsys: pytest.CaptureFixture[str],
        install: Install,
        fake: Callable[..., FakeCupy],
        what: str,
        how: Any,
        said: str,
        remedy: str,
    ) -> None:
        fake(**{what: how})
        install(cupy_cuda12x="14.2.0")
        other = {"kernel": "product", "product": "kernel"}[what]
        code, lines = run(capsys, "--backend", "cupy:1")
        assert code == 1
        checks = {f"cupy:1, {what}: {said}", f"cupy:1, {other}: right", "numpy, product: right"}
        assert set(lines["check"]) == checks
        assert lines["result"] == [f"cupy:1 does not work: {remedy}"]

    def test_auto_takes_cupy_all_the_same_so_it_does_not_work(
        self, capsys: pytest.CaptureFixture[str], fake: Callable[..., FakeCupy]
    ) -> None:
        fake(kernel=CompileException(HEADERS), product=ImportError("cublas"))
        code, lines = run(capsys)
        assert code == 1
        assert lines["result"] == [
            (
                "auto is cupy:0, which does not work: install the CUDA 12 toolkit, and set "
                "CUDA_PATH to its folder; until then, set GPUNN_BACKEND=numpy"
            )
        ]


class TestRocm:
    """CuPy for AMD's GPUs: nothing is said of NVIDIA's drivers, toolkits and packages."""

    VERSIONS = {"driver": 60_443_484, "built_for": 60_342_134, "is_hip": True}  # noqa: RUF012

    def test_what_is_used_there(
        self, capsys: pytest.CaptureFixture[str], install: Install, fake: Callable[..., FakeCupy]
    ) -> None:
        fake(**self.VERSIONS)
        install(amd_cupy="13.5.1")
        code, lines = run(capsys)
        assert (code, lines["result"]) == (0, ["auto is cupy:0, which works"])
        assert lines["CuPy"] == ["14.2.0 (amd-cupy 13.5.1) for ROCm 6.3"]
        assert lines["driver"] == ["up to ROCm 6.4"]
        assert lines["note"] == [
            "on ROCm, CuPy's own kernels compute everything; gpunn's fused kernels are for CUDA"
        ]
        main(["doctor", "--json"])
        assert json.loads(capsys.readouterr().out)["on_rocm"] is True

    @pytest.mark.parametrize("built_for", [60_342_134, 70_000_000])
    def test_an_older_driver_gives_no_advice_on_cuda(
        self, capsys: pytest.CaptureFixture[str], fake: Callable[..., FakeCupy], built_for: int
    ) -> None:
        fake(**self.VERSIONS | {"driver": 50_000_000, "built_for": built_for})
        assert run(capsys)[1]["note"] == [doctor._ROCM]

    @pytest.mark.parametrize(
        ("error", "remedy"),
        [
            (
                CompileException("hiprtc: error"),
                "install ROCm 6.3, and set ROCM_HOME to its folder",
            ),
            (OutOfMemoryError(""), "free memory; `rocm-smi` lists the processes that hold it"),
            (
                ZeroDivisionError(),
                "update the driver, and install ROCm 6.3, and set ROCM_HOME to its folder",
            ),
        ],
    )
    def test_what_mends_it(
        self,
        capsys: pytest.CaptureFixture[str],
        fake: Callable[..., FakeCupy],
        error: Exception,
        remedy: str,
    ) -> None:
        fake(**self.VERSIONS, kernel=error)
        code, lines = run(capsys, "--backend", "cupy")
        assert (code, lines["result"]) == (1, [f"cupy:0 does not work: {remedy}"])


class TestEnvironment:
    def test_it_decides_what_auto_is(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "cupy", None)  # type: ignore[arg-type]
        monkeypatch.setenv("GPUNN_BACKEND", OTHER)
        code, lines = run(capsys)
        assert (code, lines["result"]) == (0, [f"auto is {OTHER}, which works"])
        assert f"auto is {OTHER} because GPUNN_BACKEND is set to it" in lines["note"]
        assert run(capsys, "--backend", "numpy")[1]["result"] == ["numpy works"]
        monkeypatch.setenv("GPUNN_BACKEND", "cupy")
        code, lines = run(capsys)
        assert code == 1
        assert lines["result"][0].startswith("auto does not work: cupy is not installed")

    @pytest.mark.parametrize("value", ["", "auto"])
    def test_it_may_say_nothing(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
    ) -> None:
        monkeypatch.setitem(sys.modules, "cupy", None)  # type: ignore[arg-type]
        monkeypatch.setenv("GPUNN_BACKEND", value)
        code, lines = run(capsys)
        assert code == 0
        assert lines["result"][0].startswith("auto is numpy, which works; CuPy was not used: ")

    def test_it_may_be_wrong(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("GPUNN_BACKEND", "abacus")
        with pytest.raises(SystemExit) as exit_:
            main(["doctor"])
        assert exit_.value.code == 2
        assert "error: GPUNN_BACKEND: unknown backend 'abacus'" in capsys.readouterr().err
