"""Every CUDA source, compiled by NVIDIA's own compiler for each generation of GPUs.

Compiling needs neither a GPU nor a driver, and the wheel `nvidia-cuda-nvrtc` has the compiler.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import pytest

from gpunn.kernels import cuda

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")  # Turing, Ampere, Hopper, Blackwell
# What CuPy adds to the options of a kernel.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")

Compiler = Callable[[str, tuple[str, ...]], str]


def load() -> Any:
    """Return the library, or None without the wheel."""
    try:
        names = files("nvidia-cuda-nvrtc") or []
    except PackageNotFoundError:
        return None
    library = re.compile(r"libnvrtc\.so\.\d+|nvrtc64_\d+_0\.dll")
    (path,) = (str(name.locate()) for name in names if library.fullmatch(name.name))
    return ctypes.CDLL(path)


def compile_source(nvrtc: Any, source: str, options: tuple[str, ...]) -> str:
    """Compile a source; return the status, if it is an error, and what the compiler said."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"", 0, None, None)
    assert created == 0
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), given)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return (f"status {status}: " if status else "") + log.value.decode()


@pytest.fixture(scope="module")
def compiled() -> Compiler:
    """Return a function that compiles a source with some options and returns what was said."""
    nvrtc = load()
    if nvrtc is None:
        pytest.skip("needs NVIDIA's compiler: pip install nvidia-cuda-nvrtc")
    return lambda source, options: compile_source(nvrtc, source, (*options, *CUPY_OPTIONS))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", cuda.VARIANTS)
def test_every_variant_compiles_without_a_word(
    compiled: Compiler, file: str, architecture: str
) -> None:
    source = cuda.source(file)

    def said(macros: dict[str, str]) -> tuple[Any, str]:
        options = cuda.options(file, macros)
        return options, compiled(source, (*options, f"-arch={architecture}"))

    with ThreadPoolExecutor(2) as threads:  # ctypes lets go of the interpreter's lock
        for options, log in threads.map(said, cuda.VARIANTS[file]):
            assert not log, (options, log)


@pytest.mark.parametrize(
    ("addition", "message"),
    [
        ("__global__ void f(int* x) { int unused; *x = 1; }", "never referenced"),
        ("__global__ void f(float* x) { int i = 1 << 40; *x = i; }", "shift count is too large"),
        ("__global__ void f(int* x) { *x = undeclared; }", "status 6.*is undefined"),
        ("#include <math.h>", "status 6.*could not open source file"),
    ],
)
def test_a_warning_or_an_error_would_be_seen(
    compiled: Compiler, addition: str, message: str
) -> None:
    source, options = cuda.source("dropout") + addition, cuda.options("dropout", {"REAL": "float"})
    assert re.search(message, compiled(source, (*options, "-arch=sm_90")), re.DOTALL)


class TestVariants:
    def test_every_source_is_among_them(self) -> None:
        folder = Path(cuda.__file__).parent
        assert {path.stem for path in folder.glob("*.cu")} == set(cuda.VARIANTS)

    def test_no_other_macros_can_be_asked_for(self) -> None:
        for macros in ({"REAL": "half"}, {"REAL": "float", "LABELS": "1"}, {}):
            with pytest.raises(LookupError, match=r"dropout\.cu is not compiled with .* any test"):
                cuda.options("dropout", macros)
