"""A CuPy for the doctor's tests, on NumPy's arrays, and how they run it."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpunn.__main__ import main

OTHER = "array-api-strict:1"
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


def install_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
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
        pinned = SimpleNamespace(is_memory_pinned=lambda _: False)
        self.cuda = SimpleNamespace(runtime=runtime, Device=FakeDevice, pinned_memory=pinned)
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


def fake_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeCupy]:
    """Return a function that puts a `FakeCupy` where CuPy would be."""

    def put(**settings: Any) -> FakeCupy:
        cupy = FakeCupy(**settings)
        monkeypatch.setitem(sys.modules, "cupy", cupy)  # type: ignore[arg-type]
        namespace = SimpleNamespace(matmul=cupy.matmul)
        monkeypatch.setitem(sys.modules, "array_api_compat.cupy", namespace)  # type: ignore[arg-type]
        return cupy

    return put
