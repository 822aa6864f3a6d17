"""What a step costs on a GPU, in device operations: counted, not timed.

    python bench/gpu_costs.py [--json]

An operation is a kernel launch, a call of cuBLAS, a memset or a copy: what the host has to queue.
They are counted by an emulator of CUDA (the module `cudasim`); a real device does not count.

A step is what one batch takes, from asking the loader for it to asking for the next. The first
step of an epoch also sends the order of its samples to the device, so the mean is taken over the
steps from the second to the last, in an epoch after the first (which compiles, and fills the
memory pool). What an epoch costs beside its steps is shown apart, as its edges: the order, reading
the losses, and keeping the best weights.

On a device, unless CUPY_ACCELERATORS says otherwise, CuPy takes CUB for its own reductions. The
emulator has no CUB. According to the sources of CuPy 14.2 and of the CUB in it, these change:

- The sum of a whole array (`cupy_sum`: J) is one launch for a batch of up to 4,096 samples in
  float32 or 2,048 in float64 (more on some GPUs) and two for a larger one. It takes a workspace
  from CuPy's pool.
- A product with one entry (`_tensordot_core_mul_sum`: the bias gradient of a single output) is
  three launches instead of one: the products, their sum, and a copy to where it is wanted. It takes
  memory for the products.
- A mean (`accuracy`) is two launches instead of one: a sum and a division.
- A sum or maximum along the last axis (`Softmax`) takes a workspace but no other launch; a sum
  along the first axis or an `argmax` along the last takes neither.

So `mnist_step`, `adam_step` and `predict` count the same with CUB, and `logreg_step` counts two
more. The pool keeps what was taken, so from the second epoch on nothing is allocated either way.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

import gpunn as gn

try:
    import cudasim
except ImportError:
    cudasim = None

STEPS = 10  # batches an epoch
SIZES = (784, 512, 256, 10)
COPIES = ("h2d", "d2h", "d2d", "p2p")


class Costs(NamedTuple):
    """Counts of one step, or of several."""

    device_operations: float
    kernels: float
    library_calls: float
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
    """Return the counters as they stand."""
    counters: dict[str, Any] = cudasim.stats()
    return counters


def costs(before: dict[str, Any], after: dict[str, Any]) -> Costs:
    """Return what happened between two readings."""

    def more(name: str) -> int:
        return int(after[name] - before[name])

    calls = sum(operations(before, after, "library_calls").values())
    copies = sum(more(f"{way}_copies") for way in COPIES)
    kernels, memsets = more("kernel_launches"), more("memsets")
    others = (more(name) for name in ("syncs", "h2d_bytes", "d2h_bytes", "device_allocs"))
    return Costs(kernels + calls + memsets + copies, kernels, calls, memsets, copies, *others)


def operations(before: dict[str, Any], after: dict[str, Any], kind: str) -> Counter[str]:
    """Return how often each of the "kernels" or "library_calls" ran between two readings."""

    def calls(reading: dict[str, Any]) -> Counter[str]:
        named = reading[kind].items()
        return Counter({name: n["calls"] if isinstance(n, dict) else n for name, n in named})

    return calls(after) - calls(before)


class Watched(gn.Loader):
    """A loader that reads the counters at every batch.

    `epochs` has a list for each pass over the data: a reading before its first batch is asked for,
    and one after each step.
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.epochs: list[list[dict[str, Any]]] = []

    def __iter__(self) -> Iterator[gn.Batch]:
        """Yield the batches of one epoch."""
        return self._watch(super().__iter__())

    def in_order(self) -> Iterator[gn.Batch]:
        """Yield the batches of a prediction."""
        return self._watch(super().in_order())

    def _watch(self, batches: Iterator[gn.Batch]) -> Iterator[gn.Batch]:
        self.epochs.append([read()])
        for batch in batches:
            yield batch
            self.epochs[-1].append(read())


