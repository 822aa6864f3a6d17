"""One call of `Trainer.fit`: its epochs, its progress, and the state from which it resumes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpunn.arrays.checks import whole_number
from gpunn.arrays.state import (
    all_or_nothing,
    check_names,
    generator_state,
    generators,
    restore_generator,
)
from gpunn.data.loader import Loader
from gpunn.errors import GpunnError, PathError, StateError
from gpunn.nn.tree import holders
from gpunn.optim.average import averaged
from gpunn.optim.schedules import observe
from gpunn.training import checkpoint
from gpunn.training.checkpoint import Checkpoint
from gpunn.training.divergence import check_finite
from gpunn.training.epoch import EpochRunner
from gpunn.training.freezing import part_of
from gpunn.training.history import History
from gpunn.training.ranks import ranks_of
from gpunn.training.readings import Readings
from gpunn.training.signals import heard
from gpunn.training.stopping import BestWeights, EarlyStopping, all_epochs_run

if TYPE_CHECKING:
    from pathlib import Path

#: Approximate interval between checks of the clock and of signals, in seconds.
_BETWEEN_LOOKS = 0.25

#: Number of batches before the first check.
_FIRST_BATCHES = 16


class Run:
    """The epochs of a call of `Trainer.fit`.

    Parameters
    ----------
    trainer : Trainer
    loader : Loader
        The training data.
    history : History
        Empty; receives the numbers of each epoch.
    epochs : int
        The maximum number of epochs, including those before a resume.
    validation : Loader or None
        The data to evaluate after each epoch.
    early_stopping : EarlyStopping or None
    callbacks : sequence of functions
        Called after each epoch, except the `Checkpoint` objects, which write files when due.
    bar : object
        The progress bar.

    Attributes
    ----------
    best : BestWeights
        The weights of the best epoch so far; set by `start`.
    """

    best: BestWeights

    def __init__(
        self,
        trainer: Any,
        loader: Loader,
        history: History,
        epochs: int,
        *,
        validation: Loader | None,
        early_stopping: EarlyStopping | None,
        callbacks: Sequence[Any],
        bar: Any,
    ) -> None:
        self._trainer, self._loader, self._validation = trainer, loader, validation
        self._history, self._early_stopping, self._bar = history, early_stopping, bar
        self._epochs, self._ranks = epochs, ranks_of(trainer.optimizer)
        self._callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
        self._checkpoints = [c for c in callbacks if isinstance(c, Checkpoint)]
        settings = {"accumulate": trainer.accumulate}
        self._runner = EpochRunner(loader, trainer._rng, trainer._program, **settings)
        self._begin_epoch()
        #: Batches of earlier epochs; batches until the next check; time and batches of the last.
        self._earlier, self._batches, self._looked, self._seen = 0, _FIRST_BATCHES, 0.0, 0
        self._ending: Any = None

    def go(self) -> None:
        """Train until all epochs are run, or until something stops training."""
        history, epochs = self._history, self._epochs
        try:
            with heard(wanted=self._pauses) as self._ending:
                while len(history) < epochs and not history.stopped:
                    with self._loader.backend.scope():
                        self._epoch()
                    self._after_epoch()
                self._ranks.unite(self._trainer)
                self._write_if(due=False)
                history.stopped = history.stopped or all_epochs_run(epochs, len(history))
        except KeyboardInterrupt:
            history.stopped = self._interrupted()
            self._trainer.optimizer.clear()
            if self._ranks.several:  # only this rank was interrupted, and the others wait for it
                raise

    @property
    def _pauses(self) -> bool:
        """Whether epochs pause between batches to write files and to check for signals."""
        return self._runner.can_pause and (bool(self._checkpoints) or self._ranks.several)

    def _begin_epoch(self) -> None:
        self._readings = Readings(self._trainer.loss, self._trainer.metrics)
        self._rate = self._trainer.optimizer.learning_rate
        self._elapsed = 0.0

    def _epoch(self) -> None:
        """Train for the rest of an epoch, then validate; append both results to the history."""
        trainer, history = self._trainer, self._history
        model, loss, optimizer = trainer.model, trainer.loss, trainer.optimizer
        if not self._runner.done:
            self._begin_epoch()
        self._start = time.perf_counter()
        pace = self._pace if self._pauses else None
        tell = self._bar.update
        self._runner.run(model, loss, optimizer, self._readings, tell=tell, pace=pace)
        if history.stopped:
            return
        self._ranks.unite(trainer)
        readings = self._ranks.gathered(self._readings)
        record = readings.read()
        penalty = optimizer.penalty()
        if penalty is not None or "cost" in history:
            record["cost"] = record["loss"] + (0.0 if penalty is None else float(penalty))
        elapsed = self._elapsed_so_far()
        if self._validation is not None:
            numbers = trainer._evaluate(self._validation)
            record |= {f"validation_{name}": value for name, value in numbers.items()}
        speed = sum(readings.counts) / elapsed
        record |= {"learning_rate": self._rate, "elapsed_s": elapsed, "samples_per_s": speed}
        history.append(self._ranks.from_first(record))
        self._earlier += len(self._loader)
        if not self._bar.disable:
            self._bar.set_postfix(loss=f"{record['loss']:.4g}")

    def _after_epoch(self) -> None:
        """Update schedule, best weights and checkpoints, unless the epoch is unfinished."""
        trainer, history = self._trainer, self._history
        if self._runner.has_begun:
            return
        check_finite(history, self.best, trainer.optimizer)
        history.stopped = self._reason()
        if self._callbacks:  # they may have moved the model
            trainer._check_home(self._loader)
        latest = history.to_minimize[-1]
        with averaged(trainer.optimizer):
            self.best.offer(len(history), latest)
        observe(trainer.optimizer.schedule, latest)
        self._begin_epoch()
        self._write_if(due=True, epochs=len(history))
        self._stop_if_asked()

    def _reason(self) -> str:
        """Return why to stop after this epoch, or an empty string."""
        trainer, history = self._trainer, self._history
        asked = [callback for callback in self._callbacks if callback(trainer, history) is True]
        if self._callbacks:
            part_of(trainer.model, trainer.optimizer)  # they may have changed the model
            self._ranks.share_last(history)
        names = [getattr(callback, "__name__", repr(callback)) for callback in asked[:1]]
        reason = self._ranks.reason("".join(f"{name} asked for it" for name in names))
        if reason or self._early_stopping is None:
            return reason
        return self._early_stopping.reason(history) or ""

    def _pace(self, done: int) -> int:
        """Write the checkpoints due within an epoch; return how many batches to train on next."""
        self._stop_if_asked()
        if self._history.stopped:
            return 0
        if done:
            self._write_if(due=True)
        now, made = time.perf_counter(), done - self._seen
        if done and made > 0:  # not across an epoch's end, which takes extra time
            fitting = int(made * _BETWEEN_LOOKS / max(now - self._looked, 1e-6))
            self._batches = max(1, min(fitting, 4 * self._batches, len(self._loader)))
        self._looked, self._seen = now, done
        limits = [each.steps_until_due(self._step()) for each in self._checkpoints]
        wanted = min([self._batches, *(limit for limit in limits if limit is not None)])
        return int(self._ranks.from_first(wanted))

    def _step(self) -> int:
        """Return the number of batches so far."""
        return self._earlier + self._runner.done

    def _write_if(self, *, due: bool, epochs: int | None = None) -> None:
        """Write the checkpoints: only those whose time has come if `due`, else all."""
        step, ranks = self._step(), self._ranks
        chosen = [each for each in self._checkpoints if not due or each.is_due(step, epochs)]
        if not ranks.from_first(len(chosen)):
            return
        ranks.unite(self._trainer)
        if self._runner.has_begun and not ranks.gathered(self._readings).are_finite():
            return  # keep the last file, whose weights are finite; the epoch ends in an error
        self._write(chosen, self.state_dict(), step)

    def _write(self, chosen: list[Checkpoint], state: dict[str, Any], step: int) -> None:
        """Write checkpoints on rank 0; if that fails, raise its error on all ranks."""
        failure = None
        if self._ranks.writes:
            try:
                for each in chosen:
                    each.write(state, step)
            except (GpunnError, OSError) as error:
                failure = error
        told = self._ranks.from_first("" if failure is None else str(failure))
        if failure is not None:
            raise failure
        if told:
            raise PathError(f"on rank 0: {told}")

    def _stop_if_asked(self) -> None:
        """Write all checkpoints and stop training if a signal has arrived."""
        if self._ranks.any(self._ending.asked_by) and not self._history.stopped:
            self._write_if(due=False)
            self._history.stopped = self._interrupted()

    def _interrupted(self) -> str:
        return f"interrupted in epoch {len(self._history) + 1}"

    def _elapsed_so_far(self) -> float:
        return self._elapsed + time.perf_counter() - self._start

    def start(self, resume: Any) -> None:
        """Resume from a path or from the newest file of a `Checkpoint`; else start afresh.

        Raises
        ------
        FileError
            If the file is missing, damaged, or not a checkpoint.
        StateError
            If it is the state of other objects; nothing has changed.
        DistributedError
            If the other processes train something else.
        """
        path = None if resume is None else checkpoint.found(resume)
        self._start_alike(path)
        if path is None:
            self.begin()
            return
        state = checkpoint.read(path)
        try:
            self.load_state_dict(state)
        except (GpunnError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise StateError(f"Trainer.fit: cannot resume from {path}: {error}") from error
        self.begin(path)
        self._bar.update(self._step())

    def _start_alike(self, path: Path | None) -> None:
        """Check settings across processes, and start them all from the same values."""
        loaders = [loader for loader in (self._loader, self._validation) if loader is not None]
        facts: dict[str, str] = {}
        if self._ranks.several:
            # Few programs need it.
            from gpunn.training.several_ranks import data_facts, file_facts  # noqa: PLC0415

            facts = {name: repr(value) for name, value in self._settings().items()}
            facts |= {
                "epochs": str(self._epochs),
                "early stopping": repr(self._early_stopping),
                "checkpoints": repr(self._checkpoints),
                "the file to resume from": file_facts(path),
                "validation data": ", ".join(map(data_facts, loaders[1:])) or "none",
            }
        self._ranks.start(self._trainer, facts, loaders)
        self.best = BestWeights(self._trainer.model)

    def begin(self, resumed: Path | None = None) -> None:
        """Prepare the checkpoints; raise now if the state could not be saved later."""
        if self._ranks.writes:
            for each in self._checkpoints:
                each.begin(self._step(), resumed)
        if self._checkpoints and resumed is None:
            self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume from here; wait for the device."""
        inside = self._runner.has_begun
        return {
            "trainer": self._trainer.state_dict(),
            "history": {**self._history.state_dict(), "stopped": ""},
            "best": self.best.state_dict(),
            "order": self._runner.state_dict(),
            "validation": None if self._validation is None else self._validation.state_dict(),
            "settings": self._settings(),
            "epoch": {
                "batches_before": self._earlier,
                "learning_rate": self._rate,
                "elapsed_s": self._elapsed_so_far() if inside else 0.0,
                "readings": self._ranks.gathered(self._readings).state_dict() if inside else None,
            },
            "callbacks": [
                each.state_dict() if hasattr(each, "state_dict") else None
                for each in self._callbacks
            ],
        }

    def _settings(self) -> dict[str, Any]:
        """Return the settings that must be the same when training resumes."""
        trainer = self._trainer
        return {
            "loss": type(trainer.loss).__name__,
            "metrics": [metric.name for metric in trainer.metrics],
            "accumulate": trainer.accumulate,
            "validation": self._validation is not None,
            "callbacks": len(self._callbacks),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state; if that fails, change nothing."""
        names = ("trainer", "history", "best", "order", "validation", "settings", "epoch")
        check_names("Run", state, (*names, "callbacks"))
        check_names("Run", state["settings"], self._settings())
        for name, now in self._settings().items():
            if state["settings"][name] != now:
                raise StateError(
                    f"{name} was {state['settings'][name]!r} and is {now!r} now; pass to Trainer "
                    "and fit what was passed before (checkpoints are not counted as callbacks)"
                )
        with all_or_nothing(self):
            self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        history = self._history
        monitored = history.monitored, history.higher_is_better
        self._trainer.load_state_dict(state["trainer"])
        self.best.load_state_dict(state["best"])
        self._runner.load_state_dict(state["order"])
        if self._validation is not None:
            self._validation.load_state_dict(state["validation"])
        # Last: a loader may share its generator with the trainer.
        restore_generator("Trainer", self._trainer._rng, state["trainer"]["rng"])
        history.load_state_dict(state["history"])
        if (history.monitored, history.higher_is_better) != monitored:
            raise StateError(
                f"the history was monitored by {history.monitored!r}, and is to be by "
                f"{monitored[0]!r} now; pass the same validation and early_stopping"
            )
        epoch = state["epoch"]
        check_names("Run", epoch, ("batches_before", "learning_rate", "elapsed_s", "readings"))
        self._begin_epoch()
        self._rate, self._elapsed = float(epoch["learning_rate"]), float(epoch["elapsed_s"])
        self._earlier = whole_number("Run", "batches_before", epoch["batches_before"], 0)
        if epoch["readings"] is not None:
            self._readings.load_state_dict(epoch["readings"])
        for callback, kept in zip(self._callbacks, state["callbacks"], strict=True):
            if kept is not None:
                callback.load_state_dict(kept)
        if len(history) and not self._runner.has_begun and self._early_stopping is not None:
            history.stopped = self._early_stopping.reason(history) or ""


def trainer_state(trainer: Any) -> dict[str, Any]:
    """Return the state of a trainer: model, optimizer, and the generator of masks.

    Raises
    ------
    StateError
        If a layer has a generator of its own.
    """
    for layer in holders(trainer.model, generators()):
        raise StateError(
            f"{type(layer).__name__} has a generator of its own, which cannot be remembered; draw "
            "from the tape's (tape.draw_key()), as Dropout does"
        )
    return {
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "rng": generator_state(trainer._rng),
    }


def load_trainer_state(trainer: Any, state: Mapping[str, Any]) -> None:
    """Load a trainer's state."""
    check_names("Trainer", state, ("model", "optimizer", "rng"))
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.model.load_state_dict(state["model"])  # in place, where the optimizer has laid it out
    restore_generator("Trainer", trainer._rng, state["rng"])
