"""How long a number has not improved."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Patience:
    """Counts the epochs since a number that should fall was last clearly lower than before.

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
        """Take an epoch's number, which improves on the best one if it is lower by `tolerance`.

        A number that is not finite never does.
        """
        if math.isfinite(value) and value < self.best - tolerance:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
