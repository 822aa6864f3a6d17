"""Knowing when to stop, and what to go back to."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpunn.backend import copy_of, scope_of
from gpunn.errors import SettingError
from gpunn.history import History
from gpunn.layer import Layer


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the loss no longer falls: "repeat until convergence", made precise.

    Training stops after `patience` epochs in a row none of which brought the monitored loss more
    than `tolerance` below its best.

    Parameters
    ----------
    patience : int, default 10
        At least 1.
    tolerance : float, default 1e-4
        At least 0, in units of the loss.
    monitor : str, optional
        A column of the history that falls as training goes well. By default the validation loss
        if there is one, else the training loss with the penalty of weight decay.
    restore_best : bool, default True
        Whether to end with the weights of the best epoch rather than of the last.
    """

    patience: int = 10
    tolerance: float = 1e-4
    monitor: str | None = None
    restore_best: bool = True

    def __post_init__(self) -> None:
        """Check the settings."""
        if not hasattr(self.patience, "__index__") or self.patience < 1:
            raise SettingError(
                f"EarlyStopping: patience must be a whole number above 0, got {self.patience!r}"
            )
        if not 0 <= self.tolerance < math.inf:
            raise SettingError(
                f"EarlyStopping: tolerance must be at least 0, got {self.tolerance!r}"
            )

    def reason(self, history: History) -> str | None:
        """Return why to stop now, or None to go on."""
        name = history.monitored
        if name not in history:
            raise SettingError(
                f"EarlyStopping: there is no {name!r} to monitor; "
                f"there are {', '.join(history.columns)}"
            )
        best, waited = math.inf, 0
        for value in history[name]:
            improved = value < best - self.tolerance
            best, waited = (value, 0) if improved else (best, waited + 1)
        if waited < self.patience:
            return None
        return f"{name} has not fallen by more than {self.tolerance:g} in {waited} epochs"


class BestWeights:
    """The weights and buffers of a model at its best epoch so far, on its own device.

    Parameters
    ----------
    model : Layer
        Whose arrays are copied, once now and again whenever a loss is the lowest.
    """

    def __init__(self, model: Layer) -> None:
        self.loss = math.inf
        self.epoch = 0
        self._held = [*model.parameters(), *model.buffers()]
        self._copies = [copy_of(item.value) for item in self._held]

    def offer(self, epoch: int, loss: float) -> None:
        """Copy the weights if `loss` is the lowest so far."""
        if not loss < self.loss:
            return
        self.epoch, self.loss = epoch, loss
        for item, copy in zip(self._held, self._copies, strict=True):
            with scope_of(copy):
                copy[...] = item.value

    def restore(self) -> None:
        """Write them back."""
        for item, copy in zip(self._held, self._copies, strict=True):
            with scope_of(copy):
                item.value[...] = copy
