"""Time to fit and predict, as a ratio to scikit-learn's estimators, in one process and run.

    python bench/estimators.py [--only NAME[,NAME]] [--rounds N] [--json FILE]

Both get the same data, settings and random state, and so do the same arithmetic: their loss curves
are compared before any time is printed. `fit` is a call of fit with a fixed number of epochs; or,
of logistic regressions by L-BFGS, to the same tolerance, and their weights are compared. `predict`,
`predict_proba` and `score` are of all the data, and of one row (100 to score); what takes less than
10 ms is called several times in a turn, and there are five times as many turns as of fits: some
twenty medians within a tenth of 1 would otherwise not all fall on their own side.
"""

from __future__ import annotations

import argparse
import json
import time
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
from sklearn.linear_model import LogisticRegression as TheirLogistic
from sklearn.neural_network import MLPClassifier as Theirs

from gpunn.estimators import LogisticRegression as OurLogistic
from gpunn.estimators import MLPClassifier as Ours

#: Largest difference between the curves, relative to the first loss.
TOLERANCE = 1e-3


def digits(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the 8x8 digits, 1,797 of them."""
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(dtype), y


def noise(dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return 20,000 samples of 784 random features, and a label of ten for each."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((20_000, 784)).astype(dtype), rng.integers(0, 10, 20_000)


def classes(dtype: str, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return 100,000 samples of 100 features, and labels that follow a linear model, with noise."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100_000, 100))
    z = 0.2 * x @ rng.standard_normal((100, n_classes))
    return x.astype(dtype), (z + rng.gumbel(size=z.shape)).argmax(axis=1)


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
#: Fits of a logistic regression by L-BFGS: the number of classes, and the dtype.
LINEAR: dict[str, tuple[int, str]] = {
    f"100,000 x 100, {n_classes} classes{', float32' * (dtype == 'float32')}": (n_classes, dtype)
    for n_classes in (2, 5)
    for dtype in ("float64", "float32")
}
#: Target ratios, by data set.
BAR = {"digits": 0.4, "20,000 x 784": 0.6, "100,000 x 100": 1.0}


def _inputs(name: str) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    data, dtype, epochs, settings = WORKLOADS[name]
    fixed = {"max_iter": epochs, "n_iter_no_change": epochs, "random_state": 0}
    return *data(dtype), fixed | settings


def prepare_fit(name: str) -> Callable[[], object]:
    """Return a function that fits our estimator once."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    x, y, settings = _inputs(name)
    ours = Ours(**settings, backend="numpy")
    return lambda: ours.fit(x, y)


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Return the times of fit and predict, and their ratios."""
    if name in LINEAR:
        return measure_linear(name, rounds)
    x, y, settings = _inputs(name)
    ours, theirs = Ours(**settings, backend="numpy"), Theirs(**settings)
    curves = [np.array(model.fit(x, y).loss_curve_) for model in (ours, theirs)]
    if not np.abs(curves[0] - curves[1]).max() <= TOLERANCE * curves[1][0]:
        raise SystemExit(f"{name}: the loss curves do not agree: {curves}")
    return _times(name, ours, theirs, (x, y), rounds)


def measure_linear(name: str, rounds: int) -> dict[str, Any]:
    """Return the times and ratios of a logistic regression, both to the same tolerance."""
    n_classes, dtype = LINEAR[name]
    x, y = classes(dtype, n_classes)
    ours, theirs = OurLogistic(solver="lbfgs", tol=1e-4, backend="numpy"), TheirLogistic(tol=1e-4)
    found = [model.fit(x, y).coef_ for model in (ours, theirs)]
    if not np.abs(found[0] - found[1]).max() <= 0.01 * np.abs(found[1]).max():
        raise SystemExit(f"{name}: the weights do not agree: {found}")
    return _times(name, ours, theirs, (x, y), rounds)


def _times(name: str, ours: Any, theirs: Any, data: Any, rounds: int) -> dict[str, Any]:
    x, y = data
    fit = interleave({"ours": lambda: ours.fit(x, y), "theirs": lambda: theirs.fit(x, y)}, rounds)
    return {
        "workload": name,
        "fit_s": spread(fit["ours"]).median,
        "fit_ratio": ratio(fit["ours"], fit["theirs"]),
        **{what: _asked(what, ours, theirs, data, 5 * rounds) for what in ANSWERS},
    }


#: The calls timed on a fitted estimator, and the number of rows; None means all.
ANSWERS: dict[str, tuple[str, int | None]] = {
    "predict": ("predict", None),
    "predict_proba": ("predict_proba", None),
    "score": ("score", None),
    "predict, 1 row": ("predict", 1),
    "predict_proba, 1 row": ("predict_proba", 1),
    "score, 100 rows": ("score", 100),
}
#: The shortest turn, in seconds.
TURN_S = 0.01


def _asked(what: str, ours: Any, theirs: Any, data: Any, rounds: int) -> Spread:
    """Return the ratio of the times of an answer."""
    method, n_rows = ANSWERS[what]
    given = [part[:n_rows] for part in data[: 2 if method == "score" else 1]]

    def ask(model: Any, times: int) -> None:
        for _ in range(times):
            getattr(model, method)(*given)

    ask(theirs, 1)
    start = time.perf_counter()
    ask(theirs, 1)
    times = max(1, int(TURN_S / (time.perf_counter() - start)))
    turns = {"ours": lambda: ask(ours, times), "theirs": lambda: ask(theirs, times)}
    seconds = interleave(turns, rounds, pause_s=0.01)
    return ratio(seconds["ours"], seconds["theirs"])


def main() -> None:
    """Print a row for each workload."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="; ".join([*WORKLOADS, *LINEAR])
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the rows")
    arguments = parser.parse_args()
    known = [*WORKLOADS, *LINEAR]
    names = arguments.only or known
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown: {'; '.join(unknown)}; known are {'; '.join(known)}")
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"{'workload':36}{'':8}{'ratio':>24}{'bar':>6}")
    rows = []
    for name in names:
        row = measure(name, arguments.rounds)
        rows.append(row)
        bar = next(value for data, value in BAR.items() if name.startswith(data))
        show(f"{name}: fit", row["fit_ratio"], bar, f"{row['fit_s']:.3f} s")
        for what in ANSWERS:
            show(f"  {what}", row[what], 1.0)
    if arguments.json:
        found = {"surroundings": surroundings(), "rows": [_plain(row) for row in rows]}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def show(what: str, found: Spread, bar: float, time: str = "") -> None:
    """Print a line."""
    verdict = "holds" if found.median <= bar else "MISSED"
    print(f"{what:36}{time:>8}{found!s:>24}{bar:6} {verdict}", flush=True)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {k: v._asdict() if isinstance(v, Spread) else v for k, v in row.items()}


if __name__ == "__main__":
    main()
