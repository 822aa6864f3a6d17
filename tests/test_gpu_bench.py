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

#: One of each kind; the others differ in size.
SOME = "logistic regression; mnist, batch 128; wide, tf32; streaming; prediction"

#: Sources, and losses, that have no row in the table of kernels yet.
NOT_TIMED_YET = ("attention", "convolution", "lookup", "norm")
LOSSES_NOT_TIMED_YET = {
    *("absolute_error", "cosine_distance", "divergence_of_logarithms", "hinge", "huber"),
    *("poisson", "sequence_cross_entropy"),
}


@pytest.fixture
def throughput(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("gpu_throughput")


@pytest.fixture
def on_device(throughput: Any) -> Any:
    get_place("cupy")
    return throughput


@pytest.mark.gpu
def test_all_of_it_runs_and_agrees(on_device: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert on_device.main(["--check", "--only", SOME]) == 0
    out, err = capfd.readouterr()
    assert "All kernels and contenders agree" in out
    for name in SOME.split("; "):
        assert re.search(rf"^{name}: (\d agree|gpunn is left out)", err, flags=re.MULTILINE)


def test_what_it_compares_with_agrees_on_a_cpu(
    throughput: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert throughput.main(["--check", "--device", "cpu", "--only", SOME]) == 0
    assert "mnist, batch 128: " in capfd.readouterr().err


def test_a_cpu_gets_as_many_whole_batches_as_it_has_time_for(throughput: Any) -> None:
    for work in throughput.WORKLOADS.values():
        lighter = throughput.lighter(work)
        a_step = throughput.gpu_report.step_flops(work)
        assert work.n_samples % work.batch_size == lighter.n_samples % work.batch_size == 0
        assert 2 <= lighter.n_steps <= max(2, 2e10 / a_step)
        assert lighter._replace(n_samples=work.n_samples, repeats=work.repeats) == work


def test_the_arithmetic_of_a_step(throughput: Any) -> None:
    report = throughput.gpu_report
    work = throughput.WORKLOADS["mnist, batch 128"]
    products = 784 * 512 + 512 * 256 + 256 * 10
    assert report.step_flops(work) == 2 * 128 * (3 * products - 784 * 512)
    prediction = throughput.WORKLOADS["prediction"]
    assert report.step_flops(prediction) == 2 * 10_000 * products
    # Logistic regression by hand: gather, X W, bias, loss, dJ/dz, X^T G, and the update.
    x, w, z = 32 * 30, 30, 32
    counted = 2 * x + (x + w + 3 * z) + 2 * z + (3 * z + x + z + w) + 3 * (w + 1)
    assert report.step_bytes(throughput.WORKLOADS["logistic regression"]) == 4 * counted
    assert report.streamed_bytes(throughput.WORKLOADS["streaming"]) == 4 * 4096 * 1024


def test_the_table_says_who_is_faster(throughput: Any) -> None:
    report, work = throughput.gpu_report, throughput.WORKLOADS["streaming"]
    peak = dict.fromkeys([*throughput.gpu_peaks.PRODUCTS, "copy", "bus"], 1e12)
    seconds = {"gpunn": [2.0, 4.0, 6.0], "PyTorch": [1.0, 6.0, 9.0], "gpunn, CPU": [20.0] * 3}
    ours, torch, cpu = rows = report.rows_of("streaming", work, seconds, peak)
    assert torch["times_gpunn"] == {"median": 1.5, "q1": 1.0, "q3": 1.5}
    assert ours["samples_per_s"] == 4096 / 4
    assert ours["bus_share"] == 4 * 4096 * 1024 / 4 / 1e12
    assert "flop_share" not in cpu
    surroundings = {"device": "X", "cuda": {"runtime": 1}, "cupy": "", "cores": 1, "processor": "P"}
    found = {"rows": rows, "peak": peak, "surroundings": surroundings, "versions": ["gpunn 1"]}
    lines = report.markdown(found | {"left_out": {"JAX": "not now"}}).splitlines()
    assert lines[-1] == "| streaming | **4e+06** | 0% (bus) | 1.5 [1, 1.5] | 5 [4.17, 7.5] |"
    assert "Left out: JAX: not now." in lines[0]


@pytest.mark.gpu
@pytest.mark.parametrize("who", ["gpunn", "gpunn, loop"])
def test_products_are_made_as_the_row_says(on_device: Any, who: str) -> None:
    """A device that computes tf32 as float32 has the same losses, so the note must do there."""
    losses, notes = {}, {}
    worker = on_device.Worker(who, on_device.CONTENDERS[who])
    worker.ask("version")
    for name in ("wide", "wide, tf32", "wide, bfloat16", "wide"):
        work = on_device.smaller(on_device.WORKLOADS[name])
        losses[name] = worker.ask("prepare", work=work._asdict(), steps=3)
        worker.ask("run")
        notes[work.products] = worker.ask("note")
    worker.close()
    assert losses["wide"] != losses["wide, bfloat16"]
    for products, note in notes.items():
        assert f"products in {products}" in note or "GPUNN_GRAPHS" in note


@pytest.mark.gpu
def test_the_figures_are_written(
    on_device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path that takes times, with arrays too small for them to mean anything."""
    small = {name: on_device.smaller(work) for name, work in on_device.WORKLOADS.items()}
    monkeypatch.setattr(on_device, "WORKLOADS", small)
    monkeypatch.setattr(on_device, "Clock", lambda _: on_device.NoClock())
    monkeypatch.setattr(on_device.gpu_costs, "counting", lambda: False)
    monkeypatch.setattr(on_device.gpu_peaks, "side", lambda _: 64)
    monkeypatch.setattr(on_device.gpu_kernels, "SIDE", 64)
    file = tmp_path / "figures.json"
    arguments = ["--json", str(file), "--rounds", "1", "--only", "digits;streaming"]
    assert on_device.main(arguments) == 0
    found = json.loads(file.read_text())
    assert {row["workload"] for row in found["rows"]} == {"digits", "streaming"}
    timed = {row["contender"] for row in found["rows"]}
    assert timed >= {"gpunn", "gpunn, loop", "CuPy by hand", "gpunn, CPU"}
    assert set(found["peak"]) == {"float32", "tf32", "bfloat16", "copy", "bus"}
    assert found["kernels"]
    ran = {who: note.splitlines()[0] for who, note in found["notes"]["digits"].items()}
    assert "CUDA graph" in ran["gpunn"]
    assert "GPUNN_GRAPHS" in ran["gpunn, loop"]
    table = file.with_suffix(".md").read_text()
    assert found["surroundings"]["device"] in table
    assert re.search(r"^\| digits \|", table, flags=re.MULTILINE)


@pytest.mark.gpu
def test_an_emulated_device_gets_no_times(
    on_device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    measured: list[Any] = []

    def benchmark(*arguments: Any) -> int:
        measured.append(arguments)
        return 0

    monkeypatch.setattr(on_device, "benchmark", benchmark)
    emulated = on_device.gpu_costs.counting()
    file = tmp_path / "figures.json"
    assert on_device.main(["--json", str(file)]) == (2 if emulated else 0)
    assert bool(measured) != emulated
    assert ("its times mean nothing" in capsys.readouterr().err) == emulated
    assert not file.exists()


@pytest.mark.gpu
def test_a_kernel_that_is_wrong_is_seen(on_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpunn.kernels.cupy_ import CupyKernels  # noqa: PLC0415 (needs CuPy)

    def dropout(self: Any, x: Any, key: int, rate: float) -> Any:
        y, mask = real(self, x, key, rate)
        y[-1, -1] += 0.01
        return y, mask

    real = CupyKernels.dropout
    monkeypatch.setattr(CupyKernels, "dropout", dropout)
    cupy = importlib.import_module("cupy")
    with pytest.raises(AssertionError, match="dropout"):
        on_device.gpu_kernels.check(cupy, 64)


@pytest.mark.gpu
def test_every_kernel_has_a_row(on_device: Any) -> None:
    cases = on_device.gpu_kernels.cases(importlib.import_module("cupy"), 64)
    timed = {name for case in cases.values() for name in case.launches}
    files = [file for file in cuda.VARIANTS if file not in NOT_TIMED_YET]
    sources = "".join(cuda.source(file) for file in files)
    small = {"finish_step"}  # a few numbers: it has no bandwidth
    assert (
        timed == set(re.findall(r"__global__ void (\w+)\(", sources)) - small - LOSSES_NOT_TIMED_YET
    )
