"""Real processes under `mpiexec`: the numbers of one process, faults, and going on from files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

PROGRAMS = Path(__file__).with_name("mpi_programs.py")
LAUNCHER = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")

pytestmark = pytest.mark.skipif(
    find_spec("mpi4py") is None or LAUNCHER is None,
    reason="mpi4py or mpiexec is not installed: pip install mpi4py mpich",
)


@pytest.fixture(autouse=True)
def aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs that name no folder write their checkpoints here."""
    monkeypatch.chdir(tmp_path)


def start(
    n: int,
    *arguments: object,
    limit_s: float = 60,
    backend: str = "numpy",
    compiled: bool = True,
    options: tuple[str, ...] = (),
    buckets: int = 0,
) -> subprocess.CompletedProcess[str]:
    """Run a program on n ranks; kill all of them if they take too long."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    environment = os.environ | one | {"GPUNN_TEST_BACKEND": backend}
    environment["GPUNN_TEST_BUCKETS"] = str(buckets)
    if not compiled:  # it takes each process a second to load
        environment["GPUNN_COMPILED"] = "0"
    command = [LAUNCHER, *options, "-n", n, sys.executable, PROGRAMS, *arguments]
    process = subprocess.Popen(
        list(map(str, command)),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher ends its processes
        out, err = process.communicate(timeout=10)
        pytest.fail(f"{n} ranks took more than {limit_s} s: {out}{err}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def run(n: int, *arguments: object, **settings: object) -> str:
    done = start(n, *arguments, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def results(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)


def assert_close(mine: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for name, values in wanted.items():
        np.testing.assert_allclose(mine[name], values, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_arrays_are_sent_and_added(n: int) -> None:
    run(n, "exchange", compiled=False)
    run(n, "background", compiled=False)


@pytest.mark.gpu
@pytest.mark.parametrize("buckets", [0, 64])
def test_arrays_of_a_gpu_go_through_the_host(buckets: int, tmp_path: Path) -> None:
    run(2, "background" if buckets else "exchange", backend="cupy")
    said = run(2, "train", tmp_path, backend="cupy", buckets=buckets)
    assert "two launches of CUDA graphs, and a sum over processes between them" in said
    mine = results(tmp_path, "ranks2")
    run(1, "train", tmp_path, backend="cupy")
    assert_close(mine, results(tmp_path, "ranks1"))


@pytest.mark.parametrize("backend", ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def test_recorded_steps_draw_the_masks_of_the_readable_loop(backend: str) -> None:
    run(2, "masks", backend=backend)


@pytest.mark.gpu
def test_so_do_statistics_of_all_ranks(tmp_path: Path) -> None:
    for n in (1, 2):
        run(n, "normalise", tmp_path, backend="cupy")
    assert_close(results(tmp_path, "ranks2"), results(tmp_path, "ranks1"))


@pytest.mark.parametrize("buckets", [0, 64])
def test_ranks_train_as_one_process_does(buckets: int, tmp_path: Path) -> None:
    for n in (1, 2, 3, 4):
        run(n, "train", tmp_path, buckets=buckets)
        assert_close(results(tmp_path, f"ranks{n}"), results(tmp_path, "ranks1"))


def test_norms_have_the_statistics_of_all_ranks(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        run(n, "normalise", tmp_path, compiled=False)
        assert_close(results(tmp_path, f"ranks{n}"), results(tmp_path, "ranks1"))


def test_buckets_change_no_bit(tmp_path: Path) -> None:
    run(2, "train", tmp_path)
    whole = results(tmp_path, "ranks2")
    for compiled in (True, False):
        run(2, "train", tmp_path, buckets=64, compiled=compiled)
        mine = results(tmp_path, "ranks2")
        for name, values in whole.items():
            same = np.testing.assert_array_equal if compiled else np.testing.assert_allclose
            same(mine[name], values, err_msg=name)


@pytest.mark.parametrize("buckets", [0, 64])
def test_training_goes_on_from_a_file(buckets: int, tmp_path: Path) -> None:
    run(2, "train", tmp_path)
    assert "interrupted in epoch 2" in run(2, "stop", tmp_path, buckets=buckets)  # on both
    file = (tmp_path / "training.safetensors").read_bytes()
    for n in (2, 1, 3):
        (tmp_path / "training.safetensors").write_bytes(file)
        run(n, "resume", tmp_path, buckets=buckets)
    whole = results(tmp_path, "ranks2")
    for name, values in results(tmp_path, "resumed2").items():
        np.testing.assert_array_equal(values, whole[name], err_msg=name)
    for n in (1, 3):
        assert_close(results(tmp_path, f"resumed{n}"), whole)


FAULTS = {
    "in backward": ["a fault of rank 1", "another rank has failed in the backward pass"],
    "raises": ["a fault of rank 1", "waits for rank 1, which has failed: ValueError"],
    "killed": ["KILLED BY SIGNAL: 9|EXIT CODE: 9"],
    "ends": ["waits for rank 1, which has ended"],
    "hangs": ["has waited for the others for 3 s"],
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_fault_of_one_rank_ends_all(how: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    settings = {"buckets": 64} if how == "in backward" else {}
    done = start(3, "fail", tmp_path, how, limit_s=30, compiled=False, **settings)
    assert time.monotonic() - begun < 10 + 5  # what it takes to start, too
    assert done.returncode != 0
    for message in FAULTS[how]:
        assert any(each in done.stdout + done.stderr for each in message.split("|")), done
    run(2, "resume", tmp_path, compiled=False)  # the last file is whole


PARTINGS = {
    "catches an error of a step": (
        "rank 1 has had an error that rank 0 has not had (train_step: ShapeError: ",
        "and has continued; let it end the program, or catch it on all ranks",
    ),
    "catches an error of a callback": (
        "rank 1 has had an error that rank 0 has not had (Trainer.fit: ValueError: a fault",
    ),
    "evaluates": ("numbers of int64 in Trainer.evaluate", "numbers of int64 in Trainer.fit"),
    "goes on after that": ("no longer talks with the others, since the ranks do different things",),
    "leaves out a step": ("a barrier", "numbers of float64 in train_step"),
    "leaves": ("waits for rank 1, which has ended by os._exit(0)",),
}


@pytest.mark.parametrize(("n", "buckets"), [(2, 0), (3, 0), (2, 64)])
@pytest.mark.parametrize("how", PARTINGS)
def test_ranks_that_part_are_found_at_once(how: str, n: int, buckets: int) -> None:
    begun = time.monotonic()
    done = start(n, "part", how, limit_s=30, compiled=False, buckets=buckets)
    assert time.monotonic() - begun < 10
    assert done.returncode != 0
    assert "reached the end" not in done.stdout
    for message in PARTINGS[how]:
        assert message in done.stderr
    spoken = {rank for rank in range(n) if f"DistributedError: rank {rank} of {n}" in done.stderr}
    assert spoken == set(range(n)) - ({1} if how == "leaves" else set())


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the system tells of no ends")
def test_ranks_see_that_a_process_is_gone_where_the_launcher_does_not_end_them() -> None:
    version = subprocess.run([str(LAUNCHER), "--version"], capture_output=True, text=True)
    if "HYDRA" not in version.stdout:
        pytest.skip("the launcher is not MPICH's")
    begun = time.monotonic()
    done = start(3, "part", "is gone", compiled=False, options=("-disable-auto-cleanup",))
    assert time.monotonic() - begun < 10
    assert "waits for rank 1, which is gone" in done.stderr
    for rank in (0, 2):  # the second may hear of the first
        assert f"rank {rank} of 3 waits for rank" in done.stderr


def test_an_error_of_all_ranks_may_be_caught() -> None:
    assert run(2, "go_on", compiled=False).count("has 1 epoch") == 2


def test_ranks_that_differ_do_not_start() -> None:
    done = start(2, "differ", "shapes", compiled=False)
    assert done.returncode != 0
    assert "parameters: rank 0 has float32(2, 3), float32(3,), rank 1 float32(2, 4)" in done.stderr
