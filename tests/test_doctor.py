"""What `python -m gpunn doctor` finds, checks and advises, where CuPy works and where it fails."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn import program
from gpunn.__main__ import main
from gpunn.tools import doctor
from tests.conftest import get_place

OTHER = "array-api-strict:1"
driver_version = doctor._driver_version  # before a fixture hides it
FOLDER = Path(doctor.__file__).parents[1]

Install = Callable[..., None]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, list[str]]]:
    """Return the exit code, and the lines by their labels."""
    code = main(["doctor", *arguments])
    lines: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        label, text = line[:8].strip(), line[8:]
        lines.setdefault(label, []).append(text)
    assert len(lines["result"]) == 1
    return code, lines


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """Return a function that installs packages, by name and version, where there were none."""
    distributions = importlib.metadata.distributions
    monkeypatch.setattr(
        importlib.metadata,
        "distributions",
        lambda **which: distributions(path=[str(tmp_path)], **which),
    )

    def install(**packages: str) -> None:
        for name, version in packages.items():
            folder = tmp_path / f"{name}-{version}.dist-info"
            folder.mkdir()
            text = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
            (folder / "METADATA").write_text(text)

    return install


@pytest.fixture(autouse=True)
def _no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the driver of this machine from all but CuPy."""
    monkeypatch.setattr(doctor, "_driver_version", lambda: 0)


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text or f"cudaError{status}")
        self.status = status


class CompileException(Exception):  # noqa: N818 (CuPy's name)
    pass


class OutOfMemoryError(MemoryError):
    pass


class FakeDevice:
    def __init__(self, index: int = 0) -> None:
        self.id = index

    def __enter__(self) -> None:
        FakeCupy.current.append(self.id)

    def __exit__(self, *exception: object) -> None:
        FakeCupy.current.pop()


class FakeCupy:
    """CuPy as the doctor sees it, on NumPy's arrays; parts of it may fail."""

    current = [0]  # noqa: RUF012 (one stack for all, as CuPy has)
    ndarray = type("ndarray", (), {})
    __version__ = "14.2.0"

    def __init__(
        self,
        count: int | Exception = 2,
        driver: int = 13000,
        built_for: int = 12090,
        kernel: Exception | int = 3,
        product: Exception | int = 0,
        unreadable: int | None = None,
        is_hip: bool = False,
    ) -> None:
        self.count, self.kernel, self.product, self.unreadable = count, kernel, product, unreadable
        self.compiled_on: list[tuple[int, str | None]] = []
        runtime = SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            is_hip=is_hip,
            driverGetVersion=lambda: driver,
            runtimeGetVersion=lambda: built_for,
            getDeviceCount=self.get_device_count,
            getDeviceProperties=lambda i: {"name": b"GPU %d" % i, "major": 9, "minor": i},
            memGetInfo=self.mem_get_info,
        )
        self.cuda = SimpleNamespace(runtime=runtime, Device=FakeDevice)
        self.asarray = np.asarray

    def get_device_count(self) -> int:
        if isinstance(self.count, Exception):
            raise self.count
        return self.count

    def mem_get_info(self) -> tuple[int, int]:
        if self.current[-1] == self.unreadable:
            raise CUDARuntimeError(46, "cudaErrorDevicesUnavailable: busy")
        return (1 + self.current[-1]) * 2**30, 16 * 2**30

    def ElementwiseKernel(self, *source: str) -> Any:  # noqa: N802
        def launch(x: Any, y: Any) -> Any:
            self.compiled_on.append((self.current[-1], os.environ.get("CUPY_CACHE_IN_MEMORY")))
            if isinstance(self.kernel, Exception):
                raise self.kernel
            return self.kernel * x + y

        return launch

    def matmul(self, x: Any, y: Any) -> Any:
        if isinstance(self.product, Exception):
            raise self.product
        return x @ y + self.product


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, install: Install) -> Callable[..., FakeCupy]:
    """Return a function that puts a `FakeCupy` where CuPy would be."""

    def put(**settings: Any) -> FakeCupy:
        cupy = FakeCupy(**settings)
        monkeypatch.setitem(sys.modules, "cupy", cupy)  # type: ignore[arg-type]
        namespace = SimpleNamespace(matmul=cupy.matmul)
        monkeypatch.setitem(sys.modules, "array_api_compat.cupy", namespace)  # type: ignore[arg-type]
        return cupy

    return put


