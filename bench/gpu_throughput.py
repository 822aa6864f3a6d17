"""Speed on a GPU: training against the device's own limits, the CPU, and PyTorch.

    python bench/gpu_throughput.py [--backend cupy:1] [--rounds N] [--json FILE]

Times are taken with CUDA events, after a warm-up, in rounds of random order; each is a median with
its quartiles. Shares are of what this device was measured to do: a large product, a large copy.
All is float32 without TF32. PyTorch takes part if it is installed with CUDA.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from timing import Spread, spread  # before NumPy: it sets the BLAS environment

# isort: split
import gpu_costs
import numpy as np

import gpunn as gn
from gpunn.kernels import Kernels, kernels

# name: layer sizes, batch size, steps a measurement
WORKLOADS = {
    "digits": ((64, 128, 10), 32, 200),
    "mnist": ((784, 512, 256, 10), 128, 200),
    "mnist, large batch": ((784, 512, 256, 10), 4096, 50),
    "wide": ((1024, 4096, 4096, 1000), 1024, 20),
}
CPU = "gpunn, CPU"
CPU_STEPS = 0.1  # the share of the steps that the CPU is asked for
REPEATS = 20  # of a kernel in one measurement
CLOSE = 1e-3  # relative: how near the losses of all contenders must be


class Timed(NamedTuple):
    """Seconds of one measurement: until the work was done, and until it was queued."""

    done: float
    queued: float


# What is trained, and by whom: each contender is a function that runs the steps it is asked for,
# and returns their losses, on its device.

Contender = Callable[[int], list[Any]]


def gpunn_contender(sizes: tuple[int, ...], batch: int, steps: int, backend: str) -> Contender:
    """Return a function that trains with gpunn."""
    model = gpu_costs.perceptron(sizes, backend=backend)
    loss = gn.SoftmaxCrossEntropy()
    optimizer = gn.SGD(model.parameters(), learning_rate=0.01, momentum=0.9)
    x, y = samples(sizes, batch, steps)
    loader = gn.Loader(x, y, batch_size=batch, backend=backend, resident=True, rng=0)

    def run(steps: int) -> list[Any]:
        # zip asks the range first, so that it does not fetch a batch too many
        batches = (b for _, b in zip(range(steps), loader, strict=False))
        return [gn.train_step(model, loss, optimizer, b.x, b.y)[0] for b in batches]

    return run


def torch_contender(
    torch: Any, device: str, sizes: tuple[int, ...], batch: int, steps: int, mode: str | None
) -> Contender:
    """Return a function that trains with PyTorch, from the same weights and in the same order."""
    layers: list[Any] = []
    for dense in gpu_costs.perceptron(sizes, backend="numpy"):
        layer = torch.nn.Linear(dense.in_features, dense.out_features)
        layer.weight.data = torch.from_numpy(dense.weight.value.T.copy())
        layer.bias.data = torch.from_numpy(dense.bias.value.copy())
        layers += [layer, torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1]).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = (torch.from_numpy(part).to(device) for part in samples(sizes, batch, steps))
    rng = np.random.default_rng(0)

    def cost(x: Any, y: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(x), y)

    if mode is not None:
        cost = torch.compile(cost, mode=mode)

    def run(steps: int) -> list[Any]:
        order, losses = torch.from_numpy(rng.permutation(len(x))).to(device), []
        for rows in order[: steps * batch].split(batch):
            optimizer.zero_grad(set_to_none=True)
            j = cost(x[rows], y[rows])
            j.backward()
            optimizer.step()
            losses.append(j.detach().clone())  # a graph writes to the same place each time
        return losses

    return run


def samples(sizes: tuple[int, ...], batch: int, steps: int) -> tuple[Any, Any]:
    """Return random features and labels for so many steps."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch * steps, sizes[0]), dtype=np.float32)
    return x, rng.integers(0, sizes[-1], batch * steps)


