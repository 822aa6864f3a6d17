"""Report what gpunn finds on this machine, whether it works, and how to fix it.

``python -m gpunn doctor`` prints the report. A backend works if it multiplies two matrices and, on
CuPy, compiles and runs a kernel, with the right results. Any failure becomes a line of the report,
not a traceback.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from gpunn.arrays.backend import ENVIRONMENT_VARIABLE, Backend, get_backend, product_precision
from gpunn.arrays.libraries import AMD, vendor_of
from gpunn.errors import BackendUnavailableError, SettingError
from gpunn.tools.probe import ProbeError, attempt, one_line
from gpunn.tools.report import Device, Report
from gpunn.tools.selftest import check_backend

#: The packages that contain CuPy; all of them install the same files.
_PACKAGES = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "amd-cupy")


_ROCM = "on ROCm, CuPy's own kernels compute everything; gpunn's fused kernels are for CUDA"


def examine(asked: str, version: str) -> Report:
    """Inspect what is installed, and check the requested backend.

    Parameters
    ----------
    asked : str
        A name for `gpunn.get_backend`.
    version : str
        The version of gpunn.

    Returns
    -------
    Report
        The findings; `works` is True if the backend exists and all checks passed.

    Raises
    ------
    SettingError
        If there is no backend with that name.
    """
    report = Report(asked, version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _inspect_numpy(report)
        _inspect_steps(report)
        _inspect_cupy(report)
        _check(report, _choose(report))
        if report.works and str(report.backend).startswith("cupy"):
            report.graphs = _captured_steps()
    shown = {one_line(w.message) for w in caught if w.category in (UserWarning, RuntimeWarning)}
    # The report has its own line for clashing packages.
    report.notes += sorted(line for line in shown if "multiple CuPy packages" not in line)
    return report


def _inspect_numpy(report: Report) -> None:
    numpy = importlib.import_module("numpy")
    report.numpy = numpy.__version__
    try:
        # The loaded library may differ from the one NumPy was built with.
        report.blas = attempt(_loaded_blas)
    except ProbeError:
        report.blas = []
    if not report.blas:  # no threadpoolctl, or a BLAS it does not know
        built = numpy.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
        if built.get("found"):
            report.blas = [f"{built.get('name')} {built.get('version', '')}".strip()]


def _inspect_steps(report: Report) -> None:
    program = importlib.import_module("gpunn.program")
    zero = importlib.import_module("numpy").zeros(1)
    try:
        report.steps_problem = attempt(lambda: program.why_not_compiled(zero)) or None
    except ProbeError as failure:
        report.steps_problem = failure.reason


def _loaded_blas() -> list[str]:
    loaded = [
        library
        for library in importlib.import_module("threadpoolctl").threadpool_info()
        if library["user_api"] == "blas"
    ]
    # SciPy's wheel brings its own copy, which NumPy does not use.
    ours = [library for library in loaded if "numpy" in library["filepath"]] or loaded
    return [
        f"{library['internal_api']} {library['version']}, {library['num_threads']} threads"
        for library in ours
    ]


def _captured_steps() -> str:
    try:
        why_not = attempt(importlib.import_module("gpunn.program").why_not_captured)
    except ProbeError as failure:
        why_not = failure.reason
    return f"steps run as written: {why_not}" if why_not else "training steps are captured"


def _inspect_cupy(report: Report) -> None:
    for name in _PACKAGES:
        # Unlike `version(name)`, this does not raise for a missing package.
        for found in importlib.metadata.distributions(name=name):
            report.packages.setdefault(name, found.version)
    try:
        attempt(lambda: get_backend("cupy"))
    except ProbeError as failure:
        report.cupy_problem = failure.reason
    try:
        cupy, report.cupy, runtime = attempt(_import_cupy)
    except ProbeError:
        driver = _driver_version()
        report.notes.append(_for_driver(driver))
    else:
        driver, built_for = _version(runtime.driverGetVersion), _version(runtime.runtimeGetVersion)
        report.on_rocm = vendor_of(runtime) is AMD
        report.cuda_runtime = _as_text(built_for, report)
        if report.cupy_problem is None:
            report.devices = [_device(cupy, i) for i in range(runtime.getDeviceCount())]
        precision = product_precision()
        if precision != "float32" and not report.on_rocm:
            report.notes.append(
                f"float32 products on a GPU are in {precision}, by gpunn.use or CUPY_TF32"
            )
        if report.on_rocm:
            report.notes.append(_ROCM)
        elif 0 < driver // 1000 < built_for // 1000:
            report.notes.append(
                f"CuPy is for CUDA {report.cuda_runtime}, the driver up to "
                f"{_as_text(driver, report)}: update the driver, or change CuPy; "
                f"{_for_driver(driver)}"
            )
    report.cuda_driver = _as_text(driver, report)
    if len(report.packages) > 1:
        report.notes.append(
            f"{' and '.join(report.packages)} overwrite each other's files: pip uninstall "
            f"{' '.join(report.packages)}, then install one; {_for_driver(driver)}"
        )


def _import_cupy() -> tuple[Any, str, Any]:
    """Return CuPy, its version and its runtime; fail for a stray folder named cupy."""
    cupy = importlib.import_module("cupy")
    return cupy, cupy.__version__, cupy.cuda.runtime


def _device(cupy: Any, index: int) -> Device:
    """Describe a device; reading one that another process holds may fail."""
    backend = f"cupy:{index}"

    def read() -> Device:
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        with cupy.cuda.Device(index):
            free, total = cupy.cuda.runtime.memGetInfo()
        capability = f"{properties['major']}.{properties['minor']}"
        return Device(backend, properties["name"].decode(), capability, free, total)

    try:
        return attempt(read)
    except ProbeError as failure:
        return Device(backend, problem=failure.reason)


def _version(get_version: Callable[[], int]) -> int:
    try:
        return attempt(get_version)
    except ProbeError:
        return 0


def _as_text(number: int, report: Report) -> str | None:
    """Format a version: CUDA's 12090 as "12.9", ROCm's 60342134 as "6.3", and 0 (none) as None."""
    major, minor = (10_000_000, 100_000) if report.on_rocm else (1000, 10)
    return f"{number // major}.{number % major // minor}" if number else None


def _driver_version() -> int:
    """Return the CUDA version of the driver, read without CuPy; 0 if there is no driver."""
    version = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        driver.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return 0
    return version.value


def _for_driver(driver: int) -> str:
    if not driver:
        return "CuPy needs an NVIDIA GPU and its driver, and no driver was found"
    if driver < 12000:
        return "no current CuPy supports this driver; it must support CUDA 12 or later"
    return f'pip install "cupy-cuda{12 if driver < 13000 else 13}x[ctk]" matches the driver'


def _choose(report: Report) -> Backend | None:
    """Return the requested backend, or None after noting in the report why there is none."""
    name = report.asked
    if name == "auto":
        wanted = os.environ.get(ENVIRONMENT_VARIABLE, "auto") or "auto"
        if wanted != "auto":
            name = wanted
            report.notes.append(f"auto is {wanted} because {ENVIRONMENT_VARIABLE} is set to it")
        else:
            name = _automatic()
    try:
        backend = attempt(lambda: get_backend(name))
    except SettingError as error:
        if name == report.asked:
            raise
        raise SettingError(f"{ENVIRONMENT_VARIABLE}: {error}") from error
    except ProbeError as failure:
        report.backend_problem = failure.reason
        return None
    report.backend = str(backend)
    return backend


def _automatic() -> str:
    """Return the backend that "auto" means: CuPy, unless it is unavailable."""
    try:
        attempt(lambda: get_backend("cupy"))
    except ProbeError as failure:
        if isinstance(failure.__cause__, BackendUnavailableError):
            return "numpy"
    return "cupy"


def _check(report: Report, backend: Backend | None) -> None:
    """Check NumPy, which everything needs, and the requested backend if it exists."""
    for place in dict.fromkeys((get_backend("numpy"), backend)):
        if place is not None:
            report.checks += check_backend(report, place)
    remedies = list(dict.fromkeys(check.remedy for check in report.checks if check.remedy))
    if remedies and backend is not None:
        if report.asked == "auto" and backend.package == "cupy":
            remedies.append(f"until then, set {ENVIRONMENT_VARIABLE}=numpy")
        report.backend_problem = "; ".join(remedies)
