"""What each of NumPy's kernels gains over its generic twin, at the sizes of small networks.

    python bench/kernels.py [--rounds N]

A ratio below 1 is a gain; an override that shows none does not belong in `kernels/numpy_.py`.
"""

from __future__ import annotations

import argparse
from typing import Any

from timing import interleave, ratio, spread  # before NumPy: it sets the BLAS environment

# isort: split
import array_api_compat.numpy as xp
import numpy as np

import gpunn as gn
from gpunn.kernels import Kernels
from gpunn.kernels.numpy_ import NumpyKernels

REPEATS = 200
rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    """Return single-precision normal numbers."""
    return rng.standard_normal(shape, dtype=np.float32)


def calls() -> list[tuple[str, str, tuple[Any, ...], dict[str, Any]]]:
    """Return each kernel that is overridden, what the call is of, and its arguments."""
    rows: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = []

    def add(name: str, what: str, *arguments: Any, **settings: Any) -> None:
        rows.append((name, what, arguments, settings))

    relu = gn.ReLU()
    for n, p, q in ((32, 64, 128), (1, 784, 512)):
        add("product", f"({n}, {p}) by ({p}, {q})", normal(n, p), normal(p, q))
    for n, p in ((32, 128), (200, 128), (128, 512)):
        add("bias_activation", f"ReLU, ({n}, {p})", normal(n, p), normal(p), relu)
        add("activation_backward", f"ReLU, ({n}, {p})", normal(n, p), normal(n, p), relu)
        add("bias_activation_backward", f"ReLU, ({n}, {p})", normal(n, p), normal(n, p), relu)
    for n, p in ((32, 128), (128, 512), (256, 4096)):
        add("column_sums", f"({n}, {p})", normal(n, p))
    for n in (32, 128):
        labels = rng.integers(0, 10, n)
        add("softmax_cross_entropy", f"({n}, 10)", normal(n, 10), labels, 1 / n, summed=True)
    for n in (32, 1024):
        yes = (normal(n, 1) > 0).astype(np.float32)
        add("sigmoid_binary_cross_entropy", f"({n}, 1)", normal(n, 1), yes, 1 / n, summed=True)
    add("squared_error", "(64, 1)", normal(64, 1), normal(64, 1), 1 / 64, summed=True)
    add("total", "(32,)", normal(32))
    for n in (1500, 535_818):
        add("sum_of_squares", f"({n:,},)", [normal(n)])
    add("convert", "(32, 1)", rng.integers(0, 2, (32, 1)), np.float32)
    add("stack", "57 numbers", list(normal(57)))
    for n, p, batch in ((1344, 64, 32), (12_800, 784, 128)):
        arrays = [normal(n, p), rng.integers(0, 10, n)]
        add("gather", f"{batch} of ({n}, {p})", arrays, rng.permutation(n)[:batch])
    return rows


def main() -> None:
    """Print a row for each call."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"{'kernel':30}{'of':>24}{'generic, us':>26}{'override / generic':>28}")
    for name, what, arguments, settings in calls():

        def repeat(
            kernels: Kernels,
            name: str = name,
            arguments: Any = arguments,
            settings: Any = settings,
        ) -> None:
            kernel = getattr(kernels, name)
            for _ in range(REPEATS):
                kernel(*arguments, **settings)

        times = interleave(
            {
                "generic": lambda: repeat(Kernels(xp)),
                "override": lambda: repeat(NumpyKernels(xp)),
            },
            rounds,
            pause_s=0.001,
        )
        generic = spread([1e6 * seconds / REPEATS for seconds in times["generic"]])
        gain = ratio(times["override"], times["generic"])
        print(f"{name:30}{what:>24}{generic!s:>26}{gain!s:>28}")


if __name__ == "__main__":
    main()
