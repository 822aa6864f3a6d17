"""What `python -m gpunn doctor` finds and checks where everything works."""

from __future__ import annotations

import importlib
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
from tests.fake_cupy import (
    OTHER,
    CompileException,
    CUDARuntimeError,
    FakeCupy,
    Install,
    fake_in,
    install_in,
    run,
)

FOLDER = Path(doctor.__file__).parents[1]


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
