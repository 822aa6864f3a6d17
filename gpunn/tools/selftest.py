"""Checks of a backend: a product of two matrices and, on CuPy, compiling and running a kernel."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gpunn.arrays.backend import Backend, get_backend
from gpunn.arrays.exchange import to_numpy
from gpunn.arrays.libraries import AMD, NVIDIA
from gpunn.tools.probe import ProbeError, attempt
from gpunn.tools.report import Check, Report

#: The size of the matrices: large enough for BLAS, with sums that are exact in float32 and TF32.
_SIZE = 32


def check_backend(report: Report, backend: Backend) -> list[Check]:
    """Return the results of all checks that apply to a backend."""
    checks = [_run(report, backend, "product", _multiply)]
    if backend.package == "cupy":
        checks.append(_run(report, backend, "kernel", _run_kernel))
    return checks


def _run(report: Report, backend: Backend, what: str, run: Callable[[Backend], bool]) -> Check:
    name, problem, signs = str(backend), "wrong result", ""
    try:
        if attempt(lambda: run(backend)):
            return Check(name, what)
    except ProbeError as failure:
        problem, signs = failure.reason, f"{failure.kind} {failure}"
    if backend.package == "cupy":
        return Check(name, what, problem, _remedy_for_cupy(report, signs.lower()))
    return Check(name, what, problem, f"reinstall {backend.package}")


def _multiply(backend: Backend) -> bool:
    """Return whether the product of x_ik = i + k and y_kj = k - j is right.

    With S1 the sum of k and S2 the sum of k^2, entry (i, j) is S2 + (i - j) S1 - n i j.
    """
    n = range(_SIZE)
    with backend.scope():
        x = _floats(backend, [[i + k for k in n] for i in n])
        y = _floats(backend, [[k - j for j in n] for k in n])
        product = to_numpy(backend.xp.matmul(x, y)).tolist()
    s1, s2 = sum(n), sum(k * k for k in n)
    return bool(product == [[s2 + (i - j) * s1 - _SIZE * i * j for j in n] for i in n])


def _run_kernel(backend: Backend) -> bool:
    """Return whether z = 3 x + y, compiled with the headers of CuPy's own kernels, is right."""
    cupy = importlib.import_module("cupy")
    with backend.scope(), _without_kernel_files():
        kernel = cupy.ElementwiseKernel("T x, T y", "T z", "z = 3 * x + y", "gpunn_doctor")
        x = _floats(backend, [1, 2, 3])
        return bool(to_numpy(kernel(x, x)).tolist() == [4, 8, 12])


def _floats(backend: Backend, values: Any) -> Any:
    """Return a float32 array without a casting kernel, so that each check tests one thing."""
    return backend.asarray(get_backend("numpy").asarray(values, "float32"))


@contextmanager
def _without_kernel_files() -> Iterator[None]:
    """Make CuPy compile: a kernel cached on disk by an earlier run would prove nothing."""
    name = "CUPY_CACHE_IN_MEMORY"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _remedy_for_cupy(report: Report, signs: str) -> str:
    """Return the fix for a failed check on CuPy, chosen by words in its lower-case error."""
    vendor = AMD if report.on_rocm else NVIDIA
    major = (report.cuda_runtime or "").partition(".")[0]
    # The compiler, its headers and cuBLAS come with [ctk], or from a toolkit on the machine.
    toolkit = f"install the CUDA {major} toolkit, and set CUDA_PATH to its folder"
    if (package := f"cupy-cuda{major}x") in report.packages:
        toolkit = f'pip install "{package}[ctk]"'
    if report.on_rocm:
        toolkit = f"install ROCm {report.cuda_runtime}, and set ROCM_HOME to its folder"
    change = "cupy-cuda12x supports older GPUs, cupy-cuda13x compute capability 7.5 and later"
    known = {
        (
            "outofmemory",
            "memoryallocation",
        ): f"free memory; `{vendor.tool}` lists the processes that hold it",
        ("gpu-architecture", "no kernel image"): f"install a CuPy for this GPU: {change}",
        ("insufficient", "unsupportedptx", "unsupported_ptx"): "update the driver",
        ("compileexception", "nvrtc", "hiprtc", "importerror", "failure finding"): toolkit,
    }
    for words, remedy in known.items():
        if any(word in signs for word in words):
            return remedy
    return f"update the driver, and {toolkit}"