class TestCommand:
    def test_it_is_a_command(self) -> None:
        command = [sys.executable, "-m", "gpunn", "doctor", "--backend", "numpy"]
        # It raises where the exit code is not 0, and merges the warnings, of which there are none.
        said = subprocess.check_output(command, stderr=subprocess.STDOUT, text=True, cwd=FOLDER)  # noqa: S603
        lines = said.splitlines()
        assert (lines[0], lines[-1]) == (f"gpunn   {gn.__version__}", "result  numpy works")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ([], "required: COMMAND"),
            (["nurse"], "'nurse'"),
            (["doctor", "--back", "numpy"], "arguments: --back numpy"),
            (["doctor", "--backend"], "--backend: expected one"),
            (["doctor", "--backend", "abacus"], "unknown backend 'abacus'; known are auto, numpy"),
            (["doctor", "--backend", ""], "unknown backend ''"),
        ],
    )
    def test_a_wrong_use_prints_the_usage(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
    ) -> None:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        printed = capsys.readouterr()
        assert (exit_.value.code, printed.out) == (2, "")
        assert printed.err.startswith("usage: python -m gpunn ")
        assert said in printed.err

    def test_a_use_without_arguments_is_that_of_the_process(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["gpunn", "doctor", "--backend", "numpy"])
        assert main() == 0
        assert "result  numpy works" in capsys.readouterr().out

    @pytest.mark.parametrize(("name", "works"), [("numpy", True), ("cupy", False)])
    def test_json_says_what_the_lines_say(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        name: str,
        works: bool,
    ) -> None:
        monkeypatch.setitem(sys.modules, "cupy", None)  # type: ignore[arg-type]
        assert main(["doctor", "--backend", name, "--json"]) == (0 if works else 1)
        found = json.loads(capsys.readouterr().out)
        assert (found["asked"], found["works"]) == (name, works)
        assert found["numpy"] == np.__version__
        assert found["checks"][0] == {
            "backend": "numpy",
            "what": "product",
            "problem": None,
            "remedy": None,
        }
        assert ("is not installed" in (found["backend_problem"] or "")) is not works

    def test_gpunn_does_without_it(self) -> None:
        code = "import sys, gpunn; print('gpunn.tools.doctor' in sys.modules)"
        said = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=FOLDER)  # noqa: S603
        assert said == "False\n"


