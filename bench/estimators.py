"""Time to fit and predict, as a ratio to scikit-learn's estimators, in one process and run.

    python bench/estimators.py [--only NAME[,NAME]] [--rounds N] [--json FILE]

Both get the same data, settings and random state, and so do the same arithmetic: their loss curves
are compared before any time is printed. `fit` is a call of fit with a fixed number of epochs.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timing import (  # before NumPy: it sets the BLAS environment
    Spread,
    interleave,
    ratio,
    spread,
    surroundings,
)

# isort: split
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier as Theirs

from gpunn.estimators import MLPClassifier as Ours

#: How far the curves may be apart, relative to the first loss.
TOLERANCE = 1e-3


def digits(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the 8x8 digits, 1,797 of them."""
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(dtype), y


def noise(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return 20,000 samples of 784 random features, and a label of ten for each."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((20_000, 784)).astype(dtype), rng.integers(0, 10, 20_000)


SGD = {"solver": "sgd", "learning_rate_init": 0.01}
WORKLOADS: dict[str, tuple[Any, str, int, dict[str, Any]]] = {
    "digits": (digits, "float64", 30, {}),
    "digits, float32": (digits, "float32", 30, {}),
    "digits, sgd": (digits, "float64", 30, SGD),
    "digits, batch 32": (digits, "float64", 10, {"batch_size": 32}),
    "digits, batch 32, float32": (digits, "float32", 10, {"batch_size": 32}),
    "20,000 x 784": (noise, "float64", 3, {}),
    "20,000 x 784, float32": (noise, "float32", 3, {}),
    "20,000 x 784, sgd": (noise, "float64", 3, SGD),
    "20,000 x 784, sgd, float32": (noise, "float32", 3, SGD),
}
#: What is aimed at, by the data.
BAR = {"digits": 0.4, "20,000 x 784": 0.6}


def _inputs(name: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    data, dtype, epochs, settings = WORKLOADS[name]
    fixed = {"max_iter": epochs, "n_iter_no_change": epochs, "random_state": 0}
    return *data(dtype), fixed | settings


def prepare_fit(name: str) -> Callable[[], object]:
    """Return what fits our estimator once."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    x, y, settings = _inputs(name)
    ours = Ours(**settings, backend="numpy")
    return lambda: ours.fit(x, y)


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Return the times of fit and predict, and their ratios."""
    x, y, settings = _inputs(name)
    ours, theirs = Ours(**settings, backend="numpy"), Theirs(**settings)
    curves = [np.array(model.fit(x, y).loss_curve_) for model in (ours, theirs)]
    if not np.abs(curves[0] - curves[1]).max() <= TOLERANCE * curves[1][0]:
        raise SystemExit(f"{name}: the loss curves do not agree: {curves}")
    fit = interleave({"ours": lambda: ours.fit(x, y), "theirs": lambda: theirs.fit(x, y)}, rounds)
    answers = {"ours": lambda: ours.predict(x), "theirs": lambda: theirs.predict(x)}
    predict = interleave(answers, rounds, pause_s=0.01)
    return {
        "workload": name,
        "fit_s": spread(fit["ours"]).median,
        "fit_ratio": ratio(fit["ours"], fit["theirs"]),
        "predict_ratio": ratio(predict["ours"], predict["theirs"]),
    }


def main() -> None:
    """Print a row for each workload."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="; ".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the rows")
    arguments = parser.parse_args()
    names = arguments.only or list(WORKLOADS)
    if unknown := [name for name in names if name not in WORKLOADS]:
        parser.error(f"unknown: {'; '.join(unknown)}; known are {'; '.join(WORKLOADS)}")
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"{'workload':28}{'fit, s':>8}{'fit, ratio':>24}{'bar':>6}{'predict, ratio':>32}")
    rows = []
    for name in names:
        row = measure(name, arguments.rounds)
        rows.append(row)
        bar = next(value for data, value in BAR.items() if name.startswith(data))
        verdict = "holds" if row["fit_ratio"].median <= bar else "MISSED"
        print(
            f"{name:28}{row['fit_s']:8.3f}{row['fit_ratio']!s:>24}{bar:6} {verdict:7}"
            f"{row['predict_ratio']!s:>24}",
            flush=True,
        )
    if arguments.json:
        found = {"surroundings": surroundings(), "rows": [_plain(row) for row in rows]}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v._asdict() if isinstance(v, Spread) else v for k, v in row.items()}


if __name__ == "__main__":
    main()
