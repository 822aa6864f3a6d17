"""Data larger than memory: a classifier learns from a file, a chunk at a time, by partial_fit.

The program writes a file of 200,000 noisy handwritten digits, copies of 75 % of the images that
ship with scikit-learn, maps it into memory, and trains on chunks of 4,096 rows. The memory that
training takes depends on the chunk, not on the file: it is measured and compared with the size of
the file. The other 25 % of the images are the test set; no copy of them is in the file.

    python examples/out_of_core.py
    python examples/out_of_core.py --backend cupy
"""

import argparse
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import gpunn as gn
from gpunn.estimators import MLPClassifier

ROWS = 200_000
CHUNK = 4096
PASSES = 2
NOISE = 3.0  # its standard deviation; pixels are 0 to 16


def chunks(rng=None):
    """Return the slices that make up the file, in random order if there is a generator."""
    slices = [slice(start, min(start + CHUNK, ROWS)) for start in range(0, ROWS, CHUNK)]
    return slices if rng is None else [slices[i] for i in rng.permutation(len(slices))]


def write(folder, x, y, rng):
    """Write noisy copies of x, and their labels, chunk by chunk; return the two files, mapped."""
    features, labels = folder / "x.npy", folder / "y.npy"
    to_x = np.lib.format.open_memmap(features, "w+", np.float32, (ROWS, x.shape[1]))
    to_y = np.lib.format.open_memmap(labels, "w+", np.int64, (ROWS,))
    for rows in chunks():
        picked = rng.integers(len(x), size=rows.stop - rows.start)
        to_x[rows] = x[picked] + rng.normal(0.0, NOISE, (len(picked), x.shape[1]))
        to_y[rows] = y[picked]
    del to_x, to_y  # which writes what is left
    return np.load(features, mmap_mode="r"), np.load(labels, mmap_mode="r")


def train(scaler, model, x, y, test):
    """Go over the data once for the scaler, PASSES times for the network; return the accuracy."""
    x_test, y_test = test
    for rows in chunks():
        scaler.partial_fit(x[rows])
    rng = np.random.default_rng(0)
    for number in range(1, PASSES + 1):
        # The chunks come in a new order; partial_fit shuffles the rows within a chunk. It needs a
        # list of all labels, since a chunk may not contain them all.
        for rows in chunks(rng):
            model.partial_fit(scaler.transform(x[rows]), y[rows], classes=range(10))
        loss = np.mean(model.loss_curve_[-len(chunks()) :])
        accuracy = model.score(scaler.transform(x_test), y_test)
        print(f"pass {number}: training loss {loss:.4f}, test accuracy {accuracy:.4f}")
    return accuracy


def measured(function, *arguments):
    """Return the result of a call, its duration in seconds, and its peak memory in bytes.

    Memory-mapped files are not counted: the system can reclaim them at any time.
    """
    tracemalloc.start()
    start = time.perf_counter()
    result = function(*arguments)
    seconds = time.perf_counter() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return result, seconds, peak


def main():
    """Make the file, learn from it, and report."""
    parser = argparse.ArgumentParser(description="Learn from a file, a chunk at a time.")
    parser.add_argument("--backend", default="auto", help="auto, numpy, cupy, cupy:1, ...")
    backend = gn.get_backend(parser.parse_args().backend)
    print(f"backend: {backend}")

    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        x.astype(np.float32), y, test_size=0.25, stratify=y, random_state=0
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        x, y = write(Path(folder), x_train, y_train, np.random.default_rng(0))
        print(f"data: {len(x)} rows, {x.nbytes / 1e6:.0f} MB, in {len(chunks())} chunks")
        model = MLPClassifier(hidden_layer_sizes=(64,), random_state=0, backend=backend)
        # The first call loads and compiles code, which should not be measured.
        clone(model).partial_fit(x[:CHUNK], y[:CHUNK], classes=range(10))
        accuracy, seconds, peak = measured(train, StandardScaler(), model, x, y, (x_test, y_test))
        share = peak / x.nbytes
        del x, y  # before the files go

    print(f"memory: at most {peak / 1e6:.1f} MB at a time, {share:.0%} of the file")
    assert model.t_ == PASSES * ROWS, f"{model.t_} rows were seen"
    assert share <= 0.25, f"training took {share:.0%} of the file's size in memory"
    assert accuracy >= 0.96, f"test accuracy {accuracy:.4f} is below 0.96"
    print(
        f"result: accuracy={accuracy:.4f} peak_mb={peak / 1e6:.1f} "
        f"rows_per_s={PASSES * ROWS / seconds:.0f} backend={backend}"
    )


if __name__ == "__main__":
    main()
