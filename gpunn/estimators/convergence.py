"""What there is to say about how training went: that it diverged, or has not converged."""

from __future__ import annotations

import math

#: A loss above so many times that of zeros is that of a network that has gone astray.
_FACTOR = 2.0

#: A loss of so many tolerances is as good as none, whatever that of zeros is.
_NEGLIGIBLE = 100.0


def diverged(owner: str, what: str, epoch: int, rate: float) -> str:
    """Return the message for weights or losses that are not finite."""
    return (
        f"{owner}: {what} in epoch {epoch}: training has "
        f"diverged. Lower learning_rate_init (now {rate:g}), or scale the "
        "features first, e.g. with sklearn.preprocessing.StandardScaler"
    )


def not_converged(curve: list[float], max_iter: int, rate: float, explosion: str) -> str:
    """Return the message for training that `max_iter` has ended."""
    advice = "Increase max_iter, or tol to be content with less"
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
    """Return the message for a loss that is far too large, or an empty string for any other.

    Too large is a loss, with its penalty, of more than twice what it would be if all weights were
    0, and well above the tolerance. Training that has merely learned little, or that a large
    penalty holds back, ends below that; above it is what steps that were too long have thrown
    somewhere, even if it stays there.
    """
    limit = _FACTOR * of_zeros + _NEGLIGIBLE * tolerance
    if not (math.isfinite(limit) and loss > limit):
        return ""
    return (
        f"The loss is {loss:.4g}, far above the {of_zeros:.4g} of a network that always answers 0. "
        "Scale the features first, e.g. with sklearn.preprocessing.StandardScaler, or lower "
        f"learning_rate_init (now {rate:g})"
    )
