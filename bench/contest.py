"""Contests between libraries: each in a process of its own, one at a time, in rounds.

The thread pools of two libraries in one process take each other's cores, so each contender has its
own process; one works at a time, in random order within a round. Only preparing, which nobody
times, is done by all at once, since some compile. All start from the same weights on the same
data, and their losses over the first steps, with dropout off (the masks differ), must agree before
any time is taken.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

from timing import spread  # before NumPy: it sets the BLAS environment
from workloads import Workload

#: How far losses may be apart, relative to the largest: what the products' formats lose.
TOLERANCES = {"float32": 1e-3, "tf32": 5e-3, "bfloat16": 3e-2}
PAUSE_S = 0.05
LEAST_ROUNDS = 3
A_DAY_S = 86_400.0
PROGRAM = Path(__file__).with_name("worker.py")


class Contender(NamedTuple):
    """A way to use a library: `libraries/with_PACKAGE.py` and its settings."""

    package: str
    variant: str = ""
    device: str = "cpu"
    environment: tuple[tuple[str, str], ...] = ()


class LeftOut(Exception):  # noqa: N818 (not always an error)
    """A contender cannot take part; `refused` if it declined by itself."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class Failure(SystemExit):
    """A failure of gpunn itself; ends the program unless it is caught."""


class Outcome(NamedTuple):
    """The outcome of a workload.

    Attributes
    ----------
    seconds : dict
        Seconds per step of each contender, one for each round.
    left_out : dict
        Why others did not take part.
    disagreeing : list of str
        Those whose losses are others than the first's; they are not timed.
    """

    seconds: dict[str, list[float]]
    left_out: dict[str, str]
    disagreeing: list[str]

    def check(self) -> None:
        """Fail if there was any disagreement."""
        if self.disagreeing:
            raise Failure(f"losses differ: {', '.join(self.disagreeing)}; see above")


