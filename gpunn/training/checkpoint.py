"""Checkpoints: files from which training resumes as if it had never stopped."""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Any, Literal

from gpunn.arrays.checks import number, one_of, shown, whole_number
from gpunn.errors import FileError, PathError, SettingError

if TYPE_CHECKING:
    from pathlib import Path

    from gpunn.training.history import History

#: The longest path that any operating system accepts, in characters.
_LONGEST = 2**15


class Checkpoint:
    """A callback that writes everything training needs to resume.

    ``trainer.fit(loader, epochs, resume=checkpoint, callbacks=[checkpoint])`` resumes from the
    newest file, or starts afresh if there is none yet. It ends with the same bits as a run that
    was never interrupted, even in the middle of an epoch: weights, states of the optimizer and its
    schedule, the order of the samples, random draws, the history and early stopping. A file is
    written when it is due, when training ends, and after Ctrl-C and SIGTERM, which end training
    within the time of a few batches; a second Ctrl-C ends it at once.

    Parameters
    ----------
    path : path
        Usually ends in ``.safetensors``. The folder must exist. A crash at any instant leaves
        either the older file or the new one.
    every : int or float, default 1
        The interval between files, in units, above 0; for epochs and steps a whole number.
    unit : {"epochs", "steps", "seconds"}, default "epochs"
        A step is a batch. With ``Trainer(accumulate=k)`` a file waits for the next update.
    keep : int, default 1
        How many files to keep, at least 1. With more than one, each file's name includes the
        number of steps, and the oldest files of this run are removed. Resume from the newest file,
        whatever `keep` was when it was written, or start in a folder without such files.

    Notes
    -----
    A file holds arrays and JSON, but no code, data or functions: to resume, build the same model,
    loss, optimizer, loader and trainer. Settings of optimizer and loader are then taken from the
    file. The state of your own callbacks, transforms and schedules is saved if they have methods
    ``state_dict`` and ``load_state_dict``. With a subclass of `Loader`, which builds batches in its
    own way, checkpoints wait for the end of an epoch, and signals end training at once, as they do
    outside the main thread. Your own layers must draw from the tape's generator (`Tape.draw_key`),
    because a layer's own generator cannot be saved. The weights in a file are the latest, neither
    the best nor their average. No file is written in an epoch whose loss is not finite.

    Examples
    --------
    >>> import tempfile, gpunn as gn
    >>> x, y = gn.datasets.load_digits()
    >>> model = gn.Sequential(gn.Flatten(), gn.Dense(64, 10, rng=0))
    >>> trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.Adam(model.parameters()))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = gn.Checkpoint(f"{folder}/digits.safetensors", every=500, unit="steps")
    ...     loader = gn.Loader(x, y, rng=0)
    ...     history = trainer.fit(loader, 3, resume=checkpoint, callbacks=[checkpoint])
    ...     history = trainer.fit(loader, 5, resume=checkpoint, callbacks=[checkpoint])
    >>> len(history)
    5
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        every: float = 1,
        *,
        unit: Literal["epochs", "steps", "seconds"] = "epochs",
        keep: int = 1,
    ) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise SettingError(
                f"Checkpoint: path must be the path of a file, got {type(path).__name__}"
            )
        if len(os.fspath(path)) > _LONGEST:
            raise SettingError(f"Checkpoint: path is longer than any file's: {shown(path)}")
        one_of("Checkpoint", "unit", unit, ("epochs", "steps", "seconds"))
        from pathlib import Path  # noqa: PLC0415 (slow to import, like file formats)

        self.path = Path(path)
        if unit == "seconds":
            self.every = number("Checkpoint", "every", every, "(0, inf)")
        else:
            self.every = whole_number("Checkpoint", "every", every)
        self.unit = unit
        self.keep = whole_number("Checkpoint", "keep", keep)
        #: The step of the last file, and the files that this object may remove.
        self._written_at = -1
        self._kept: list[Path] = []
        self._last_time = time.monotonic()

    def __call__(self, trainer: Any, history: History) -> None:
        """Do nothing: `Trainer.fit` itself checks when a file is due, also within epochs."""

    def latest(self) -> Path | None:
        """Return the newest file, or None if there is none."""
        files = self._files()
        return files[-1] if files else None

    def begin(self, step: int, resumed: Path | None) -> None:
        """Prepare for a call of `Trainer.fit`: its first step, and the file resumed from, if any.

        Raises
        ------
        PathError
            If the folder does not exist.
        SettingError
            If another run's files are there that the call neither resumes from nor replaces: they
            would count as the newest.
        """
        files = self._files()
        ours = resumed is not None and resumed in files
        self._written_at, self._last_time = step if ours else -1, time.monotonic()
        self._kept = files[: files.index(resumed) + 1] if ours and resumed else []
        others = files if self.keep > 1 else [file for file in files if file != self.path]
        if others and (not ours or files[-1] != resumed):
            raise SettingError(
                f"Checkpoint: {others[-1]} is there from another run; go on from it, "
                "fit(..., resume=checkpoint), or move such files away"
            )

    def steps_until_due(self, step: int) -> int | None:
        """Return the number of steps until a file may be due; None if steps do not decide."""
        return int(self.every) - step % int(self.every) if self.unit == "steps" else None

    def is_due(self, step: int, epochs: int | None) -> bool:
        """Return whether to write a file; `epochs` counts finished epochs, None within one."""
        if step == self._written_at:
            return False
        if self.unit == "seconds":
            return time.monotonic() - self._last_time >= self.every
        every = int(self.every)
        if self.unit == "steps":  # may be late: the loader cannot pause, or an update had to end
            return step // every > max(self._written_at, 0) // every
        return epochs is not None and epochs % every == 0

    def write(self, state: dict[str, Any], step: int) -> None:
        """Write the state at `step`, unless already written; remove files beyond `keep`."""
        if step == self._written_at:
            return
        name = self._name(step)
        from gpunn.files.states import CHECKPOINT, write_state  # noqa: PLC0415 (as above)

        write_state("Checkpoint", name, CHECKPOINT, state)
        self._written_at, self._last_time = step, time.monotonic()
        self._kept = [*(file for file in self._kept if file != name), name]
        while len(self._kept) > self.keep:
            self._kept.pop(0).unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        """Remove partial files left by processes that were killed while writing.

        Partial files lie beside the file to replace, which may be the target of a link.
        """
        from gpunn.files import atomic  # noqa: PLC0415 (as above)

        for file in {self.path, *self._numbered()}:
            atomic.remove_unfinished(file)
        name = re.escape(f".{self.path.stem}") + r"(-\d{12})?" + re.escape(self.path.suffix)
        left = re.compile(name + r"\.[0-9a-f]{12}\.part")
        for each in self._siblings(left):
            each.unlink(missing_ok=True)

    def _name(self, step: int) -> Path:
        if self.keep == 1:
            return self.path
        return self.path.with_name(f"{self.path.stem}-{step:012d}{self.path.suffix}")

    def _files(self) -> list[Path]:
        """Return the existing files, the newest last, whatever `keep` was for them."""
        numbered = self._numbered()
        if not _is_there(self._folder() / self.path.name):
            return numbered
        if not numbered:
            return [self.path]
        step = steps_in(self.path)
        later = [file for file in numbered if int(file.stem[-12:]) > step]
        return [*numbered[: len(numbered) - len(later)], self.path, *later]

    def _numbered(self) -> list[Path]:
        name = re.escape(self.path.stem) + r"-\d{12}" + re.escape(self.path.suffix)
        return self._siblings(re.compile(name))

    def _siblings(self, pattern: re.Pattern[str]) -> list[Path]:
        return sorted(each for each in self._folder().iterdir() if pattern.fullmatch(each.name))

    def _folder(self) -> Path:
        folder = self.path.parent
        if not (_is_there(folder) and folder.is_dir()):
            raise PathError(f"Checkpoint: there is no folder {folder!s:.300}; make it first")
        return folder

    def __repr__(self) -> str:
        """Return the expression that creates this checkpoint."""
        return f"Checkpoint({str(self.path)!r}, {self.every}, unit={self.unit!r}, keep={self.keep})"


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False


def found(resume: Any) -> Path | None:
    """Return the file to resume from: the given path, or the newest file of a `Checkpoint`.

    Raises
    ------
    SettingError
        If `resume` is neither.
    """
    if isinstance(resume, Checkpoint):
        resume.remove_unfinished()
        return resume.latest()
    if isinstance(resume, (str, os.PathLike)):
        from pathlib import Path  # noqa: PLC0415 (as above)

        return Path(resume)
    raise SettingError(
        "Trainer.fit: resume must be the path of a checkpoint, or a Checkpoint, got "
        f"{type(resume).__name__}"
    )


def steps_in(path: Path) -> int:
    """Return the number of steps after which a file was written.

    Raises
    ------
    FileError
        If it is damaged, or not a checkpoint.
    """
    state = read(path, "Checkpoint")
    try:
        return int(state["epoch"]["batches_before"]) + int(state["order"]["done"])
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"Checkpoint: {path} does not say after how many steps it was") from error


def read(path: Path, owner: str = "Trainer.fit") -> dict[str, Any]:
    """Read the state of a run from a file."""
    from gpunn.files.states import CHECKPOINT, read_state  # noqa: PLC0415 (as above)

    return read_state(owner, path, CHECKPOINT)
