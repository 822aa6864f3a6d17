"""Time of a training step against other libraries, on the CPU, in one interleaved run.

    python bench/peers.py [--only NAME[,NAME]] [--rounds N] [--libraries NAME[,NAME]] [--json FILE]

A library may be there in several forms: as most write it, and as it is fastest. Each form works in
a process of its own, since the thread pools of two libraries in one process take each other's
cores; one process runs at a time, in random order within a round. Ratios are taken within a round.
All start from the same weights on the same data, and their losses over the first steps, with
dropout off (the masks differ), must agree before any time is taken. Libraries that are not
installed are left out; `python -m nox -s peers` installs them all.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from timing import Spread, ratio, spread, surroundings  # before NumPy: it sets the BLAS environment
from workloads import WORKLOADS, Workload

#: "gpunn" as it is installed; where that has compiled kernels, "gpunn-numpy" is it without them.
LIBRARIES = (
    "gpunn",
    "gpunn-numpy",
    "torch",
    "torch-fused",
    "torch-compiled",
    "jax",
    "jax-scan",
    "sklearn",
    "sklearn-sgd",
)
BASELINE = "torch"
#: Stands for the fastest of all that are not gpunn.
BEST = "best peer"
#: The ratios to other libraries' times that are aimed at.
BARS: dict[str, dict[str, float]] = {
    "logreg": {"torch": 0.12},
    "logreg1": {"torch": 0.14, "sklearn-sgd": 1.00},
    "logreg-weighted": {BEST: 1.00},
    "xor": {"torch": 0.14},
    "digits": {"torch": 0.22},
    "digits200": {"torch": 0.36},
    "digits-regularized": {BEST: 1.00},
    "residual": {BEST: 1.00},
    "mnist": {"torch": 1.00},
    "wide": {"torch": 1.08},
    "regression": {"torch": 0.80},
    "predict": {"torch": 1.12},
    "predict1": {"torch": 1.20},
    "stream": {"torch": 0.25},
}
#: How far losses may be apart, relative to the largest.
TOLERANCE = 1e-3
PAUSE_S = 0.05


class Worker:
    """A process that runs the workloads in one library, when asked."""

    def __init__(self, library: str) -> None:
        self.name = library
        command = [sys.executable, __file__, "--worker", library]
        environment = os.environ | ({"GPUNN_COMPILED": "0"} if library == "gpunn-numpy" else {})
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, what: str, **arguments: Any) -> Any:
        """Return the worker's answer; while it works, the others wait."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self.name} ended; see above")
        return json.loads(answer)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def work_for(library: str) -> None:
    """Answer requests, one a line, until there are no more."""
    package, _, variant = library.partition("-")
    adapter = importlib.import_module(f"libraries.with_{package}")
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    run = None
    for line in sys.stdin:
        what, arguments = json.loads(line)
        answer: Any = None
        if what == "version":
            answer = adapter.version()
        elif what == "prepare":
            run = None  # before the next one takes memory
            work = WORKLOADS[arguments["name"]]
            if adapter.serves(work, variant):
                run, compared = adapter.prepare(work, arguments["steps"], variant)
                answer = compared()
        elif what == "run":
            assert run is not None
            start = time.perf_counter()
            run()
            answer = time.perf_counter() - start
        print(json.dumps(answer), file=answers, flush=True)


def installed(library: str) -> bool:
    """Return whether there is such a library here, and for what compiles C++ a compiler."""
    if library == "torch-compiled" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return False
    needed = "numba" if library == "gpunn-numpy" else library.partition("-")[0]
    return find_spec(needed) is not None


def check_agreement(name: str, work: Workload, found: dict[str, list[float]]) -> float:
    """Return how far the libraries' losses (or outputs) are apart; that must not be far."""
    if work.predict:  # logits, but for a constant of each sample
        width = work.sizes[-1]
        found = {library: _centred(values, width) for library, values in found.items()}
    ours = found["gpunn"]
    largest = max(map(abs, ours))
    worst = 0.0
    for library, theirs in found.items():
        gaps = [abs(a - b) / largest for a, b in zip(ours, theirs, strict=True)]
        gap = max(gaps)
        if not all(gap <= TOLERANCE for gap in gaps):  # of NaN and a number, max may take either
            raise SystemExit(f"{name}: gpunn and {library} do not agree: {ours} and {theirs}")
        worst = max(worst, gap)
    return worst


