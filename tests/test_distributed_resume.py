"""Checkpoints of several ranks, as threads: on as many bit for bit, on others to rounding."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import run_ranks
from test_distributed import assert_close, data, network

import gpunn as gn
from gpunn.errors import PathError

EPOCHS, STEP = 4, 12


class Kept(gn.Checkpoint):
    """Keeps a copy of the file after 6 steps, in the middle of the second epoch."""

    def write(self, state: dict[str, Any], step: int) -> None:
        super().write(state, step)
        if step == 6:
            shutil.copy(self._name(step), self.path.with_name("kept.safetensors"))


def images(n: int = 37) -> dict[str, Any]:
    """Return images of 2 by 3; the last step of 12 has one, and so some ranks have none."""
    return {name: x[:n].reshape(n, 2, 3, 1) if name == "x" else x[:n] for name, x in data().items()}


class Run:
    """A run with all that a checkpoint has to remember."""

    def __init__(
        self, communicator: Any, folder: Path, *, random: bool = False, moved: bool = False
    ) -> None:
        model = network()
        if random:
            hidden = gn.Dense(6, 8, rng=0, dtype="float64")
            norm = gn.BatchNorm(8, dtype="float64")
            last = gn.Dense(8, 3, rng=1, dtype="float64")
            model = gn.Sequential(hidden, norm, gn.ReLU(), gn.Dropout(0.3), last)
        parts: dict[str, Any] = data()
        if moved:  # each rank has a generator of its own
            model = gn.Sequential(gn.Flatten(), network())
            parts = images() | {"transform": gn.Augment(1, flip=True)}
        self.model, self._folder = model, folder
        rate = gn.ReduceOnPlateau(0.05, patience=1)
        self.optimizer = gn.Adam(model.parameters(), rate, clip_norm=1.0)
        if not random:
            gn.WeightAverage(self.optimizer, 0.9)
        gn.DataParallel(self.optimizer, communicator)
        loss = gn.SoftmaxCrossEntropy()
        metrics = ["accuracy"]
        self.trainer = gn.Trainer(model, loss, self.optimizer, metrics=metrics, rng=5)
        sizes = {"batch_size": max(1, STEP // communicator.size), "communicator": communicator}
        self.loader = gn.Loader(**parts, dtype="float64", rng=3, **sizes)
        #: A validation that draws, too, where images are moved.
        self.validation = self.loader if moved else tuple(data(20, seed=1).values())

    def fit(self, resume: Any = None, **settings: Any) -> Run:
        unit = {"every": 2, "unit": "steps"} | settings
        checkpoint = Kept(self._folder / "run.safetensors", **unit)
        self.history = self.trainer.fit(
            self.loader,
            EPOCHS,
            validation=self.validation,
            early_stopping=gn.EarlyStopping(patience=3),
            callbacks=[checkpoint],
            resume=checkpoint if resume == "newest" else resume,
            progress=False,
        )
        return self

    def weights(self) -> list[Any]:
        return [np.array(parameter.value) for parameter in self.model.parameters()]


@pytest.mark.parametrize("kind", [{}, {"random": True}, {"moved": True}], ids=str)
@pytest.mark.parametrize("size", [2, 3])
def test_it_goes_on_bit_for_bit(size: int, tmp_path: Path, kind: dict[str, bool]) -> None:
    whole = run_ranks(size, lambda c: Run(c, tmp_path, **kind).fit())
    kept = tmp_path / "kept.safetensors"
    resumed = run_ranks(size, lambda c: Run(c, tmp_path, **kind).fit(kept))
    for mine, wanted in zip(resumed, whole, strict=True):
        for one, other in zip(mine.weights(), wanted.weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        for column in ("loss", "accuracy", "validation_loss", "learning_rate"):
            assert mine.history[column] == wanted.history[column], column


@pytest.mark.parametrize("size", [1, 3, 4, 5])
def test_it_goes_on_with_another_number_of_ranks(size: int, tmp_path: Path) -> None:
    (whole, _) = run_ranks(2, lambda c: Run(c, tmp_path).fit())
    kept = tmp_path / "kept.safetensors"
    runs = run_ranks(size, lambda c: Run(c, tmp_path).fit(kept))
    assert {run.loader.step_size for run in runs} == {STEP}  # 5 ranks have 2 or 3 samples each
    assert_close(runs, whole)


def test_moved_images_go_on_with_another_number_of_ranks(tmp_path: Path) -> None:
    """They are moved in other ways then: losses before are the same, and those after are near."""
    whole = run_ranks(2, lambda c: Run(c, tmp_path, moved=True).fit())[0].history
    for size in (1, 3):
        runs = run_ranks(
            size, lambda c: Run(c, tmp_path, moved=True).fit(tmp_path / "kept.safetensors")
        )
        for run in runs:
            assert run.history.to_dict() == runs[0].history.to_dict()
            assert run.history["loss"][0] == whole["loss"][0]
            np.testing.assert_allclose(run.history["loss"], whole["loss"], rtol=0.2)


def test_each_rank_moves_images_in_ways_of_its_own() -> None:
    x = np.broadcast_to(np.arange(12.0).reshape(1, 3, 4, 1), (40, 3, 4, 1))

    def program(communicator: Any) -> list[bytes]:
        moved = gn.Augment(1, flip=True, rng=0)
        loader = gn.Loader(x, batch_size=10, transform=moved, communicator=communicator)
        return [batch.x.tobytes() for batch in loader]

    one, other = run_ranks(2, program)
    assert len(one) == len(other) == 2
    assert not set(one) & set(other)


@pytest.mark.parametrize("every", [{"every": 1e-9, "unit": "seconds"}, {"keep": 2}])
def test_files_are_written_by_one(every: dict[str, Any], tmp_path: Path) -> None:
    run_ranks(2, lambda c: Run(c, tmp_path).fit(**every))
    files = [path.name for path in tmp_path.iterdir() if path.name.startswith("run")]
    assert len(files) == every.get("keep", 1)
    for run in run_ranks(2, lambda c: Run(c, tmp_path).fit("newest", **every)):
        assert len(run.history) == EPOCHS


def test_a_file_that_not_all_see(tmp_path: Path) -> None:
    run_ranks(2, lambda c: Run(c, tmp_path).fit())

    def program(communicator: Any) -> None:
        name = ("kept.safetensors", "missing.safetensors")[communicator.rank]
        Run(communicator, tmp_path).fit(tmp_path / name)

    for error in run_ranks(2, program):
        with pytest.raises(gn.errors.DistributedError, match=r"missing.* which is not there"):
            raise error


def test_a_step_too_small_for_so_many_ranks(tmp_path: Path) -> None:
    run_ranks(2, lambda c: Run(c, tmp_path).fit())
    kept = tmp_path / "kept.safetensors"

    def program(communicator: Any) -> None:
        run = Run(communicator, tmp_path)
        run.loader.batch_size = 1
        run.fit(kept)

    for error in run_ranks(13, program):
        with pytest.raises(gn.errors.StateError, match="step_size must be from 13, a sample for"):
            raise error


def test_a_file_that_rank_0_cannot_write_is_an_error_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PathError("the disk is full")

    monkeypatch.setattr(Kept, "write", refuse)

    def program(communicator: Any) -> str:
        with pytest.raises(PathError) as caught:
            Run(communicator, tmp_path).fit()
        return str(caught.value)

    first, *others = run_ranks(3, program)
    assert first == "the disk is full"
    assert others == ["on rank 0: the disk is full"] * 2
