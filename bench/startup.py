"""What the first use costs: importing, the first fit in a dtype, and the first fit of a process.

    python bench/startup.py [--rounds N]

`cold` is the first fit of all: a fresh copy of the package, with which nothing has been compiled
yet. `warm` is the first fit of a later process, which loads what was compiled. Both are measured
from the call of `fit` on, and without what a second `fit` takes. What comes before it in a later
process, mostly the imports of NumPy, numba and SciPy, is shown apart. Adam comes after SGD, so its
cold fit compiles only what SGD has no use for. The estimators' fits are of the digits, an epoch or
iteration each, and each has a copy of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from timing import spread

#: Targets, in seconds; for the import, as a ratio to NumPy's.
COLD_BAR, WARM_BAR, ESTIMATOR_BAR, IMPORT_BAR = 10.0, 0.4, 0.5, 1.3

IMPORT = """
import json, time
start = time.perf_counter()
import {module}
print(json.dumps(time.perf_counter() - start))
"""

FIRST_FIT = """
import json, time
began = time.perf_counter()
import numpy as np
import gpunn as gn

rng = np.random.default_rng(0)
x, y = rng.standard_normal((640, 64)).astype("{dtype}"), rng.integers(0, 10, 640)
with gn.use("numpy"):
    layers = [gn.Dense(64, 128, "relu", rng=0, dtype="{dtype}"), gn.Dense(128, 10, dtype="{dtype}")]
model = gn.Sequential(*layers)
optimizer = gn.{optimizer}(model.parameters())
trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer)
loader = gn.Loader(x, y, batch_size=32, backend="numpy", dtype="{dtype}", rng=0)
seconds, before = [], time.perf_counter() - began
for _ in range(2):
    start = time.perf_counter()
    trainer.fit(loader, 1, progress=False)
    seconds.append(time.perf_counter() - start)
print(json.dumps([seconds[0] - seconds[1], before]))
"""


FIRST_FIT_OF_AN_ESTIMATOR = """
import json, time, warnings
began = time.perf_counter()
import numpy as np
from sklearn.datasets import load_digits
from gpunn.estimators import LogisticRegression, MLPClassifier, MLPRegressor

warnings.simplefilter("ignore")
x, y = load_digits(return_X_y=True)
model = {model}
seconds, before = [], time.perf_counter() - began
for _ in range(2):
    start = time.perf_counter()
    model.fit((x / 16).astype("{dtype}"), y)
    seconds.append(time.perf_counter() - start)
print(json.dumps([seconds[0] - seconds[1], before]))
"""

#: Estimators, with the default dtype of scikit-learn's data and the other.
ESTIMATORS = (
    ("MLPClassifier(max_iter=1)", "float64"),
    ("MLPClassifier(max_iter=1)", "float32"),
    ("MLPRegressor(max_iter=1)", "float64"),
    ("LogisticRegression(max_iter=1)", "float64"),
    ("LogisticRegression(max_iter=1, solver='lbfgs')", "float64"),
)


def run(program: str, folder: Path) -> Any:
    """Run a program in a process that imports gpunn from a folder; return its JSON output."""
    # What is compiled is to stay in the folder, and bytecode is to be kept as it is by default.
    changed = ("NUMBA_CACHE_DIR", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    environment = {k: v for k, v in os.environ.items() if k not in changed}
    environment |= {"PYTHONPATH": str(folder)}
    answer = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(answer.stdout)


def fresh_copy(folder: Path) -> None:
    """Copy the package into a folder, without anything that was compiled."""
    package = find_spec("gpunn")
    if package is None or package.origin is None:
        raise SystemExit("gpunn is not installed: pip install '.[compiled]'")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(package.origin).parent, folder / "gpunn", ignore=ignored)


def show(what: str, value: float, unit: str, bar: float | None = None) -> None:
    """Print a row."""
    verdict = "" if bar is None else f"{bar:7.1f}  {'holds' if value <= bar else 'MISSED'}"
    print(f"{what:48}{value:9.3f} {unit:4}{verdict}".rstrip(), flush=True)


def main() -> None:
    """Measure, and print a row for each first use."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="of all that is not compiling")
    rounds = parser.parse_args().rounds
    print(f"{'first fit':48}{'':9} {'':4}{'bar':>7}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fresh_copy(folder)
        for module in ("numpy", "gpunn"):  # the first import of all writes bytecode
            run(IMPORT.format(module=module), folder)
        ratios = []
        for _ in range(rounds):
            ours = run(IMPORT.format(module="gpunn"), folder)
            ratios.append(ours / run(IMPORT.format(module="numpy"), folder))
        show("import gpunn, to import numpy", spread(ratios).median, "", IMPORT_BAR)
        for optimizer, dtype in (("SGD", "float32"), ("SGD", "float64"), ("Adam", "float32")):
            program = FIRST_FIT.format(dtype=dtype, optimizer=optimizer)
            show_first_fits(f"{optimizer}, {dtype}", program, folder, rounds, WARM_BAR)
    for model, dtype in ESTIMATORS:
        with tempfile.TemporaryDirectory() as name:
            fresh_copy(Path(name))
            program = FIRST_FIT_OF_AN_ESTIMATOR.format(model=model, dtype=dtype)
            title = f"{model.replace('max_iter=1', '')}, {dtype}"
            show_first_fits(title, program, Path(name), rounds, ESTIMATOR_BAR)


def show_first_fits(title: str, program: str, folder: Path, rounds: int, bar: float) -> None:
    """Print the rows of a program: its first run of all, later ones, and what comes before."""
    cold, _ = run(program, folder)
    show(f"{title}, cold", cold, "s", COLD_BAR)
    both = zip(*(run(program, folder) for _ in range(rounds)), strict=True)
    warm, before = (spread(values).median for values in both)
    show(f"{title}, warm", warm, "s", bar)
    show("  before that fit", before, "s")


if __name__ == "__main__":
    main()
