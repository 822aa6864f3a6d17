"""Kill `gn.save` at random instants: the old or the new file must be there, whole.

    python bench/kill_save.py [--kills N] [--seed N] [--parameters N]

A child saves two models in turn, over and over, to one file, and is killed (SIGKILL) at a random
instant of its first few saves. Then the file has to load, as one of the two. Killed at any instant
of writing, a child leaves an unfinished file of another name behind; their number says how many
kills came at that time. POSIX only.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import gpunn as gn
from gpunn.files.atomic import remove_unfinished


class Survival(NamedTuple):
    """How often the file was as before the kill, or another, and how many saves were cut short."""

    old: int
    new: int
    unfinished: int


def survive(folder: Path, kills: int, seed: int, parameters: int) -> Survival:
    """Kill `kills` children that save into a folder; raise if a file is lost."""
    rng = random.Random(seed)  # noqa: S311 (no secret)
    path, width = folder / "model.safetensors", max(1, parameters // 100)
    models = [gn.Dense(100, width, bias=False, rng=seed) for seed in range(2)]
    whole = [model.weight.value.tobytes() for model in models]
    gn.save(path, models[0])
    begun = time.perf_counter()
    gn.save(path, models[0])
    took = time.perf_counter() - begun
    before, changed, unfinished = 0, 0, 0
    for _ in range(kills):
        kill_one(path, models, rng.uniform(0.0, 4 * took))
        found = gn.Dense(100, width, bias=False, rng=2)
        gn.load(path, found)
        after = whole.index(found.weight.value.tobytes())
        changed += after != before
        before = after
        unfinished += len(remove_unfinished(path))
        assert list(folder.iterdir()) == [path]
    return Survival(kills - changed, changed, unfinished)


def kill_one(path: Path, models: list[gn.Dense], seconds: float) -> None:
    """Start a child that saves models in turn, and kill it after so many seconds."""
    child = os.fork()
    if child == 0:
        try:
            for model in cycle(models):
                gn.save(path, model)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child ended before it was killed"


def main() -> None:
    """Print how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parameters", type=int, default=500_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        survival = survive(Path(folder), given.kills, given.seed, given.parameters)
    print(
        f"{given.kills} kills survived: the old file {survival.old} times, a new one "
        f"{survival.new} times; {survival.unfinished} kills left an unfinished file beside it"
    )


if __name__ == "__main__":
    main()
