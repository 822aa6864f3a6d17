"""Checkpoints: when they are written, what is refused, and what a signal or a full disk leaves."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from gpunn.errors import FileError, PathError, SettingError, StateError
from tests.test_resume import (
    WAYS,
    Fatal,
    Parts,
    Stopped,
    assert_same_bits,
    in_parts,
    network,
    straight,
)


def interrupted(path: Path, make: Any = network, *, every: int = 3, **fit: Any) -> None:
    """Leave a checkpoint from the middle of the second epoch, of 7 batches."""
    fatal = Fatal(path, every, "steps", 9 // every)
    with pytest.raises(Stopped):
        straight(make, 4, callbacks=[fatal], **fit)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"


class TestResults:
    """What goes on ends with the same bits, with all that training may have."""

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("settings", [{"average": True}, {"adam": False}], ids=str)
    def test_averages_and_velocities(self, way: str, settings: Any) -> None:
        def make() -> Parts:
            return network(**settings)

        fit: Any = {"early_stopping": gn.EarlyStopping(patience=2), "validation": make()[1]}
        with WAYS[way]():
            whole = straight(make, 6, **fit)
            fit["validation"] = make()[1]
            assert_same_bits(whole, in_parts(make, 6, 4, "steps", [2, 2], **fit))

    def test_accumulated_gradients(self) -> None:
        """Files wait for whole updates."""

        def make() -> Parts:
            trainer, loader = network()
            trainer.accumulate = 3
            return trainer, loader

        whole = straight(make, 3)
        assert_same_bits(whole, in_parts(make, 3, 1, "steps", [1, 1, 3]))

    def test_callbacks_that_remember(self) -> None:
        class Halving:
            """Halves the learning rate after its second epoch."""

            def __init__(self) -> None:
                self.epochs = 0

            def __call__(self, trainer: gn.Trainer, history: gn.History) -> None:
                self.epochs += 1
                history.append({"asked": float(self.epochs)})
                if self.epochs == 2:
                    trainer.optimizer.clip_norm = 0.01

            def state_dict(self) -> dict[str, Any]:
                return {"epochs": self.epochs}

            def load_state_dict(self, state: dict[str, Any]) -> None:
                self.epochs = state["epochs"]

        def fit(make: Any, *files: int) -> Any:
            trainer, loader = make()
            last = None
            for n in (*files, 100):
                trainer, loader = make()
                last = Fatal(where, 5, "steps", n)
                callbacks: list[Any] = [Halving(), last]
                try:
                    history = trainer.fit(loader, 4, callbacks=callbacks, resume=last)
                except Stopped:
                    continue
                return trainer, history, loader
            raise AssertionError

        where = Path("nowhere")
        import tempfile  # noqa: PLC0415

        with tempfile.TemporaryDirectory() as folder:
            where = Path(folder) / "a"
            whole = fit(network)
            where = Path(folder) / "b"
            parts = fit(network, 2, 3)
        assert_same_bits(whole, parts)
        assert whole[1]["asked"] == [1.0, 2.0, 3.0, 4.0]

    def test_what_has_ended_goes_on_for_more_epochs(self, path: Path) -> None:
        last = gn.Checkpoint(path)
        straight(network, 2, callbacks=[last])
        assert_same_bits(straight(network, 5), straight(network, 5, resume=path))
        at_once = straight(network, 2, resume=path)
        assert len(at_once[1]) == 2

    def test_early_stopping_that_has_stopped_stops_again(self, path: Path) -> None:
        fit: Any = {"early_stopping": gn.EarlyStopping(1, tolerance=10.0)}
        whole = straight(network, 9, callbacks=[gn.Checkpoint(path)], **fit)
        assert len(whole[1]) == 2
        assert_same_bits(whole, straight(network, 9, resume=path, **fit))

    def test_a_loader_of_ones_own_waits_for_the_end_of_an_epoch(self, path: Path) -> None:
        class Own(gn.Loader):
            pass

        def make() -> Parts:
            trainer, loader = network()
            loader.__class__ = Own
            return trainer, loader

        fatal = Fatal(path, 3, "steps", 1)
        with pytest.raises(Stopped):
            straight(make, 6, callbacks=[fatal])
        assert_same_bits(straight(make, 6), straight(make, 6, resume=path))

    @pytest.mark.gpu
    def test_from_a_gpu_to_a_cpu_and_back(self, path: Path) -> None:
        """With the same draws, and the same numbers but for rounding."""
        interrupted(path, lambda: network("cupy"))
        here = straight(network, 4, resume=path)
        there = straight(lambda: network("cupy"), 4)
        for name in ("loss", "accuracy", "learning_rate"):
            assert_allclose(here[1][name], there[1][name], rtol=1e-3, atol=1e-4, err_msg=name)
        assert here[0]._rng.bit_generator.state == there[0]._rng.bit_generator.state
        interrupted(path)
        back = straight(lambda: network("cupy"), 4, resume=path)
        assert_allclose(back[1]["loss"], there[1]["loss"], rtol=1e-3, atol=1e-4)


class TestFiles:
    @pytest.mark.parametrize(
        ("unit", "every", "steps"),
        [("steps", 5, [5, 10, 15, 20, 21]), ("epochs", 2, [14, 21]), ("epochs", 1, [7, 14, 21])],
    )
    def test_are_written_when_they_are_due(
        self, tmp_path: Path, unit: Any, every: int, steps: list[int]
    ) -> None:
        kept = gn.Checkpoint(tmp_path / "a.safetensors", every, unit=unit, keep=9)
        straight(network, 3, callbacks=[kept])
        assert [int(f.stem[2:]) for f in sorted(tmp_path.iterdir())] == steps

    def test_after_seconds(self, path: Path) -> None:
        often = Fatal(path, 1, "epochs", 99)
        often = gn.Checkpoint(path, 1e-9, unit="seconds", keep=99)  # type: ignore[assignment]
        straight(network, 2, callbacks=[often])
        assert len(list(path.parent.iterdir())) >= 2
        path = path.parent / "seldom"
        straight(network, 2, callbacks=[gn.Checkpoint(path, 1e9, unit="seconds", keep=99)])
        assert [f.name for f in path.parent.glob("seldom*")] == ["seldom-000000000014"]

    def test_the_newest_are_kept(self, tmp_path: Path) -> None:
        (tmp_path / "a-1.safetensors").write_text("another file")
        kept = gn.Checkpoint(tmp_path / "a.safetensors", 1, unit="steps", keep=2)
        straight(network, 1, callbacks=[kept])
        names = sorted(file.name for file in tmp_path.iterdir())
        assert names == [
            "a-000000000006.safetensors",
            "a-000000000007.safetensors",
            "a-1.safetensors",
        ]
        assert kept.latest() == tmp_path / "a-000000000007.safetensors"

    def test_what_a_killed_process_has_left_is_removed(self, path: Path) -> None:
        left = path.with_name(f".{path.name}.0123456789ab.part")
        left.write_text("half")
        last = gn.Checkpoint(path)
        straight(network, 1, callbacks=[last], resume=last)
        assert list(path.parent.iterdir()) == [path]

    def test_hold_the_weights_by_name(self, path: Path) -> None:
        trainer, _, _ = straight(network, 1, callbacks=[gn.Checkpoint(path)])
        other, _ = network()
        report = gn.load(path, other.model)
        assert not report.missing
        assert not report.unexpected
        for a, b in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
            assert_array_equal(a.value, b.value)


class TestMany:
    """What a review found: many parts, several calls, several runs."""

    def test_many_short_parts(self, path: Path) -> None:
        """Parts that are cut short say little about how many batches fit into a quarter second."""
        x, y = np.zeros((40, 2), "float32"), np.zeros(40, int)

        def make() -> Parts:
            model = gn.Dense(2, 2, rng=0)
            return gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters())), (
                gn.Loader(x, y, batch_size=20, rng=0)
            )

        assert len(straight(make, 700, callbacks=[gn.Checkpoint(path, 700)])[1]) == 700

    def test_each_call_of_fit_writes(self, path: Path) -> None:
        last = gn.Checkpoint(path, 10)
        trainer, loader = network()
        trainer.fit(loader, 2, callbacks=[last], progress=False)
        first = path.read_bytes()
        trainer.fit(loader, 2, callbacks=[last], progress=False)
        assert path.read_bytes() != first
        path.unlink()
        trainer.fit(loader, 2, callbacks=[last], resume=last, progress=False)
        assert path.exists()

    def test_numbered_files_of_another_run_are_told(self, path: Path) -> None:
        last = gn.Checkpoint(path, keep=2)
        straight(network, 3, callbacks=[last])
        with pytest.raises(SettingError, match="is there from another run"):
            straight(network, 2, callbacks=[last])
        straight(network, 5, callbacks=[last], resume=last)
        names = sorted(file.stem[-4:] for file in path.parent.iterdir())
        assert names == ["0028", "0035"]

    @pytest.mark.parametrize("keeps", [(1, 2), (2, 1), (1, 2, 1), (2, 1, 3)])
    def test_files_are_found_whatever_was_kept(self, path: Path, keeps: tuple[int, ...]) -> None:
        """And the oldest are removed; from the first file on, it is one run."""
        for i, keep in enumerate(keeps):
            last = gn.Checkpoint(path, keep=keep)
            resume = last if i else None
            got = straight(network, 2 * i + 2, callbacks=[last], resume=resume)
        whole = straight(network, 2 * len(keeps))
        assert_same_bits(whole, got)
        assert len(list(path.parent.iterdir())) == keeps[-1]

    @pytest.mark.parametrize("keeps", [(2, 1), (1, 2)])
    def test_files_of_another_run_are_told_whatever_was_kept(
        self, path: Path, keeps: tuple[int, int]
    ) -> None:
        first, last = (gn.Checkpoint(path, keep=keep) for keep in keeps)
        straight(network, 2, callbacks=[first])
        before = sorted(path.parent.iterdir())
        with pytest.raises(SettingError, match="is there from another run"):
            straight(network, 2, callbacks=[last])
        assert sorted(path.parent.iterdir()) == before

    def test_unfinished_files_beside_the_target_of_a_link(self, path: Path) -> None:
        """As a killed process leaves them."""
        folder = path.parent / "elsewhere"
        folder.mkdir()
        target = folder / "run.safetensors"
        path.symlink_to(target)
        left = folder / f".run.safetensors.{'a' * 12}.part"
        other = folder / f".other.safetensors.{'a' * 12}.part"
        for file in (left, other):
            file.touch()
        last = gn.Checkpoint(path)
        straight(network, 1, callbacks=[last], resume=last)
        assert sorted(folder.iterdir()) == [other, target]
        target.unlink()
        folder.rename(path.parent / "moved")  # now the link leads nowhere
        last.remove_unfinished()

    def test_batches_that_grow(self, path: Path) -> None:
        """The count of steps, and with it the newest file, does not fall."""

        def grow(trainer: gn.Trainer, history: gn.History) -> None:
            if len(history) == 2:
                loader.batch_size = 50

        trainer, loader = network()
        last = gn.Checkpoint(path, keep=2)
        trainer.fit(loader, 4, callbacks=[grow, last], progress=False)
        names = sorted(file.stem[-4:] for file in path.parent.iterdir())
        assert names == ["0016", "0018"]

    def test_what_is_due_waits_for_an_update(self, path: Path) -> None:
        trainer, loader = network()
        trainer.accumulate = 3
        last = gn.Checkpoint(path, 4, unit="steps", keep=99)
        trainer.fit(loader, 2, callbacks=[last], progress=False)
        names = sorted(int(file.stem[-4:]) for file in path.parent.iterdir())
        assert names == [6, 10, 13, 14]

    @pytest.mark.filterwarnings("ignore:.*encountered.*:RuntimeWarning")
    def test_no_file_has_weights_that_are_no_numbers(self, path: Path) -> None:
        trainer, loader = network(adam=False)
        last = gn.Checkpoint(path, 1, unit="steps")

        def spoil(trainer: gn.Trainer, history: gn.History) -> None:
            trainer.model.parameters()[0].value[...] = np.nan

        with pytest.raises(gn.errors.DivergenceError):
            trainer.fit(loader, 4, callbacks=[spoil, last], progress=False)
        other, _ = network()
        gn.load(path, other.model, strict=False)

    def test_images_of_validation_go_on_being_moved(self) -> None:
        def fit() -> Any:
            data = network(transform=gn.Augment(1, rng=8))[1]
            return {"validation": data}

        import tempfile  # noqa: PLC0415

        with tempfile.TemporaryDirectory() as folder:
            where = Path(folder) / "a"
            fatal = Fatal(where, 3, "steps", 5)
            with pytest.raises(Stopped):
                straight(network, 4, callbacks=[fatal], **fit())
            assert_same_bits(
                straight(network, 4, **fit()), straight(network, 4, resume=where, **fit())
            )


class TestRefused:
    def test_a_folder_is_missed_before_training(self, path: Path) -> None:
        trainer, loader = network()
        with pytest.raises(PathError, match="there is no folder"):
            trainer.fit(loader, 9, callbacks=[gn.Checkpoint(path / "a" / "b", 9)], progress=False)
        assert trainer.optimizer.steps == 0

    @pytest.mark.parametrize("kind", ["closure", "partial", "method", "attribute", "layer"])
    def test_generators_that_cannot_be_remembered(self, path: Path, kind: str) -> None:
        rng = np.random.default_rng(0)

        class Jitter:
            keeps_shape = True

            def __init__(self) -> None:
                self.rng, self.inner = rng, gn.Augment(1)

            def move(self, x: Any) -> Any:
                return x + self.rng.normal()

            def __call__(self, x: Any) -> Any:
                return x

        class Noise(gn.Layer):
            def __init__(self) -> None:
                self.rng = rng

            def forward(self, x: Any, tape: Any = None) -> Any:
                return x

        transforms: dict[str, Any] = {
            "closure": lambda x: x + rng.normal(),
            "partial": partial(lambda rng, x: x + rng.normal(), rng),
            "method": Jitter().move,
            "attribute": Jitter(),
        }
        trainer, loader = network()
        if kind == "layer":
            trainer.model.layers.append(Noise())  # type: ignore[attr-defined]
        else:
            loader.transform = transforms[kind]
        with pytest.raises(StateError, match=r"generator of|define state_dict"):
            trainer.fit(loader, 1, callbacks=[gn.Checkpoint(path)], progress=False)

    def test_a_path_that_is_none(self) -> None:
        with pytest.raises(SettingError, match="resume must be the path of a checkpoint"):
            straight(network, 1, resume=3)
        with pytest.raises(SettingError, match="path must be the path of a file, got int"):
            gn.Checkpoint(3)  # type: ignore[arg-type]

    @pytest.mark.parametrize("settings", [{"every": 0}, {"every": 1.5}, {"unit": "hours"}], ids=str)
    def test_settings(self, settings: Any) -> None:
        with pytest.raises(SettingError, match=next(iter(settings))):
            gn.Checkpoint("a", **settings)

    def test_a_file_that_is_not_there(self, path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"Trainer.fit: there is no file"):
            straight(network, 1, resume=path)

    def test_a_file_of_weights(self, path: Path) -> None:
        gn.save(path, network()[0].model)
        with pytest.raises(FileError, match="'gpunn checkpoint 1' is expected"):
            straight(network, 1, resume=path)

    @pytest.mark.parametrize("unit", ["epochs", "steps"])
    def test_no_folder(self, path: Path, unit: Any) -> None:
        away = gn.Checkpoint(path.parent / "away" / "a", unit=unit)
        with pytest.raises(PathError, match="there is no folder"):
            straight(network, 1, callbacks=[away])
        with pytest.raises(PathError, match="there is no folder"):
            straight(network, 1, resume=away)

    def changed(self, what: str) -> Parts:
        trainer, loader = network(adam=what != "another optimizer", average=what == "an average")
        if what == "other data":
            loader = gn.Loader(np.zeros((9, 6, 6, 1)), np.zeros(9, dtype=int))
        if what == "another model":
            model = gn.Sequential(gn.Flatten(), gn.Dense(36, 3, rng=0))
            rate = trainer.optimizer.schedule
            trainer = gn.Trainer(
                model, trainer.loss, gn.Adam(model.parameters(), rate), metrics=["accuracy"]
            )
        if what == "other metrics":
            trainer.metrics = ()
        if what == "another generator":
            trainer._rng = np.random.Generator(np.random.MT19937(3))
        if what == "a transform":
            loader.transform = gn.Augment(1)
        return trainer, loader

    @pytest.mark.parametrize(
        ("what", "message"),
        [
            ("another optimizer", "the state is that of Adam, and this is SGD"),
            ("an average", "this optimizer has a WeightAverage and the state has none"),
            ("other data", "of a loader of 53 samples, and this one has 9"),
            ("another model", "does not fit"),
            ("other metrics", r"metrics was \['accuracy'\] and is \[\] now"),
            ("another generator", "a generator PCG64, and this one is MT19937"),
            ("a transform", "transform is None in the state and a function here"),
        ],
    )
    def test_other_objects_and_nothing_changes(self, path: Path, what: str, message: str) -> None:
        interrupted(path)
        trainer, loader = self.changed(what)
        before = [np.array(x.value) for x in trainer.model.parameters()]
        rngs = [str(part._rng.bit_generator.state) for part in (trainer, loader)]
        steps = trainer.optimizer.steps
        with pytest.raises(StateError, match=message) as caught:
            trainer.fit(loader, 4, resume=path)
        assert str(path) in str(caught.value)
        for value, now in zip(before, trainer.model.parameters(), strict=True):
            assert_array_equal(value, now.value)
        assert rngs == [str(part._rng.bit_generator.state) for part in (trainer, loader)]
        assert trainer.optimizer.steps == steps

    def test_other_callbacks_or_another_history(self, path: Path) -> None:
        interrupted(path)
        with pytest.raises(StateError, match="callbacks was 0 and is 1 now"):
            straight(network, 4, resume=path, callbacks=[lambda *_: None])
        gn.Checkpoint(path)
        straight(network, 2, callbacks=[gn.Checkpoint(path)])
        with pytest.raises(StateError, match="validation was False and is True now"):
            straight(network, 4, resume=path, validation=network()[1])

    def test_damage(self, path: Path) -> None:
        """Each cut, and some flips; files of arrays have all of them in tests of their own."""
        interrupted(path)
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        for place in rng.integers(0, len(whole), 60):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
            with pytest.raises(FileError):
                straight(network, 4, resume=path)
            path.write_bytes(whole[:place])
            with pytest.raises(FileError):
                straight(network, 4, resume=path)
