"""How the time of a training step grows with the network: width, depth, batch size.

    python bench/growth.py [--rounds N] [--into FOLDER]

One thing grows at a time, the others stay; a step is measured through `Trainer.fit`, with its share
of what an epoch costs. Writes a table
and a plot. The time should grow as the work does, in multiplications and additions, once the work
outweighs the calls; a jump would be a cliff: a cache left, memory given back and faulted in again.
"""

from __future__ import annotations

import argparse
import os
import platform
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from timing import Spread, interleave, spread  # before NumPy: it sets the BLAS environment
from workloads import Workload

# isort: split
import matplotlib as mpl
import numpy as np
from libraries.with_gpunn import prepare_training

import gpunn as gn

WIDTH, DEPTH, BATCH = 256, 2, 128
AXES = {
    "width": [16, 32, 64, 128, 256, 512, 1024, 2048],
    "depth": [1, 2, 4, 8, 16, 32],
    "batch size": [1, 4, 16, 64, 256, 1024, 4096],
}
FEATURES, CLASSES = 64, 10


class Point(NamedTuple):
    """A network of one size, and the time of its training step."""

    value: int
    parameters: int
    #: Multiplications and additions in the products of a step.
    operations: int
    us: Spread


def network(axis: str, value: int) -> Workload:
    """Return the workload in which one dimension has this value."""
    width, depth, batch = (
        value if axis == name else default
        for name, default in (("width", WIDTH), ("depth", DEPTH), ("batch size", BATCH))
    )
    sizes = (FEATURES, *[width] * depth, CLASSES)
    steps = 4 if batch > 1000 else 8
    return Workload(sizes, steps * batch, batch, repeats=1, learning_rate=0.001)


def operations(work: Workload) -> int:
    """Return the multiplications and additions of a step: forward, dJ/dW, and dJ/dx but once."""
    products = [a * b for a, b in pairwise(work.sizes)]
    return 2 * work.batch_size * (3 * sum(products) - products[0])


def measure(axis: str, rounds: int) -> list[Point]:
    """Return a point for each value on an axis, all measured in the same rounds."""
    works = {str(value): network(axis, value) for value in AXES[axis]}
    runs, epochs = {}, {}
    for name, work in works.items():
        trainer, loader = prepare_training(work)
        # As many epochs as take a twentieth of a second at a few billion operations a second.
        epochs[name] = max(2, int(2e8 / (operations(work) + 2e5) / len(loader)))
        runs[name] = lambda t=trainer, d=loader, n=epochs[name]: t.fit(d, n, progress=False)
    seconds = interleave(runs, rounds, pause_s=0.01)
    points = []
    for name, work in works.items():
        steps = epochs[name] * work.n_samples / work.batch_size
        us = spread([1e6 * s / steps for s in seconds[name]])
        parameters = sum(a * b + b for a, b in pairwise(work.sizes))
        points.append(Point(int(name), parameters, operations(work), us))
    return points


def table(found: dict[str, list[Point]]) -> str:
    """Return the measurements, as Markdown."""
    what = (
        f"Microseconds a training step of {FEATURES}-{WIDTH}-{WIDTH}-{CLASSES}, ReLU, batch "
        f"{BATCH}, SGD, where one thing at a time is changed; median [quartiles]. "
        "Made by `python bench/growth.py`."
    )
    lines = ["# Growth", "", what, "", machine()]
    for axis, points in found.items():
        lines += ["", f"| {axis} | parameters | million operations | us a step | GFLOP/s |"]
        lines += ["| ---: | ---: | ---: | ---: | ---: |"]
        lines += [
            f"| {p.value} | {p.parameters:,} | {p.operations / 1e6:.3g} | "
            f"{p.us.median:,.4g} [{p.us.q1:,.4g}, {p.us.q3:,.4g}] | "
            f"{p.operations / p.us.median / 1e3:.3g} |"
            for p in points
        ]
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Return what the numbers were measured on."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return (
        f"{platform.machine()}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"NumPy {np.__version__} with {blas['name']} {blas['version']}, gpunn {gn.__version__}."
    )


def plot(found: dict[str, list[Point]], file: Path) -> None:
    """Draw time against work, with a line where each operation takes the same time."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 (after the choice of its backend)

    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for axis, points in found.items():
        work = [p.operations for p in points]
        axes.plot(work, [p.us.median for p in points], "o-", label=f"{axis} grows")
    fastest = max((p for points in found.values() for p in points), key=_rate)
    ends = [p.operations for points in found.values() for p in points]
    line = np.array([min(ends), max(ends)], float)
    label = f"{_rate(fastest) / 1e3:.0f} GFLOP/s"
    axes.plot(line, line / _rate(fastest), "k--", linewidth=1, label=label)
    axes.set(xscale="log", yscale="log", xlabel="operations in the products of a step")
    axes.set(ylabel="microseconds a step", title="Time of a training step against its work")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def _rate(point: Point) -> float:
    return point.operations / point.us.median


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--into", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    found = {axis: measure(axis, arguments.rounds) for axis in AXES}
    arguments.into.mkdir(exist_ok=True)
    text = table(found)
    (arguments.into / "growth.md").write_text(text)
    plot(found, arguments.into / "growth.png")
    print(text)


if __name__ == "__main__":
    main()
