"""The check that the loss is still finite."""

from __future__ import annotations

import math

from gpunn.errors import DivergenceError
from gpunn.optim.base import Optimizer
from gpunn.training.history import History
from gpunn.training.stopping import BestWeights


def check_finite(history: History, best: BestWeights, optimizer: Optimizer) -> None:
    """Check the losses of the last epoch; if one is not finite, restore the best weights.

    Raises
    ------
    DivergenceError
        If a loss is not finite; the error's `history` is the history so far.
    """
    losses = {name: history.last[name] for name in ("loss", "validation_loss") if name in history}
    bad = next((name for name, loss in losses.items() if not math.isfinite(loss)), None)
    if bad is None:
        return
    best.restore()
    optimizer.reset()  # its state may not be finite
    whose = f"those of epoch {best.epoch}" if best.epoch else "the initial ones"
    what = bad.replace("_", " ")
    history.stopped = f"the {what} was not finite in epoch {len(history)}"
    training = "training data first, Loader(..., check_finite=True)"
    where = training if bad == "loss" else "validation data first"
    error = DivergenceError(
        f"Trainer: the {what} is {losses[bad]} in epoch {len(history)} (learning rate "
        f"{history['learning_rate'][-1]:g}); the model has its best weights again, {whose}. "
        f"Look for NaN in the {where}; if there is none, try standardised features, a lower "
        "learning rate or clip_norm=1.0"
    )
    error.history = history  # type: ignore[attr-defined]
    raise error