def contenders(
    sizes: tuple[int, ...], batch: int, steps: int, backend: str
) -> dict[str, Contender]:
    """Return all that can take part here."""
    found = {
        "gpunn": gpunn_contender(sizes, batch, steps, backend),
        CPU: gpunn_contender(sizes, batch, steps, "numpy"),
    }
    torch, device = cuda_torch(backend)
    modes = {"eager": None, "compiled": "default", "graphs": "reduce-overhead"}
    for name, mode in modes.items() if torch is not None else ():
        found[f"PyTorch {name}"] = torch_contender(torch, device, sizes, batch, steps, mode)
    return found


def cuda_torch(backend: str) -> tuple[Any, str]:
    """Return PyTorch, or None where it cannot use CUDA, and its name of that device."""
    try:
        import torch  # noqa: PLC0415 (optional, and slow to import)
    except ImportError:
        return None, ""
    if not torch.cuda.is_available():
        return None, ""
    index = gn.get_backend(backend).index
    torch.cuda.set_device(index)
    return torch, f"cuda:{index}"


class Clock:
    """Times work on the current device, with a pair of events on its default stream."""

    def __init__(self, cupy: Any) -> None:
        self._cuda = cupy.cuda
        self._start, self._stop = cupy.cuda.Event(), cupy.cuda.Event()

    def __call__(self, work: Callable[[], object]) -> Timed:
        """Return how long the work took, from an idle device on."""
        self._cuda.Device().synchronize()
        self._start.record()
        start = time.perf_counter()
        work()
        queued = time.perf_counter() - start
        self._stop.record()
        self._stop.synchronize()
        return Timed(self._cuda.get_elapsed_time(self._start, self._stop) / 1e3, queued)


def host_clock(work: Callable[[], object]) -> Timed:
    """Return how long the work took on the CPU."""
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return Timed(seconds, seconds)


def median_of(clock: Clock, work: Callable[[], object], rounds: int, repeats: int = 1) -> Spread:
    """Return the seconds of one call, of several in a row, after as many that nobody times."""

    def several() -> None:
        for _ in range(repeats):
            work()

    several()
    return spread([clock(several).done / repeats for _ in range(rounds)])


def peaks(cupy: Any, clock: Clock, rounds: int) -> dict[str, float]:
    """Return the FLOP/s of a large product, and the bytes/s of a large copy, read and written."""
    n = 8192 if cupy.cuda.runtime.memGetInfo()[0] > 4 * 2**30 else 4096
    rng = np.random.default_rng(0)
    a, b = (cupy.asarray(rng.standard_normal((n, n), dtype=np.float32)) for _ in range(2))
    out = cupy.empty_like(a)
    product = median_of(clock, lambda: cupy.matmul(a, b, out=out), rounds, 3).median
    copy = median_of(clock, lambda: cupy.copyto(out, a), rounds, REPEATS).median
    return {"flop_per_s": 2 * n**3 / product, "bytes_per_s": 2 * a.nbytes / copy}


def step_flops(sizes: tuple[int, ...], batch: int) -> int:
    """Return the FLOPs of the products of a step; the first layer has no input gradient."""
    products = [a * b for a, b in pairwise(sizes)]
    return 2 * batch * (3 * sum(products) - products[0])


def step_bytes(sizes: tuple[int, ...], batch: int) -> int:
    """Return the bytes that the operations of a step read and write, as if nothing was cached."""
    total = 2 * batch * sizes[0]  # the gather
    for i, (a, b) in enumerate(pairwise(sizes)):
        x, h, weight = batch * a, batch * b, a * b
        total += x + weight + h + 2 * h  # X W; bias and activation
        total += 3 * h + x + h + weight  # dJ/dz; X^T G
        total += (h + weight + x) if i else 0  # G W^T
        total += 5 * (weight + b)  # the update: g, and value and velocity both ways
    return 4 * (total + 2 * batch * sizes[-1])  # the loss


