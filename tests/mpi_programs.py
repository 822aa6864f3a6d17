"""Programs that `mpiexec` starts: ``mpi_programs.py NAME [ARGUMENTS]``; rank 0 writes results."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from faults import RecordedFault

import gpunn as gn
from gpunn.distributed.agreement import gather
from gpunn.training import epoch
from gpunn.training.several_ranks import SeveralRanks


def refuse(*_: Any) -> None:
    """Refuse to make the weights of all ranks the same: they must be."""
    raise AssertionError("the ranks have other weights")


SeveralRanks._take_from_first = refuse  # type: ignore[method-assign]

N_SAMPLES, STEP = 50, 12
BACKEND = os.environ.get("GPUNN_TEST_BACKEND", "numpy")
BUCKETS = int(os.environ.get("GPUNN_TEST_BUCKETS", "0")) or None


class Run:
    """A training run on one rank."""

    def __init__(self, communicator: Any, *, folder: str = ".", normalised: bool = False) -> None:
        self.communicator = communicator
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(N_SAMPLES, 6)), rng.integers(0, 3, N_SAMPLES)
        weight = rng.uniform(0.1, 2.0, N_SAMPLES)
        kept = {"dtype": "float64", "backend": BACKEND}
        self.fault = RecordedFault()
        self.model = gn.Sequential(
            *([gn.BatchNorm(6, **kept)] if normalised else []),
            gn.Dense(6, 8, gn.Tanh(), rng=0, **kept),
            *([gn.BatchNorm(8, **kept)] if normalised else [self.fault]),
            gn.Dense(8, 3, rng=1, **kept),
        )
        rule = gn.Adam(self.model.parameters(), 0.05, weight_decay=0.01, clip_norm=0.5)
        settings = {"bucket_bytes": BUCKETS, "synchronise_batch_norm": normalised}
        gn.DataParallel(rule, communicator, **settings)
        loss = gn.SoftmaxCrossEntropy()
        self.trainer = gn.Trainer(self.model, loss, rule, metrics=["accuracy"], rng=7)
        size = {"batch_size": STEP // communicator.size, "communicator": communicator}
        self.loader = gn.Loader(x, y, sample_weight=weight, rng=3, **size, **kept)
        self.path = Path(folder, "training.safetensors")

    def fit(
        self, epochs: int, callback: Any = None, checkpoint: Any = None, **settings: Any
    ) -> gn.History:
        checkpoint = checkpoint or gn.Checkpoint(self.path, every=3, unit="steps")
        callbacks = (callback or (lambda *_: None), checkpoint)
        return self.trainer.fit(
            self.loader, epochs, callbacks=callbacks, progress=False, **settings
        )

    def write(self, name: str, history: gn.History) -> None:
        if self.communicator.rank == 0:
            weights = {f"w{i}": gn.to_numpy(p.value) for i, p in enumerate(self.model.parameters())}
            columns = {name: history[name] for name in ("loss", "accuracy")}
            np.savez(self.path.with_name(f"{name}.npz"), **weights, **columns)


def train(folder: str) -> None:
    """Train, and write what comes out."""
    run = Run(gn.get_communicator(), folder=folder)
    run.write(f"ranks{run.communicator.size}", run.fit(4))
    print(run.trainer.explain())


def normalise(folder: str) -> None:
    """Train with statistics of all ranks."""
    run = Run(gn.get_communicator(), folder=folder, normalised=True)
    run.write(f"ranks{run.communicator.size}", run.fit(4))


def masks() -> None:
    """Train with random masks in recorded steps and in the readable loop: they are the same."""
    weights = []
    for feed in (epoch.feed_of, lambda *_: None):
        epoch.feed_of = feed  # type: ignore[assignment]
        run = Run(gn.get_communicator())
        run.model.layers[1] = gn.Dropout(0.5)
        run.trainer.fit(run.loader, 4, progress=False)
        assert bool(run.trainer.why_not_recorded) == bool(weights)
        weights.append([gn.to_numpy(each.value) for each in run.model.parameters()])
    for recorded, readable in zip(*weights, strict=True):
        np.testing.assert_allclose(recorded, readable, rtol=1e-9, atol=1e-12)


def stop(folder: str) -> None:
    """Train half of it, and end in the middle of an epoch."""
    run = Run(gn.get_communicator(), folder=folder)

    class Enough(gn.Checkpoint):
        """Ends training after the second file."""

        def write(self, state: Any, step: int) -> None:
            super().write(state, step)
            if step == 8:
                os.kill(os.getpid(), signal.SIGINT)

    history = run.fit(4, checkpoint=Enough(run.path, every=1, unit="steps"))
    print(history.stopped)


def resume(folder: str) -> None:
    """Go on from there."""
    run = Run(gn.get_communicator(), folder=folder)
    history = run.fit(4, resume=run.path)
    run.write(f"resumed{run.communicator.size}", history)


def fail(folder: str, how: str) -> None:
    """Let rank 1 raise, if need be in a backward pass, be killed, end or hang in epoch 2."""
    run = Run(gn.get_communicator(timeout_s=3), folder=folder)
    other = gn.get_communicator("mpi", timeout_s=4)  # the others do not listen to this one

    def fault(_: Any, history: gn.History) -> None:
        if run.communicator.rank != 1 or len(history) < 2:
            return
        if how == "in backward":
            run.fault.error = ValueError("a fault of rank 1")
            return
        if how == "raises":
            raise ValueError("a fault of rank 1")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "ends":
            sys.exit(0 * other.rank)
        time.sleep(60)

    run.fit(50, fault)


def part(how: str) -> None:
    """Let rank 1 catch an error and go on, or do something else than rank 0."""
    run = Run(gn.get_communicator())
    rank, trainer = run.communicator.rank, run.trainer
    parts = run.model, trainer.loss, trainer.optimizer
    batches = list(run.loader)

    def break_on_rank_1(*_: Any) -> None:
        if rank == 1:
            raise ValueError("a fault of rank 1")

    if how == "catches an error of a step":
        for i, (x, y, weight) in enumerate(batches):
            with suppress(gn.errors.ShapeError):
                gn.train_step(*parts, x[:, : 6 - (rank == 1 and i == 2)], y, weight)
    elif how == "catches an error of a callback":
        try:
            run.fit(2, break_on_rank_1)
        except ValueError:
            run.fit(2)
    elif how == "evaluates" and rank == 1:
        trainer.evaluate(run.loader)
    elif how == "goes on after that":
        with suppress(gn.errors.DistributedError):
            trainer.evaluate(run.loader) if rank == 1 else run.fit(1)
        run.fit(1)
    elif how == "leaves out a step":
        for batch in batches[rank:]:
            gn.train_step(*parts, *batch)
        run.communicator.barrier()
    elif how == "leaves" and rank == 1:
        os._exit(0)
    elif how == "is gone":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # by which MPICH's launcher tells of it
        run.communicator.barrier()
        if rank == 1:
            ctypes.CDLL(None)._exit(0)  # of which Python knows nothing
        run.communicator.barrier()
    else:
        run.fit(5)
    print("reached the end")


def go_on() -> None:
    """Catch an error that all ranks have, and the first that they do not, and train again."""
    run = Run(gn.get_communicator())
    try:
        run.trainer.fit(run.loader, 0)
    except gn.errors.SettingError:
        run.fit(1)
    print(f"has {len(run.fit(1))} epoch")


def differ(what: str) -> None:
    """Let ranks differ."""
    communicator = gn.get_communicator()
    gn.DataParallel(gn.SGD(gn.Dense(2, 3 + communicator.rank).parameters()), communicator)


def exchange() -> None:
    """Check what a communicator does."""
    communicator = gn.get_communicator()
    place = gn.get_backend(BACKEND)
    for dtype in ("float32", "float64", "int64"):
        array = place.asarray(np.arange(5), dtype) + communicator.rank
        communicator.broadcast(array, communicator.size - 1)
        assert gn.to_numpy(array).tolist() == [communicator.size - 1 + i for i in range(5)]
        communicator.allreduce(array)
        assert gn.to_numpy(array).tolist() == [
            communicator.size * (communicator.size - 1 + i) for i in range(5)
        ]
    communicator.barrier()
    matrix = place.asarray(np.arange(6.0).reshape(2, 3)).T  # not in C order
    communicator.allreduce(matrix)
    wanted = communicator.size * np.arange(6.0).reshape(2, 3).T
    np.testing.assert_array_equal(gn.to_numpy(matrix), wanted)
    rng = np.random.default_rng(communicator.rank)
    for size in (1, 3, 1000, 100_000):
        array = place.asarray(rng.normal(size=size), "float32")
        half = array.astype("float16")
        communicator.allreduce(array)
        communicator.allreduce(half)
        np.testing.assert_allclose(gn.to_numpy(half), gn.to_numpy(array), atol=0.01)
        bits = gn.to_numpy(array).tobytes().hex()
        assert len(set(gather(communicator, bits))) == 1, "ranks have other bits"


def background() -> None:
    """Check sums that have been started, some by a rank that comes late, beside others."""
    communicator = gn.get_communicator()
    place, rank, n = gn.get_backend(BACKEND), communicator.rank, communicator.size
    xp = place.xp
    for turn in range(6):
        sizes = {1: "float32", 3: "float64", 100_000: "float32", 7: "float16", 300_000: "float64"}
        arrays = [xp.full((k,), rank + i, dtype=d) for i, (k, d) in enumerate(sizes.items())]
        sums = []
        for i, array in enumerate(arrays):
            time.sleep(0.01 * ((i + turn) % n == rank))
            xp.multiply(array, 1.0, out=array)  # queued before the sum
            sums.append(communicator.start_allreduce(array))
            sums[0].advance()
            if i == 2:
                other = place.asarray(np.ones(5), "float64")
                communicator.allreduce(other)
                assert gn.to_numpy(other).tolist() == [n] * 5
        for i, (array, each) in enumerate(zip(arrays, sums, strict=True)):
            each.wait()
            np.testing.assert_array_equal(gn.to_numpy(array), n * (n - 1) / 2 + n * i)
    communicator.barrier()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
