"""Kill training at random instants: resumed repeatedly, it must end with the same bits.

    python bench/kill_resume.py [--kills N] [--seed N]

A child trains with a `Checkpoint` of a few steps and is killed (SIGKILL) at a random instant; the
next one goes on from the file. When a child ends before it is killed, its weights, optimizer,
history and generators have to be those of training that was never stopped; then another training
begins. There are images that are moved at random, batch norm, dropout, a schedule, early stopping
and validation; every other training is streamed, and every other pair of them in the readable loop.
POSIX only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gpunn as gn
from gpunn.arrays.state import on_host
from gpunn.training import epoch

#: A file after so many steps, of 42 in an epoch.
EVERY, EPOCHS = 5, 6
_TIMES = ("elapsed_s", "samples_per_s")


class Survival(NamedTuple):
    """Kills, trainings that came to their end in spite of them, and kills while writing a file."""

    kills: int
    ended: int
    unfinished: int


def train(checkpoint: gn.Checkpoint | None, *, streamed: bool) -> str:
    """Train, from the checkpoint on if it has a file; return a digest of all that is left."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 8, 8, 1)).astype("float32")
    y = (x.mean((1, 2, 3)) > 0).astype("int64")
    moved = gn.Augment(1, flip=True, rng=1)
    settings: Any = {"batch_size": 12, "resident": not streamed, "backend": "numpy"}
    loader = gn.Loader(x, y, transform=moved, rng=2, **settings)
    model = gn.Sequential(
        gn.Conv2d(1, 4, 3, "relu", rng=3),
        gn.BatchNorm(4),
        gn.Flatten(),
        gn.Dropout(0.2),
        gn.Dense(4 * 36, 2, rng=4),
    )
    optimizer = gn.Adam(model.parameters(), gn.ReduceOnPlateau(0.003, patience=2))
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer, metrics=["accuracy"], rng=5)
    history = trainer.fit(
        loader,
        EPOCHS,
        validation=(x[:100], y[:100]),
        early_stopping=gn.EarlyStopping(20, restore_best=False),
        callbacks=[] if checkpoint is None else [checkpoint],
        resume=checkpoint,
        progress=False,
    )
    columns = {name: history[name] for name in history.columns if name not in _TIMES}
    return digest_of([trainer.state_dict(), loader.state_dict(), columns])


def digest_of(state: Any) -> str:
    """Return a digest of all numbers in a state."""
    text = json.dumps(on_host(state), default=lambda x: [str(x.dtype), x.shape, x.tobytes().hex()])
    return hashlib.sha256(text.encode()).hexdigest()


def survive(folder: Path, kills: int, seed: int) -> Survival:
    """Kill `kills` children; raise if one that finishes ends with other bits than it should."""
    rng = random.Random(seed)  # noqa: S311 (no secret)
    whole, took = measured(folder)
    killed = ended = unfinished = lives = 0
    while killed < kills or ended < len(whole):
        streamed, readable = bool(ended & 1), bool(ended & 2)
        path = folder / f"{ended}.safetensors"

        def work(path: Path = path, streamed: bool = streamed, readable: bool = readable) -> str:
            if readable:
                epoch.feed_of = lambda *_: None
            return train(gn.Checkpoint(path, EVERY, unit="steps"), streamed=streamed)

        # Ever longer, so that training finishes even on a busy machine.
        found = run(work, folder / "digest", rng.uniform(0.0, took) * (1 + lives / 20))
        killed += found is None
        if found is None:
            lives += 1
            unfinished += len(list(folder.glob("*.part")))
            continue
        # A readable step adds sums up in another order than a compiled one.
        assert found == whole[streamed, readable], f"training {ended} ended with other bits"
        path.unlink()
        ended, lives = ended + 1, 0
    return Survival(killed, ended, unfinished)


def measured(folder: Path) -> tuple[dict[tuple[bool, bool], str], float]:
    """Return the digests of uninterrupted trainings, and the seconds that one takes."""
    train(None, streamed=False)  # so that children find compiled code
    digests = {}
    for readable in (False, True):
        for streamed in (False, True):

            def work(streamed: bool = streamed, readable: bool = readable) -> str:
                if readable:
                    epoch.feed_of = lambda *_: None
                return train(None, streamed=streamed)

            begun = time.perf_counter()
            found = run(work, folder / "digest", None)
            took = time.perf_counter() - begun
            assert found is not None
            digests[streamed, readable] = found
    return digests, took


def run(work: Callable[[], str], answer: Path, seconds: float | None) -> str | None:
    """Run some work in a child; return its answer, or None if it was killed before it finished."""
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            answer.with_suffix(".new").write_text(work())
            answer.with_suffix(".new").rename(answer)
            status = 0
        except BaseException:  # noqa: BLE001 (the parent is told)
            import traceback  # noqa: PLC0415

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if answer.exists():
        return answer.read_text()
    assert os.WIFSIGNALED(status), "a child failed"
    return None


def main() -> None:
    """Print how it went."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        survival = survive(Path(folder), given.kills, given.seed)
    print(
        f"{survival.kills} kills survived: {survival.ended} trainings ended with the same bits; "
        f"{survival.unfinished} kills left an unfinished file"
    )


if __name__ == "__main__":
    main()
