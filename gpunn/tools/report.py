"""The doctor's report: devices, checks and advice, as text or as JSON."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class Device:
    """A GPU that CuPy finds.

    Attributes
    ----------
    backend : str
        Its name for `get_backend`, such as "cupy:0".
    name : str
        The model of the GPU.
    compute_capability : str
        For example, "9.0".
    free_bytes, total_bytes : int
        Its memory. Memory held by CuPy's pool does not count as free.
    problem : str or None
        Why the device could not be read; the other fields are then empty.
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
    """The result of one check of a backend.

    Attributes
    ----------
    backend : str
        The backend on which the check ran.
    what : {"kernel", "product"}
        Compiling and running a kernel, or a product of two matrices.
    problem : str or None
        What went wrong; None if the result was right.
    remedy : str or None
        How to fix the problem.
    """

    backend: str
    what: str
    problem: str | None = None
    remedy: str | None = None

    def __str__(self) -> str:
        return f"{self.backend}, {self.what}: {self.problem or 'right'}"


@dataclass
class Report:
    """The doctor's findings; `str` returns the lines that the command prints.

    Attributes
    ----------
    asked : str
        The requested backend.
    gpunn, python, system, numpy : str
        Versions.
    blas : list of str
        The BLAS libraries that NumPy uses.
    steps_problem : str or None
        Why training steps on NumPy are not recorded and compiled; None if they are.
    packages : dict of str to str
        The installed packages that contain CuPy, with their versions.
    cupy : str or None
        The version of CuPy; None if it cannot be imported.
    cupy_problem : str or None
        Why CuPy cannot be used; None if it has a device. The checks say whether the device works.
    on_rocm : bool
        Whether CuPy is built for ROCm (AMD GPUs) rather than CUDA.
    cuda_runtime, cuda_driver : str or None
        The version of CUDA (or ROCm) that CuPy was built for, and the latest that the driver
        supports.
    devices : list of Device
        The GPUs.
    notes : list of str
        Advice.
    backend : str or None
        The requested backend, resolved; None if it is not available.
    backend_problem : str or None
        Why the backend is not available, or what failed, and how to fix it.
    checks : list of Check
        The results of the checks.
    graphs : str or None
        Whether training steps are captured as CUDA graphs on the backend, or why not; None if the
        backend does not work or has no GPU.
    """

    asked: str
    gpunn: str
    python: str = f"{platform.python_version()} ({platform.python_implementation()})"
    system: str = field(default_factory=platform.platform)
    numpy: str = ""
    blas: list[str] = field(default_factory=list)
    steps_problem: str | None = None
    packages: dict[str, str] = field(default_factory=dict)
    cupy: str | None = None
    cupy_problem: str | None = None
    on_rocm: bool = False
    cuda_runtime: str | None = None
    cuda_driver: str | None = None
    devices: list[Device] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    backend: str | None = None
    backend_problem: str | None = None
    checks: list[Check] = field(default_factory=list)
    graphs: str | None = None

    @property
    def works(self) -> bool:
        """Whether the requested backend works."""
        return self.backend_problem is None

    def to_json(self) -> str:
        """Return the report as one JSON object."""
        return json.dumps({**asdict(self), "works": self.works}, indent=2)

    def __str__(self) -> str:
        driver = f"up to {self._platform} {self.cuda_driver}" if self.cuda_driver else "none found"
        lines = [
            ("gpunn", self.gpunn),
            ("Python", f"{self.python} on {self.system}"),
            ("NumPy", f"{self.numpy}, BLAS: {'; '.join(self.blas) or 'unknown'}"),
            ("steps", f"as written: {self.steps_problem}" if self.steps_problem else "compiled"),
            ("CuPy", self._cupy_line()),
            ("driver", driver),
            *((device.backend, str(device)) for device in self.devices),
            *(("check", str(check)) for check in self.checks),
            *([] if self.graphs is None else [("graphs", self.graphs)]),
            *(("note", note) for note in self.notes),
            ("result", self._result_line()),
        ]
        return "\n".join(f"{label:<8}{text}" for label, text in lines)

    @property
    def _platform(self) -> str:
        return "ROCm" if self.on_rocm else "CUDA"

    def _cupy_line(self) -> str:
        packages = ", ".join(f"{name} {version}" for name, version in self.packages.items())
        if self.cupy is None:
            return f"{packages}, cannot be imported" if packages else "not installed"
        built_for = f"{self._platform} {self.cuda_runtime}"
        return f"{self.cupy} ({packages or 'from no package'}) for {built_for}"

    def _result_line(self) -> str:
        name = self.backend or self.asked
        if self.asked not in (name, "cupy", "array-api-strict"):
            name = f"{self.asked} is {name}, which"
        if self.backend_problem is not None:
            return f"{name} does not work: {self.backend_problem}"
        left_out = self.asked == "auto" and self.backend == "numpy" and self.cupy_problem
        why = f"; CuPy was not used: {self.cupy_problem}" if left_out else ""
        return f"{name} works{why}"
