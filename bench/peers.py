"""Time of a training step against other libraries, on the CPU, in one interleaved run.

    python bench/peers.py [--only NAME[,NAME]] [--rounds N] [--libraries NAME[,NAME]] [--json FILE]

A library may be there in several forms: as most write it, and as it is fastest. Each form has a
process of its own, and losses are compared before any time is taken; `contest.py` says how. Ratios
are taken within a round. Libraries that are not installed are left out; `python -m nox -s peers`
installs them all.
"""

from __future__ import annotations

import argparse
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from timing import Spread, ratio, spread, surroundings  # before NumPy: it sets the BLAS environment

# isort: split
from contest import Contender, best_peer, measure, started
from workloads import WORKLOADS

#: "gpunn" as it is installed; where that has compiled kernels, "gpunn-numpy" is it without them.
LIBRARIES = {
    "gpunn": Contender("gpunn"),
    "gpunn-numpy": Contender("gpunn", environment=(("GPUNN_COMPILED", "0"),)),
    "torch": Contender("torch"),
    "torch-fused": Contender("torch", "fused"),
    "torch-compiled": Contender("torch", "compiled"),
    "torch-channels-last": Contender("torch", "channels-last"),
    "jax": Contender("jax"),
    "jax-scan": Contender("jax", "scan"),
    "sklearn": Contender("sklearn"),
    "sklearn-sgd": Contender("sklearn", "sgd"),
}
BASELINE = "torch"
#: Stands for the fastest library other than gpunn.
BEST = "best peer"
#: Target ratios to other libraries' times.
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
    "transformer": {"torch": 1.00},
    "cnn": {"torch": 0.80},
    "cnn_norm": {"torch": 0.80},
    "predict": {"torch": 1.12},
    "predict1": {"torch": 1.20},
    "stream": {"torch": 0.25},
}


def installed(library: str) -> bool:
    """Return whether the library is installed, and a C++ compiler if it needs one."""
    if library == "torch-compiled" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return False
    needed = "numba" if library == "gpunn-numpy" else LIBRARIES[library].package
    return find_spec(needed) is not None


def rows_of(name: str, seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return the report on a workload: a row for each library."""
    rows = []
    best = best_peer(seconds)
    for library, own in seconds.items():
        to_torch = ratio(own, seconds[BASELINE]) if BASELINE in seconds else None
        to_best = ratio(own, seconds[best]) if best else None
        rows.append(
            {
                "workload": name,
                "library": library,
                "us_per_step": 1e6 * spread(own).median,
                "ratio_to_torch": to_torch and to_torch.median,
                "q1": to_torch and to_torch.q1,
                "q3": to_torch and to_torch.q3,
                "best_peer": library == best,
                "ratio_to_best_peer": to_best and to_best.median,
            }
        )
    return rows


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
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(WORKLOADS)
    wanted = arguments.libraries.split(",") if arguments.libraries else list(LIBRARIES)
    for given, known in ((names, WORKLOADS), (wanted, LIBRARIES)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
    if "gpunn" not in wanted:
        wanted.insert(0, "gpunn")
    taking_part = {k: v for k, v in LIBRARIES.items() if k in wanted and installed(k)}
    workers, versions, _ = started(taking_part)
    print("; ".join(versions))
    print(f"{'workload':20}{'library':16}{'us a step':>10}{'ratio to torch':>26}")
    rows = []
    for name in names:
        entrants = dict.fromkeys(workers, WORKLOADS[name])
        outcome = measure(name, entrants, arguments.rounds)
        outcome.check()
        seconds = outcome.seconds
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
