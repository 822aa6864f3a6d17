"""Timing that holds on a noisy machine: rounds in random order, and ratios within a round."""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

# They choose an older BLAS kernel than the processor's own; a benchmark wants the latter.
# OpenBLAS reads them when NumPy is first imported, so this module comes before NumPy.
for _name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(_name, None)


def surroundings() -> dict[str, str | int | None]:
    """Return the conditions of a timing: processor, cores and versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found: dict[str, str | int | None] = {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "Python": platform.python_version(),
    }
    for package in ("numpy", "scipy", "numba", "torch", "jax", "scikit-learn"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


class Spread(NamedTuple):
    """A median with its quartiles."""

    median: float
    q1: float
    q3: float

    def __str__(self) -> str:
        """Return ``0.52 [0.50, 0.55]``."""
        return f"{self.median:.3g} [{self.q1:.3g}, {self.q3:.3g}]"


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of some measurements."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, q1, q3)


def interleave(
    functions: dict[str, Callable[[], object]], rounds: int, *, seed: int = 0, pause_s: float = 0.05
) -> dict[str, list[float]]:
    """Run each function once a round, in random order, and return the seconds that each took.

    One round that nobody times comes first. The pauses let the workers of one library's thread
    pool go to sleep before another library's turn.
    """
    order = list(functions)
    rng = random.Random(seed)  # noqa: S311
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(rounds + 1):
        rng.shuffle(order)
        for name in order:
            time.sleep(pause_s)
            start = time.perf_counter()
            functions[name]()
            elapsed = time.perf_counter() - start
            if turn:
                seconds[name].append(elapsed)
    return seconds


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Return the ratio of two lists of times, taken round by round."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])