class Worker:
    """A process in which one contender runs workloads, when asked."""

    def __init__(self, name: str, contender: Contender) -> None:
        self.name = name
        self.device = contender.device
        #: gpunn is measured; the others may fail.
        self.required = contender.package == "gpunn"
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(PROGRAM), *contender[:3]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | dict(contender.environment),
        )

    def tell(self, what: str, **arguments: Any) -> None:
        """Send a request; `answer` returns its answer."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `answer` then reports the missing answer
            self._process.stdin.write(json.dumps([what, arguments]) + "\n")
            self._process.stdin.flush()

    def answer(self, within_s: float = A_DAY_S) -> Any:
        """Return the answer; without one within `within_s` seconds, end the process."""
        assert self._process.stdout is not None
        start = time.monotonic()
        end = Timer(within_s, self._process.kill)
        end.start()
        line = self._process.stdout.readline()
        end.cancel()
        if not line:
            late = time.monotonic() - start >= within_s
            raise LeftOut(f"it took more than {within_s:g} s" if late else "its process has ended")
        answer = json.loads(line)
        if "failed" in answer:
            raise LeftOut(answer["failed"], refused=answer["refused"])
        return answer["value"]

    def ask(self, what: str, within_s: float = A_DAY_S, **arguments: Any) -> Any:
        """Send a request, and return its answer."""
        self.tell(what, **arguments)
        return self.answer(within_s)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def started(contenders: dict[str, Contender]) -> tuple[list[Worker], list[str], dict[str, str]]:
    """Return the workers that can start, their versions, and why the others cannot."""
    asked = [Worker(name, contender) for name, contender in contenders.items()]
    for worker in asked:
        worker.tell("version")
    left_out: dict[str, str] = {}
    versions = answers(asked, "", left_out)
    workers = [worker for worker in asked if worker.name in versions]
    for worker in asked:
        if worker.name not in versions:
            worker.close()
    return workers, list(dict.fromkeys(versions.values())), left_out


def answers(
    asked: Iterable[Worker], where: str, left_out: dict[str, str], patience_s: float = A_DAY_S
) -> dict[str, Any]:
    """Return the answers received; leave out the workers that gave none."""
    found = {}
    for worker in asked:
        with leaving_out(worker, where, left_out):
            found[worker.name] = worker.answer(patience_s)
    return found


@contextmanager
def leaving_out(worker: Worker, where: str, left_out: dict[str, str]) -> Iterator[None]:
    """Print and note that a peer is left out; without gpunn there is nothing to compare."""
    try:
        yield
    except LeftOut as reason:
        if worker.required and not reason.refused:
            raise Failure(f"{where}{worker.name}: {reason}") from reason
        left_out[worker.name] = str(reason)
        print(f"{where}{worker.name} is left out: {reason}", file=sys.stderr)


def measure(
    name: str,
    entrants: dict[Worker, Workload],
    rounds: int,
    *,
    until: float = float("inf"),
    patience_s: float = A_DAY_S,
) -> Outcome:
    """Compare the losses of all that can run a workload, then time it in rounds.

    Parameters
    ----------
    name : str
        The workload's.
    entrants : dict
        The workload as each is to run it: the same network and data, for as long as suits it. The
        first is the one that is measured: if it refuses the workload, nobody runs it.
    rounds : int
        How many are timed. One that is not comes first. With 0, only the losses are compared.
    until : float
        When `time.monotonic` has passed this, there are no more rounds than `LEAST_ROUNDS`.
    patience_s : float
        How many seconds a peer may take to prepare, or for a round.
    """
    outcome = Outcome({}, {}, [])
    found = prepared(name, entrants, outcome.left_out, patience_s)
    first = next(iter(entrants))
    if first.name not in found:
        return outcome
    outcome.disagreeing.extend(differing(name, entrants[first], found))
    outcome.left_out.update(dict.fromkeys(outcome.disagreeing, "its losses are others"))
    running = [w for w in entrants if w.name in found and w.name not in outcome.left_out]
    outcome.seconds.update({worker.name: [] for worker in running})
    rng = random.Random(name)  # noqa: S311
    for turn in range(rounds + 1):
        if turn > LEAST_ROUNDS and time.monotonic() > until:
            break
        for worker in rng.sample(running, len(running)):
            time.sleep(PAUSE_S)
            with leaving_out(worker, f"{name}: ", outcome.left_out):
                elapsed = worker.ask("run", patience_s)
                if turn:
                    outcome.seconds[worker.name].append(elapsed / entrants[worker].n_steps)
        running = [worker for worker in running if worker.name not in outcome.left_out]
    for gone in outcome.left_out:
        outcome.seconds.pop(gone, None)
    return outcome


def prepared(
    name: str, entrants: dict[Worker, Workload], left_out: dict[str, str], patience_s: float
) -> dict[str, list[float]]:
    """Prepare a workload in all processes; return the losses of those able to run it."""
    steps = 6 if any(max(work.sizes) > 2000 for work in entrants.values()) else 20
    for worker, work in entrants.items():
        worker.tell("prepare", work=work._asdict(), steps=steps)
    found = answers(entrants, f"{name}: ", left_out, patience_s)
    return {who: losses for who, losses in found.items() if losses is not None}


def differing(name: str, work: Workload, found: dict[str, list[float]]) -> list[str]:
    """Return the libraries whose losses (or outputs) differ from the first's by more than rounding.

    How far apart all of them are is printed.
    """
    if work.predict:  # logits, but for a constant of each sample
        width = work.sizes[-1]
        found = {who: _centred(values, width) for who, values in found.items()}
    first, ours = next(iter(found.items()))
    allowed = TOLERANCES[work.products] * max(map(abs, ours))
    apart = []
    worst = 0.0
    for who, theirs in found.items():
        gaps = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
        if all(gap <= allowed for gap in gaps):  # of NaN and a number, max may take either
            worst = max(worst, *gaps)
            continue
        apart.append(who)
        print(f"{name}: {first} and {who} do not agree: {ours} and {theirs}", file=sys.stderr)
    gap = worst / max(map(abs, ours))
    print(f"{name}: {len(found) - len(apart)} agree to {gap:.1e}", file=sys.stderr)
    return apart


def _centred(values: list[float], width: int) -> list[float]:
    rows = [values[i : i + width] for i in range(0, len(values), width)]
    return [value - sum(row) / width for row in rows for value in row]


def best_peer(seconds: dict[str, list[float]]) -> str | None:
    """Return the fastest library other than gpunn, or None."""
    peers = [library for library in seconds if not library.startswith("gpunn")]
    return min(peers, key=lambda library: spread(seconds[library]).median, default=None)
