"""What a GPU trains in the benchmark, and the arithmetic and memory traffic of a step."""

from __future__ import annotations

from itertools import pairwise

from workloads import Workload

_MNIST = (784, 512, 256, 10)
_MOMENTUM = {"learning_rate": 0.01, "momentum": 0.9}
_WIDE = Workload((1024, 4096, 4096, 1000), 10_240, 1024, 2, learning_rate=0.01)
#: The CPU's arithmetic in one measurement: under a second on a few cores.
MOST_FLOPS_ON_CPU = 2e10

#: Whole batches only: a captured step has one size.
WORKLOADS = {
    "logistic regression": Workload((30, 1), 4096, 32, 16, "binary"),
    "digits": Workload((64, 128, 10), 1792, 32, 32),
    "mnist, batch 128": Workload(_MNIST, 12_800, 128, 16, **_MOMENTUM),
    "mnist, batch 1024": Workload(_MNIST, 65_536, 1024, 5, **_MOMENTUM),
    "mnist, batch 8192": Workload(_MNIST, 65_536, 8192, 12, **_MOMENTUM),
    "wide": _WIDE,
    "wide, tf32": _WIDE._replace(products="tf32"),
    "wide, bfloat16": _WIDE._replace(products="bfloat16"),
    "streaming": Workload((1024, 10), 65_536, 4096, 2, source="host"),
    "prediction": Workload(_MNIST, 10_000, 10_000, 100, predict=True),
}


def smaller(work: Workload) -> Workload:
    """Return a workload of the same kind that takes no time to check."""
    batch = min(work.batch_size, 32)
    sizes = tuple(min(size, 128) for size in work.sizes)
    n = batch if work.predict else 4 * batch
    # Of so few steps, gpunn captures the second epoch's.
    return work._replace(sizes=sizes, n_samples=n, batch_size=batch, repeats=2)


def lighter(work: Workload) -> Workload:
    """Return the same workload with as few steps as a CPU has time for."""
    steps = max(2, int(MOST_FLOPS_ON_CPU // step_flops(work)))
    if steps >= work.n_steps:
        return work
    if work.predict:
        return work._replace(repeats=steps)
    an_epoch = work.n_samples // work.batch_size
    if steps >= an_epoch:
        return work._replace(repeats=steps // an_epoch)
    return work._replace(n_samples=steps * work.batch_size, repeats=1)


def step_flops(work: Workload) -> int:
    """Return the FLOPs of the products of a step; the first layer has no input gradient."""
    products = [a * b for a, b in pairwise(work.sizes)]
    passes = sum(products) if work.predict else 3 * sum(products) - products[0]
    return 2 * work.batch_size * passes


def step_bytes(work: Workload) -> int:
    """Return the bytes a step reads and writes in float32 if nothing is cached."""
    batch, layers = work.batch_size, list(pairwise(work.sizes))
    # X W reads two and writes one; the bias and the activation are applied in place.
    total = sum(batch * a + a * b + 3 * batch * b for a, b in layers)
    if work.predict:
        return 4 * total
    total += 2 * batch * work.sizes[0]  # the gather
    total += 2 * batch * work.sizes[-1]  # the loss
    states = 1 if work.momentum else 0
    for i, (a, b) in enumerate(layers):
        x, h, weight = batch * a, batch * b, a * b
        total += 3 * h + x + h + weight  # dJ/dz; X^T G
        total += (h + weight + x) if i else 0  # G W^T
        total += (3 + 2 * states) * (weight + b)  # the update: g, and value and velocity both ways
    return 4 * total


def streamed_bytes(work: Workload) -> int:
    """Return the bytes of a batch that come from the host's memory."""
    return 4 * work.batch_size * work.sizes[0] if work.source == "host" else 0
