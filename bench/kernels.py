"""What NumPy's kernels gain over their generic twins, and compiled ones over NumPy's.

    python bench/kernels.py [--rounds N] [--only NAME[,NAME]]

A ratio below 1 is a gain; an override that shows none does not belong in `kernels/numpy_.py`, nor
one without a ratio below 0.85 in `kernels/numba_.py`, which is shown where numba is installed.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from typing import Any

from timing import interleave, ratio, spread  # before NumPy: it sets the BLAS environment

# isort: split
import array_api_compat.numpy as xp
import numpy as np

import gpunn as gn
from gpunn.kernels import Kernels
from gpunn.kernels.numpy_ import NumpyKernels
from gpunn.kernels.update import Update

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

    def add_loss(formula: gn.Loss, prediction: np.ndarray, target: np.ndarray) -> None:
        n = len(prediction)
        what = f"{type(formula).__name__}, {prediction.shape}"
        add("loss", what, formula, prediction, target, 1 / n, summed=True)

    def add_update(kind: type[gn.Optimizer], n: int, **settings: float) -> None:
        rule = kind([gn.Parameter(normal(n))], **settings)
        slots = rule.blocks()
        slots.grads[0][...] = 0  # they are owned: of zeros, they stay as they are
        name = ", ".join((f"{kind.__name__}, {n} values", *settings))
        add("update", name, rule, Update(slots, 0.1, None, None))

    for n, p, q in ((32, 64, 128), (1, 784, 512)):
        add("product", f"({n}, {p}) by ({p}, {q})", normal(n, p), normal(p, q))
    for n, p in ((32, 128), (200, 128), (128, 512)):
        for formula in (gn.ReLU(), gn.Tanh()):
            of = f"{type(formula).__name__}, ({n}, {p})"
            bias = np.zeros(p, np.float32)  # z is owned, and stays as it is here
            add("bias_activation", of, normal(n, p), bias, formula)
            add("activation_backward", of, normal(n, p), normal(n, p), formula)
            add("bias_activation_backward", of, normal(n, p), normal(n, p), formula)
        add("dropout", f"({n}, {p})", normal(n, p), 12345, 0.5)
    for n, p in ((32, 128), (128, 512), (256, 4096)):
        add("column_sums", f"({n}, {p})", normal(n, p))
    for n in (32, 128, 200):
        labels = rng.integers(0, 10, n)
        add_loss(gn.SoftmaxCrossEntropy(), normal(n, 10), labels)
    for n in (32, 1024):
        yes = (normal(n, 1) > 0).astype(np.float32)
        add_loss(gn.BinaryCrossEntropy(), normal(n, 1), yes)
    add_loss(gn.MeanSquaredError(), normal(64, 1), normal(64, 1))
    add("total", "(32,)", normal(32))
    for n in (1500, 535_818):
        add("sum_of_squares", f"({n:,},)", [normal(n)])
    add("convert", "(32, 1)", rng.integers(0, 2, (32, 1)), np.float32)
    add("stack", "57 numbers", list(normal(57)))
    for n in (33, 9_610, 535_818):
        add_update(gn.SGD, n)
        add_update(gn.SGD, n, momentum=0.9)
        add_update(gn.Adam, n)
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
    parser.add_argument("--only", metavar="NAME[,NAME]", help="kernels")
    options = parser.parse_args()
    only = options.only.split(",") if options.only else None
    sets = {"generic": Kernels(xp), "numpy": NumpyKernels(xp)}
    if find_spec("numba") is not None:
        from gpunn.kernels.numba_ import NumbaKernels  # noqa: PLC0415 (may be absent)

        sets["compiled"] = NumbaKernels(xp)
    print(
        f"{'kernel':26}{'of':>40}{'generic, us':>24}{'numpy / generic':>24}{'compiled / numpy':>24}"
    )
    for name, what, arguments, settings in calls():
        if only and name not in only:
            continue

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
            {key: lambda k=k: repeat(k) for key, k in sets.items()},
            options.rounds,
            pause_s=0.001,
        )
        generic = spread([1e6 * seconds / REPEATS for seconds in times["generic"]])
        gains = [ratio(times[a], times[b]) for a, b in zip(list(sets)[1:], sets, strict=False)]
        cells = "".join(f"{gain!s:>24}" for gain in gains)
        print(f"{name:26}{what:>40}{generic!s:>24}{cells}", flush=True)


if __name__ == "__main__":
    main()
