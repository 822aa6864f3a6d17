"""Speed on a GPU: steps against CuPy by hand, PyTorch, JAX, the CPU, and the device's own limits.

    python bench/gpu_throughput.py [--only NAME[;NAME]] [--minutes M] [--rounds N] [--json FILE]
    python bench/gpu_throughput.py --check [--device cpu]

gpunn takes part with captured steps, as it is, and without them ("loop"); PyTorch eager, compiled,
and as a CUDA graph of the whole step with the optimizer; JAX with a compiled call for each step,
and one for each epoch. Each has a process of its own, and `contest.py` says how they take turns.
Losses are compared before any time is taken. What is not installed, or cannot run here, is left
out, and the reason is printed. CUDA_VISIBLE_DEVICES chooses another device than the first.

A measurement ends when the device has done all of it; each is a median with its quartiles, and
ratios are taken within a round. Then each CUDA kernel is timed by itself, on the device alone.
Shares are of what the device was measured to do in the same run. As the minutes (7, unless M says
otherwise) run out, there are fewer rounds. A table (.md) and a picture (.png) go beside FILE.

`--check` runs everything with small arrays, and compares the results, but takes no times: where the
device is emulated, too (without it, an emulated device is refused), or with `--device cpu` without
any, which shows that PyTorch's and JAX's programs are right.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import checkout  # noqa: F401 (before gpunn: it finds it)
from gpu_timing import Clock, NoClock  # before NumPy, as timing

# isort: split
import gpu_costs
import gpu_kernels
import gpu_peaks
import gpu_report
from contest import Contender, Failure, Worker, measure, started
from gpu_workloads import WORKLOADS, lighter, smaller
from workloads import Workload

import gpunn as gn

_JAX = (("JAX_PLATFORMS", "cuda"), ("XLA_PYTHON_CLIENT_PREALLOCATE", "false"))
CONTENDERS = {
    "gpunn": Contender("gpunn", "", "gpu"),
    "gpunn, loop": Contender("gpunn", "", "gpu", (("GPUNN_GRAPHS", "0"),)),
    "CuPy by hand": Contender("cupy", "", "gpu"),
    "PyTorch": Contender("torch", "", "gpu"),
    "PyTorch compiled": Contender("torch", "compiled", "gpu"),
    "PyTorch graph": Contender("torch", "graph", "gpu"),
    "JAX": Contender("jax", "", "gpu", _JAX),
    "JAX epoch": Contender("jax", "scan", "gpu", _JAX),
    "gpunn, CPU": Contender("gpunn", "", "cpu"),
}
PATIENCE_S = 120  # for a peer to prepare a workload, which may mean to compile it
KERNELS_S = 30  # kept for the kernels


def contenders(device: str) -> dict[str, Contender]:
    """Return those that are installed, to work on that device."""
    found = {name: each for name, each in CONTENDERS.items() if _installed(each, device)}
    if device == "gpu":
        return found
    on_cpu = (("JAX_PLATFORMS", "cpu"),)
    return {name: each._replace(device="cpu", environment=on_cpu) for name, each in found.items()}


def _installed(contender: Contender, device: str) -> bool:
    by_hand = contender.package == "cupy" and device == "cpu"
    return by_hand or find_spec(contender.package) is not None


def figures(
    workloads: dict[str, Workload],
    device: str,
    peak: dict[str, float],
    *,
    rounds: int,
    minutes: float,
    keep: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Run the contests; each gets an equal share of the time that is left.

    `keep` is called after each, so that what was measured is not lost with a later failure. What
    fails in gpunn is told under "failures", and which way its steps ran under "notes".
    """
    deadline = time.monotonic() + 60 * minutes
    workers, versions, left_out = started(contenders(device))
    found: dict[str, Any] = {"peak": peak, "versions": versions, "left_out": left_out}
    found |= {"rows": [], "notes": {}, "failures": []}
    print(gpu_report.HEADER)
    for i, (name, work) in enumerate(workloads.items()):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            left_out[name] = "no time was left"
            continue
        until = time.monotonic() + left_s / (len(workloads) - i)
        entrants = {worker: entered(worker, work, device) for worker in workers}
        try:
            outcome = measure(name, entrants, rounds, until=until, patience_s=PATIENCE_S)
        except Failure as failure:
            print(failure, file=sys.stderr)
            found["failures"].append(str(failure))
            continue
        left_out |= {f"{who} ({name})": why for who, why in outcome.left_out.items()}
        found["failures"] += [f"{name}: {who} disagrees" for who in outcome.disagreeing]
        told = [worker for worker in workers if worker.required and worker.name in outcome.seconds]
        found["notes"][name] = {worker.name: worker.ask("note") for worker in told}
        rows = gpu_report.rows_of(name, work, outcome.seconds, peak)
        gpu_report.show(rows)
        found["rows"] += rows
        keep(found)
    for worker in workers:
        worker.close()
    return found


