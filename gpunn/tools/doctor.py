"""What gpunn finds on this machine, whether it works, and what mends it.

``python -m gpunn doctor`` prints it. A backend works if it multiplies two matrices and, on CuPy,
compiles and runs a kernel, with the right results. Whatever fails on the way is a line of the
report and no traceback.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from gpunn import __version__
from gpunn.arrays.backend import ENVIRONMENT_VARIABLE, Backend, get_backend
from gpunn.arrays.exchange import to_numpy
from gpunn.errors import BackendUnavailableError, SettingError

T = TypeVar("T")

#: The names under which CuPy is installed; all of them own the same files.
_PACKAGES = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")
_SIZE = 32  # of the matrices: large enough for BLAS, and every sum is exact in float32 and TF32
_LONGEST = 200  # characters of an error that are worth a line


@dataclass(frozen=True)
class Device:
    """A GPU that CuPy sees.

    Attributes
    ----------
    backend : str
        Its name for `get_backend`.
    name : str
        Its model.
    compute_capability : str
        Such as "9.0".
    free_bytes, total_bytes : int
        Its memory; what CuPy's pool holds counts as taken.
    problem : str or None
        Why nothing is known of it; the other fields are then empty.
    """

    backend: str
    name: str = ""
    compute_capability: str = ""
    free_bytes: int = 0
    total_bytes: int = 0
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem is not None:
            return f"cannot be read: {self.problem}"
        free, total = (size / 2**30 for size in (self.free_bytes, self.total_bytes))
        memory = f"{free:.1f} of {total:.1f} GiB free"
        return f"{self.name}, compute capability {self.compute_capability}, {memory}"


@dataclass(frozen=True)
class Check:
    """Something that was tried on a backend.

    Attributes
    ----------
    backend : str
        On which.
    what : {"kernel", "product"}
        A kernel, compiled and run; or a product of two matrices.
    problem : str or None
        What went wrong; None if the result was right.
    remedy : str or None
        What mends it.
    """

    backend: str
    what: str
    problem: str | None = None
    remedy: str | None = None

    def __str__(self) -> str:
        return f"{self.backend}, {self.what}: {self.problem or 'right'}"


@dataclass
class Report:
    """What was found; as a string, the lines that the command prints.

    Attributes
    ----------
    asked : str
        The backend asked for.
    gpunn, python, system, numpy : str
        Versions.
    blas : list of str
        The libraries that NumPy multiplies with.
    packages : dict of str to str
        Each installed package that brings CuPy, and its version.
    cupy : str or None
        The version of CuPy; None if it cannot be imported.
    cupy_problem : str or None
        Why CuPy cannot be used; None if it has a device. The checks say whether that works.
    cuda_runtime, cuda_driver : str or None
        The CUDA that CuPy was built for, and the latest that the driver knows.
    devices : list of Device
        The GPUs.
    notes : list of str
        What to know, and what to do.
    backend : str or None
        What was asked for, resolved; None if there is no such thing here.
    backend_problem : str or None
        Why there is not, or what failed, and what mends it.
    checks : list of Check
        What was tried.
    """

    asked: str
    gpunn: str = __version__
    python: str = f"{platform.python_version()} ({platform.python_implementation()})"
    system: str = field(default_factory=platform.platform)
    numpy: str = ""
    blas: list[str] = field(default_factory=list)
    packages: dict[str, str] = field(default_factory=dict)
    cupy: str | None = None
    cupy_problem: str | None = None
    cuda_runtime: str | None = None
    cuda_driver: str | None = None
    devices: list[Device] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    backend: str | None = None
    backend_problem: str | None = None
    checks: list[Check] = field(default_factory=list)

    @property
    def works(self) -> bool:
        """Whether the backend asked for works."""
        return self.backend_problem is None

    def to_json(self) -> str:
        """Return the report as one JSON object."""
        return json.dumps({**asdict(self), "works": self.works}, indent=2)

    def __str__(self) -> str:
        driver = f"up to CUDA {self.cuda_driver}" if self.cuda_driver else "none found"
        lines = [
            ("gpunn", self.gpunn),
            ("Python", f"{self.python} on {self.system}"),
            ("NumPy", f"{self.numpy}, BLAS: {'; '.join(self.blas) or 'unknown'}"),
            ("CuPy", self._cupy_line()),
            ("driver", driver),
            *((device.backend, str(device)) for device in self.devices),
            *(("check", str(check)) for check in self.checks),
            *(("note", note) for note in self.notes),
            ("result", self._result_line()),
        ]
        return "\n".join(f"{label:<8}{text}" for label, text in lines)

    def _cupy_line(self) -> str:
        packages = ", ".join(f"{name} {version}" for name, version in self.packages.items())
        if self.cupy is None:
            return f"{packages}, cannot be imported" if packages else "not installed"
        return f"{self.cupy} ({packages or 'from no package'}) for CUDA {self.cuda_runtime}"

    def _result_line(self) -> str:
        name = self.backend or self.asked
        if self.asked not in (name, "cupy", "array-api-strict"):
            name = f"{self.asked} is {name}, which"
        if self.backend_problem is not None:
            return f"{name} does not work: {self.backend_problem}"
        left_out = self.asked == "auto" and self.backend == "numpy" and self.cupy_problem
        why = f"; CuPy was not taken: {self.cupy_problem}" if left_out else ""
        return f"{name} works{why}"


def examine(asked: str = "auto") -> Report:
    """Look at what is installed, and try the backend asked for.

    Parameters
    ----------
    asked : str, default "auto"
        A name for `gpunn.get_backend`.

    Returns
    -------
    Report
        What was found. Its `works` is True if the backend is there and all checks passed.

    Raises
    ------
    SettingError
        If there is no backend of that name.
    """
    report = Report(asked)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _look_at_numpy(report)
        _look_at_cupy(report)
        _check(report, _choose(report))
    said = {_brief(w.message) for w in caught if w.category in (UserWarning, RuntimeWarning)}
    # A clash of packages is told in a line of our own.
    report.notes += sorted(line for line in said if "multiple CuPy packages" not in line)
    return report


def _look_at_numpy(report: Report) -> None:
    numpy = importlib.import_module("numpy")
    report.numpy = numpy.__version__
    try:
        # It names what is loaded, NumPy's configuration only what NumPy was built with.
        report.blas = _attempt(_loaded_blas)
    except _FailedError:
        report.blas = []
    if not report.blas:  # no threadpoolctl, or a BLAS that it does not know
        built = numpy.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
        if built.get("found"):
            report.blas = [f"{built.get('name')} {built.get('version', '')}".strip()]


def _loaded_blas() -> list[str]:
    loaded = [
        library
        for library in importlib.import_module("threadpoolctl").threadpool_info()
        if library["user_api"] == "blas"
    ]
    # SciPy's wheel brings a copy of its own, which is of no interest here.
    ours = [library for library in loaded if "numpy" in library["filepath"]] or loaded
    return [
        f"{library['internal_api']} {library['version']}, {library['num_threads']} threads"
        for library in ours
    ]


def _look_at_cupy(report: Report) -> None:
    for name in _PACKAGES:
        # Unlike `version(name)`, it does not raise where there is none.
        for found in importlib.metadata.distributions(name=name):
            report.packages.setdefault(name, found.version)
    try:
        _attempt(lambda: get_backend("cupy"))
    except _FailedError as failure:
        report.cupy_problem = failure.reason
    try:
        cupy, report.cupy, runtime = _attempt(_import_cupy)
    except _FailedError:
        driver = _driver_version()
        report.notes.append(_for_driver(driver))
    else:
        driver, built_for = _version(runtime.driverGetVersion), _version(runtime.runtimeGetVersion)
        report.cuda_runtime = _as_text(built_for)
        if report.cupy_problem is None:
            report.devices = [_device(cupy, i) for i in range(runtime.getDeviceCount())]
        if 0 < driver // 1000 < built_for // 1000:
            report.notes.append(
                f"CuPy is for CUDA {_as_text(built_for)}, the driver up to {_as_text(driver)}: "
                f"update the driver, or change CuPy; {_for_driver(driver)}"
            )
    report.cuda_driver = _as_text(driver)
    if len(report.packages) > 1:
        report.notes.append(
            f"{' and '.join(report.packages)} overwrite each other's files: pip uninstall "
            f"{' '.join(report.packages)}, then install one; {_for_driver(driver)}"
        )


def _import_cupy() -> tuple[Any, str, Any]:
    """Return CuPy, its version and its runtime: a stray folder named cupy has none."""
    cupy = importlib.import_module("cupy")
    return cupy, cupy.__version__, cupy.cuda.runtime


def _device(cupy: Any, index: int) -> Device:
    """Return what is known of a device; it may be there and still refuse (another has it)."""
    backend = f"cupy:{index}"

    def read() -> Device:
        properties = cupy.cuda.runtime.getDeviceProperties(index)
        with cupy.cuda.Device(index):
            free, total = cupy.cuda.runtime.memGetInfo()
        capability = f"{properties['major']}.{properties['minor']}"
        return Device(backend, properties["name"].decode(), capability, free, total)

    try:
        return _attempt(read)
    except _FailedError as failure:
        return Device(backend, problem=failure.reason)


def _version(get_version: Callable[[], int]) -> int:
    try:
        return _attempt(get_version)
    except _FailedError:
        return 0


def _as_text(number: int) -> str | None:
    """Return CUDA's 12090 as "12.9", and its 0, for none, as None."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def _driver_version() -> int:
    """Ask the driver without CuPy, to say which CuPy matches it; 0 if there is no driver."""
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
        return "no CuPy of today is for this driver; it has to know CUDA 12 or later"
    return f'pip install "cupy-cuda{12 if driver < 13000 else 13}x[ctk]" matches the driver'


