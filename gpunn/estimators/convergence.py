"""Messages about training that diverged or has not converged."""

from __future__ import annotations

import math
from typing import Any

#: Training has diverged if the loss is above this many times the loss of zero weights.
_FACTOR = 2.0

#: A loss below this many tolerances is negligible, whatever the loss of zero weights.
_NEGLIGIBLE = 100.0


def diverged(owner: str, what: str, epoch: int, rate: float | None) -> str:
    """Return the message for non-finite weights or losses; `rate` is None for "lbfgs".

    Two of its sentences are taken from scikit-learn.
    """
    advice = "Scale" if rate is None else f"Lower learning_rate_init (now {rate:g}), or scale"
    return (
        f"{owner}: {what} in epoch {epoch}: training has diverged. Solver produced non-finite "
        "parameter weights. The input data may contain large values and need to be preprocessed. "
        f"{advice} the features first, e.g. with sklearn.preprocessing.StandardScaler"
    )


def not_minimized(owner: str, result: Any, max_iter: int) -> str:
    """Return the message for a run of L-BFGS-B that did not converge, from SciPy's result."""
    advice = "Scale the features, e.g. with sklearn.preprocessing.StandardScaler"
    if result.status == 1:  # a limit
        which = f"max_iter (now {max_iter})" if result.nit >= max_iter else "max_fun"
        advice = f"Increase {which}, or scale the features"
    return (
        f"{owner}: lbfgs failed to converge after {result.nit} iteration(s) "
        f"(status={result.status}): {str(result.message).rstrip('.')}. {advice}."
    )


def not_converged(curve: list[float], max_iter: int, rate: float, explosion: str) -> str:
    """Return the message for training that reached `max_iter`."""
    advice = "Increase max_iter, or raise tol to stop earlier"
    if explosion:
        advice = explosion
    elif curve[-1] > curve[0]:
        advice = (
            f"The loss has risen, from {curve[0]:.4g} to {curve[-1]:.4g}: lower "
            f"learning_rate_init (now {rate:g}), or scale the features"
        )
    return (
        f"Maximum iterations ({max_iter}) reached and the optimization hasn't converged "
        f"yet. {advice}."
    )


def explosion(loss: float, of_zeros: float, tolerance: float, rate: float) -> str:
    """Return the message for a loss that is far too large, or an empty string.

    A loss, with its penalty, is too large if it is more than twice the loss of zero weights and
    well above the tolerance. Training that has learned little, or is held back by a large penalty,
    ends below that. Only steps that were too long end above it.
    """
    limit = _FACTOR * of_zeros + _NEGLIGIBLE * tolerance
    if not (math.isfinite(limit) and loss > limit):
        return ""
    return (
        f"The loss is {loss:.4g}, far above the {of_zeros:.4g} of a network that always answers 0. "
        "Scale the features first, e.g. with sklearn.preprocessing.StandardScaler, or lower "
        f"learning_rate_init (now {rate:g})"
    )
