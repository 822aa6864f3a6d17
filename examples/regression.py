"""Regression: the progress of diabetes, by a small network and by linear least squares.

The data are 442 patients with 10 features each, and noisy; a linear fit is hard to beat. The
network, 10-32-1 with tanh, stops early by a validation set taken from its training data, so nothing
is chosen by the test set. Ten random splits; the network must come within a
stated margin of the baseline, which is fitted to all of the training data.

    python examples/regression.py
    python examples/regression.py --backend cupy
"""

import argparse
import statistics

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

import gpunn as gn

SEEDS = range(10)
MARGIN = 0.02  # in R^2; from split to split, R^2 varies by about three times as much


def split(x, y, seed):
    """Return x_train, x_test, y_train, y_test, all standardised by the training set."""
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.25, random_state=seed)
    x_mean, x_std, y_mean, y_std = x_train.mean(0), x_train.std(0), y_train.mean(), y_train.std()
    x_train, x_test = ((part - x_mean) / x_std for part in (x_train, x_test))
    y_train, y_test = ((part - y_mean) / y_std for part in (y_train, y_test))
    return x_train, x_test, y_train, y_test


def least_squares(x_train, x_test, y_train, y_test):
    """Return the test R^2 of the best linear function with a constant."""
    a_train, a_test = (np.column_stack([x, np.ones(len(x))]) for x in (x_train, x_test))
    theta, *_ = np.linalg.lstsq(a_train, y_train, rcond=None)
    error = y_test - a_test @ theta
    return 1 - np.sum(error**2) / np.sum((y_test - y_test.mean()) ** 2)


def network(x_train, x_test, y_train, y_test, seed, backend):
    """Return the test R^2 of a network with one hidden layer, and its number of epochs."""
    x_fit, x_val, y_fit, y_val = train_test_split(
        x_train, y_train, test_size=0.2, random_state=seed
    )
    rng = np.random.default_rng(seed)
    model = gn.Sequential(gn.Dense(10, 32, activation="tanh", rng=rng), gn.Dense(32, 1, rng=rng))
    model.to(backend)
    loader = gn.Loader(x_fit, y_fit, batch_size=32, backend=backend, rng=rng)
    optimizer = gn.SGD(model.parameters(), learning_rate=0.01, momentum=0.9, weight_decay=0.01)
    trainer = gn.Trainer(model, gn.MeanSquaredError(), optimizer, metrics=["r2"])
    history = trainer.fit(
        loader, epochs=200, validation=(x_val, y_val), early_stopping=gn.EarlyStopping(patience=20)
    )
    return trainer.evaluate((x_test, y_test))["r2"], len(history)


def main():
    """Compare the two on each split, and on average."""
    parser = argparse.ArgumentParser(description="Regression on the diabetes data.")
    parser.add_argument("--backend", default="auto", help="auto, numpy, cupy, cupy:1, ...")
    backend = gn.get_backend(parser.parse_args().backend)
    print(f"backend: {backend}")

    x, y = load_diabetes(return_X_y=True)
    scores, baselines = [], []
    print("split   least squares   network   epochs   (test R^2)")
    for seed in SEEDS:
        data = split(x, y, seed)
        score, epochs = network(*data, seed, backend)
        scores.append(score)
        baselines.append(least_squares(*data))
        print(f"{seed:5}   {baselines[-1]:13.4f}   {scores[-1]:7.4f}   {epochs:6}")

    r2, baseline = statistics.mean(scores), statistics.mean(baselines)
    assert r2 >= baseline - MARGIN, f"R^2 {r2:.4f} is more than {MARGIN} below {baseline:.4f}"
    print(f"result: r2={r2:.4f} baseline={baseline:.4f} backend={backend}")


if __name__ == "__main__":
    main()
