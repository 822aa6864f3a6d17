"""Checkpoints of `fit`: training resumes where an earlier process stopped."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np
from sklearn.utils._param_validation import InvalidParameterError

from gpunn.arrays.exchange import to_numpy
from gpunn.arrays.state import check_names, generator_state, restore_generator
from gpunn.data.loader import Loader
from gpunn.errors import GpunnError, StateError
from gpunn.estimators.epochs import Epochs
from gpunn.estimators.progress import Progress
from gpunn.training import checkpoint as files
from gpunn.training.checkpoint import Checkpoint
from gpunn.training.signals import Ending, heard
from gpunn.training.stopping import BestWeights

#: The settings that may change when training resumes: for how long, where and from what.
_MAY_CHANGE = frozenset(
    {"max_iter", "n_iter_no_change", "tol", "verbose", "warm_start", "checkpoint"}
    | {"backend", "device", "random_state"}
)

#: Settings of these kinds are compared by their values, and others by the names of their classes.
_PLAIN = (type(None), bool, int, float, str)


class Saved:
    """The checkpoint that a call of `fit` writes and resumes from.

    Parameters
    ----------
    estimator : estimator
        Nothing is written or read if its setting `checkpoint` is None.
    resume : bool
        Whether to resume from the file, if it exists.
    wanted : bool, default True
        Whether to use the checkpoint at all: `partial_fit` does not.

    Raises
    ------
    FileError
        If the file is damaged or of another kind.
    """

    def __init__(self, estimator: Any, *, resume: bool, wanted: bool = True) -> None:
        self._name = type(estimator).__name__
        self._checkpoint = as_checkpoint(self._name, estimator.checkpoint) if wanted else None
        wants = self._checkpoint is not None
        self._parameters = estimator.get_params(deep=False) if wants else {}
        self._state: dict[str, Any] | None = None
        self._path = None
        self._ending = Ending()
        if self._checkpoint is not None and resume:
            self._path = files.found(self._checkpoint)
        if self._path is not None:
            self._state = files.read(self._path, f"{self._name}.fit")

    def generator(self, rng: np.random.RandomState) -> np.random.RandomState:
        """Return the generator of the split and the orders.

        If training resumes, it is in its saved state, and NumPy's global generator is left
        unchanged.
        """
        if self._state is not None:
            with self._reraise_as_state_error():
                if "fit" not in self._state:
                    raise StateError("it was written by Trainer.fit, and not by an estimator")
                check_names("fit", self._state, ("trainer", "order", "progress", "best", "fit"))
                about = self._state["fit"]
                check_names("fit", about, ("drawn", "data", "settings", "stopped"))
                if self._parameters["random_state"] is None:
                    rng = np.random.RandomState()
                restore_generator("fit", rng, about["drawn"])
        if self._checkpoint is not None:
            self._drawn = generator_state(rng)
        return rng

    def begin(
        self,
        epochs: Epochs,
        held_out: Loader | None,
        progress: Progress,
        best: BestWeights | None,
    ) -> bool:
        """Restore the saved state, if training resumes; return whether training had ended.

        Raises
        ------
        StateError
            If the settings or the data differ from the saved ones.
        """
        if self._checkpoint is None:
            return False
        self._parts: dict[str, Any] = {
            "trainer": epochs.trainer,
            "order": epochs.order,
            "progress": progress,
        }
        self._best, self._progress = best, progress
        self._about: dict[str, Any] = {
            "drawn": self._drawn,
            "data": digest(epochs.loader, held_out),
            "settings": {"estimator": self._name, **_fixed(self._parameters)},
        }
        stopped = False
        if self._state is None:
            self._current_state(stopped=False)  # fails now rather than after an epoch
        else:
            with self._reraise_as_state_error():
                stopped = self._load(self._state)
        self._checkpoint.begin(progress.n_samples, self._path)
        return stopped

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Return a context in which Ctrl-C and SIGTERM wait for the end of an epoch."""
        with heard(wanted=self._checkpoint is not None) as self._ending:
            yield

    def epoch_ended(self, *, stopped: bool, last: bool) -> None:
        """Write the checkpoint if it is due.

        Raises
        ------
        KeyboardInterrupt
            If a signal came during the epoch. The checkpoint is written first.
        """
        if self._checkpoint is None:
            return
        step, n_iter, signal = (
            self._progress.n_samples,
            self._progress.n_iter,
            self._ending.asked_by,
        )
        if stopped or last or signal or self._checkpoint.is_due(step, n_iter):
            self._checkpoint.write(self._current_state(stopped=stopped), step)
        if signal:
            raise KeyboardInterrupt

    def _current_state(self, *, stopped: bool) -> dict[str, Any]:
        return {
            **{name: part.state_dict() for name, part in self._parts.items()},
            "best": None if self._best is None else self._best.state_dict(),
            "fit": {**self._about, "stopped": stopped},
        }

    def _load(self, state: Mapping[str, Any]) -> bool:
        then, now = state["fit"]["settings"], self._about["settings"]
        for name in now.keys() | then.keys():
            if then.get(name) != now.get(name):
                raise StateError(f"{name} was {then.get(name)!r} and is {now.get(name)!r} now")
        if state["fit"]["data"] != self._about["data"]:
            raise StateError("it was written for other training data")
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        if self._best is not None:
            self._best.load_state_dict(state["best"])
        return bool(state["fit"]["stopped"])

    @contextmanager
    def _reraise_as_state_error(self) -> Iterator[None]:
        try:
            yield
        except (GpunnError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise StateError(
                f"{self._name}.fit: cannot resume from {self._path}: {error}. Pass the same data "
                "and settings as then, or start over: warm_start=False, or another file"
            ) from error


def as_checkpoint(estimator: str, value: Any) -> Checkpoint | None:
    """Return the checkpoint for a setting; a path means a file written after every epoch.

    Raises
    ------
    InvalidParameterError
        For a checkpoint that an estimator cannot write.
    """
    if value is None:
        return None
    if isinstance(value, (str, os.PathLike)):
        return Checkpoint(value)
    if value.unit == "steps" or value.keep > 1:
        raise InvalidParameterError(
            f"{estimator}: checkpoint is a path, or gpunn.Checkpoint(path, every, unit='epochs' or "
            f"'seconds'): an estimator writes one file, after whole epochs; got {value!r}"
        )
    return value


def digest(*loaders: Loader | None) -> str:
    """Return a digest of the data of all loaders, on any device."""
    found = hashlib.blake2b(digest_size=16)
    sets = [loader.stored for loader in loaders if loader is not None]
    parts: list[Any] = [part for data in sets for part in (data.x, data.y, data.sample_weight)]
    for part in parts:
        pieces = [part]
        if hasattr(part, "tocsr"):
            csr = part.tocsr()
            pieces = [csr.data, csr.indices, csr.indptr]
        for piece in pieces:
            array = np.zeros(0) if piece is None else np.ascontiguousarray(to_numpy(piece))
            found.update(f"{array.shape}{array.dtype.str}".encode())
            found.update(array.data.cast("B") if array.size else b"")
    return found.hexdigest()


def _fixed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that must not change, as JSON values."""
    return {name: _as_json(v) for name, v in parameters.items() if name not in _MAY_CHANGE}


def _as_json(value: Any) -> Any:
    value = value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Real):  # a fraction, or a NumPy float that Python lacks
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _as_json(item) for key, item in value.items()}
    return getattr(value, "__qualname__", type(value).__qualname__)
