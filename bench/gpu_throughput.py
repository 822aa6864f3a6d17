"""Speed on a GPU: training against the device's own limits, the CPU, and PyTorch.

    python bench/gpu_throughput.py [--backend cupy:1] [--rounds N] [--json FILE]
    python bench/gpu_throughput.py --check

Times are taken with CUDA events, after a warm-up, in rounds of random order; each is a median with
its quartiles. Shares are of what this device was measured to do: a large product, a large copy.
All is float32 without TF32. PyTorch takes part if it is installed with CUDA.

`--check` runs everything with small arrays and compares the results, but takes no times. It also
works where the device is emulated; without it, an emulated device is refused.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from gpu_timing import Clock, NoClock, Timed, device_time, host_clock  # before NumPy, as timing
from timing import Spread, spread  # before NumPy: it sets the BLAS environment

# isort: split
import gpu_costs
import gpu_kernels
import numpy as np

import gpunn as gn


class Workload(NamedTuple):
    """A perceptron, its batch size, and the steps of one measurement."""

    sizes: tuple[int, ...]
    batch: int
    steps: int

    def smaller(self) -> Workload:
        """Return one of the same depth that takes no time to check."""
        return Workload(tuple(min(size, 256) for size in self.sizes), min(self.batch, 32), 4)


WORKLOADS = {
    "digits": Workload((64, 128, 10), 32, 200),
    "mnist": Workload((784, 512, 256, 10), 128, 200),
    "mnist, large batch": Workload((784, 512, 256, 10), 4096, 50),
    "wide": Workload((1024, 4096, 4096, 1000), 1024, 20),
}
CPU = "gpunn, CPU"
CPU_STEPS = 0.1  # the share of the steps that the CPU is asked for
CLOSE = 1e-3  # relative: how near the losses of all contenders must be


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


def peaks(cupy: Any, clock: Clock, rounds: int, n: int) -> dict[str, float]:
    """Return the FLOP/s of a large product, and the bytes/s of a large copy, read and written."""
    rng = np.random.default_rng(0)
    a, b = (cupy.asarray(rng.standard_normal((n, n), dtype=np.float32)) for _ in range(2))
    out = cupy.empty_like(a)
    product = device_time(clock, lambda: cupy.matmul(a, b, out=out), rounds, 3).median
    copy = device_time(clock, lambda: cupy.copyto(out, a), rounds, gpu_kernels.REPEATS).median
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


def train(workload: Workload, clock: Clock, backend: str, rounds: int) -> dict[str, list[Timed]]:
    """Time the steps of a workload by all contenders, in rounds of random order."""
    sizes, batch, steps = workload
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
    name: str, workload: Workload, times: dict[str, list[Timed]], peak: dict[str, float]
) -> dict[str, Any]:
    """Print the rows of a workload, and return them."""
    sizes, batch, _ = workload
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


def measure(cupy: Any, backend: str, rounds: int) -> dict[str, Any]:
    """Run all, print the tables, and return the figures."""
    n = 8192 if cupy.cuda.runtime.memGetInfo()[0] > 4 * 2**30 else 4096
    return tables(cupy, backend, Clock(cupy), rounds, n, gpu_kernels.SIDE, WORKLOADS)


def check(cupy: Any, backend: str) -> None:
    """Run all with small arrays, compare the results, and throw the tables away."""
    gpu_kernels.check(cupy, 128)
    workloads = {name: workload.smaller() for name, workload in WORKLOADS.items()}
    with redirect_stdout(StringIO()):
        tables(cupy, backend, NoClock(), 1, 256, 64, workloads)
    print("All kernels and contenders agree; nothing was timed.")


def tables(
    cupy: Any,
    backend: str,
    clock: Clock,
    rounds: int,
    n: int,
    side: int,
    workloads: dict[str, Workload],
) -> dict[str, Any]:
    """Print and return the figures, from products of n x n and kernels on side x side arrays."""
    peak = peaks(cupy, clock, rounds, n)
    found = describe(cupy, peak)
    print(
        f"{'training':36}{'us a step':>30}{'us to queue':>13}{'samples/s':>12}"
        f"{'times':>8}{'FLOP/s':>9}{'bytes/s':>9}"
    )
    found["training"] = {}
    for name, workload in workloads.items():
        times = train(workload, clock, backend, rounds)
        found["training"][name] = report_training(name, workload, times, peak)
    found["kernels"] = gpu_kernels.report(cupy, clock, rounds, peak["bytes_per_s"], side)
    return found


def main(given: list[str] | None = None) -> int:
    """Measure on a real device; on an emulated one, count, or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="cupy", help="which device, such as cupy:1")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--check", action="store_true", help="take no times; compare the results")
    arguments = parser.parse_args(given)
    try:
        place = gn.get_backend(arguments.backend)
        problem = "" if place.package == "cupy" else f"{place} is not a GPU; say --backend cupy"
    except gn.errors.GpunnError as error:
        problem = str(error)
    if problem:
        print(f"gpu_throughput: there is nothing to measure: {problem}", file=sys.stderr)
        return 2
    import cupy  # noqa: PLC0415 (known to work by now)

    if arguments.check:
        with place.scope():
            check(cupy, str(place))
        return 0
    if gpu_costs.counting():
        print("This device is emulated: its times mean nothing. What a step costs instead:\n")
        gpu_costs.measure()
        return 0
    with place.scope():
        found = measure(cupy, str(place), arguments.rounds)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
