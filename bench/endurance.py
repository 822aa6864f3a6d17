"""Train for a long time: memory must not grow, and results must not drift.

    python bench/endurance.py [--steps N] [--times N] [--backend numpy|cupy]

In a process of its own each, so that memory is that of one thing alone: many steps of a small
network, in an epoch and in many; many fits; many predictions; many epochs that are given up
half-way, resident and streamed. Resident memory at the end is compared with that after a hundredth
of the steps, or a tenth of the others (the allocator takes its last megabyte in the first hundred
fits); on a GPU what its pool holds, too. Prints a line of each, and fails above one hundredth.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import gpunn as gn

#: How much memory may grow.
LIMIT = 0.01


def trainer(backend: str) -> gn.Trainer:
    """Return a small network and its training."""
    model = gn.Sequential(gn.Dense(4, 8, "tanh", rng=0), gn.Dropout(0.1), gn.Dense(8, 3, rng=1))
    model = model.to(backend)
    optimizer = gn.SGD(model.parameters(), 0.01, momentum=0.9)
    return gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer, metrics=["accuracy"], rng=2)


def data(n: int) -> tuple[Any, Any]:
    """Return n samples."""
    rng = np.random.default_rng(3)
    return rng.normal(size=(n, 4)).astype("float32"), rng.integers(0, 3, n)


def steps_of_many_epochs(backend: str) -> Callable[[int], None]:
    """Make steps, a hundred in an epoch; a history, which is to be kept, has 100 epochs."""
    one, loader = trainer(backend), gn.Loader(*data(800), batch_size=8, backend=backend, rng=4)

    def work(n: int) -> None:
        for left in range(n, 0, -10_000):
            one.fit(loader, -(-min(left, 10_000) // 100), progress=False)

    return work


def steps_of_long_epochs(backend: str) -> Callable[[int], None]:
    """Make steps, ten thousand in an epoch."""
    one, loader = trainer(backend), gn.Loader(*data(20_000), batch_size=2, backend=backend, rng=4)

    def work(n: int) -> None:
        one.fit(loader, -(-n // 10_000), progress=False)

    return work


def fits(backend: str) -> Callable[[int], None]:
    """Fit new networks to new loaders."""

    def work(n: int) -> None:
        for i in range(n):
            streamed = bool(i & 1)
            settings: Any = {"batch_size": 8, "backend": backend, "resident": not streamed}
            trainer(backend).fit(gn.Loader(*data(160), rng=i, **settings), 2, progress=False)

    return work


def predictions(backend: str) -> Callable[[int], None]:
    """Predict and evaluate."""
    one, (x, y) = trainer(backend), data(2_000)

    def work(n: int) -> None:
        for _ in range(n):
            one.predict(x, batch_size=100)
            one.evaluate((x, y))

    return work


def given_up(backend: str) -> Callable[[int], None]:
    """Begin epochs, and take a few batches of each."""
    x, y = data(3_000)

    def work(n: int) -> None:
        for i in range(n):
            settings: Any = {"batch_size": 100, "backend": backend, "resident": not i & 1}
            for _ in islice(gn.Loader(x, y, rng=i, **settings), 1 + i % 20):
                pass

    return work


TASKS = {
    task.__name__: task
    for task in (steps_of_many_epochs, steps_of_long_epochs, fits, predictions, given_up)
}


def resident_bytes() -> int:
    """Return the resident memory of this process; Linux tells it."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def device_bytes(backend: str) -> int:
    """Return what CuPy's pool holds; 0 on the CPU."""
    if backend == "numpy":
        return 0
    return int(importlib.import_module("cupy").get_default_memory_pool().total_bytes())


def measure(name: str, n: int, backend: str) -> None:
    """Do one task, and print its memory; exit with an error if it grows."""
    work = TASKS[name](backend)
    first = max(1, n // (100 if name.startswith("steps") else 10))
    work(first)
    before = resident_bytes(), device_bytes(backend)
    work(n - first)
    after = resident_bytes(), device_bytes(backend)
    growth = [b / a - 1 if a else 0.0 for a, b in zip(before, after, strict=True)]
    host, device = (f"{b / 2**20:.1f} MiB" for b in after)
    print(f"{name:22} {n:9,} times: {host} ({growth[0]:+.2%}), device {device} ({growth[1]:+.2%})")
    if max(growth) > LIMIT:
        raise SystemExit(f"{name}: memory has grown by {max(growth):.2%}")


def main() -> None:
    """Do each task in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=1_000)
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--task", choices=TASKS, help="only this one, in this process")
    given = parser.parse_args()
    if given.task:
        n = given.steps if given.task.startswith("steps") else given.times
        measure(given.task, n, given.backend)
        return
    numbers = ["--steps", str(given.steps), "--times", str(given.times)]
    for task in TASKS:
        command = [sys.executable, __file__, *numbers, "--backend", given.backend, "--task", task]
        subprocess.run(command, check=True)  # noqa: S603


if __name__ == "__main__":
    main()
