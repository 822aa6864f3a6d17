"""Time of a training step against scikit-learn's MLP, in one interleaved run on the CPU.

    python bench/step_time.py [--rounds N]

Both train the same network on the same data with the same settings: softmax cross-entropy,
minibatches, SGD with momentum 0.9.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from itertools import pairwise

from timing import interleave, ratio, spread  # before NumPy: it sets the BLAS environment

# isort: split
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

import gpunn as gn

# name: samples, layer sizes, batch size, epochs a measurement
WORKLOADS = {
    "digits": (1344, (64, 128, 10), 32, 5),
    "mnist": (12_800, (784, 512, 256, 10), 128, 1),
}


def gpunn_fit(
    x: np.ndarray, y: np.ndarray, sizes: tuple[int, ...], batch: int, epochs: int
) -> Callable[[], object]:
    """Return a function that trains for some epochs with gpunn."""
    hidden = [gn.Dense(a, b, "relu", rng=i) for i, (a, b) in enumerate(pairwise(sizes[:-1]))]
    model = gn.Sequential(*hidden, gn.Dense(sizes[-2], sizes[-1], rng=9))
    optimizer = gn.SGD(model.parameters(), learning_rate=0.01, momentum=0.9)
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer)
    loader = gn.Loader(x, y, batch_size=batch, backend="numpy", rng=0)
    return lambda: trainer.fit(loader, epochs=epochs, progress=False)


def sklearn_fit(
    x: np.ndarray, y: np.ndarray, sizes: tuple[int, ...], batch: int, epochs: int
) -> Callable[[], object]:
    """Return a function that trains for some epochs with scikit-learn."""
    model = MLPClassifier(
        sizes[1:-1],
        solver="sgd",
        learning_rate_init=0.01,
        momentum=0.9,
        nesterovs_momentum=False,
        alpha=0.0,
        batch_size=batch,
        max_iter=epochs,
        n_iter_no_change=10**6,
        random_state=0,
    )
    return lambda: model.fit(x, y)


def main() -> None:
    """Print a row for each workload."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"{'workload':10} {'gpunn, us a step':>28} {'ratio to scikit-learn':>28}")
    for name, (n, sizes, batch, epochs) in WORKLOADS.items():
        rng = np.random.default_rng(0)
        x = rng.standard_normal((n, sizes[0]), dtype=np.float32)
        y = rng.integers(0, sizes[-1], n)
        times = interleave(
            {
                "gpunn": gpunn_fit(x, y, sizes, batch, epochs),
                "scikit-learn": sklearn_fit(x, y, sizes, batch, epochs),
            },
            rounds,
        )
        steps = epochs * -(-n // batch)
        ours = spread([1e6 * seconds / steps for seconds in times["gpunn"]])
        print(f"{name:10} {ours!s:>28} {ratio(times['gpunn'], times['scikit-learn'])!s:>28}")


if __name__ == "__main__":
    main()
