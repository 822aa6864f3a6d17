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
from typing import Any, NamedTuple

import pytest

from gpunn.kernels import cuda

# From Turing to Blackwell.
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
# What CuPy adds to the options of a kernel.
CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
VERBOSE = "--ptxas-options=-v"  # the assembler reports the usage of each kernel

# Minimum number of blocks of 256 threads that fit into the registers of a multiprocessor. Four are
# all the threads that Turing holds and half of what most others hold, which hides the latency of
# memory where each thread loads 16 bytes at a time. In float64 two kernels have room for three.
BLOCKS = {
    "absolute_error": 4,
    "activation": 4,
    "activation_backward": 4,
    "activation_backward_sums": 6,
    "batch_norm": 4,
    "batch_norm_backward": 4,
    "batch_norm_parts": 4,
    "average_pool": 3,
    "average_pool_backward": 4,
    "bias_activation": 4,
    "copy_rows": 6,
    "cosine_distance": 3,
    "divergence_of_logarithms": 4,
    "dropout": 5,
    "embedding": 5,
    "embedding_backward": 4,
    "finish_step": 6,
    "fixed_norm": 4,
    "gather": 6,
    "norm_sums": 4,
    "norm_totals": 4,
    "hinge": 4,
    "huber": 4,
    "poisson": 4,
    "merge_heads": 6,
    "fold": 4,
    "max_pool": 3,
    "max_pool_backward": 4,
    "prelu": 4,
    "prelu_backward": 4,
    "round_factors": 6,
    "row_norm": 4,
    "row_norm_backward": 4,
    "slope_of_scores": 5,
    "softmax_of_scores": 4,
    "split_heads": 6,
    "sigmoid_binary_cross_entropy": 4,
    "sequence_cross_entropy": 3,
    "softmax_cross_entropy": 3,
    "squared_error": 5,
    "squared_norm": 6,
    "track": 6,
    "unroll": 4,
    "update": 3,
}
# The kernels of each source.
KERNELS = {
    file: set(re.findall(r"__global__ void (\w+)\(", cuda.source(file))) for file in cuda.VARIANTS
}
REGISTERS = 65_536  # of a multiprocessor, in every architecture above

Compiler = Callable[[str, tuple[str, ...]], "Compiled"]