def _choose(report: Report) -> Backend | None:
    """Return the backend asked for, as `get_backend` would, or None and say why."""
    name = report.asked
    if name == "auto":
        wanted = os.environ.get(ENVIRONMENT_VARIABLE, "auto") or "auto"
        if wanted != "auto":
            name = wanted
            report.notes.append(f"auto is {wanted} because {ENVIRONMENT_VARIABLE} says so")
        else:
            name = "cupy" if report.cupy_problem is None else "numpy"
    try:
        backend = _attempt(lambda: get_backend(name))
    except SettingError as error:
        if name == report.asked:
            raise
        raise SettingError(f"{ENVIRONMENT_VARIABLE}: {error}") from error
    except _FailedError as failure:
        report.backend_problem = failure.reason
        return None
    report.backend = str(backend)
    return backend


def _check(report: Report, backend: Backend | None) -> None:
    """Try NumPy, which everything needs, and the backend asked for, if there is one."""
    for place in dict.fromkeys((get_backend("numpy"), backend)):
        if place is not None:
            report.checks.append(_try(report, place, "product", _multiply))
            if place.package == "cupy":
                report.checks.append(_try(report, place, "kernel", _run_kernel))
    remedies = list(dict.fromkeys(check.remedy for check in report.checks if check.remedy))
    if remedies and backend is not None:
        if report.asked == "auto" and backend.package == "cupy":
            remedies.append(f"until then, set {ENVIRONMENT_VARIABLE}=numpy")
        report.backend_problem = "; ".join(remedies)


