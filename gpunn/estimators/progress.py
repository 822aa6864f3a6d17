"""How training went, and scikit-learn's rule for when to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from gpunn.training.history import History


@dataclass
class Progress:
    """The curves of a network's training, over all calls of fit that went on from one another.

    Attributes
    ----------
    history : History
        All numbers of all epochs.
    n_iter, n_samples : int
        Epochs of the last call, and samples seen in all calls, each as often as it was seen.
    loss_curve : list of float
        The training loss of each epoch, the penalty among it.
    scores : list of float or None
        Of the data held out, after each epoch; None where none are.
    best_loss, best_score : float or None
        The lowest and the highest of them; one of the two is None, as in scikit-learn.
    waited : int
        Epochs of `fit` in a row that brought no improvement.
    bar : float
        The lowest loss of an epoch of `fit`. A call of `partial_fit` sees other data each time, so
        it is no measure of improvement.
    """

    early_stopping: bool = False
    history: History = field(default_factory=History)
    n_iter: int = 0
    n_samples: int = 0
    loss_curve: list[float] = field(default_factory=list)
    scores: list[float] | None = None
    best_loss: float | None = math.inf
    best_score: float | None = None
    waited: int = 0
    bar: float = math.inf

    def __post_init__(self) -> None:
        """Begin with the worst."""
        if self.early_stopping:
            self.scores, self.best_loss, self.best_score = [], None, -math.inf

    def begin(self, *, early_stopping: bool) -> None:
        """Begin another call of fit.

        Where that call stops by another measure than the last one, it begins to wait anew.
        """
        self.n_iter = 0
        if early_stopping != self.early_stopping:
            self.early_stopping, self.waited = early_stopping, 0
            self.scores = self.best_score = None
            self.best_loss = min(self.loss_curve, default=math.inf)
            self.__post_init__()

    def mark(self) -> Callable[[], None]:
        """Return a function that undoes all that comes after this call.

        It takes no copy of the curves, which only grow: a call costs the same however long they
        are.
        """
        before, columns = dict(vars(self)), dict(self.history.columns)
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

    def note(
        self,
        record: dict[str, float],
        n_samples: int,
        score: float | None,
        tolerance: float,
        *,
        incremental: bool = False,
    ) -> None:
        """Take an epoch's numbers.

        An epoch is an improvement if its loss is below the best one by the tolerance, or its
        score, where data are held out, not below the best one plus the tolerance. A call of
        `partial_fit` (`incremental`) is neither an improvement nor the lack of one.
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
        if score is None or self.scores is None:
            self.waited = self.waited + 1 if loss > self.bar - tolerance else 0
        else:
            best = -math.inf if self.best_score is None else self.best_score
            self.scores.append(score)
            self.waited = self.waited + 1 if score < best + tolerance else 0
            self.best_score = max(best, score)  # in this order: NaN is no improvement
        self.bar = min(self.bar, loss)

    def why_stop(self, patience: float, tolerance: float) -> str:
        """Return scikit-learn's message if patience is at an end, else an empty string."""
        if not self.waited > patience:
            return ""
        what = "Training loss" if self.scores is None else "Validation score"
        return (
            f"{what} did not improve more than tol={tolerance:f} for {patience} consecutive epochs."
        )
