"""Where the time of a training step goes outside of the kernels, in nanoseconds, by part.

    python bench/overhead.py [--only NAME[,NAME]] [--rounds N]

Each part of a step is run alone, again and again: the loader, the layers' forward and backward
passes, the loss, the tape, the optimizer. The kernel calls that it made are recorded once, and run
alone, too. What is left of the part without them is the Python around them. `trainer` is what
`Trainer.fit` takes beyond all parts, in a large network mostly caches that a part alone finds warm;
`epoch` is what an epoch costs whatever its length, and is not in the sum. All that is for steps one
by one. `recorded` is a step of `Trainer.fit` where it is recorded and many are run in a compiled
call, all in all.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from timing import spread  # before NumPy: it sets the BLAS environment
from workloads import WORKLOADS, Workload

# isort: split
import numpy as np
from libraries.with_gpunn import prepare_training

import gpunn as gn
from gpunn import kernels as kernels_module
from gpunn.kernels import Kernels, kernels
from gpunn.kernels.update import Slots, Update
from gpunn.program import Program

PARTS = ("loader", "layers", "loss", "tape", "optimizer", "trainer")
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class Recorder:
    """Stands for the kernels of NumPy, and keeps each call with copies of its arguments."""

    def __init__(self, real: Kernels) -> None:
        self.calls: list[Call] = []
        self._real = real

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if not callable(method):
            return method

        def recorded(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((method, tuple(_copy(x) for x in args), kwargs))
            return method(*args, **kwargs)

        return method if name == "xp" else recorded


def _copy(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return x.copy(order="K")
    if isinstance(x, Update):
        return Update(Slots(*_copy(list(x.slots))), *x[1:])
    return [_copy(item) for item in x] if isinstance(x, list) else x


@contextmanager
def recording() -> Iterator[Recorder]:
    """Record the calls of NumPy's kernels within the block."""
    table = kernels_module._BY_TYPE
    real = kernels(np.zeros(1))
    table[np.ndarray] = recorder = Recorder(real)  # type: ignore[assignment]
    try:
        yield recorder
    finally:
        table[np.ndarray] = real


@contextmanager
def one_by_one() -> Iterator[None]:
    """Run every step by its layers, and none as recorded, within the block."""
    own = Program.prepare
    Program.prepare = lambda *_, **__: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Program.prepare = own  # type: ignore[method-assign]


def nanoseconds(function: Callable[[], object], seconds: float = 0.02) -> float:
    """Return the time of a call, over as many as fit into some seconds."""
    function()
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for _ in range(10):
            function()
        calls += 10
    return 1e9 * elapsed / calls


def outside(function: Callable[[], object], repeats: int = 1) -> tuple[float, float]:
    """Return the time of a call outside of kernels and within, a repeat."""
    with recording() as recorder:
        function()
    calls = recorder.calls

    def replay() -> None:
        for method, args, kwargs in calls:
            method(*args, **kwargs)

    def empty() -> None:
        for _, args, kwargs in calls:
            _nothing(*args, **kwargs)

    inside = nanoseconds(replay) - nanoseconds(empty) if calls else 0.0
    return (nanoseconds(function) - inside) / repeats, inside / repeats


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Take a kernel's arguments and do nothing."""


def measure(work: Workload) -> tuple[dict[str, float], float, float, float]:
    """Return the time outside of kernels by part, that within, an epoch's, a recorded step's."""
    trainer, loader = prepare_training(work)
    values = [parameter.value for parameter in trainer.optimizer.parameters]
    with kernels(values[0]).threads(loader.batch_size, values):  # as many as `fit` has
        found, inside = measure_parts(trainer, loader)
    trainer, loader = prepare_training(work)  # the weights have diverged
    batch = next(iter(loader))

    def fit(own: gn.Loader, epochs: int) -> float:
        return nanoseconds(lambda: trainer.fit(own, epochs, progress=False), 0.1)

    few = max(2, 300 // len(loader))

    def step() -> float:
        return (fit(loader, few + 1) - fit(loader, 1)) / (few * len(loader))

    recorded = step()
    with one_by_one():
        single = gn.Loader(batch.x, batch.y, batch_size=None, rng=0)
        epoch = (fit(single, 101) - fit(single, 1)) / 100
        found["trainer"] = (alone := step()) - sum(found.values()) - inside
    return found, inside, epoch - alone, recorded


def measure_parts(trainer: gn.Trainer, loader: gn.Loader) -> tuple[dict[str, float], float]:
    """Return the time outside of kernels of each part, and that within."""
    model, loss, optimizer = trainer.model, trainer.loss, trainer.optimizer
    batch = next(iter(loader))
    output = model.forward(batch.x)
    gradients = [p.grad_buffer for p in optimizer.parameters]
    for gradient in gradients:
        gradient[...] = 1e-3
    optimizer.schedule = gn.schedules.Constant(1.0)  # they are scaled in place, over and over
    model_tape = gn.Tape(input_grad=False)
    model.forward(batch.x, model_tape)
    entries = model_tape.entries()

    def layers() -> None:
        tape = gn.Tape(input_grad=False)
        model.backward(model.forward(batch.x, tape), tape)

    def cost() -> None:
        tape = gn.Tape()
        loss.forward(output, batch.y, tape)
        loss.backward(tape)

    def tape_alone() -> None:
        tape = gn.Tape(input_grad=False)
        for owner, saved in entries:
            tape.push(owner, *saved)
        for owner, _ in reversed(entries):
            tape.pop(owner)

    def update() -> None:
        for parameter, gradient in zip(optimizer.parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    found, inside = {}, 0.0
    parts = {"loader": lambda: list(loader), "layers": layers, "loss": cost, "optimizer": update}
    for name, run in parts.items():
        found[name], kernel = outside(run, len(loader) if name == "loader" else 1)
        inside += kernel
    found["tape"] = nanoseconds(tape_alone)
    found["layers"] -= found["tape"]
    found["loss"] -= nanoseconds(lambda: gn.Tape().push(loss, output))
    return found, inside


def main() -> None:
    """Print a row for each workload."""
    training = ["logreg", "logreg1", "xor", "digits", "digits200", "mnist", "regression"]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME[,NAME]", help=", ".join(training))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else training
    columns = (*PARTS, "sum", "kernels", "epoch", "recorded")
    print(f"{'ns a step':11}{''.join(f'{name:>11}' for name in columns)}")
    for name in names:
        rows: list[list[float]] = []
        for _ in range(arguments.rounds):
            found, inside, *others = measure(WORKLOADS[name])
            parts = [found[part] for part in PARTS]
            rows.append([*parts, sum(parts), inside, *others])
        medians = [spread(column).median for column in zip(*rows, strict=True)]
        print(f"{name:11}{''.join(f'{value:11,.0f}' for value in medians)}", flush=True)


if __name__ == "__main__":
    main()