def _try(report: Report, backend: Backend, what: str, run: Callable[[Backend], bool]) -> Check:
    name, problem, signs = str(backend), "wrong result", ""
    try:
        if _attempt(lambda: run(backend)):
            return Check(name, what)
    except _FailedError as failure:
        problem, signs = failure.reason, f"{failure.kind} {failure}"
    if backend.package == "cupy":
        return Check(name, what, problem, _mend_cupy(report, signs.lower()))
    return Check(name, what, problem, f"reinstall {backend.package}")


def _multiply(backend: Backend) -> bool:
    """Say whether x_ik = i + k times y_kj = k - j is what algebra says it is.

    With S1 the sum of all k and S2 that of all k^2, it is S2 + (i - j) S1 - n i j.
    """
    n = range(_SIZE)
    with backend.scope():
        x = _floats(backend, [[i + k for k in n] for i in n])
        y = _floats(backend, [[k - j for j in n] for k in n])
        product = to_numpy(backend.xp.matmul(x, y)).tolist()
    s1, s2 = sum(n), sum(k * k for k in n)
    return bool(product == [[s2 + (i - j) * s1 - _SIZE * i * j for j in n] for i in n])


def _run_kernel(backend: Backend) -> bool:
    """Compile and run z = 3 x + y, with all that CuPy's own kernels include."""
    cupy = importlib.import_module("cupy")
    with backend.scope(), _without_kernel_files():
        kernel = cupy.ElementwiseKernel("T x, T y", "T z", "z = 3 * x + y", "gpunn_doctor")
        x = _floats(backend, [1, 2, 3])
        return bool(to_numpy(kernel(x, x)).tolist() == [4, 8, 12])


