"""The record of training, and scikit-learn's rule for when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any

from gpunn.arrays.state import check_like, check_names
from gpunn.errors import StateError
from gpunn.optim.patience import Patience
from gpunn.training.history import History

#: The counts of epochs without an improvement.
_PATIENCES = ("losses", "negative_scores")


def _patience() -> Patience:
    return Patience(follows_minimum=True)


@dataclass
class Progress:
    """The curves of a network's training, over all calls of fit that continued it.

    Attributes
    ----------
    history : History
        All numbers of all epochs.
    n_iter, n_samples : int
        Epochs of the last call, and samples seen in all calls (each as often as it was seen).
    loss_curve : list of float
        The training loss of each epoch, penalty included.
    scores : list of float or None
        The score of the held-out data after each epoch; None without early stopping.
    first_loss : float or None
        The loss at the beginning of the last call, if known.
    best_loss, best_score : float or None
        The lowest loss or the highest score; the other one is None, as in scikit-learn.
    losses, negative_scores : Patience
        How long the loss and the score have not improved, in epochs of `fit`. A call of
        `partial_fit` sees other data each time, so its loss is no measure of improvement.
    """

    early_stopping: bool = False
    history: History = field(default_factory=History)
    n_iter: int = 0
    n_samples: int = 0
    loss_curve: list[float] = field(default_factory=list)
    scores: list[float] | None = None
    best_loss: float | None = math.inf
    losses: Patience = field(default_factory=_patience)
    negative_scores: Patience = field(default_factory=_patience)
    first_loss: float | None = None

    def __post_init__(self) -> None:
        """Start without scores."""
        if self.early_stopping:
            self.scores, self.best_loss = [], None

    @property
    def loss(self) -> float:
        """The loss of the last epoch; NaN if it is not known."""
        if self.first_loss is not None and not self.n_iter:
            return self.first_loss
        return self.loss_curve[-1] if self.loss_curve else math.nan

    @property
    def best_score(self) -> float | None:
        """The highest score; None without early stopping."""
        return None if self.scores is None else -self.negative_scores.best

    @property
    def patience(self) -> Patience:
        """The patience that decides when `fit` stops."""
        return self.losses if self.scores is None else self.negative_scores

    def begin(self, *, early_stopping: bool) -> None:
        """Begin another call of fit.

        If it stops by a different measure than the last call, patience starts anew.
        """
        self.n_iter, self.first_loss = 0, None
        if early_stopping != self.early_stopping:
            self.early_stopping, self.losses.waited = early_stopping, 0
            self.scores, self.negative_scores = None, _patience()
            self.best_loss = min(self.loss_curve, default=math.inf)
            self.__post_init__()

    def state_dict(self) -> dict[str, Any]:
        """Return all curves and counts, as numbers and lists by name."""
        patiences = {name: vars(getattr(self, name)) for name in _PATIENCES}
        return {**vars(self), **patiences, "history": self.history.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take all from a state.

        Raises
        ------
        StateError
            If it is the state of a progress by another measure, or of something else.
        """
        check_names("Progress", state, vars(self))
        if state["early_stopping"] != self.early_stopping:
            raise StateError("Progress.load_state_dict: early_stopping has changed")
        numbers = {k: v for k, v in state.items() if k not in ("history", *_PATIENCES)}
        check_like("Progress", numbers, {name: vars(self)[name] for name in numbers})
        for name in _PATIENCES:
            held = vars(getattr(self, name))
            check_names("Progress", state[name], held)
            check_like("Progress", state[name], held)
            held.update(state[name])
        self.history.load_state_dict(state["history"])
        vars(self).update(numbers)

    def mark(self) -> Callable[[], None]:
        """Return a function that undoes all changes after this call.

        The curves only grow, so undoing truncates them; the cost of a mark does not depend on
        their length.
        """
        before, columns = dict(vars(self)), dict(self.history.columns)
        for name in ("losses", "negative_scores"):
            before[name] = copy(before[name])
        curves = [
            self.loss_curve,
            *columns.values(),
            *([] if self.scores is None else [self.scores]),
        ]
        lengths = [len(curve) for curve in curves]

        def undo() -> None:
            vars(self).update(before)
            self.history.columns = columns
            for curve, length in zip(curves, lengths, strict=True):
                del curve[length:]

        return undo

    def record_epoch(
        self,
        record: dict[str, float],
        n_samples: int,
        score: float | None,
        tolerance: float,
        *,
        incremental: bool = False,
    ) -> None:
        """Record the numbers of an epoch, and whether it is an improvement.

        A call of `partial_fit` (`incremental`) leaves the count of epochs without improvement
        unchanged.
        """
        self.n_iter += 1
        self.n_samples += n_samples
        self.history.append(record)
        loss = record["loss"]
        self.loss_curve.append(loss)
        if self.best_loss is not None:
            self.best_loss = min(self.best_loss, loss)
        if incremental:
            return
        self.losses.observe(loss, tolerance)
        if score is not None and self.scores is not None:
            self.scores.append(score)
            self.negative_scores.observe(-score, tolerance)

    def why_stop(self, n_iter_no_change: float, tolerance: float) -> str:
        """Return scikit-learn's message if there was no improvement for too long, else ""."""
        if not self.patience.waited > n_iter_no_change:
            return ""
        what = "Training loss" if self.scores is None else "Validation score"
        return (
            f"{what} did not improve more than tol={tolerance:f} for {n_iter_no_change} "
            "consecutive epochs."
        )
