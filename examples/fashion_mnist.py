"""Fashion-MNIST: a perceptron or a convolutional network learns 28x28 pictures of clothes.

The folder must have the four files of the data set, compressed or not; Debian's package
dataset-fashion-mnist has them in /usr/share/datasets/fashion-mnist. The perceptron 256-128-100 is
one of the data set's published benchmarks, at 88.33 %. The convolutional network sees each picture
mirrored and moved by a pixel at random, which is done on the device. The 10,000 test pictures are
looked at after each epoch only for the learning curve: nothing is chosen by them, and the reported
accuracy is that of the last epoch.

    python examples/fashion_mnist.py --data /usr/share/datasets/fashion-mnist
    python examples/fashion_mnist.py --data FOLDER --model cnn --backend cupy
"""

import argparse

import numpy as np

import gpunn as gn

EPOCHS = 10
BATCH = 128
#: The least accuracy of each model.
WANTED = {"mlp": 0.8833, "cnn": 0.915}


def perceptron(rng):
    """Return a network with three hidden layers."""
    return gn.Sequential(
        gn.Flatten(),
        gn.Dense(784, 256, activation="relu", rng=rng),
        gn.Dropout(0.1),
        gn.Dense(256, 128, activation="relu", rng=rng),
        gn.Dense(128, 100, activation="relu", rng=rng),
        gn.Dense(100, 10, rng=rng),  # no softmax: the loss applies it, in its stable form
    )


def convolutional(rng):
    """Return a network with two convolutions, each before a pool."""
    return gn.Sequential(
        gn.Conv2d(1, 32, 3, activation="relu", padding="same", rng=rng),
        gn.MaxPool2d(2),
        gn.Conv2d(32, 64, 3, activation="relu", padding="same", rng=rng),
        gn.MaxPool2d(2),
        gn.Flatten(),
        gn.Dense(7 * 7 * 64, 128, activation="relu", rng=rng),
        gn.Dropout(0.3),
        gn.Dense(128, 10, rng=rng),
    )


MODELS = {"mlp": perceptron, "cnn": convolutional}


def train(name, data, backend):
    """Train a network; return the trainer, and the history with the test set as validation."""
    rng = np.random.default_rng(0)
    model = MODELS[name](rng).to(backend)
    print(model.summary((28, 28, 1)))
    moved = gn.Augment(shift=1, flip=True, rng=rng) if name == "cnn" else None
    loader = gn.Loader(*data.train, batch_size=BATCH, backend=backend, transform=moved, rng=rng)
    rate = gn.Cosine(0.002, steps=EPOCHS * len(loader))
    optimizer = gn.Adam(model.parameters(), rate)
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer, metrics=["accuracy"], rng=rng)
    history = trainer.fit(loader, EPOCHS, validation=data.test, callbacks=[report])
    return trainer, history


def report(_, history):
    """Print the numbers of an epoch."""
    last = history.last
    print(
        f"epoch {len(history):2}: training loss {last['loss']:.4f}, "
        f"test accuracy {last['validation_accuracy']:.4f}, {last['elapsed_s']:.1f} s",
        flush=True,
    )


def plot(history, path):
    """Save the learning curves; print a line if matplotlib is missing."""
    try:
        loss, _ = gn.plot_history(history, ["loss", "accuracy"])
    except ImportError as error:
        print(f"no learning curve: {error}")
        return
    loss.figure.savefig(path, dpi=150)
    print(f"learning curve: {path}")


def main():
    """Train a network on the folder's data, and report."""
    parser = argparse.ArgumentParser(description="Train a network on Fashion-MNIST.")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="with the four files")
    parser.add_argument("--model", default="mlp", choices=sorted(MODELS))
    parser.add_argument("--backend", default="auto", help="auto, numpy, cupy, cupy:1, ...")
    parser.add_argument("--plot", default="fashion_mnist.png", metavar="PATH", help="the curves")
    arguments = parser.parse_args()

    backend = gn.get_backend(arguments.backend)
    data = gn.datasets.load_idx(arguments.data)
    print(f"backend: {backend}")
    print(f"data: {len(data.train.x)} training and {len(data.test.x)} test pictures, 10 classes")
    _, history = train(arguments.model, data, backend)
    plot(history, arguments.plot)

    accuracy, wanted = history["validation_accuracy"][-1], WANTED[arguments.model]
    assert accuracy >= wanted, f"test accuracy {accuracy:.4f} is below {wanted:.4f}"
    print(
        f"result: accuracy={accuracy:.4f} model={arguments.model} "
        f"samples_per_s={np.median(history['samples_per_s']):.0f} backend={backend}"
    )


if __name__ == "__main__":
    main()
