"""Counting epochs without improvement."""

from __future__ import annotations

import math


class Patience:  # noqa: PLW1641 (mutable, so it has no hash)
    """Counts the epochs since a number that should fall last improved.

    Attributes
    ----------
    best : float
        The number to improve on.
    waited : int
        Epochs since the last improvement.
    follows_minimum : bool
        Whether `best` follows every lower number, as in scikit-learn. Otherwise it changes only
        with an improvement, so that several small decreases can add up to one.
    """

    def __init__(
        self, best: float = math.inf, waited: int = 0, *, follows_minimum: bool = False
    ) -> None:
        self.best, self.waited, self.follows_minimum = best, waited, follows_minimum

    def __eq__(self, other: object) -> bool:
        """Return whether both have the same counts and settings."""
        return type(self) is type(other) and vars(self) == vars(other)

    def observe(self, value: float, tolerance: float) -> None:
        """Count an epoch; it is an improvement if `value` is below `best` by the tolerance.

        A number that is not finite is not an improvement, unless `best` follows the minimum: then
        the rule is exactly scikit-learn's, `value` <= `best` - `tolerance`.
        """
        if self.follows_minimum:
            self.waited = self.waited + 1 if value > self.best - tolerance else 0
            self.best = min(self.best, value)  # in this order, NaN is not taken
        elif math.isfinite(value) and value < self.best - tolerance:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