def _floats(backend: Backend, values: Any) -> Any:
    """Return a float32 array, without a kernel that casts it: each check is to test one thing."""
    return backend.asarray(get_backend("numpy").asarray(values, "float32"))


@contextmanager
def _without_kernel_files() -> Iterator[None]:
    """Make CuPy compile: a kernel that an earlier run has left on the disk would prove nothing."""
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


class _FailedError(Exception):
    """Something raised; `reason` says what, in one line."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.kind = type(error).__name__
        self.reason = _brief(error)


def _attempt(run: Callable[[], T]) -> T:
    """Return what a function returns, or raise `_FailedError`, whatever it raises.

    Here is where libraries are in disorder, so any class of error may come. A wrong name of a
    backend is no such disorder.
    """
    try:
        return run()
    except SettingError:
        raise
    except Exception as error:
        raise _FailedError(error) from error


def _brief(error: BaseException | str) -> str:
    """Return the telling line of an error; compilers and CuPy's import write whole pages."""
    text, cause = str(error), getattr(error, "__cause__", None)
    if isinstance(error, BackendUnavailableError):  # it may quote its cause, in full
        return text.replace(str(cause), _brief(cause)) if cause and str(cause) else text
    _, _, original = text.rpartition("Original error:")
    lines = [line.strip(" =-") for line in original.splitlines()]
    lines = [line for line in lines if line]
    telling = [line for line in lines if "error:" in line.lower()] or lines
    line = telling[0] if telling else type(error).__name__
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def _mend_cupy(report: Report, signs: str) -> str:
    """Return what mends a check that failed on CuPy, by what its error says in lower case."""
    major = (report.cuda_runtime or "").partition(".")[0]
    # The compiler, its headers and cuBLAS come with [ctk], or from a toolkit on the machine.
    toolkit = f"install the toolkit of CUDA {major}, and set CUDA_PATH to its folder"
    if (package := f"cupy-cuda{major}x") in report.packages:
        toolkit = f'pip install "{package}[ctk]"'
    change = "cupy-cuda12x has the older ones, cupy-cuda13x compute capability 7.5 and later"
    known = {
        ("outofmemory", "memoryallocation"): "free memory; `nvidia-smi` lists who holds it",
        ("gpu-architecture", "no kernel image"): f"change CuPy to one for this GPU: {change}",
        ("insufficient", "unsupportedptx", "unsupported_ptx"): "update the driver",
        ("compileexception", "nvrtc", "importerror", "failure finding"): toolkit,
    }
    for words, remedy in known.items():
        if any(word in signs for word in words):
            return remedy
    return f"update the driver, and {toolkit}"
