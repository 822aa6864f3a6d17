"""What `python -m gpunn bench` measures, in which time, and what it says of what is not there."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gpunn as gn
from gpunn.__main__ import main
from gpunn.tools import bench, contenders, doctor
from gpunn.tools.bench import Entrant, Times, measure
from gpunn.tools.contenders import Network
from gpunn.tools.report import Device, Report

FOLDER = Path(bench.__file__).parents[1]
SMALL = Network((4, 3), 8, 4, momentum=0.5)
LIBRARIES = {
    "gpunn": lambda network: contenders.with_gpunn(network, gn.get_backend("numpy")),
    "sklearn": contenders.with_sklearn,
    "torch": lambda network: contenders.with_torch(network, "cpu"),
    "jax": contenders.with_jax,
}


def report(*devices: Device) -> Report:
    return Report("auto", "1.0", devices=list(devices))


def entrant(name: str, step_s: float, device: str = "CPU", loss: float = 0.5) -> Entrant:
    """Return one whose epochs take a time that is known."""

    def prepare(network: Network) -> Callable[[int], float]:
        return lambda epochs: time.sleep(epochs * network.n_steps * step_s) or loss

    return Entrant(name, device, prepare)


@pytest.fixture
def field(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Times]:
    """Return a function that lets entrants take part in a race on two networks."""
    monkeypatch.setattr(bench, "NETWORKS", (SMALL, Network((9, 9), 8, 4)))

    def run(*entrants: Entrant, limit_s: float = 0.4) -> Times:
        monkeypatch.setattr(bench, "_entrants", lambda _: list(entrants))
        return measure(report, limit_s)

    return run


class TestCommand:
    def test_it_is_a_command(self) -> None:
        """In a few seconds it measures the smallest network, and says what it left out."""
        command = [sys.executable, "-m", "gpunn", "bench", "--seconds", "5", "--json"]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=FOLDER, check=True)  # noqa: S603
        found = json.loads(said.stdout)
        assert "gpunn" in {row["library"] for row in found["rows"]}
        assert found["gpunn"] == gn.__version__
        assert {"rows", "absent", "devices", "processor", "cores", "numpy", "blas"} <= set(found)
        assert found["took_s"] < 30

    def test_a_file_and_a_table(
        self, capsys: Any, tmp_path: Path, field: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(doctor, "examine", lambda *_: report())
        field(entrant("gpunn", 1e-4), entrant("abacus", 2e-3))
        path = tmp_path / "bench.json"
        assert main(["bench", "--seconds", "0.5", "--json", str(path)]) == 0
        printed = capsys.readouterr().out
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        names = {(row["network"], row["library"]) for row in rows}
        assert names == {(str(n), lib) for n in bench.NETWORKS for lib in ("gpunn", "abacus")}
        head = next(line for line in printed.splitlines() if line.startswith("network"))
        assert head.split()[1:] == ["gpunn,", "CPU", "abacus,", "CPU"]
        assert "4-3, batch 8, momentum" in printed

    def test_nothing_measured_is_a_failure(self, field: Any) -> None:
        field()
        assert main(["bench", "--seconds", "0.1"]) == 1

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--seconds", "0"], "must be a number of seconds above 0, got '0'"),
            (["--seconds", "soon"], "must be a number of seconds above 0, got 'soon'"),
            (["--seconds", "nan"], "must be a number of seconds above 0, got 'nan'"),
            (["--seconds", "inf"], "must be a number of seconds above 0, got 'inf'"),
            (["--sec", "1"], "unrecognized arguments: --sec"),
            (["--json", "no/such/folder/x.json"], "cannot be written"),
            (["--json", "."], "cannot be written"),
        ],
    )
    def test_a_wrong_use_prints_the_usage(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
    ) -> None:
        with pytest.raises(SystemExit) as exit_:
            main(["bench", *arguments])
        printed = capsys.readouterr()
        assert (exit_.value.code, printed.out) == (2, "")
        assert said in printed.err


class TestTimes:
    def test_are_of_a_step(self, field: Any) -> None:
        rows = field(entrant("gpunn", 1e-3)).rows
        for row in rows:
            assert row.us_per_step == pytest.approx(1e6 / row.steps_per_s, rel=1e-3)
            assert row.us_per_step >= 1000
        assert len(rows) == 2

    def test_end_in_time(self, field: Any) -> None:
        start = time.perf_counter()
        times = field(entrant("gpunn", 1e-4), entrant("abacus", 5e-3), limit_s=1.0)
        assert time.perf_counter() - start < 3.0  # of which 1 s is for a busy machine
        assert all(row.rounds >= 1 for row in times.rows)

    def test_a_slow_one_is_measured_once_and_takes_the_time_of_others(self, field: Any) -> None:
        times = field(entrant("abacus", 0.1), entrant("gpunn", 1e-4), limit_s=0.2)
        assert [(row.library, row.rounds) for row in times.rows] == [("abacus", 1)]
        assert set(times.absent.values()) == {"no time was left"}
        assert str(bench.NETWORKS[1]) in times.absent

    def test_a_failure_is_a_line(self, field: Any) -> None:
        def broken(_: Network) -> Any:
            raise OSError("no such abacus")

        times = field(Entrant("abacus", "CPU", broken), entrant("gpunn", 1e-4))
        assert {row.library for row in times.rows} == {"gpunn"}
        assert "4-3, batch 8, momentum by abacus, CPU: no such abacus" in str(times)

    def test_a_loss_that_is_no_number_gets_no_time(self, field: Any) -> None:
        times = field(entrant("gpunn", 1e-4, loss=float("nan")))
        assert not times.rows
        assert len(times.absent) == 2


class TestAbsent:
    def test_what_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bench, "find_spec", lambda _: None)
        times = Times(report())
        assert "gpunn" in {entrant.library for entrant in bench._entrants(times)}
        assert (
            times.absent.items()
            >= dict.fromkeys(("scikit-learn", "PyTorch", "JAX"), "not installed").items()
        )

    def test_what_cannot_be_imported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(_: Any) -> None:
            raise ImportError("libabacus.so is missing")

        monkeypatch.setattr(bench, "find_spec", lambda _: "there")
        monkeypatch.setattr(bench, "_add_torch", broken)
        monkeypatch.setattr(bench, "_add_jax", broken)
        times = Times(report())
        bench._entrants(times)
        assert times.absent["PyTorch"] == times.absent["JAX"] == "libabacus.so is missing"


class TestGPUs:
    @pytest.fixture
    def entered(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
        """Return a function that lets a device of that name take part."""
        real = bench.get_backend

        class Place:
            def __str__(self) -> str:
                return "cupy:0"

        found = {"cupy": Place()}
        monkeypatch.setattr(bench, "get_backend", lambda name: found.get(name) or real(name))

        def enter(name: str) -> tuple[Times, list[str]]:
            times = Times(report(Device("cupy:0", name)))
            there = bench._entrants(times)
            return times, [entrant.device for entrant in there if entrant.library == "gpunn"]

        return enter

    def test_is_named(self, entered: Any) -> None:
        times, devices = entered("Some GPU")
        assert devices == ["CPU", "Some GPU"]
        assert "gpunn on a GPU" not in times.absent

    def test_an_emulator_is_none(self, entered: Any) -> None:
        times, devices = entered("cudasim CPU emulator")
        assert devices == ["CPU"]
        assert "not a GPU but a cudasim CPU emulator" in times.absent["gpunn on a GPU"]
        assert json.loads(times.to_json())["devices"][0]["emulated"] is True

    @pytest.mark.gpu
    def test_this_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(["bench", "--seconds", "4", "--json"])
        found = json.loads(capsys.readouterr().out)
        (device, *_) = found["devices"]
        devices = {row["device"] for row in found["rows"] if row["library"] == "gpunn"}
        assert devices == {"CPU"} if device["emulated"] else devices == {"CPU", device["name"]}


@pytest.mark.parametrize("sizes", [(4, 1), (4, 5, 3)])
@pytest.mark.parametrize("library", LIBRARIES)
def test_they_train(library: str, sizes: tuple[int, ...]) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    run = LIBRARIES[library](Network(sizes, 8, 16, momentum=0.9))
    before = run(1)
    assert run(40) < before
