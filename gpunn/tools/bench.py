"""Measure training steps per second on this machine, for gpunn and other installed libraries.

``python -m gpunn bench`` prints the result. The libraries take turns in one process, on perceptrons
from small to large. `bench/` in the repository measures more, with each library in its own process,
and compares losses first; this module is limited to a minute, and needs only the package.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from gpunn.arrays.backend import get_backend
from gpunn.tools import contenders
from gpunn.tools.contenders import Network, Run
from gpunn.tools.probe import ProbeError, attempt
from gpunn.tools.report import Device, Report

#: From the README's table, the smaller ones first, since time may run out before the last.
NETWORKS = (
    Network((30, 1), 32, 128),
    Network((64, 128, 10), 32, 56),
    Network((784, 512, 256, 10), 128, 20, momentum=0.9),
    Network((1024, 4096, 4096, 1000), 256, 2),
)

#: The number of rounds that a network's time is divided into.
_ROUNDS = 5
_NO_TIME = "no time was left"
#: The pause between turns, in which the threads of the previous library go to sleep.
_PAUSE_S = 0.02


class Entrant(NamedTuple):
    """A library on a device."""

    library: str
    device: str
    prepare: Callable[[Network], Run]


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Row:
    """The speed of a library on a device.

    Attributes
    ----------
    network, library, device : str
        The network trained, with the library and device used.
    steps_per_s, us_per_step : float
        From the median of the rounds.
    rounds : int
        The number of rounds measured.
    """

    network: str
    library: str
    device: str
    steps_per_s: float
    us_per_step: float
    rounds: int


@dataclass
class Times:
    """The measurements; `str` returns the lines that the command prints.

    Attributes
    ----------
    found : Report
        The doctor's report on this machine.
    processor : str
        The name of the processor.
    cores : int or None
        The number of cores.
    rows : list of Row
        The speeds.
    absent : dict of str to str
        Why libraries, devices or networks were not measured.
    took_s : float
        The duration of the whole benchmark, in seconds.
    """

    found: Report
    processor: str = field(default_factory=processor)
    cores: int | None = field(default_factory=os.cpu_count)
    rows: list[Row] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    took_s: float = 0.0

    def to_json(self) -> str:
        """Return the measurements as one JSON object."""
        found = self.found
        facts = {name: getattr(found, name) for name in ("gpunn", "python", "system", "numpy")}
        facts |= {"blas": found.blas, "steps_problem": found.steps_problem, "graphs": found.graphs}
        devices = [asdict(d) | {"emulated": is_emulated(d)} for d in found.devices]
        measured = {name: getattr(self, name) for name in ("processor", "cores", "took_s")}
        rows = {"rows": [asdict(row) for row in self.rows], "absent": self.absent}
        return json.dumps(facts | measured | {"devices": devices} | rows, indent=2)

    def __str__(self) -> str:
        found = self.found
        steps = f"as written: {found.steps_problem}" if found.steps_problem else "compiled"
        lines = [
            ("gpunn", f"{found.gpunn}, steps on NumPy {steps}"),
            ("Python", f"{found.python} on {found.system}"),
            ("NumPy", f"{found.numpy}, BLAS: {'; '.join(found.blas) or 'unknown'}"),
            ("CPU", f"{self.processor}, {self.cores} cores"),
        ]
        head = [f"{label:<8}{text}" for label, text in lines]
        title = "Training steps per second, single precision (in brackets: relative to gpunn, CPU)"
        tail = [f"{name}: {why}" for name, why in self.absent.items()]
        return "\n".join([*head, "", title, *self._table(), "", *tail]).rstrip()

    def _table(self) -> list[str]:
        """Return a line for each network, with a column for each library on a device."""
        columns = list(dict.fromkeys((row.library, row.device) for row in self.rows))
        networks = list(dict.fromkeys(row.network for row in self.rows))
        rates = {(r.network, r.library, r.device): r.steps_per_s for r in self.rows}
        table = [["network", *(f"{library}, {device}" for library, device in columns)]]
        for network in networks:
            ours = rates.get((network, "gpunn", "CPU"))
            cells = [_cell(rates.get((network, *column)), ours) for column in columns]
            table.append([network, *cells])
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in table
        ]


def _cell(rate: float | None, ours: float | None) -> str:
    if rate is None:
        return "-"
    shown = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
    return shown if ours in (None, rate) else f"{shown} [{rate / ours:.2g}]"


def measure(examine: Callable[[], Report], limit_s: float) -> Times:
    """Measure all available libraries and devices.

    Parameters
    ----------
    examine : function
        Returns the doctor's report on this machine.
    limit_s : float
        The time limit in seconds; an epoch that has begun is finished.
    """
    start = time.perf_counter()
    times = Times(examine())
    entrants = _entrants(times)
    for i, network in enumerate(NETWORKS):
        now, share = time.perf_counter(), 1 / (len(NETWORKS) - i)
        if now < start + limit_s:
            _race(times, network, entrants, now + share * (start + limit_s - now))
        else:
            times.absent[str(network)] = _NO_TIME
    times.took_s = round(time.perf_counter() - start, 1)
    return times


def _entrants(times: Times) -> list[Entrant]:
    """Return the libraries and devices to measure; note why others are missing."""
    numpy = get_backend("numpy")
    there = [Entrant("gpunn", "CPU", partial(contenders.with_gpunn, place=numpy))]
    _add_gpu(times, there)
    for library, package, add in (
        ("scikit-learn", "sklearn", _add_sklearn),
        ("PyTorch", "torch", _add_torch),
        ("JAX", "jax", _add_jax),
    ):
        if find_spec(package) is None:
            times.absent[library] = "not installed"
            continue
        try:
            attempt(partial(add, there))
        except ProbeError as failure:
            times.absent[library] = failure.reason
    return there


def _add_gpu(times: Times, there: list[Entrant]) -> None:
    """Add gpunn on CuPy's current device, unless it is missing or emulated."""
    found = times.found
    try:
        place = attempt(lambda: get_backend("cupy"))
    except ProbeError as failure:
        times.absent["gpunn on a GPU"] = failure.reason
        return
    device = next((d for d in found.devices if d.backend == str(place)), Device(str(place)))
    if is_emulated(device):
        times.absent["gpunn on a GPU"] = (
            f"{place} is not a GPU but a {device.name}, whose times say nothing about one"
        )
    else:
        name = device.name or device.backend
        there.append(Entrant("gpunn", name, partial(contenders.with_gpunn, place=place)))