def entered(worker: Worker, work: Workload, device: str) -> Workload:
    """Return the workload as a worker is to run it: beside a GPU, a CPU has fewer steps."""
    return lighter(work) if device == "gpu" and worker.device == "cpu" else work


def benchmark(cupy: Any, names: list[str], rounds: int, minutes: float, file: Path | None) -> int:
    """Measure, print, and write the figures; return how many failures there were."""
    end = time.monotonic() + 60 * minutes
    surroundings, clock = gpu_peaks.describe(cupy), Clock(cupy)
    peak = gpu_peaks.peaks(cupy, clock, rounds, gpu_peaks.side(cupy))
    cupy.get_default_memory_pool().free_all_blocks()  # the workers need the memory

    def keep(found: dict[str, Any]) -> None:
        if file is not None:
            gpu_report.write_json(found | {"surroundings": surroundings}, file)

    found = figures(
        {name: WORKLOADS[name] for name in names},
        "gpu",
        peak,
        rounds=rounds,
        minutes=(end - time.monotonic() - KERNELS_S) / 60,
        keep=keep,
    )
    found["surroundings"] = surroundings
    found["kernels"] = gpu_kernels.report(cupy, clock, rounds, peak["copy"], gpu_kernels.SIDE)
    print("\n" + gpu_report.markdown(found))
    if file is not None:
        gpu_report.write(found, file)
    return len(found["failures"])


def check(cupy: Any, device: str, names: list[str]) -> int:
    """Run all with small arrays, compare the results, and throw the tables away."""
    peak = dict.fromkeys([*gpu_peaks.PRODUCTS, "copy", "bus"], 1.0)
    surroundings = {"device": "no device", "cuda": {"runtime": 0}, "cupy": "", "cores": 0}
    with redirect_stdout(StringIO()), tempfile.TemporaryDirectory() as folder:
        if device == "gpu":
            gpu_kernels.check(cupy, 128)
            gpu_peaks.check(cupy)
            clock = NoClock()
            peak = gpu_peaks.peaks(cupy, clock, 1, 64)
            gpu_kernels.report(cupy, clock, 1, peak["copy"], 64)
            surroundings = gpu_peaks.describe(cupy)
        workloads = {name: smaller(WORKLOADS[name]) for name in names}
        found = figures(workloads, device, peak, rounds=1, minutes=60, keep=lambda _: None)
        found["surroundings"] = {"processor": ""} | surroundings
        gpu_report.write(found, Path(folder) / "figures.json")
    for failure in found["failures"]:
        print(failure)
    if not found["failures"]:
        print("All kernels and contenders agree; no times are shown.")
    return len(found["failures"])


def main(given: list[str] | None = None) -> int:
    """Measure on a real device, or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME[;NAME]", help="; ".join(WORKLOADS))
    parser.add_argument("--minutes", type=float, default=7, help="fewer rounds after that")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--check", action="store_true", help="take no times; compare the results")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="for --check")
    arguments = parser.parse_args(given)
    os.environ.pop("GPUNN_GRAPHS", None)  # each contender sets its own
    names = [each.strip() for each in (arguments.only or ";".join(WORKLOADS)).split(";")]
    if unknown := [name for name in names if name not in WORKLOADS]:
        parser.error(f"unknown: {'; '.join(unknown)}; known are {'; '.join(WORKLOADS)}")
    if arguments.device == "cpu":
        if not arguments.check:
            parser.error("--device cpu is for --check; bench/peers.py takes times on a CPU")
        return min(check(None, "cpu", names), 1)
    try:
        gn.get_backend("cupy")
    except gn.errors.GpunnError as error:
        print(f"gpu_throughput: there is nothing to measure: {error}", file=sys.stderr)
        return 2
    import cupy  # noqa: PLC0415 (known to work by now)

    if arguments.check:
        return min(check(cupy, "gpu", names), 1)
    if gpu_costs.counting():
        print(
            "gpu_throughput: this device is emulated, so its times mean nothing; --check compares "
            "the results, and bench/gpu_costs.py counts what a step costs",
            file=sys.stderr,
        )
        return 2
    failures = benchmark(cupy, names, arguments.rounds, arguments.minutes, arguments.json)
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
