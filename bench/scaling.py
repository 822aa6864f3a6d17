"""How training speeds up on two processes of MPI, and a model of many GPUs.

    python bench/scaling.py [--json] [--rounds N]

It starts itself under ``mpiexec -n 2``, with one BLAS thread for each process. Rank 0 alone and
both together take turns, so that a slow moment of the machine meets both. *Strong* scaling keeps
the samples of a step and shares them out, *weak* scaling keeps those of each rank. What two ranks
could reach on this machine is measured in the same rounds: each trains a network of its own on its
part of the step (*apart*). What a step of both together takes longer is the communication that the
backward pass does not hide: with one sum after it, and with sums in buckets that begin during it
(`bucket_bytes` of `gpunn.DataParallel`). The time in sums includes that of waiting for the slower
rank. The time of the processor tells more than the clock where other programs run, too.

The last table is a model and no measurement: the time of a sum over n ranks is that of n - 1 or
log2 n rounds of messages, each with a latency and a bandwidth. They are fitted to sums of arrays on
this machine; a second pair, assumed for GPUs, is stated with it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import checkout  # noqa: F401 (makes gpunn importable)
from timing import Spread, spread, surroundings  # before NumPy: it sets the BLAS environment

# isort: split
import numpy as np

import gpunn as gn

SIZES, STEP, N_STEPS = (512, 1024, 1024, 10), 2048, 6
MESSAGES = [1 << k for k in range(10, 27, 2)]  # bytes
#: Bytes of a bucket.
BUCKETS = {"in buckets of 1 MiB": 1 << 20, "in buckets of 4 MiB": 1 << 22}
WAYS = ("alone", "apart", "together", *BUCKETS, "sums", "alone, processor", "together, processor")
GPUS = (8, 64, 1024)
#: Latency in seconds and bandwidth in bytes a second of a message between GPUs: an assumption.
ASSUMED = (5e-6, 50e9)
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Counting:
    """A communicator that counts what it is given to sum, and the time that it takes of a step."""

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator
        self.rank, self.size = communicator.rank, communicator.size
        self.broadcast, self.barrier = communicator.broadcast, communicator.barrier
        self.doing = communicator.doing
        self.n_bytes, self.elapsed_s = 0, 0.0

    def allreduce(self, array: Any) -> None:
        begun = time.perf_counter()
        self._communicator.allreduce(array)
        self.elapsed_s += time.perf_counter() - begun
        self.n_bytes += array.nbytes

    def start_allreduce(self, array: Any) -> Any:
        self.n_bytes += array.nbytes
        return self._communicator.start_allreduce(array)


class Training:
    """A network and data, on one rank alone or on all of them."""

    def __init__(self, step: int, communicator: Any = None, bucket_bytes: Any = None) -> None:
        n = 1 if communicator is None else communicator.size
        rng = np.random.default_rng(0)
        x = rng.normal(size=(N_STEPS * step, SIZES[0])).astype(np.float32)
        y = rng.integers(0, SIZES[-1], len(x))
        hidden = [gn.Dense(a, b, gn.ReLU(), rng=i) for i, (a, b) in enumerate(pairwise(SIZES[:-1]))]
        model = gn.Sequential(*hidden, gn.Dense(*SIZES[-2:], rng=9))
        optimizer = gn.SGD(model.parameters(), 0.01)
        self.grad_bytes = sum(4 * parameter.value.size for parameter in model.parameters())
        if communicator is not None:
            gn.DataParallel(optimizer, communicator, bucket_bytes=bucket_bytes)
        self._loader = gn.Loader(x, y, batch_size=step // n, rng=1, communicator=communicator)
        self._trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer)
        self.step_s()

    def step_s(self) -> float:
        """Return the seconds of a step, in an epoch; keep those of the processor."""
        begun, worked = time.perf_counter(), time.process_time()
        self.history = self._trainer.fit(self._loader, 1, progress=False)
        self.processor_s = (time.process_time() - worked) / N_STEPS
        return (time.perf_counter() - begun) / N_STEPS


def measure(rounds: int) -> None:
    """Take all times, as one of the ranks; rank 0 prints them as JSON."""
    communicator = Counting(gn.get_communicator("mpi"))
    first = communicator.rank == 0
    found: dict[str, Any] = {}
    for name, alone_step in (("strong", STEP), ("weak", STEP // communicator.size)):
        alone = Training(alone_step) if first else None
        idle(communicator)
        apart = Training(STEP // communicator.size)
        step = alone_step if name == "strong" else STEP
        together = Training(step, communicator)
        buckets = {way: Training(step, communicator, size) for way, size in BUCKETS.items()}
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            if alone is not None:
                times["alone"].append(alone.step_s())
                times["alone, processor"].append(alone.processor_s)
            idle(communicator)
            times["apart"].append(apart.step_s())
            communicator.barrier()
            communicator.n_bytes, communicator.elapsed_s = 0, 0.0
            times["together"].append(together.step_s())
            times["together, processor"].append(together.processor_s)
            times["sums"].append(communicator.elapsed_s / N_STEPS)
            found["bytes"] = communicator.n_bytes / N_STEPS
            for way, training in buckets.items():
                communicator.barrier()
                times[way].append(training.step_s())
        found[name] = times
        found["grad_bytes"] = together.grad_bytes
    found["messages"] = {size: message_s(communicator, size) for size in MESSAGES}
    if first:
        print(json.dumps(found))


def idle(communicator: Any) -> None:
    """Wait for all ranks without keeping a core busy."""
    from mpi4py import MPI  # noqa: PLC0415 (only the ranks have it)

    request = MPI.COMM_WORLD.Ibarrier()
    while not request.Test():
        time.sleep(0.002)


def message_s(communicator: Any, size: int) -> float:
    """Return the median seconds of a sum of the given number of bytes."""
    array = np.zeros(size // 4, np.float32)
    times = []
    for _ in range(15):
        communicator.barrier()
        begun = time.perf_counter()
        communicator.allreduce(array)
        times.append(time.perf_counter() - begun)
    return spread(times).median


def fit(messages: dict[int, float]) -> tuple[float, float]:
    """Return the latency and the bandwidth of a message, from sums over two ranks.

    A sum over two takes two messages of half of the array: t = 2 a + S / b.
    """
    sizes = np.array(list(messages), float)
    times = np.array(list(messages.values()))
    columns = np.stack([2 / times, sizes / times], axis=1)  # relative errors
    (latency, inverse), *_ = np.linalg.lstsq(columns, np.ones(len(sizes)), rcond=None)
    return max(float(latency), 1e-9), 1 / float(inverse)


def ring_s(n: int, size: float, latency: float, bandwidth: float) -> float:
    """Return the seconds of a sum by a ring: 2 (n - 1) messages of the n-th part."""
    return 2 * (n - 1) * (latency + size / n / bandwidth)


def tree_s(n: int, size: float, latency: float, bandwidth: float) -> float:
    """Return the seconds of a sum by a tree, up and down: 2 log2 n messages of all."""
    return 2 * math.ceil(math.log2(n)) * (latency + size / bandwidth)


def modelled(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the model's rows: the time of a sum, and the share of a step that computes."""
    step_s = spread(found["weak"]["alone"]).median
    rows = []
    for source, constants in (("fitted", found["fitted"]), ("assumed", ASSUMED)):
        for n in (2, *GPUS):
            for name, time_of in (("ring", ring_s), ("tree", tree_s)):
                seconds = time_of(n, found["grad_bytes"], *constants)
                efficiency = step_s / (step_s + seconds)
                row = {"constants": source, "ranks": n, "algorithm": name}
                rows.append(row | {"sum_ms": 1e3 * seconds, "efficiency": efficiency})
    return rows


