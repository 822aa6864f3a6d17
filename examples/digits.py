"""Handwritten digits: a 64-128-10 network learns the 8x8 images that ship with scikit-learn.

Five networks, seeds 0 to 4, each trained for 30 epochs on 75 % of the images; the other 25 % are
the test set. It is evaluated after each epoch only for the learning curve: nothing is chosen by it,
and the reported accuracy is that of the last epoch.

    python examples/digits.py
    python examples/digits.py --backend cupy --plot curve.png
"""

import argparse
import statistics

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import gpunn as gn

SEEDS = range(5)
EPOCHS = 30


def load_data():
    """Return x_train, x_test, y_train, y_test: pixels in [0, 1] and labels 0 to 9."""
    x, y = load_digits(return_X_y=True)
    return train_test_split(x / 16, y, test_size=0.25, stratify=y, random_state=0)


def train(data, seed, backend):
    """Train one network; return the history, with the test set as validation."""
    x_train, x_test, y_train, y_test = data
    # One generator for all: first it draws the weights of both layers, then the order of batches.
    rng = np.random.default_rng(seed)
    model = gn.Sequential(
        gn.Dense(64, 128, activation="relu", rng=rng),
        gn.Dense(128, 10, rng=rng),  # no softmax: the loss applies it, in its stable form
    ).to(backend)
    loader = gn.Loader(x_train, y_train, batch_size=32, backend=backend, rng=rng)
    optimizer = gn.SGD(model.parameters(), learning_rate=0.1, momentum=0.9)
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer, metrics=["accuracy"])
    return trainer.fit(loader, epochs=EPOCHS, validation=(x_test, y_test))


def plot(histories, path):
    """Save the learning curve, averaged over the seeds; print a line if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 (optional)
    except ImportError:
        print("no learning curve: matplotlib is not installed (pip install matplotlib)")
        return
    epochs = range(1, EPOCHS + 1)
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for column, label in ((name, "training"), (f"validation_{name}", "test")):
            curves = np.array([history[column] for history in histories])
            (line,) = axes.plot(epochs, curves.mean(axis=0), label=label)
            axes.fill_between(
                epochs, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.2
            )
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend(title=f"mean and range of {len(histories)} seeds")
    figure.axes[0].set_yscale("log")
    figure.axes[1].set_ylim(0.9, 1.002)
    figure.savefig(path, dpi=150)
    print(f"learning curve: {path}")


def main():
    """Train with each seed, and report the mean."""
    parser = argparse.ArgumentParser(description="Train a network on the 8x8 digits.")
    parser.add_argument("--backend", default="auto", help="auto, numpy, cupy, cupy:1, ...")
    parser.add_argument("--plot", default="digits.png", metavar="PATH", help="the learning curve")
    arguments = parser.parse_args()

    backend = gn.get_backend(arguments.backend)
    data = load_data()
    print(f"backend: {backend}")
    print(f"data: {len(data[0])} training and {len(data[1])} test images, 10 classes")

    histories = []
    for seed in SEEDS:
        history = train(data, seed, backend)
        print(
            f"seed {seed}: training loss {history['loss'][-1]:.4f}, "
            f"test accuracy {history['validation_accuracy'][-1]:.4f}, "
            f"{sum(history['elapsed_s']):.2f} s"
        )
        histories.append(history)
    plot(histories, arguments.plot)

    accuracy = statistics.mean(history["validation_accuracy"][-1] for history in histories)
    speed = statistics.median(s for history in histories for s in history["samples_per_s"])
    assert accuracy >= 0.970, f"mean test accuracy {accuracy:.4f} is below 0.970"
    print(f"result: accuracy={accuracy:.4f} samples_per_s={speed:.0f} backend={backend}")


if __name__ == "__main__":
    main()
