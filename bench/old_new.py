"""Time of one checkout of gpunn against another, in interleaved processes on the CPU.

    python bench/old_new.py OLD NEW [--estimators] [--only NAME[,NAME]] [--rounds N] [--processes N]
        [--processor]

OLD and NEW are folders with a package `gpunn` in each; the workloads are those of this checkout, so
both train the same. With --estimators they are the fits of `bench/estimators.py`, one a step; their
names have commas, so that --only takes one of them. Where memory lies differs from process to
process, and with it the time of a large network by some percent: so each ratio is over several
pairs of processes. On a machine that others use, --processor counts the time of processors, of all
threads, instead of that on the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from timing import ratio  # before NumPy: it sets the BLAS environment
from workloads import WORKLOADS

#: How much longer than OLD a workload of both may take in NEW; in small ones the clock is coarse.
BAR = 1.05
WIDER_BARS = {"xor": 1.15, "logreg": 1.15, "logreg1": 1.15}
PAUSE_S = 0.02


def work_for(name: str, clock: Callable[[], float]) -> None:
    """Run a workload for each line that comes in, and print the seconds it took."""
    # All of these import the checkout's gpunn.
    from libraries.with_gpunn import prepare  # noqa: PLC0415

    import gpunn  # noqa: PLC0415

    if name in WORKLOADS:
        run, _ = prepare(WORKLOADS[name], 1)
    else:
        from estimators import prepare_fit  # noqa: PLC0415

        run = prepare_fit(name)
    run()
    print(json.dumps(gpunn.__file__), flush=True)
    for _ in sys.stdin:
        start = clock()
        run()
        print(json.dumps(clock() - start), flush=True)


class Worker:
    """A process that runs one workload with one checkout."""

    def __init__(self, checkout: Path, name: str, *options: str) -> None:
        folder = str(checkout)
        command = [sys.executable, __file__, "--worker", name, *options, folder, folder]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        if not Path(self._answer()).is_relative_to(checkout):
            raise SystemExit(f"{checkout} has no package gpunn of its own")

    def seconds(self) -> float:
        """Return what one measurement takes."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("a process ended; see above")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(
    name: str, checkouts: dict[str, Path], rounds: int, processes: int, *options: str
) -> dict[str, list[float]]:
    """Return the seconds of each checkout in each round of each pair of processes."""
    seconds: dict[str, list[float]] = {key: [] for key in checkouts}
    rng = random.Random(name)  # noqa: S311
    for _ in range(processes):
        started = rng.sample(list(checkouts), len(checkouts))
        workers = {key: Worker(checkouts[key], name, *options) for key in started}
        for _ in range(rounds):
            for key in rng.sample(started, len(started)):
                time.sleep(PAUSE_S)
                seconds[key].append(workers[key].seconds())
        for worker in workers.values():
            worker.close()
    return seconds


def main() -> None:
    """Print a row for each workload."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    parser.add_argument("--only", metavar="NAME[,NAME]", help=", ".join(WORKLOADS))
    parser.add_argument("--estimators", action="store_true", help="fits of the estimators instead")
    parser.add_argument("--rounds", type=int, default=7, help="in each pair of processes")
    parser.add_argument("--processes", type=int, default=3, help="pairs of them")
    parser.add_argument("--processor", action="store_true", help="count processors' time")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work_for(arguments.worker, time.process_time if arguments.processor else time.perf_counter)
        return
    checkouts = {"old": arguments.old.resolve(), "new": arguments.new.resolve()}
    known = list(WORKLOADS)
    names = arguments.only.split(",") if arguments.only else known
    if arguments.estimators:
        from estimators import WORKLOADS as fits  # noqa: N811, PLC0415 (needs scikit-learn)

        known = list(fits)
        names = [arguments.only] if arguments.only else known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; known are {'; '.join(known)}")
    print(f"{'workload':26}{'old, us':>12}{'new, us':>12}{'new / old':>26}{'bar':>8}")
    for name in names:
        options = ["--processor"] * arguments.processor
        seconds = measure(name, checkouts, arguments.rounds, arguments.processes, *options)
        n_steps = 1 if arguments.estimators else WORKLOADS[name].n_steps
        us = [1e6 * statistics.median(seconds[key]) / n_steps for key in ("old", "new")]
        gain = ratio(seconds["new"], seconds["old"])
        bar = WIDER_BARS.get(name, BAR)
        verdict = "holds" if gain.median <= bar else "MISSED"
        cells = "".join(f"{value:12.4g}" for value in us)
        print(f"{name:26}{cells}{gain!s:>26}{bar:8.2f}  {verdict}", flush=True)


if __name__ == "__main__":
    main()