def is_emulated(device: Device) -> bool:
    """Return whether a device's name says that it is emulated."""
    return "emulator" in device.name.lower()


def _add_sklearn(there: list[Entrant]) -> None:
    version = importlib.import_module("sklearn").__version__
    there.append(Entrant(f"scikit-learn {version}", "CPU", contenders.with_sklearn))


def _add_torch(there: list[Entrant]) -> None:
    torch = importlib.import_module("torch")
    library = f"PyTorch {torch.__version__}"
    there.append(Entrant(library, "CPU", partial(contenders.with_torch, device="cpu")))
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        there.append(Entrant(library, name, partial(contenders.with_torch, device="cuda")))


def _add_jax(there: list[Entrant]) -> None:
    jax = importlib.import_module("jax")
    (device, *_) = jax.devices()
    name = "CPU" if device.platform == "cpu" else device.device_kind
    there.append(Entrant(f"JAX {jax.__version__}", name, contenders.with_jax))


def _race(times: Times, network: Network, entrants: Sequence[Entrant], end: float) -> None:
    """Measure a network until a given time, and add its rows."""
    runs: dict[Entrant, Run] = {}
    seconds: dict[Entrant, float] = {}
    for entrant in entrants:
        what = f"{network} by {entrant.library}, {entrant.device}"
        if time.perf_counter() >= end:
            times.absent[what] = _NO_TIME
            continue
        try:
            runs[entrant], seconds[entrant] = attempt(partial(_warmed_up, entrant, network))
        except ProbeError as failure:
            times.absent[what] = failure.reason
    turn_s = (end - time.perf_counter()) / max(1, _ROUNDS * len(runs)) - _PAUSE_S
    epochs = {entrant: max(1, int(turn_s / s)) for entrant, s in seconds.items()}
    rounds = _in_turn(runs, epochs, end)
    for entrant, warm in seconds.items():
        found = rounds[entrant] or [warm]
        step_s = statistics.median(found) / network.n_steps
        rates = round(1 / step_s, 3), round(1e6 * step_s, 3)
        row = Row(str(network), entrant.library, entrant.device, *rates, len(found))
        times.rows.append(row)


def _warmed_up(entrant: Entrant, network: Network) -> tuple[Run, float]:
    """Return the training function, and the seconds of an epoch once all is compiled."""
    run = entrant.prepare(network)
    run(1)
    start = time.perf_counter()
    loss = run(1)
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss is {loss}")
    return run, time.perf_counter() - start


def _in_turn(
    runs: dict[Entrant, Run], epochs: dict[Entrant, int], end: float
) -> dict[Entrant, list[float]]:
    """Return the seconds per epoch in each round; empty if there is no time for a round."""
    order, rng = list(runs), random.Random(0)  # noqa: S311
    seconds: dict[Entrant, list[float]] = {entrant: [] for entrant in order}
    start = now = time.perf_counter()
    while order and now + (now - start) / max(1, len(seconds[order[0]])) < end:
        rng.shuffle(order)
        for entrant in order:
            time.sleep(_PAUSE_S)
            began = time.perf_counter()
            runs[entrant](epochs[entrant])
            seconds[entrant].append((time.perf_counter() - began) / epochs[entrant])
        now = time.perf_counter()
    return seconds