class TestNumPy:
    def test_it_works(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, lines = run(capsys, "--backend", "numpy")
        assert code == 0
        assert lines["gpunn"] == [gn.__version__]
        assert lines["Python"][0].startswith(".".join(map(str, sys.version_info[:3])))
        assert lines["NumPy"][0].startswith(f"{np.__version__}, BLAS: ")
        assert lines["check"] == ["numpy, product: right"]
        assert lines["result"] == ["numpy works"]

    @pytest.mark.parametrize(
        ("why", "shown"), [("", "compiled"), ("no numba", "as written: no numba")]
    )
    def test_it_says_whether_steps_are_compiled(
        self,
        why: str,
        shown: str,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(program, "why_not_compiled", lambda x: why)
        _, lines = run(capsys, "--backend", "numpy")
        assert lines["steps"] == [shown]

    @pytest.mark.parametrize(
        ("product", "said"),
        [
            (lambda x, y: x @ y + 1, "wrong result"),
            (lambda x, y: 1 / 0, "division by zero"),
        ],
    )
    def test_it_does_not(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        product: Callable[..., Any],
        said: str,
    ) -> None:
        monkeypatch.setitem(sys.modules, "cupy", None)  # type: ignore[arg-type]
        monkeypatch.setattr(gn.get_backend("numpy").xp, "matmul", product)
        for name in ("numpy", "auto"):
            code, lines = run(capsys, "--backend", name)
            assert code == 1
            assert lines["check"] == [f"numpy, product: {said}"]
            which = "auto is numpy, which" if name == "auto" else "numpy"
            assert lines["result"] == [f"{which} does not work: reinstall numpy"]

    def test_it_has_one_device(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, lines = run(capsys, "--backend", "numpy:1")
        assert code == 1
        assert "NumPy has one device" in lines["result"][0]

    def test_another_library_is_checked_too(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, lines = run(capsys, "--backend", OTHER)
        assert code == 0
        assert lines["check"] == ["numpy, product: right", f"{OTHER}, product: right"]
        assert lines["result"] == [f"{OTHER} works"]


class TestBlas:
    LOADED = [  # noqa: RUF012 (as threadpoolctl lists them)
        {"user_api": "openmp", "filepath": "/numpy.libs/libgomp.so"},
        {
            "user_api": "blas",
            "internal_api": "openblas",
            "version": "0.3.30",
            "num_threads": 4,
            "filepath": "/site-packages/numpy.libs/libscipy_openblas64_.so",
        },
        {
            "user_api": "blas",
            "internal_api": "mkl",
            "version": "2024.1",
            "num_threads": 8,
            "filepath": "/lib/libmkl_rt.so",
        },
    ]

    @pytest.mark.parametrize(
        ("loaded", "blas"),
        [
            (LOADED, "openblas 0.3.30, 4 threads"),
            (LOADED[2:], "mkl 2024.1, 8 threads"),
            (LOADED[:1], "accelerate"),
            (AttributeError("'NoneType' object has no attribute 'split'"), "accelerate"),
            (None, "accelerate"),
        ],
        ids=["NumPy's own", "a shared one", "none that it knows", "old version", "not installed"],
    )
    def test_it_is_named(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        loaded: Any,
        blas: str,
    ) -> None:
        def threadpool_info() -> Any:
            if isinstance(loaded, Exception):
                raise loaded
            return loaded

        module = None if loaded is None else SimpleNamespace(threadpool_info=threadpool_info)
        monkeypatch.setitem(sys.modules, "threadpoolctl", module)  # type: ignore[arg-type]
        built = {"Build Dependencies": {"blas": {"name": "accelerate", "found": True}}}
        monkeypatch.setattr(np, "show_config", lambda mode: built)
        _, lines = run(capsys, "--backend", "numpy")
        assert lines["NumPy"] == [f"{np.__version__}, BLAS: {blas}"]

    def test_numpy_knows_what_it_was_built_with(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "threadpoolctl", None)  # type: ignore[arg-type]
        _, lines = run(capsys, "--backend", "numpy")
        built: Any = np.show_config(mode="dicts")
        assert built["Build Dependencies"]["blas"]["name"] in lines["NumPy"][0]

    def test_it_may_be_unknown(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "threadpoolctl", None)  # type: ignore[arg-type]
        monkeypatch.setattr(np, "show_config", lambda mode: {})
        code, lines = run(capsys, "--backend", "numpy")
        assert (code, lines["NumPy"]) == (0, [f"{np.__version__}, BLAS: unknown"])


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


class TestCupy:
    def test_it_works(
        self,
        capsys: pytest.CaptureFixture[str],
        install: Install,
        fake: Callable[..., FakeCupy],
    ) -> None:
        cupy = fake()
        install(cupy_cuda12x="14.2.0")
        code, lines = run(capsys)
        assert code == 0
        assert lines["CuPy"] == ["14.2.0 (cupy-cuda12x 14.2.0) for CUDA 12.9"]
        assert lines["driver"] == ["up to CUDA 13.0"]
        assert lines["cupy:0"] == ["GPU 0, compute capability 9.0, 1.0 of 16.0 GiB free"]
        assert lines["cupy:1"] == ["GPU 1, compute capability 9.1, 2.0 of 16.0 GiB free"]
        assert lines["check"] == [
            "numpy, product: right",
            "cupy:0, product: right",
            "cupy:0, kernel: right",
        ]
        assert "note" not in lines
        assert lines["result"] == ["auto is cupy:0, which works"]
        assert cupy.current == [0]

    def test_the_device_asked_for_is_the_one_checked(
        self, capsys: pytest.CaptureFixture[str], fake: Callable[..., FakeCupy]
    ) -> None:
        cupy = fake()
        code, lines = run(capsys, "--backend", "cupy:1")
        assert (code, lines["result"]) == (0, ["cupy:1 works"])
        assert [index for index, _ in cupy.compiled_on] == [1]
        assert run(capsys, "--backend", "cupy")[1]["result"] == ["cupy:0 works"]
        code, lines = run(capsys, "--backend", "cupy:2")
        assert code == 1
        assert "no device cupy:2; this machine has cupy:0 to cupy:1" in lines["result"][0]

    def test_numpy_leaves_the_gpu_alone(
        self, capsys: pytest.CaptureFixture[str], fake: Callable[..., FakeCupy]
    ) -> None:
        cupy = fake(kernel=CompileException("error: no"))
        code, lines = run(capsys, "--backend", "numpy")
        assert (code, lines["result"], cupy.compiled_on) == (0, ["numpy works"], [])
        assert len(lines["cupy:1"]) == 1  # found all the same

    @pytest.mark.parametrize("before", [None, "0"])
    def test_the_kernel_is_compiled_and_not_read_from_the_disk(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        fake: Callable[..., FakeCupy],
        before: str | None,
    ) -> None:
        monkeypatch.delenv("CUPY_CACHE_IN_MEMORY", raising=False)
        if before is not None:
            monkeypatch.setenv("CUPY_CACHE_IN_MEMORY", before)
        for kernel in (3, RuntimeError()):
            cupy = fake(kernel=kernel)
            run(capsys)
            assert cupy.compiled_on == [(0, "1")]
            assert os.environ.get("CUPY_CACHE_IN_MEMORY") == before

    def test_a_device_that_refuses_does_not_hide_the_others(
        self, capsys: pytest.CaptureFixture[str], fake: Callable[..., FakeCupy]
    ) -> None:
        fake(unreadable=1)
        code, lines = run(capsys)
        assert code == 0
        assert lines["cupy:0"][0].startswith("GPU 0")
        assert lines["cupy:1"] == ["cannot be read: cudaErrorDevicesUnavailable: busy"]

    @pytest.mark.parametrize(
        ("driver", "built_for", "note"),
        [
            (
                12040,
                13000,
                (
                    "CuPy is for CUDA 13.0, the driver up to 12.4: update the driver, or change "
                    'CuPy; pip install "cupy-cuda12x[ctk]" matches the driver'
                ),
            ),
            (11080, 12090, "the driver up to 11.8: update the driver"),
        ],
    )
    def test_a_driver_that_is_too_old(
        self,
        capsys: pytest.CaptureFixture[str],
        fake: Callable[..., FakeCupy],
        driver: int,
        built_for: int,
        note: str,
    ) -> None:
        fake(driver=driver, built_for=built_for, count=CUDARuntimeError(35))
        code, lines = run(capsys, "--backend", "cupy")
        assert code == 1
        assert len(lines["note"]) == 1
        assert note in lines["note"][0]

    def test_an_unreadable_driver_is_none(
        self, capsys: pytest.CaptureFixture[str], fake: Callable[..., FakeCupy]
    ) -> None:
        cupy = fake()
        cupy.cuda.runtime.driverGetVersion = lambda: 1 // 0
        assert run(capsys)[1]["driver"] == ["none found"]

    def test_two_packages_clash(
        self,
        capsys: pytest.CaptureFixture[str],
        install: Install,
        fake: Callable[..., FakeCupy],
    ) -> None:
        fake()
        install(cupy_cuda12x="14.2.0", cupy_cuda13x="14.1.0")
        code, lines = run(capsys)
        assert code == 0  # whichever came last may work
        assert lines["CuPy"][0].startswith("14.2.0 (cupy-cuda12x 14.2.0, cupy-cuda13x 14.1.0)")
        assert lines["note"] == [
            (
                "cupy-cuda12x and cupy-cuda13x overwrite each other's files: "
                "pip uninstall cupy-cuda12x cupy-cuda13x, then install one; "
                'pip install "cupy-cuda13x[ctk]" matches the driver'
            )
        ]

    def test_what_cupy_warns_of_is_noted(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        fake: Callable[..., FakeCupy],
    ) -> None:
        cupy = fake()

        def count() -> int:
            warnings.warn(
                "\n-----\n\n  CuPy may fail as multiple CuPy packages are here", stacklevel=1
            )
            warnings.warn("cutensor could not be loaded.\n\nReason: none", stacklevel=1)
            warnings.warn("soon gone", DeprecationWarning, stacklevel=1)
            return 1

        monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", count)
        code, lines = run(capsys)
        assert (code, lines["note"]) == (0, ["cutensor could not be loaded."])


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
            "on ROCm all is computed by CuPy's own kernels; gpunn's fused kernels are for CUDA"
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


@pytest.mark.gpu
class TestGPU:
    @pytest.fixture
    def cupy(self) -> Any:
        get_place("cupy")  # skips where there is no device
        return importlib.import_module("cupy")

    def test_every_device_works(self, capsys: pytest.CaptureFixture[str], cupy: Any) -> None:
        count = cupy.cuda.runtime.getDeviceCount()
        for index in range(count):
            name = f"cupy:{index}"
            code, lines = run(capsys, "--backend", name)
            assert (code, lines["result"]) == (0, [f"{name} works"])
            assert lines["check"][1:] == [f"{name}, product: right", f"{name}, kernel: right"]
            with cupy.cuda.Device(index) as device:
                capability = device.compute_capability  # "90", and "120" from 12.0 on
            said = f", compute capability {capability[:-1]}.{capability[-1]}, "
            assert said in lines[name][0]
        assert lines["CuPy"][0].startswith(f"{cupy.__version__} (")
        code, lines = run(capsys, "--backend", f"cupy:{count}")
        assert code == 1
        assert f"no device cupy:{count}" in lines["result"][0]

    def test_auto_takes_it(self, capsys: pytest.CaptureFixture[str], cupy: Any) -> None:
        code, lines = run(capsys)
        assert (code, lines["result"]) == (0, ["auto is cupy:0, which works"])
        assert lines["driver"][0].startswith("up to CUDA 1")

    def test_a_kernel_is_compiled_each_time(
        self, monkeypatch: pytest.MonkeyPatch, cupy: Any
    ) -> None:
        """What is missing shows even where an earlier run has left the compiled kernel."""
        compiler, name = cupy.cuda.compiler, "_compile_using_nvrtc_no_warning"
        if not hasattr(compiler, name):
            name = "compile_using_nvrtc"
        compiled, compile_ = [], getattr(compiler, name)

        def count(*arguments: Any, **options: Any) -> Any:
            compiled.append(arguments[0])
            return compile_(*arguments, **options)

        monkeypatch.setattr(compiler, name, count)
        for _ in range(2):
            cupy.clear_memo()  # forget what this process has compiled
            assert doctor.examine("cupy", gn.__version__).works
        assert sum("gpunn_doctor" in source for source in compiled) == 2

    def test_a_missing_header_is_told_by_the_compiler(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cupy: Any
    ) -> None:
        make = cupy.ElementwiseKernel

        def make_with_header(*source: str) -> Any:
            return make(*source, preamble="#include <a_header_that_is_not_there.h>")

        monkeypatch.setattr(cupy, "ElementwiseKernel", make_with_header)
        code, lines = run(capsys, "--backend", "cupy")
        assert code == 1
        assert "a_header_that_is_not_there.h" in lines["check"][2]
        assert "[ctk]" in lines["result"][0] or "CUDA_PATH" in lines["result"][0]