def launch(rounds: int) -> dict[str, Any]:
    """Measure on two ranks."""
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    launcher = shutil.which("mpiexec", path=here)
    if launcher is None:
        sys.exit("mpiexec is not installed: pip install mpi4py mpich")
    command = [launcher, "-n", "2", sys.executable, __file__, "--rank", "--rounds", str(rounds)]
    environment = os.environ | dict.fromkeys(ONE_THREAD, "1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    found["messages"] = {int(size): seconds for size, seconds in found["messages"].items()}
    found["fitted"] = fit(found["messages"])
    for name in ("strong", "weak"):
        rows = {way: not_hidden_ms(found[name], way) for way in ("together", *BUCKETS)}
        found[f"not hidden, {name}, ms"] = rows
    return found


def summary(found: dict[str, Any]) -> dict[str, float]:
    """Return the speedup of two ranks, and the bytes that are summed against the gradient's."""
    ratio = found["bytes"] / found["grad_bytes"]
    speedup = round(gain(found, "together").median, 3)
    return {"two_ranks_speedup": speedup, "bytes_ratio": round(ratio, 5)}


def gain(found: dict[str, Any], way: str) -> Spread:
    """Return the speedup of a step on two ranks over one."""
    pairs = zip(found["strong"]["alone"], found["strong"][way], strict=True)
    return spread([alone / other for alone, other in pairs])


def not_hidden_ms(times: dict[str, list[float]], way: str) -> float:
    """Return the time of a step that two ranks would not need if they sent nothing; the median."""
    pairs = zip(times[way], times["apart"], strict=True)
    return 1e3 * spread([both - each for both, each in pairs]).median


def report(found: dict[str, Any]) -> None:
    """Print readable tables."""
    print(f"{found['surroundings']}\n")
    for name in ("strong", "weak"):
        ms = {way: f"{1e3 * spread(times).median:.1f} ms" for way, times in found[name].items()}
        print(f"{name} scaling: a step takes {ms['alone']} alone, and on two ranks")
        print(f"  {ms['together']}, {ms['sums']} of it in sums; {ms['apart']} without any")
        for way, hidden in found[f"not hidden, {name}, ms"].items():
            print(f"  communication that is not hidden: {hidden:.1f} ms, {way} ({ms[way]} a step)")
    busy = [spread(found["strong"][f"{way}, processor"]).median for way in ("alone", "together")]
    print(f"time of the processor for a step: {1e3 * busy[0]:.1f} ms alone, {1e3 * busy[1]:.1f} ms")
    print(f"  for each of two ranks, which poll while they wait: x {busy[0] / busy[1]:.2f}")
    print(f"speedup of two ranks {gain(found, 'together')}, without sums {gain(found, 'apart')}")
    ideal = 2 * (2 - 1) / 2 * found["grad_bytes"]
    print(f"a step sums {found['bytes']:,.0f} bytes; the gradient has {found['grad_bytes']:,}, of")
    print(f"which each of two ranks has to send {ideal:,.0f}")
    latency, bandwidth = found["fitted"]
    print(f"fitted: {1e6 * latency:.1f} us and {bandwidth / 1e9:.2f} GB/s a message; assumed for")
    print(f"GPUs: {1e6 * ASSUMED[0]:.1f} us and {ASSUMED[1] / 1e9:.0f} GB/s\n")
    print("A MODEL, no measurement: steps as weak scaling has them here, on n ranks")
    for row in found["model"]:
        print(
            "  {constants:8} {algorithm} n={ranks:5} {sum_ms:10.2f} ms {efficiency:7.1%}".format(
                **row
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print all of it as JSON lines")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        measure(options.rounds)
        return
    found = launch(options.rounds) | {"surroundings": surroundings()}
    found["model"] = modelled(found)
    if options.json:
        for name, value in found.items():
            print(json.dumps({name: value}))
    else:
        report(found)
    print(json.dumps(summary(found)))


if __name__ == "__main__":
    main()