class Usage(NamedTuple):
    """What each thread of a kernel needs: registers, and bytes of local memory."""

    registers: int
    stack: int
    spilled: int

    def blocks(self) -> int:
        """Return the number of blocks of 256 threads that a multiprocessor has registers for."""
        allocated = -(-self.registers // 8) * 8  # always a multiple of eight
        return REGISTERS // (256 * allocated)


class Compiled(NamedTuple):
    """The compiler's messages, and the usage of each kernel."""

    words: str
    kernels: dict[str, Usage]


def read_log(log: str) -> Compiled:
    """Split a log into the compiler's messages and the assembler's report of each kernel."""
    lines = re.split(r"\n", log.strip("\0\n"))
    words = "\n".join(line for line in lines if not re.match(r"ptxas (info|  +\.) +", line))
    kernel = re.compile(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    found = {
        name: Usage(int(registers), int(stack), int(stores) + int(loads))
        for name, stack, stores, loads, registers in kernel.findall(log)
    }
    return Compiled(words, found)


def load() -> Any:
    """Return the library, or None without the wheel."""
    try:
        names = files("nvidia-cuda-nvrtc") or []
    except PackageNotFoundError:
        return None
    library = re.compile(r"libnvrtc\.so\.\d+|nvrtc64_\d+_0\.dll")
    (path,) = (str(name.locate()) for name in names if library.fullmatch(name.name))
    return ctypes.CDLL(path)


def compile_source(nvrtc: Any, source: str, options: tuple[str, ...]) -> tuple[str, str]:
    """Compile a source; return what the compiler said, with an error's status, and the PTX."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    created = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"", 0, None, None)
    assert created == 0
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), given)

    def text(name: str) -> str:
        if getattr(nvrtc, f"nvrtcGet{name}Size")(program, ctypes.byref(size)):
            return ""
        buffer = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{name}")(program, buffer)
        return buffer.value.decode()

    log, ptx = text("ProgramLog"), "" if status else text("PTX")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return (f"status {status}: " if status else "") + log, ptx


@pytest.fixture(scope="module")
def compiled() -> Compiler:
    """Return a function that compiles a source with some options and returns what was said."""
    nvrtc = nvrtc_library()
    return lambda source, options: read_log(
        compile_source(nvrtc, source, (*options, *CUPY_OPTIONS, VERBOSE))[0]
    )


def nvrtc_library() -> Any:
    """Return the library, or skip the test without it."""
    nvrtc = load()
    if nvrtc is None:
        pytest.skip("needs NVIDIA's compiler: pip install nvidia-cuda-nvrtc")
    return nvrtc


def assert_good(found: Compiled) -> None:
    """Fail if the compiler complained, or a kernel needs local memory or too many registers."""
    assert not found.words
    for name, usage in found.kernels.items():
        assert (usage.stack, usage.spilled) == (0, 0), (name, usage)
        assert usage.blocks() >= BLOCKS[name], (name, usage)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", cuda.VARIANTS)
def test_every_variant_compiles_without_a_word_and_fits(
    compiled: Compiler, file: str, architecture: str
) -> None:
    source = cuda.source(file)

    def found(macros: dict[str, str]) -> tuple[Any, Compiled]:
        options = cuda.options(file, macros)
        return options, compiled(source, (*options, f"-arch={architecture}"))

    with ThreadPoolExecutor(2) as threads:  # ctypes lets go of the interpreter's lock
        for options, one in threads.map(found, cuda.VARIANTS[file]):
            assert set(one.kernels) == KERNELS[file], options
            assert_good(one)


# A kernel with an array whose indices are unknown to the compiler; one with 200 numbers at once.
ON_THE_STACK = """
extern "C" __global__ void dropout(int* x) {
  int some[64];
  for (int i = 0; i < 64; ++i) some[i] = i;
  for (int i = 0; i < x[0]; ++i) some[x[i] & 63] += i;
  x[threadIdx.x] = some[x[threadIdx.x] & 63];
}
"""
SPILLS = """
extern "C" __global__ void __launch_bounds__(1024) dropout(float* x) {
  float some[200];
#pragma unroll
  for (int i = 0; i < 200; ++i) some[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 200; ++i) x[i * 999 + threadIdx.x] = some[199 - i] * some[(i * 7) % 200];
}
"""
HUNGRY = SPILLS.replace("__launch_bounds__(1024)", "")


@pytest.mark.parametrize("source", [ON_THE_STACK, SPILLS, HUNGRY], ids=["stack", "spill", "regs"])
@pytest.mark.parametrize("architecture", ["sm_75", "sm_100"])
def test_a_kernel_that_needs_too_much_would_be_seen(
    compiled: Compiler, source: str, architecture: str
) -> None:
    found = compiled(source, (f"-arch={architecture}",))
    usage = found.kernels["dropout"]
    assert (usage.stack > 0) == (source is not HUNGRY)
    assert (usage.spilled > 0) == (source is SPILLS)
    assert (usage.blocks() < BLOCKS["dropout"]) == (source is not ON_THE_STACK)
    with pytest.raises(AssertionError, match="dropout"):
        assert_good(found)


class TestInstructions:
    """The sources, compiled but not assembled."""

    def entries(self, file: str, macros: dict[str, str]) -> dict[str, str]:
        """Return the instructions of each kernel."""
        options = (*cuda.options(file, macros), "-arch=compute_75", *CUPY_OPTIONS)
        _, ptx = compile_source(nvrtc_library(), cuda.source(file), options)
        return {part.split("(")[0]: part for part in ptx.split(".entry ")[1:]}

    # Not loss.cu: a thread there divides once per loop over classes, which unrolling is worth.
    @pytest.mark.parametrize("file", ["activation", "bfloat16", "data", "dropout", "optimizer"])
    def test_no_kernel_divides_integers(self, file: str) -> None:
        for macros in cuda.VARIANTS[file]:
            for name, text in self.entries(file, macros).items():
                assert not re.search(r"\b(div|rem)\.[su]\d", text), (name, macros)

    @pytest.mark.parametrize("file", ["activation", "dropout", "optimizer"])
    def test_numbers_are_moved_by_16_bytes(self, file: str) -> None:
        for macros in cuda.VARIANTS[file]:
            wide = {"float": r"\.global\.v4\.\w32", "double": r"\.global\.v2\.\w64"}[macros["REAL"]]
            for name, text in self.entries(file, macros).items():
                if name == "activation_backward_sums":  # neighbouring threads take one column each
                    continue
                assert re.search("ld" + wide, text), (name, macros)
                if name != "squared_norm":
                    assert re.search("st" + wide, text), (name, macros)

    def test_factors_are_rounded_four_at_a_time(self) -> None:
        text = self.entries("bfloat16", {})["round_factors"]
        assert re.search(r"ld\.global\.v4\.\w32", text)
        assert re.search(r"st\.global\.(v4\.\w16|v2\.\w32)", text)

    def test_rows_are_moved_by_the_widest_unit(self) -> None:
        for unit, kind in (("int4", r"v4\.\w32"), ("long long", r"\w64"), ("char", r"\w8")):
            text = self.entries("data", {"UNIT": unit, "MOST": str(cuda.MOST_PARTS)})["gather"]
            assert re.search(r"ld\.global\." + kind, text)
            assert re.search(r"st\.global\." + kind, text)


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
    assert re.search(message, compiled(source, (*options, "-arch=sm_90")).words, re.DOTALL)


class TestVariants:
    def test_every_source_is_among_them(self) -> None:
        folder = Path(cuda.__file__).parent
        assert {path.stem for path in folder.glob("*.cu")} == set(cuda.VARIANTS)

    def test_no_other_macros_can_be_asked_for(self) -> None:
        for macros in ({"REAL": "half"}, {"REAL": "float", "LABELS": "1"}, {}):
            with pytest.raises(LookupError, match=r"dropout\.cu is not compiled with .* any test"):
                cuda.options("dropout", macros)