def _centred(values: list[float], width: int) -> list[float]:
    rows = [values[i : i + width] for i in range(0, len(values), width)]
    return [value - sum(row) / width for row in rows for value in row]


def measure(name: str, workers: list[Worker], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each library that can run the workload, in each round."""
    work = WORKLOADS[name]
    steps = 6 if max(work.sizes) > 2000 else 20
    answers = {w.name: w.ask("prepare", name=name, steps=steps) for w in workers}
    found = {library: answer for library, answer in answers.items() if answer is not None}
    workers = [worker for worker in workers if worker.name in found]
    gap = check_agreement(name, work, found)
    print(f"{name}: agree to {gap:.1e}", file=sys.stderr)
    rng = random.Random(name)  # noqa: S311
    seconds: dict[str, list[float]] = {worker.name: [] for worker in workers}
    for turn in range(rounds + 1):  # the first warms up
        for worker in rng.sample(workers, len(workers)):
            time.sleep(PAUSE_S)
            elapsed = worker.ask("run")
            if turn:
                seconds[worker.name].append(elapsed)
    return seconds


def rows_of(name: str, seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return what is told of a workload: a row for each library."""
    rows = []
    best = best_peer(seconds)
    for library, own in seconds.items():
        to_torch = ratio(own, seconds[BASELINE]) if BASELINE in seconds else None
        to_best = ratio(own, seconds[best]) if best else None
        rows.append(
            {
                "workload": name,
                "library": library,
                "us_per_step": 1e6 * spread(own).median / WORKLOADS[name].n_steps,
                "ratio_to_torch": to_torch and to_torch.median,
                "q1": to_torch and to_torch.q1,
                "q3": to_torch and to_torch.q3,
                "best_peer": library == best,
                "ratio_to_best_peer": to_best and to_best.median,
            }
        )
    return rows


def best_peer(seconds: dict[str, list[float]]) -> str | None:
    """Return the fastest library that is not gpunn, if there is any."""
    peers = [library for library in seconds if not library.startswith("gpunn")]
    return min(peers, key=lambda library: spread(seconds[library]).median, default=None)


def verdicts(name: str, seconds: dict[str, list[float]]) -> list[str]:
    """Return, for each of the workload's bars, whether gpunn holds it."""
    found = []
    for peer, bar in BARS[name].items():
        library = best_peer(seconds) if peer == BEST else peer
        if library in seconds:
            reached = ratio(seconds["gpunn"], seconds[library]).median
            verdict = "holds" if reached <= bar else "MISSED"
            found.append(f"{reached:.3g} of {peer}, bar {bar:.2f}: {verdict}")
    return found


def show(rows: list[dict[str, Any]], judged: list[str]) -> None:
    """Print a workload's lines of the table."""
    for i, row in enumerate(rows):
        to_torch = ""
        if row["ratio_to_torch"] is not None and row["library"] != BASELINE:
            to_torch = str(Spread(row["ratio_to_torch"], row["q1"], row["q3"]))
        note = "best peer" if row["best_peer"] else ""
        if row["library"] == "gpunn":
            note = "; ".join(judged)
        name = "" if i else row["workload"]
        line = f"{name:20}{row['library']:16}{row['us_per_step']:>10.4g}{to_torch:>26}  {note}"
        print(line.rstrip(), flush=True)


def main() -> None:
    """Print the table, a line for each library under each workload."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME[,NAME]", help=", ".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--libraries", metavar="NAME[,NAME]", help=", ".join(LIBRARIES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the rows")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work_for(arguments.worker)
        return
    names = arguments.only.split(",") if arguments.only else list(WORKLOADS)
    wanted = arguments.libraries.split(",") if arguments.libraries else list(LIBRARIES)
    for given, known in ((names, WORKLOADS), (wanted, LIBRARIES)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
    if "gpunn" not in wanted:
        wanted.insert(0, "gpunn")
    workers = [Worker(library) for library in LIBRARIES if library in wanted and installed(library)]
    versions = [worker.ask("version") for worker in workers]
    print("; ".join(dict.fromkeys(versions)))
    print(f"{'workload':20}{'library':16}{'us a step':>10}{'ratio to torch':>26}")
    rows = []
    for name in names:
        seconds = measure(name, workers, arguments.rounds)
        found = rows_of(name, seconds)
        show(found, verdicts(name, seconds))
        rows += found
        if arguments.json:
            written = {"surroundings": surroundings(), "rows": rows}
            arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
