"""What the benchmarks train: networks, data and initial weights, the same for every library."""

from __future__ import annotations

import atexit
import math
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import timing  # noqa: F401 (before NumPy: it sets the BLAS environment)

# isort: split
import numpy as np


class Workload(NamedTuple):
    """A network, its data and how long to run it."""

    sizes: tuple[int, ...]
    n_samples: int
    batch_size: int
    #: One measurement: so many epochs of training, or predictions.
    repeats: int
    task: Literal["binary", "classes", "numbers"] = "classes"
    activation: Literal["relu", "tanh"] = "relu"
    learning_rate: float = 0.05
    momentum: float = 0.0
    optimizer: Literal["sgd", "adam"] = "sgd"
    clip_norm: float | None = None
    #: After the hidden layer. Each library draws its own masks.
    dropout: float = 0.0
    #: Pairs of layers between the first and the last, each pair with a way past it:
    #: x + second(first(x)), where only the first has an activation.
    blocks: int = 0
    #: The positions and heads of a transformer's block, whose `sizes` are its width, the width of
    #: its inner layer, and the number of classes, by one product with all that comes out of it.
    block: tuple[int, int] | None = None
    class_weight: tuple[float, ...] | None = None
    #: Height, width and channels of the inputs, if they are images.
    image: tuple[int, ...] = ()
    #: The channels of convolutions before the layers: 3 by 3 entries, as large an output as the
    #: input, ReLU, and the largest of 2 by 2 pixels.
    convolutions: tuple[int, ...] = ()
    #: Whether a batch norm follows each convolution, before ReLU.
    batch_norm: bool = False
    predict: bool = False
    #: Where the data are: as near as they fit, or in the host's memory or a file, to be streamed.
    source: Literal["resident", "host", "file"] = "resident"
    #: What products round their factors to; all else is float32.
    products: Literal["float32", "tf32", "bfloat16"] = "float32"

    @property
    def n_steps(self) -> int:
        """The number of steps, or predictions, in one measurement."""
        if self.predict:
            return self.repeats
        return self.repeats * -(-self.n_samples // self.batch_size)


_MNIST = (784, 512, 256, 10)

_CNN = Workload(
    (7 * 7 * 32, 10),
    6400,
    64,
    1,
    momentum=0.9,
    learning_rate=0.01,
    image=(28, 28, 1),
    convolutions=(16, 32),
)

WORKLOADS = {
    "logreg": Workload((30, 1), 4096, 32, 30, "binary"),
    # Two epochs, so that what a call of `fit` costs counts for less.
    "logreg1": Workload((30, 1), 4096, 1, 2, "binary", learning_rate=0.01),
    "logreg-weighted": Workload((30, 3), 4096, 32, 30, class_weight=(0.5, 1.0, 2.0)),
    # The four points of XOR, many times over: a batch is four rows.
    "xor": Workload((2, 8, 1), 4096, 4, 4, "binary", "tanh", learning_rate=0.5),
    "digits": Workload((64, 128, 10), 1797, 32, 40),
    "digits200": Workload((64, 128, 10), 1797, 200, 150),
    "digits-regularized": Workload(
        (64, 128, 10),
        1797,
        32,
        20,
        optimizer="adam",
        learning_rate=1e-3,
        dropout=0.2,
        clip_norm=1.0,
    ),
    "residual": Workload(
        (64, *[256] * 9, 10), 6400, 128, 2, optimizer="adam", learning_rate=1e-3, blocks=4
    ),
    "mnist": Workload(_MNIST, 12_800, 128, 2, momentum=0.9, learning_rate=0.01),
    "wide": Workload((1024, 4096, 4096, 1000), 1024, 256, 1, learning_rate=0.01),
    "regression": Workload((100, 256, 256, 1), 6400, 64, 6, "numbers", "tanh", learning_rate=0.01),
    "transformer": Workload((128, 512, 10), 640, 32, 1, block=(64, 4), learning_rate=0.01),
    "cnn": _CNN,
    "cnn_norm": _CNN._replace(batch_norm=True),
    "predict": Workload(_MNIST, 10_000, 10_000, 5, predict=True),
    "predict1": Workload(_MNIST, 1, 1, 3000, predict=True),
    "stream": Workload((64, 1), 2_000_000, 1024, 1, "binary", source="file"),
}


def weights(work: Workload) -> list[np.ndarray]:
    """Return the initial weights of each layer, (inputs, outputs); biases start at zero."""
    rng = np.random.default_rng(1)
    return [
        (rng.standard_normal((a, b)) * np.sqrt(2 / (a + b))).astype(np.float32)
        for a, b in _shapes(work)
    ]


def _shapes(work: Workload) -> list[tuple[int, int]]:
    if work.block is None:
        return list(pairwise(work.sizes))
    width, inner, classes = work.sizes
    attention = [(width, 3 * width), (width, width)]
    return [*attention, (width, inner), (inner, width), (work.block[0] * width, classes)]


def filters(work: Workload) -> list[np.ndarray]:
    """Return the initial filters, (3, 3, inputs, outputs); biases start at zero."""
    rng = np.random.default_rng(3)
    return [
        (rng.standard_normal((3, 3, a, b)) * np.sqrt(2 / (9 * a))).astype(np.float32)
        for a, b in pairwise([*work.image[-1:], *work.convolutions])
    ]


def data(work: Workload, n: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return x (n, ..., inputs) in single precision, and y (n,): what a plain rule says of x.

    Images are channels-last.

    Without `n`, all samples; where they are to stand in a file, they do.
    """
    rng = np.random.default_rng(0)
    features = math.prod(work.image) if work.image else work.sizes[0]
    if n is None and work.source == "file":
        return _in_file(rng, work.n_samples, features)
    shape = (work.n_samples if n is None else n, *(work.block or ())[:1], features)
    if features == 2:
        x = np.tile(np.float32([[0, 0], [0, 1], [1, 0], [1, 1]]), (shape[0] // 4, 1))
        return x, (x[:, 0] != x[:, 1]).astype(np.int64)
    x = rng.standard_normal(shape, dtype=np.float32)
    return x.reshape(-1, *work.image) if work.image else x, _targets(work, x)


def _targets(work: Workload, x: np.ndarray) -> np.ndarray:
    rows = x.reshape(len(x), -1)
    rule = np.random.default_rng(2).standard_normal(rows.shape[1], dtype=np.float32)
    answer = rows @ rule / np.linalg.norm(rule)
    if work.task == "classes":  # as many of each
        return answer.argsort().argsort() * work.sizes[-1] // len(x)
    return (answer > 0).astype(np.int64) if work.task == "binary" else answer


def _in_file(rng: np.random.Generator, n: int, features: int) -> tuple[np.ndarray, np.ndarray]:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    x = np.memmap(Path(folder.name) / "x.f32", np.float32, "w+", shape=(n, features))
    for start in range(0, n, 100_000):
        x[start : start + 100_000] = rng.standard_normal((min(100_000, n - start), features))
    return x, (x[:, 0] > 0).astype(np.int64)
