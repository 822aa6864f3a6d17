"""Counting epochs without improvement."""

from __future__ import annotations

import math


class Patience:  # noqa: PLW1641 (it changes, so it has no hash)
    """Counts the epochs since a number that should fall last improved.

    Attributes
    ----------
    best : float
        The number to improve on.
    waited : int
        Epochs since the last improvement.
    follows_minimum : bool
        Whether `best` follows every lower number, as in scikit-learn. Otherwise it moves only with
        an improvement, so that many small steps add up to one.
    """

    def __init__(
        self, best: float = math.inf, waited: int = 0, *, follows_minimum: bool = False
    ) -> None:
        self.best, self.waited, self.follows_minimum = best, waited, follows_minimum

    def __eq__(self, other: object) -> bool:
        """Return whether both have counted the same."""
        return type(self) is type(other) and vars(self) == vars(other)

    def observe(self, value: float, tolerance: float) -> None:
        """Count an epoch; it is an improvement if `value` is below `best` by the tolerance.

        A number that is not finite is no improvement, unless `best` follows the minimum: then the
        rule is scikit-learn's to the letter, `value` <= `best` - `tolerance`.
        """
        if self.follows_minimum:
            self.waited = self.waited + 1 if value > self.best - tolerance else 0
            self.best = min(self.best, value)  # in this order, NaN is not taken
        elif math.isfinite(value) and value < self.best - tolerance:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
