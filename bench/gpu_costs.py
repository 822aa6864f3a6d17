"""What a step costs on a GPU, in device operations: counted, not timed.

    python bench/gpu_costs.py [--json]

An operation is a kernel launch, a call of cuBLAS, a memset or a copy: what the host has to queue.
They are counted by an emulator of CUDA (the module `cudasim`); a real device does not count.

A step is what one batch takes, from asking the loader for it to asking for the next. The first
step of an epoch also sends the order of its samples to the device, so the mean is taken over the
steps from the second to the last, in an epoch after the first (which compiles, and fills the
memory pool). What an epoch costs beside its steps is shown apart, as its edges: the order, reading
the losses, and keeping the best weights.

`host_us` is the processor time in microseconds that the host takes for a step, while all that it
queues waits: nothing is executed in between. It is the least mean over ten steps that was seen, and
a number about Python and CuPy on this machine: it says nothing about a GPU.

On a device, unless CUPY_ACCELERATORS says otherwise, CuPy takes CUB for its own reductions. The
emulator has no CUB. The workloads here have no reduction of CuPy's, so they count the same. Others
differ, according to the sources of CuPy 14.2 and of the CUB in it: the sum of a whole array is one
launch for up to 4,096 entries in float32 or 2,048 in float64 (more on some GPUs) and two beyond; a
mean (`accuracy`) is two launches instead of one; a sum or maximum along the last axis (`Softmax`)
takes a workspace but no other launch. The pool keeps what was taken, so from the second epoch on
nothing is allocated either way.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

import gpunn as gn

try:
    import cudasim
except ImportError:
    cudasim = None

STEPS = 10  # batches an epoch
EPOCHS = 3  # one to warm up, one to count, one to end it
SIZES = (784, 512, 256, 10)
COPIES = ("h2d", "d2h", "d2d", "p2p")


class Costs(NamedTuple):
    """Counts of one step, or of several."""

    device_operations: float
    kernels: float
    library_calls: float
    graph_launches: float
    memsets: float
    copies: float
    syncs: float
    h2d_bytes: float
    d2h_bytes: float
    device_allocs: float

    def __sub__(self, other: tuple[float, ...]) -> Costs:
        """Return the differences."""
        return Costs(*(a - b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> Costs:
        """Return all counts times a factor, in whole numbers where they are whole."""
        products = [count * factor for count in self]
        return Costs(*(round(n) if abs(n - round(n)) < 1e-9 else n for n in products))


def counting() -> bool:
    """Return whether this process runs under the emulator."""
    return cudasim is not None and bool(cudasim.active())


def read() -> dict[str, Any]:
    """Return the current counters."""
    counters: dict[str, Any] = cudasim.stats()
    return counters


def costs(before: dict[str, Any], after: dict[str, Any]) -> Costs:
    """Return the counts of the work done between two readings."""

    def more(name: str) -> int:
        return int(after[name] - before[name])

    calls = sum(operations(before, after, "library_calls").values())
    copies = sum(more(f"{way}_copies") for way in COPIES)
    kernels, graphs, memsets = map(more, ("kernel_launches", "graph_launches", "memsets"))
    others = (more(name) for name in ("syncs", "h2d_bytes", "d2h_bytes", "device_allocs"))
    all_of_them = kernels + calls + graphs + memsets + copies
    return Costs(all_of_them, kernels, calls, graphs, memsets, copies, *others)


def operations(before: dict[str, Any], after: dict[str, Any], kind: str) -> Counter[str]:
    """Return how often each of the "kernels" or "library_calls" ran between two readings."""

    def calls(reading: dict[str, Any]) -> Counter[str]:
        named = reading[kind].items()
        return Counter({name: n["calls"] if isinstance(n, dict) else n for name, n in named})

    return calls(after) - calls(before)


class Watched(gn.Loader):
    """A loader that reads the counters, or a clock, at every batch.

    `epochs` has a list for each pass over the data: a reading before its first batch is asked for,
    and one after each step.

    Parameters
    ----------
    *arguments, **settings
        Those of the loader.
    reading : function, default `read`
        Returns a reading.
    """

    def __init__(self, *arguments: Any, reading: Callable[[], Any] = read, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.epochs: list[list[Any]] = []
        self._reading = reading

    def __iter__(self) -> Iterator[gn.Batch]:
        """Yield the batches of one epoch."""
        return self._watch(super().__iter__())

    def in_order(self) -> Iterator[gn.Batch]:
        """Yield the batches of a prediction."""
        return self._watch(super().in_order())

    def _watch(self, batches: Iterator[gn.Batch]) -> Iterator[gn.Batch]:
        self.epochs.append([self._reading()])
        for batch in batches:
            yield batch
            self.epochs[-1].append(self._reading())


def perceptron(sizes: tuple[int, ...], *, backend: str = "cupy") -> gn.Sequential:
    """Return a network with ReLU in its hidden layers, and none after the last."""
    with gn.use(backend):
        pairs = list(pairwise(sizes))
        hidden = [gn.Dense(a, b, "relu", rng=i) for i, (a, b) in enumerate(pairs[:-1])]
        return gn.Sequential(*hidden, gn.Dense(*pairs[-1], rng=len(hidden)))


def data(
    features: int, classes: int, batch_size: int, steps: int, reading: Callable[[], Any]
) -> Watched:
    """Return batches of random samples, resident on the device."""
    rng, n = np.random.default_rng(0), steps * batch_size
    x = rng.standard_normal((n, features), dtype=np.float32)
    y = rng.integers(0, classes, n)
    settings: Any = {"backend": "cupy", "resident": True, "rng": 0, "reading": reading}
    return Watched(x, y, batch_size=batch_size, **settings)


def mnist_step(
    steps: int = STEPS, epochs: int = EPOCHS, reading: Callable[[], Any] = read
) -> Watched:
    """Train the network for MNIST."""
    model, loader = perceptron(SIZES), data(SIZES[0], SIZES[-1], 128, steps, reading)
    return train(model, gn.SoftmaxCrossEntropy(), loader, momentum(model), epochs)


def adam_step(
    steps: int = STEPS, epochs: int = EPOCHS, reading: Callable[[], Any] = read
) -> Watched:
    """Train the network for MNIST by Adam."""
    model, loader = perceptron(SIZES), data(SIZES[0], SIZES[-1], 128, steps, reading)
    return train(model, gn.SoftmaxCrossEntropy(), loader, gn.Adam(model.parameters()), epochs)


def logreg_step(
    steps: int = STEPS, epochs: int = EPOCHS, reading: Callable[[], Any] = read
) -> Watched:
    """Train logistic regression."""
    model, loss = gn.logistic_regression(30, rng=0, backend="cupy")
    return train(model, loss, data(30, 2, 32, steps, reading), momentum(model), epochs)


def dropout_step(
    steps: int = STEPS, epochs: int = EPOCHS, reading: Callable[[], Any] = read
) -> Watched:
    """Train the network for MNIST with dropout behind its hidden layers."""
    first, second, last = perceptron(SIZES)
    model = gn.Sequential(first, gn.Dropout(0.5), second, gn.Dropout(0.5), last)
    loader = data(SIZES[0], SIZES[-1], 128, steps, reading)
    return train(model, gn.SoftmaxCrossEntropy(), loader, momentum(model), epochs)


def convolutional(*, backend: str = "cupy") -> gn.Sequential:
    """Return a small network for images of 28 by 28 pixels."""
    with gn.use(backend):
        return gn.Sequential(
            gn.Conv2d(1, 16, 3, "relu", padding="same", rng=0),
            gn.MaxPool2d(2),
            gn.Conv2d(16, 32, 3, "relu", padding="same", rng=1),
            gn.MaxPool2d(2),
            gn.Flatten(),
            gn.Dense(1568, 10, rng=2),
        )


def images(batch_size: int, steps: int, reading: Callable[[], Any]) -> Watched:
    """Return batches of random images, resident on the device."""
    rng, n = np.random.default_rng(0), steps * batch_size
    x = rng.standard_normal((n, 28, 28, 1), dtype=np.float32)
    settings: Any = {"backend": "cupy", "resident": True, "rng": 0, "reading": reading}
    return Watched(x, rng.integers(0, 10, n), batch_size=batch_size, **settings)


def cnn_step(
    steps: int = STEPS, epochs: int = EPOCHS, reading: Callable[[], Any] = read
) -> Watched:
    """Train the network for images."""
    model, loader = convolutional(), images(8, steps, reading)
    return train(model, gn.SoftmaxCrossEntropy(), loader, momentum(model), epochs)


class WatchedGraphs:
    """The costs of captured steps: `epochs` is like that of `Watched`, read around each launch."""

    def __init__(self, reading: Callable[[], Any]) -> None:
        self.epochs: list[list[Any]] = [[]]
        self._reading = reading

    def fit(self, trainer: gn.Trainer, loader: gn.Loader, epochs: int) -> None:
        """Train for some epochs, all of them captured."""
        capture = importlib.import_module("gpunn.program.capture").StepCapture
        real = capture.graph_of

        def watched(*arguments: Any) -> Any:
            step = real(*arguments)
            return step._replace(graphs=[_WatchedGraph(graph, self) for graph in step.graphs])

        capture.graph_of = watched
        try:
            trainer.fit(loader, 1, progress=False)  # a first epoch of few steps is not captured
            trainer.fit(loader, epochs, callbacks=[self._next_epoch], progress=False)
        finally:
            capture.graph_of = real
        self.epochs = [epoch for epoch in self.epochs if epoch]

    def _next_epoch(self, *_: object) -> None:
        self.epochs.append([])

    def launch(self, graph: Any) -> None:
        """Launch a step, and read."""
        if not self.epochs[-1]:
            self.epochs[-1].append(self._reading())
        graph.launch()
        self.epochs[-1].append(self._reading())


class _WatchedGraph(NamedTuple):
    graph: Any
    watch: WatchedGraphs

    def launch(self) -> None:
        self.watch.launch(self.graph)


def captured_step(
    steps: int = STEPS, epochs: int = EPOCHS, reading: Callable[[], Any] = read
) -> WatchedGraphs:
    """Train the network for MNIST by captured steps."""
    watched = data(SIZES[0], SIZES[-1], 128, steps, reading)
    return _captured(perceptron(SIZES), watched, epochs, reading)


def captured_cnn_step(
    steps: int = STEPS, epochs: int = EPOCHS, reading: Callable[[], Any] = read
) -> WatchedGraphs:
    """Train the network for images by captured steps."""
    return _captured(convolutional(), images(8, steps, reading), epochs, reading)


def _captured(
    model: gn.Sequential, data: Watched, epochs: int, reading: Callable[[], Any]
) -> WatchedGraphs:
    stored = data.stored
    loader = gn.Loader(stored.x, stored.y, batch_size=data.batch_size, rng=0)
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), momentum(model))
    found = WatchedGraphs(reading)
    found.fit(trainer, loader, epochs)
    return found


def momentum(model: gn.Layer) -> gn.Optimizer:
    """Return SGD with momentum."""
    return gn.SGD(model.parameters(), learning_rate=0.01, momentum=0.9)


def train(
    model: gn.Layer, loss: gn.Loss, loader: Watched, optimizer: gn.Optimizer, epochs: int
) -> Watched:
    """Train for some epochs."""
    gn.Trainer(model, loss, optimizer).fit(loader, epochs, progress=False)
    return loader


def predict(steps: int = STEPS, epochs: int = EPOCHS, reading: Callable[[], Any] = read) -> Watched:
    """Predict with the network for MNIST several times, batch by batch."""
    model, loader = perceptron(SIZES), data(SIZES[0], SIZES[-1], 128, steps, reading)
    optimizer = gn.SGD(model.parameters())
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer)
    for _ in range(epochs):
        trainer.predict(loader)
    return loader


WORKLOADS: dict[str, Callable[..., Any]] = {
    "mnist_step_eager": mnist_step,
    "mnist_step": captured_step,
    "adam_step": adam_step,
    "logreg_step": logreg_step,
    "dropout_step": dropout_step,
    "cnn_step_eager": cnn_step,
    "cnn_step": captured_cnn_step,
    "predict": predict,
}


@contextmanager
def lazily() -> Iterator[None]:
    """Delay queued work until the host waits for it."""
    cudasim.set_async("lazy", 0)
    try:
        yield
    finally:
        seed = int(os.environ.get("CUDASIM_SEED", "0"))
        cudasim.set_async(os.environ.get("CUDASIM_ASYNC", "lazy"), seed)


def host_us(workload: Callable[..., Any], steps: int = 50, epochs: int = 6) -> float:
    """Return the least time that the host took for a step, as a mean over ten steps, in us.

    What is queued in an epoch is executed when its losses are read, which is not timed. The first
    ten steps that follow are left out: they find the processor's caches filled with other things.
    """
    with lazily():
        loader = workload(steps, epochs, time.thread_time)
    starts = range(10, steps - 9, 5)
    clocks = loader.epochs[1:]
    return min((clock[i + 10] - clock[i]) / 10 for clock in clocks for i in starts) * 1e6


def step_costs(loader: Any) -> Costs:
    """Return the mean cost of the second epoch's steps, without the first step."""
    readings = loader.epochs[1]
    return costs(readings[1], readings[-1]).times(1 / (len(readings) - 2))


