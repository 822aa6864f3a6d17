"""The benchmark of a GPU, run without its clock: a device is too rare to find its faults there."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from gpunn.kernels import cuda
from tests.conftest import get_place

pytestmark = pytest.mark.gpu


@pytest.fixture
def throughput(monkeypatch: pytest.MonkeyPatch) -> Any:
    get_place("cupy")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("gpu_throughput")


def test_all_of_it_runs_and_agrees(throughput: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert throughput.main(["--check"]) == 0
    assert "All kernels and contenders agree" in capsys.readouterr().out


def test_a_kernel_that_is_wrong_is_seen(throughput: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpunn.kernels.cupy_ import CupyKernels  # noqa: PLC0415 (needs CuPy)

    def dropout(self: Any, x: Any, key: int, rate: float) -> Any:
        y, mask = real(self, x, key, rate)
        y[-1, -1] += 0.01
        return y, mask

    real = CupyKernels.dropout
    monkeypatch.setattr(CupyKernels, "dropout", dropout)
    cupy = importlib.import_module("cupy")
    with pytest.raises(AssertionError, match="dropout"):
        throughput.gpu_kernels.check(cupy, 64)


def test_every_kernel_has_a_row(throughput: Any) -> None:
    cases = throughput.gpu_kernels.cases(importlib.import_module("cupy"), 64)
    timed = {name for case in cases.values() for name in case.launches}
    sources = "".join(cuda.source(file) for file in cuda.VARIANTS)
    small = {"finish_step"}  # a few numbers: it has no bandwidth
    assert timed == set(re.findall(r"__global__ void (\w+)\(", sources)) - small


def test_an_emulated_device_gets_no_times(
    throughput: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    measured = []
    monkeypatch.setattr(throughput, "measure", lambda *arguments: measured.append(arguments) or {})
    monkeypatch.setattr(throughput.gpu_costs, "measure", dict)
    emulated = throughput.gpu_costs.counting()
    file = tmp_path / "figures.json"
    assert throughput.main(["--json", str(file)]) == 0
    assert bool(measured) != emulated
    assert ("its times mean nothing" in capsys.readouterr().out) == emulated
    assert file.exists() != emulated
    if not emulated:
        assert json.loads(file.read_text()) == {}
