"""Train for a long time: memory must not grow, and results must not drift.

    python bench/endurance.py [--steps N] [--times N] [--backend numpy|cupy] [--task NAME ...]

In a process of its own each, so that memory is that of one thing alone: many steps of a small
network, in an epoch and in many; many fits; many predictions; many epochs that are given up
half-way, resident and streamed. Resident memory at the end is compared with that after a hundredth
of the steps, or a tenth of the others (the allocator takes its last megabyte in the first hundred
fits); on a GPU the memory that is taken of it, too, by this process and any other. Prints a line of
each, and fails above one hundredth.

An emulated GPU takes milliseconds for a kernel. There, fits of three steps an epoch do: the first
epoch is the readable loop, and the second is captured, launched and replayed.

    python bench/endurance.py --backend cupy --task fits predictions given_up --samples 24
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


def steps_of_many_epochs(backend: str, _: int) -> Callable[[int], None]:
    """Make steps, a hundred in an epoch; a history, which is to be kept, has 100 epochs."""
    one, loader = trainer(backend), gn.Loader(*data(800), batch_size=8, backend=backend, rng=4)

    def work(n: int) -> None:
        for left in range(n, 0, -10_000):
            one.fit(loader, -(-min(left, 10_000) // 100), progress=False)

    return work


def steps_of_long_epochs(backend: str, _: int) -> Callable[[int], None]:
    """Make steps, ten thousand in an epoch."""
    one, loader = trainer(backend), gn.Loader(*data(20_000), batch_size=2, backend=backend, rng=4)

    def work(n: int) -> None:
        one.fit(loader, -(-n // 10_000), progress=False)

    return work


def fits(backend: str, samples: int) -> Callable[[int], None]:
    """Fit new networks to new loaders of `samples` samples each, in batches of 8."""

    def work(n: int) -> None:
        for i in range(n):
            streamed = bool(i & 1)
            settings: Any = {"batch_size": 8, "backend": backend, "resident": not streamed}
            trainer(backend).fit(gn.Loader(*data(samples), rng=i, **settings), 2, progress=False)

    return work


def predictions(backend: str, _: int) -> Callable[[int], None]:
    """Predict and evaluate."""
    one, (x, y) = trainer(backend), data(2_000)

    def work(n: int) -> None:
        for _ in range(n):
            one.predict(x, batch_size=100)
            one.evaluate((x, y))

    return work


def given_up(backend: str, _: int) -> Callable[[int], None]:
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
    """Return the resident memory of this process, as reported by Linux."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def device_bytes(backend: str) -> int:
    """Return the GPU memory in use; 0 on the CPU."""
    if backend == "numpy":
        return 0
    runtime = importlib.import_module("cupy").cuda.runtime
    runtime.deviceSynchronize()  # queued work also holds memory
    free, total = runtime.memGetInfo()
    return int(total - free)


def measure(name: str, n: int, backend: str, samples: int) -> None:
    """Do one task, and print its memory; exit with an error if it grows."""
    work = TASKS[name](backend, samples)
    first = max(1, n // (100 if name.startswith("steps") else 10))
    work(first)
    before = resident_bytes(), device_bytes(backend)
    work(n - first)
    after = resident_bytes(), device_bytes(backend)
    growth = [b / a - 1 if a else 0.0 for a, b in zip(before, after, strict=True)]
    host, device = (f"{b / 2**10:,.0f} KiB" for b in after)
    changes = f"{host} ({growth[0]:+.2%}), device {device} ({growth[1]:+.2%})"
    print(f"{name:22} {n:9,} times: {changes} since {first:,}", flush=True)
    if max(growth) > LIMIT:
        raise SystemExit(f"{name}: memory has grown by {max(growth):.2%}")


def main() -> None:
    """Do each task in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=1_000)
    parser.add_argument("--backend", default="numpy")
    parser.add_argument("--samples", type=int, default=160, help="of each of the fits")
    parser.add_argument("--task", choices=TASKS, nargs="+", default=list(TASKS))
    given = parser.parse_args()
    if len(given.task) == 1:
        name = given.task[0]
        n = given.steps if name.startswith("steps") else given.times
        measure(name, n, given.backend, given.samples)
        return
    options = ("steps", "times", "backend", "samples")
    settings = [f"--{option}={getattr(given, option)}" for option in options]
    failed = []
    for task in given.task:
        command = [sys.executable, __file__, *settings, "--task", task]
        if subprocess.run(command, check=False).returncode:  # noqa: S603
            failed.append(task)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