def edge_costs(loader: Any) -> Costs:
    """Return the second epoch's costs outside its steps."""
    epoch = costs(loader.epochs[1][0], loader.epochs[2][0])
    return epoch - step_costs(loader).times(len(loader.epochs[1]) - 1)


def step_operations(loader: Any) -> Counter[str]:
    """Return the names of the operations of the second epoch's second step."""
    before, after = loader.epochs[1][1:3]
    return operations(before, after, "kernels") + operations(before, after, "library_calls")


def measure() -> dict[str, dict[str, float]]:
    """Print a table of all workloads; return the costs of a step of each, and the host's time."""
    found: dict[str, dict[str, float]] = {}
    notes = []
    titles = (*Costs._fields, "host_us")
    print(" " * 16 + "".join(f"  {title}" for title in titles))
    for name, workload in WORKLOADS.items():
        loader = workload()
        found[name] = step_costs(loader)._asdict() | {"host_us": round(host_us(workload), 1)}
        for row, counted in ((name, found[name]), ("  its edges", edge_costs(loader)._asdict())):
            cells = (f"{format(counted.get(t, 0), 'g'):>{len(t) + 2}}" for t in titles)
            print(f"{row:16}" + "".join(cells))
        ran = sorted(step_operations(loader).items())
        notes.append(f"{name}: " + ", ".join(f"{n} {kind}" for kind, n in ran))
    print("\nOne step of each:", *notes, sep="\n")
    return found


def main() -> int:
    """Count, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="end with a line of JSON")
    wants_json = parser.parse_args().json
    if not counting():
        print(
            "gpu_costs: the counters come from an emulator of CUDA, the module `cudasim`, and this "
            "process does not run under it; bench/gpu_throughput.py times a real device",
            file=sys.stderr,
        )
        return 2
    found = measure()
    if wants_json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