def perceptron(sizes: tuple[int, ...], *, backend: str = "cupy") -> gn.Sequential:
    """Return a network with ReLU in its hidden layers, and none after the last."""
    with gn.use(backend):
        pairs = list(pairwise(sizes))
        hidden = [gn.Dense(a, b, "relu", rng=i) for i, (a, b) in enumerate(pairs[:-1])]
        return gn.Sequential(*hidden, gn.Dense(*pairs[-1], rng=len(hidden)))


def data(features: int, classes: int, batch_size: int, steps: int) -> Watched:
    """Return batches of random samples, resident on the device."""
    rng, n = np.random.default_rng(0), steps * batch_size
    x = rng.standard_normal((n, features), dtype=np.float32)
    y = rng.integers(0, classes, n)
    return Watched(x, y, batch_size=batch_size, backend="cupy", resident=True, rng=0)


def mnist_step(steps: int = STEPS) -> Watched:
    """Train the network for MNIST for three epochs."""
    model, loader = perceptron(SIZES), data(SIZES[0], SIZES[-1], 128, steps)
    return train(model, gn.SoftmaxCrossEntropy(), loader, momentum(model))


def adam_step(steps: int = STEPS) -> Watched:
    """Train the network for MNIST by Adam for three epochs."""
    model, loader = perceptron(SIZES), data(SIZES[0], SIZES[-1], 128, steps)
    return train(model, gn.SoftmaxCrossEntropy(), loader, gn.Adam(model.parameters()))


def logreg_step(steps: int = STEPS) -> Watched:
    """Train logistic regression for three epochs."""
    model, loss = gn.logistic_regression(30, rng=0, backend="cupy")
    return train(model, loss, data(30, 2, 32, steps), momentum(model))


def momentum(model: gn.Layer) -> gn.Optimizer:
    """Return SGD with momentum."""
    return gn.SGD(model.parameters(), learning_rate=0.01, momentum=0.9)


def train(model: gn.Layer, loss: gn.Loss, loader: Watched, optimizer: gn.Optimizer) -> Watched:
    """Train for three epochs: one to warm up, one to count, one to end it."""
    gn.Trainer(model, loss, optimizer).fit(loader, 3, progress=False)
    return loader


def predict(steps: int = STEPS) -> Watched:
    """Predict with the network for MNIST three times, batch by batch."""
    model, loader = perceptron(SIZES), data(SIZES[0], SIZES[-1], 128, steps)
    optimizer = gn.SGD(model.parameters())
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer)
    for _ in range(3):
        trainer.predict(loader)
    return loader


WORKLOADS = {
    "mnist_step": mnist_step,
    "adam_step": adam_step,
    "logreg_step": logreg_step,
    "predict": predict,
}


def step_costs(loader: Watched) -> Costs:
    """Return the mean of the steps of the second epoch but the first."""
    readings = loader.epochs[1]
    return costs(readings[1], readings[-1]).times(1 / (len(readings) - 2))


def edge_costs(loader: Watched) -> Costs:
    """Return what the second epoch took beside its steps."""
    epoch = costs(loader.epochs[1][0], loader.epochs[2][0])
    return epoch - step_costs(loader).times(len(loader.epochs[1]) - 1)


def step_operations(loader: Watched) -> Counter[str]:
    """Return the names of the operations of the second epoch's second step."""
    before, after = loader.epochs[1][1:3]
    return operations(before, after, "kernels") + operations(before, after, "library_calls")


def measure() -> dict[str, Costs]:
    """Print a table of all workloads; return the costs of a step of each."""
    found, notes = {}, []
    print(" " * 11 + "".join(f"  {name}" for name in Costs._fields))
    for name, workload in WORKLOADS.items():
        loader = workload()
        found[name] = step_costs(loader)
        for title, counted in ((name, found[name]), ("  its edges", edge_costs(loader))):
            cells = zip(Costs._fields, counted, strict=True)
            print(f"{title:11}" + "".join(f"{n:>{len(field) + 2}g}" for field, n in cells))
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
        print(json.dumps({name: counted._asdict() for name, counted in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
