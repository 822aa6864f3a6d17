"""A denoising autoencoder: a network learns to take the noise out of pictures of digits.

The 8x8 images that ship with scikit-learn get noise of standard deviation 0.3 (pixels are 0 to 1);
other noise in each epoch, added by the loader's transform. The network squeezes them through 24
numbers and returns what it takes for the clean image, which is the target. It never sees the 25 %
of the images that it is tested on. It is compared with the best linear map, least squares with a
small penalty, of many noisy copies.

    python examples/denoising_autoencoder.py
    python examples/denoising_autoencoder.py --backend cupy --plot digits.png
"""

import argparse

import numpy as np
from sklearn.model_selection import train_test_split

import gpunn as gn

EPOCHS = 150
NOISE = 0.3
COPIES = 30  # for the linear map


class Noise:
    """A transform that adds normal noise, drawn on the host and so the same on every backend."""

    keeps_shape = True  # so training steps are recorded

    def __init__(self, backend, rng):
        self.backend, self.rng = backend, rng

    def __call__(self, x):
        """Return a batch with noise."""
        noise = self.rng.normal(0.0, NOISE, tuple(x.shape)).astype("float32")
        return x + self.backend.asarray(noise)


def network(rng):
    """Return 64-128-24-128-64; the last activation keeps pixels between 0 and 1."""
    return gn.Sequential(
        gn.Dense(64, 128, activation="relu", rng=rng),
        gn.Dense(128, 24, rng=rng),
        gn.Dense(24, 128, activation="relu", rng=rng),
        gn.Dense(128, 64, activation="sigmoid", rng=rng),
    )


def train(clean, backend):
    """Return a network that has learned to clean pictures, and the history."""
    rng = np.random.default_rng(0)
    model = network(rng).to(backend)
    loader = gn.Loader(
        clean, clean, batch_size=32, backend=backend, transform=Noise(backend, rng), rng=rng
    )
    rate = gn.Cosine(0.003, steps=EPOCHS * len(loader))
    trainer = gn.Trainer(model, gn.MeanSquaredError(), gn.Adam(model.parameters(), rate))
    return trainer, trainer.fit(loader, EPOCHS, callbacks=[report])


def report(_, history):
    """Print the loss of every 30th epoch."""
    if len(history) % 30 == 0:
        print(f"epoch {len(history):3}: training loss {history['loss'][-1]:.4f}", flush=True)


def linear_map(clean, rng):
    """Return a function that cleans pictures by the best linear map with a constant."""
    x = np.concatenate([noisy(clean, rng) for _ in range(COPIES)])
    x = np.column_stack([x, np.ones(len(x))])
    y = np.tile(clean, (COPIES, 1))
    theta = np.linalg.solve(x.T @ x + np.eye(65), x.T @ y)
    return lambda z: np.column_stack([z, np.ones(len(z))]) @ theta


def noisy(clean, rng):
    """Return pictures with noise."""
    return (clean + rng.normal(0.0, NOISE, clean.shape)).astype("float32")


def error(pictures, clean):
    """Return the root of the mean squared error of a pixel."""
    return float(np.sqrt(np.mean((pictures - clean) ** 2)))


def plot(rows, path):
    """Save some pictures: rows of images by name. Print a line if matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 (optional)
    except ImportError:
        print("no pictures: matplotlib is not installed (pip install matplotlib)")
        return
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    axes = figure.subplots(len(rows), 10)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for panel, image in zip(line, images, strict=False):
            panel.imshow(image.reshape(8, 8), cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
        line[0].set_ylabel(name)
    figure.savefig(path, dpi=150)
    print(f"pictures: {path}")


def main():
    """Train, and compare with the linear map on pictures that neither has seen."""
    parser = argparse.ArgumentParser(description="Take the noise out of pictures of digits.")
    parser.add_argument("--backend", default="auto", help="auto, numpy, cupy, cupy:1, ...")
    parser.add_argument("--plot", default="denoised.png", metavar="PATH", help="some pictures")
    arguments = parser.parse_args()

    backend = gn.get_backend(arguments.backend)
    print(f"backend: {backend}")
    x, y = gn.datasets.load_digits(flat=True)
    train_x, test_x = train_test_split(x, test_size=0.25, stratify=y, random_state=0)
    print(f"data: {len(train_x)} training and {len(test_x)} test pictures")

    trainer, history = train(train_x, backend)
    rng = np.random.default_rng(1)
    given = noisy(test_x, rng)
    cleaned = gn.to_numpy(trainer.predict(given))
    by_line = linear_map(train_x, rng)(given)
    errors = [error(pictures, test_x) for pictures in (given, by_line, cleaned)]
    print("error of a pixel: noisy {:.4f}, linear map {:.4f}, network {:.4f}".format(*errors))
    plot({"clean": test_x, "noisy": given, "network": cleaned}, arguments.plot)

    assert errors[2] <= 0.9 * errors[1], f"{errors[2]:.4f} is not 10 % below {errors[1]:.4f}"
    speed = np.median(history["samples_per_s"])
    print(
        f"result: error={errors[2]:.4f} linear={errors[1]:.4f} noisy={errors[0]:.4f} "
        f"samples_per_s={speed:.0f} backend={backend}"
    )


if __name__ == "__main__":
    main()
