"""The backends that every test of arrays runs on, and the rules for tests that need more."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

os.environ["SCIPY_ARRAY_API"] = "1"  # scikit-learn's dispatch needs it; SciPy reads it on import

import numpy as np
import pytest
from _pytest.doctest import DoctestModule
from hypothesis import settings
from threadpoolctl import threadpool_limits

import gpunn as gn
from bench.gpu_costs import counting
from gpunn.program import crew
from gpunn.training import epoch, inference

settings.register_profile("gpunn", deadline=None)  # the first call of a kernel may compile it
settings.load_profile("gpunn")

BACKENDS = [
    "numpy",
    "numpy-readonly",
    "array-api-strict:1",
    pytest.param("cupy", marks=pytest.mark.gpu),
]


#: What only some tests need, and a machine with a GPU may lack.
OPTIONAL = ("array_api_strict", "dask", "mpi4py", "numba", "pandas", "rich", "torch", "zarr")


@dataclass(frozen=True)
class Place:
    """A backend, and how tests make inputs there."""

    backend: gn.Backend
    readonly: bool = False

    def array(self, x: Any, dtype: str | None = None) -> Any:
        """Return a copy of `x` there, read-only if the place is."""
        x = np.array(x, dtype=dtype)
        if self.readonly:
            x.setflags(write=False)
        return self.backend.asarray(x)

    def __str__(self) -> str:
        """Return the name that `get_backend` takes."""
        return str(self.backend)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-gpu",
        action="store_true",
        help="a test marked gpu that is skipped counts as failed, and so does a skipped module; "
        "but for lack of an optional package, or of an emulator",
    )
    parser.addoption(
        "--require-torch",
        action="store_true",
        help="a test marked torch that is skipped counts as failed, and so does a skipped module; "
        "but for lack of another optional package",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Run all other modules if one fails to be imported: time on a GPU is rare."""
    if config.getoption("require_gpu"):
        config.option.continue_on_collection_errors = True


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path) -> Any:
    """Look for no examples in the docstrings of tests: importing a helper may need numba."""
    nodes = yield
    return [node for node in nodes if not isinstance(node, DoctestModule)]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark every test that asks for PyTorch."""
    if "torch" in getattr(item, "fixturenames", ()):
        item.add_marker("torch")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a second GPU on a machine that has one: it is no failure there."""
    try:
        gn.get_backend("cupy:0")
        gn.get_backend("cupy:1")
    except gn.errors.BackendUnavailableError as error:
        if "there is no device cupy:1" not in str(error):
            return
        left_out = [item for item in items if item.get_closest_marker("two_devices")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked gpu where there is none, and questions to an emulator without one."""
    if item.get_closest_marker("gpu"):
        get_place("cupy")
    if item.get_closest_marker("emulated") and not counting():
        pytest.skip("only an emulator of CUDA can tell: a real device neither counts nor reorders")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Any:
    """Skip a test that turns out to need a library that is optional."""
    try:
        return (yield)
    except gn.errors.BackendUnavailableError as error:
        if lacks_optional(str(error)):
            pytest.skip(str(error))
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Turn a skip of a test marked gpu or torch into a failure, where that is required."""
    report = yield
    if hasattr(report, "wasxfail"):
        return report
    if item.get_closest_marker("gpu") and item.config.getoption("require_gpu"):
        emulated = item.get_closest_marker("emulated") is not None and on_device()
        refuse_skip(report, "--require-gpu", excused=emulated or lacks_optional(report))
    if item.get_closest_marker("torch") and item.config.getoption("require_torch"):
        refuse_skip(report, "--require-torch")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Any:
    """Turn the skip of a whole module into a failure: it may have had tests that must run."""
    report = yield
    if collector.config.getoption("require_gpu"):
        refuse_skip(report, "--require-gpu", excused=lacks_optional(report))
    if collector.config.getoption("require_torch"):
        other = find_spec("torch") is not None and lacks_optional(report)
        refuse_skip(report, "--require-torch", excused=other)
    return report


Report: TypeAlias = "pytest.TestReport | pytest.CollectReport"


def refuse_skip(report: Report, option: str, *, excused: bool = False) -> None:
    """Turn a skip that an option forbids into a failure."""
    if report.skipped and not excused:
        report.outcome = "failed"
        report.longrepr = f"skipped, but {option} was given: {reason(report)}"


def reason(report: Report) -> str:
    """Return why a test or module was skipped."""
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


def lacks_optional(report: Report | str) -> bool:
    """Return whether a reason names an optional package that is not installed."""
    why = report if isinstance(report, str) else reason(report)
    return any(name in why for name in OPTIONAL if find_spec(name) is None)


def on_device() -> bool:
    """Return whether there is a GPU, and not an emulated one, by its name."""
    if find_spec("cupy") is None:
        return False
    runtime = importlib.import_module("cupy").cuda.runtime
    return b"emulator" not in runtime.getDeviceProperties(0)["name"]


@pytest.fixture(autouse=True, scope="session")
def _small_workspace() -> Iterator[None]:
    """Let captured products have little memory to work in: an emulator fills it with junk."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("cupy") is not None and counting():
            capture = importlib.import_module("gpunn.program.capture")
            patch.setattr(capture, "workspace_bytes", lambda: 1 << 16)
        yield


@pytest.fixture(params=BACKENDS)
def place(request: pytest.FixtureRequest) -> Place:
    """Return each backend in turn; a law that holds on all of them is a law."""
    return get_place(request.param)


@pytest.fixture(autouse=True)
def _default_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start every test from the same default."""
    monkeypatch.delenv("GPUNN_BACKEND", raising=False)
    with gn.use(backend="numpy"):
        yield


@pytest.fixture(params=[True, False], ids=["resident", "streamed"])
def resident(request: pytest.FixtureRequest) -> bool:
    """Return whether the loader keeps its data on the device."""
    return request.param


@pytest.fixture
def strict() -> Any:
    """Return array-api-strict, which a machine with a GPU may lack."""
    return pytest.importorskip("array_api_strict")


@pytest.fixture(scope="session")
def torch() -> Any:
    """Return PyTorch; a test that asks for it is marked so, and the session `oracles` runs it."""
    found = pytest.importorskip("torch")
    found.set_num_threads(1)  # for small arrays, others would only wait for a core
    return found


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep BLAS from waking threads for small arrays, as it does for scikit-learn's solvers."""
    with threadpool_limits(1):
        yield


def get_place(name: str) -> Place:
    """Return the place of that name, or skip the test where there is none."""
    if name == "numpy-readonly":
        return Place(gn.get_backend("numpy"), readonly=True)
    try:
        return Place(gn.get_backend(name))
    except gn.errors.BackendUnavailableError as error:
        pytest.skip(str(error))


class OnlyDLPack:
    """An array of some library that offers its memory by DLPack alone."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __dlpack__(self, **settings: Any) -> Any:
        return self.x.__dlpack__(**settings)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.x.__dlpack_device__()


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each step by itself, in the layers' own functions, even if it could be compiled."""
    for module in (epoch, inference):
        monkeypatch.setattr(module, "feed_of", lambda *_: None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of threads of each call of recorded steps."""
    seen: list[int] = []

    def run(function: Any, threads: int, *arguments: Any, **settings: Any) -> None:
        seen.append(threads)
        real(function, threads, *arguments, **settings)

    real = crew.run
    monkeypatch.setattr(crew, "run", run)
    return seen
