"""Counting epochs without improvement."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Patience:
    """Counts the epochs since a number, which should fall, last improved.

    Attributes
    ----------
    best : float
        The lowest so far, as of the last improvement.
    waited : int
        Epochs since then.
    """

    best: float = math.inf
    waited: int = 0

    def observe(self, value: float, tolerance: float) -> None:
        """Count an epoch; its value is an improvement if it is below `best` by `tolerance`.

        Values that are not finite are no improvement.
        """
        if math.isfinite(value) and value < self.best - tolerance:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
