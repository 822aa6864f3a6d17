"""How training went, and scikit-learn's rule for when to stop."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

from gpunn.history import History


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
        Epochs in a row that brought no improvement.
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

    def __post_init__(self) -> None:
        """Begin with the worst."""
        if self.early_stopping:
            self.scores, self.best_loss, self.best_score = [], None, -math.inf

    def again(self, *, early_stopping: bool) -> Progress:
        """Return a copy for another call of fit, so that a call that fails leaves this one.

        Where that call stops by another measure than this one, it begins to wait anew.
        """
        other = copy.deepcopy(self)
        other.n_iter = 0
        if early_stopping != self.early_stopping:
            other.early_stopping, other.waited = early_stopping, 0
            other.scores = other.best_score = None
            other.best_loss = min(self.loss_curve, default=math.inf)
            other.__post_init__()
        return other

    def note(
        self, record: dict[str, float], n_samples: int, score: float | None, tolerance: float
    ) -> None:
        """Take an epoch's numbers.

        An epoch is an improvement if its loss is below the best one by the tolerance, or its
        score, where data are held out, not below the best one plus the tolerance.
        """
        self.n_iter += 1
        self.n_samples += n_samples
        self.history.append(record)
        loss = record["loss"]
        self.loss_curve.append(loss)
        if score is None or self.scores is None:
            best = math.inf if self.best_loss is None else self.best_loss
            self.waited = self.waited + 1 if loss > best - tolerance else 0
            self.best_loss = min(best, loss)
            return
        best = -math.inf if self.best_score is None else self.best_score
        self.scores.append(score)
        self.waited = self.waited + 1 if score < best + tolerance else 0
        self.best_score = max(best, score)  # in this order: NaN is no improvement

    def why_stop(self, patience: float, tolerance: float) -> str:
        """Return scikit-learn's message if patience is at an end, else an empty string."""
        if not self.waited > patience:
            return ""
        what = "Training loss" if self.scores is None else "Validation score"
        return (
            f"{what} did not improve more than tol={tolerance:f} for {patience} consecutive epochs."
        )