def kernel_cases(cupy: Any) -> dict[str, tuple[Callable[[Kernels], object], int]]:
    """Return a call of each kernel that CuPy overrides, and the bytes that it has to move."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return cupy.asarray(rng.standard_normal(shape, dtype=np.float32))

    z, grad, few, logits = draw(4096, 4096), draw(4096, 4096), draw(128, 512), draw(4096, 1000)
    soft, labels = cupy.abs(logits), cupy.asarray(rng.integers(0, 1000, 4096))
    order, bias = cupy.asarray(rng.permutation(4096)), cupy.zeros(4096, cupy.float32)
    relu, tanh = gn.ReLU(), gn.Tanh()
    values, grads, firsts = ([draw(1024, 1024) for _ in range(16)] for _ in range(3))
    seconds = [x * x for x in firsts]
    plain: dict[str, Any] = {"decays": [0.0] * 16, "clip_norm": None, "clip_value": None}
    sgd = plain | {"learning_rate": 0.1, "momentum": 0.9, "nesterov": False}
    adam = plain | {"rate": 0.001, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8}
    n, m = z.nbytes, logits.nbytes
    return {
        "bias_activation": (lambda k: k.bias_activation(z, bias, relu), 2 * n),
        "activation": (lambda k: k.activation(z, tanh), 2 * n),
        "activation_backward": (lambda k: k.activation_backward(grad, z, tanh), 3 * n),
        "its sums, 128 rows": (
            lambda k: k.bias_activation_backward(few, few, relu),
            3 * few.nbytes,
        ),
        "its sums, 4096 rows": (lambda k: k.bias_activation_backward(grad, z, relu), 4 * n),
        "column_sums": (lambda k: k.column_sums(z), n),
        "dropout": (lambda k: k.dropout(z, 1, 0.5), 3 * n),
        "cross-entropy, labels": (lambda k: k.softmax_cross_entropy(logits, labels, 1.0), 2 * m),
        "cross-entropy, soft": (lambda k: k.softmax_cross_entropy_soft(logits, soft, 1.0), 3 * m),
        "binary": (lambda k: k.sigmoid_binary_cross_entropy(logits, soft, 1.0), 3 * m),
        "squared_error": (lambda k: k.squared_error(logits, soft, 1.0), 3 * m),
        "sgd, 16 arrays": (lambda k: k.sgd(values, grads, firsts, **sgd), 5 * n),
        "adam, 16 arrays": (lambda k: k.adam(values, grads, firsts, seconds, **adam), 7 * n),
        "gather": (lambda k: k.gather([z, labels], order), 2 * n),
    }


def train(name: str, clock: Clock, backend: str, rounds: int) -> dict[str, list[Timed]]:
    """Time the steps of a workload by all contenders, in rounds of random order."""
    sizes, batch, steps = WORKLOADS[name]
    taking_part = contenders(sizes, batch, steps, backend)
    asked = dict.fromkeys(taking_part, steps) | {CPU: max(2, round(steps * CPU_STEPS))}
    warm_up(taking_part, asked)
    times: dict[str, list[Timed]] = {who: [] for who in taking_part}
    order, rng = list(taking_part), random.Random(0)  # noqa: S311
    for _ in range(rounds):
        rng.shuffle(order)
        for who in order:
            timer = host_clock if who == CPU else clock
            run, n = taking_part[who], asked[who]
            times[who].append(Timed(*(t / n for t in timer(lambda run=run, n=n: run(n)))))
    return times


def warm_up(taking_part: dict[str, Contender], steps: dict[str, int]) -> None:
    """Run all once; check that they train the same network, and leave out who cannot run here."""
    ours: list[float] = []
    for who, run in list(taking_part.items()):
        try:
            losses = [float(j) for j in run(steps[who])[:2]]
        except RuntimeError as error:  # PyTorch compiles with what may not be installed
            if "PyTorch" not in who:
                raise
            print(f"{who} is left out: {str(error).splitlines()[0]}")
            del taking_part[who]
            continue
        ours = ours or losses
        if not np.allclose(losses, ours, rtol=CLOSE):
            sys.exit(f"gpu_throughput: the first losses are {ours}, and {losses} with {who}")


def report_training(
    name: str, times: dict[str, list[Timed]], peak: dict[str, float]
) -> dict[str, Any]:
    """Print the rows of a workload, and return them."""
    sizes, batch, _ = WORKLOADS[name]
    ours, rows = spread([t.done for t in times["gpunn"]]).median, {}
    for who, measured in times.items():
        step, queued = spread([t.done for t in measured]), spread([t.queued for t in measured])
        row = rows[who] = {"step_s": step, "queued_s": queued, "times_gpunn": step.median / ours}
        row["samples_per_s"] = batch / step.median
        shares = ""
        if who != CPU:
            row["flop_per_s"] = step_flops(sizes, batch) / step.median
            row["bytes_per_s"] = step_bytes(sizes, batch) / step.median
            row |= {f"{rate}_share": row[rate] / peak[rate] for rate in peak}
            shares = "".join(f"{row[f'{rate}_share']:>9.1%}" for rate in peak)
        times_us = Spread(*(1e6 * t for t in step))
        print(
            f"{name:19}{who:17}{times_us!s:>30}{1e6 * queued.median:>13.4g}"
            f"{row['samples_per_s']:>12.4g}{row['times_gpunn']:>8.3g}{shares}"
        )
    return rows


def report_kernels(cupy: Any, clock: Clock, rounds: int, peak: float) -> dict[str, Any]:
    """Time each kernel against its generic twin; print and return the rows."""
    print(f"\n{'kernel':22}{'us':>30}{'GB/s':>10}{'share':>8}{'generic':>9}")
    own = kernels(cupy.empty(0))
    rows = {}
    for name, (call, moved) in kernel_cases(cupy).items():
        ours, plain = (
            median_of(clock, lambda call=call, k=k: call(k), rounds, REPEATS)
            for k in (own, Kernels(own.xp))
        )
        rate = moved / ours.median
        rows[name] = {"s": ours, "generic_s": plain, "bytes_per_s": rate, "share": rate / peak}
        times = Spread(*(1e6 * t for t in ours))
        factor = plain.median / ours.median
        print(f"{name:22}{times!s:>30}{rate / 1e9:>10.4g}{rate / peak:>8.1%}{factor:>9.3g}")
    return rows


def describe(cupy: Any, peak: dict[str, float]) -> dict[str, Any]:
    """Print and return what this was measured on."""
    device = cupy.cuda.Device()
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(device.id)
    found = {
        "device": properties["name"].decode(),
        "compute_capability": device.compute_capability,
        "memory_bytes": properties["totalGlobalMem"],
        "cuda": {"driver": runtime.driverGetVersion(), "runtime": runtime.runtimeGetVersion()},
        "cupy": cupy.__version__,
        "numpy": np.__version__,
        "gpunn": gn.__version__,
        "host": platform.processor() or platform.machine(),
        "peak": peak,
    }
    print(
        f"{found['device']}, compute capability {found['compute_capability']}, CuPy "
        f"{found['cupy']}; a product reaches {peak['flop_per_s'] / 1e12:.3g} TFLOP/s, a copy "
        f"{peak['bytes_per_s'] / 1e9:.4g} GB/s (read and written)\n"
    )
    return found


def measure(backend: str, rounds: int) -> dict[str, Any]:
    """Run all, print the tables, and return the figures."""
    import cupy  # noqa: PLC0415 (known to work by now)

    with gn.get_backend(backend).scope():
        clock = Clock(cupy)
        peak = peaks(cupy, clock, rounds)
        found = describe(cupy, peak)
        print(
            f"{'training':36}{'us a step':>30}{'us to queue':>13}{'samples/s':>12}"
            f"{'times':>8}{'FLOP/s':>9}{'bytes/s':>9}"
        )
        found["training"] = {}
        for name in WORKLOADS:
            times = train(name, clock, backend, rounds)
            found["training"][name] = report_training(name, times, peak)
        found["kernels"] = report_kernels(cupy, clock, rounds, peak["bytes_per_s"])
    return found


def main() -> int:
    """Measure on a real device; on an emulated one, count."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="cupy", help="which device, such as cupy:1")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    try:
        place = gn.get_backend(arguments.backend)
        problem = "" if place.package == "cupy" else f"{place} is not a GPU; say --backend cupy"
    except gn.errors.GpunnError as error:
        problem = str(error)
    if problem:
        print(f"gpu_throughput: there is nothing to measure: {problem}", file=sys.stderr)
        return 2
    if gpu_costs.counting():
        print("This device is emulated: its times mean nothing. What a step costs instead:\n")
        gpu_costs.measure()
        return 0
    found = measure(str(place), arguments.rounds)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
