"""Early stopping, and the best weights to restore."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gpunn.arrays.backend import scope_of
from gpunn.arrays.checks import number, one_of, shown, whole_number
from gpunn.arrays.memory import copy_of
from gpunn.arrays.settings import Frozen
from gpunn.arrays.state import check_arrays, check_names, write_arrays
from gpunn.errors import SettingError
from gpunn.nn.layer import Layer
from gpunn.optim.patience import Patience
from gpunn.training.history import History


class EarlyStopping(Frozen):
    """Stop when the loss no longer falls: "repeat until convergence", made precise.

    Training stops after `patience` epochs in a row without an improvement: a value of the monitored
    column more than `tolerance` below its best, or, if higher is better, more than `tolerance`
    above it. A value that is not finite is never an improvement.

    Parameters
    ----------
    patience : int, default 10
        At least 1.
    tolerance : float, default 1e-4
        At least 0, in the units of the monitored column.
    monitor : str, optional
        A column of the history, such as ``"validation_accuracy"``. By default the validation loss
        if there is one, else the training loss with the penalty of weight decay.
    restore_best : bool, default True
        Whether to end with the weights of the best epoch rather than of the last.
    higher_is_better : bool, optional
        Whether higher values of the monitored column are better. Losses and metrics declare it (see
        `Metric.higher_is_better`); a column that a callback appends needs it.
    """

    patience: int
    tolerance: float
    monitor: str | None
    restore_best: bool
    higher_is_better: bool | None

    def __init__(
        self,
        patience: int = 10,
        tolerance: float = 1e-4,
        monitor: str | None = None,
        restore_best: bool = True,  # noqa: FBT001, FBT002 (as above)
        higher_is_better: bool | None = None,  # noqa: FBT001 (as above)
    ) -> None:
        whole_number("EarlyStopping", "patience", patience)
        number("EarlyStopping", "tolerance", tolerance, "[0, inf)")
        if monitor is not None and not isinstance(monitor, str):
            raise SettingError(
                "EarlyStopping: monitor must be None or the name of a column, such as "
                f"'validation_loss'; got {shown(monitor)}"
            )
        one_of("EarlyStopping", "restore_best", restore_best, (True, False))
        one_of("EarlyStopping", "higher_is_better", higher_is_better, (None, True, False))
        settings = vars(self)
        settings |= {"patience": patience, "tolerance": tolerance, "monitor": monitor}
        settings |= {"restore_best": restore_best, "higher_is_better": higher_is_better}

    def direction(self, name: str, columns: Mapping[str, bool | None], *, appended: bool) -> bool:
        """Return whether higher values of the column `name` are better.

        Parameters
        ----------
        name : str
            The monitored column.
        columns : mapping of str to bool or None
            The history's columns, and whether higher values are better; None if unknown.
        appended : bool
            Whether callbacks may append further columns.

        Raises
        ------
        SettingError
            If there is no such column, its better direction is unknown, or `higher_is_better`
            contradicts it.
        """
        stated = self.higher_is_better
        if name not in columns:
            if stated is None or not appended:
                raise SettingError(self._unknown(name, columns, appended=appended))
            return stated
        known = columns[name]
        if stated is None and known is None:
            raise SettingError(
                f"EarlyStopping: it is not known whether {name!r} is better the higher; say "
                "higher_is_better = True (or False) in the metric's class, or "
                f"EarlyStopping(monitor={name!r}, higher_is_better=True)"
            )
        if known is not None and stated not in (None, known):
            better = "the higher" if known else "the lower"
            raise SettingError(
                f"EarlyStopping: {name} is better {better}, and higher_is_better={stated} says "
                "otherwise; leave it out"
            )
        return bool(stated if known is None else known)

    def _unknown(self, name: str, columns: Mapping[str, bool | None], *, appended: bool) -> str:
        if name.startswith("validation_") and "validation_loss" not in columns:
            advice = "; pass fit(..., validation=(x, y))"
        elif appended:
            advice = (
                "; if a callback appends it, say which way it is better: "
                f"EarlyStopping(monitor={name!r}, higher_is_better=True)"
            )
        else:
            advice = (
                "; a metric is followed once it is among Trainer(..., metrics=[...]), or a "
                "callback may append it and EarlyStopping(..., higher_is_better=True) say which "
                "way it is better"
            )
        return _absent(name, columns) + advice

    def reason(self, history: History) -> str | None:
        """Return why to stop after the last epoch, or None to continue."""
        name = history.monitored
        if name not in history:
            raise SettingError(_absent(name, history.columns))
        patience = Patience()
        for value in history.to_minimize:
            patience.observe(value, self.tolerance)
        if patience.waited < self.patience:
            return None
        if math.isinf(patience.best):
            return f"{name} was not finite in {patience.waited} epochs"
        verb = "risen" if history.higher_is_better else "fallen"
        return f"{name} has not {verb} by more than {self.tolerance:g} in {patience.waited} epochs"


def _absent(name: str, columns: Mapping[str, object]) -> str:
    return f"EarlyStopping: there is no {name!r} to monitor; there are {', '.join(columns)}"


def follow(
    early_stopping: EarlyStopping | None, columns: Mapping[str, bool | None], *, appended: bool
) -> History:
    """Return an empty history that monitors early stopping's column, by default a loss.

    `columns` and `appended` are as in `EarlyStopping.direction`.
    """
    losses = ("validation_loss", "cost", "loss")
    usual = next(name for name in losses if name in columns)
    if early_stopping is None:
        return History(usual)
    name = usual if early_stopping.monitor is None else early_stopping.monitor
    higher = early_stopping.direction(name, columns, appended=appended)
    return History(name, higher_is_better=higher)


class BestWeights:
    """The weights and buffers of a model at its best epoch so far, on its own device.

    Parameters
    ----------
    model : Layer
        Its arrays are copied at once, and again whenever the loss is the lowest so far.

    Attributes
    ----------
    loss : float
        The lowest so far.
    epoch : int
        The epoch of the weights; 0 before the first.
    """

    def __init__(self, model: Layer) -> None:
        self.loss = math.inf
        self.epoch = 0
        self._named = {**model.named_parameters(), **model.named_buffers()}
        self._held = list(self._named.values())
        self._copies = [copy_of(item.value) for item in self._held]

    def offer(self, epoch: int, loss: float) -> None:
        """Copy the weights if `loss` is the lowest so far, and finite.

        If higher is better, pass the negated value.
        """
        if not (math.isfinite(loss) and loss < self.loss):
            return
        self.epoch, self.loss = epoch, loss
        for item, copy in zip(self._held, self._copies, strict=True):
            with scope_of(copy):
                copy[...] = item.value

    def restore(self) -> None:
        """Write the best weights back to the model."""
        for item, copy in zip(self._held, self._copies, strict=True):
            with scope_of(copy):
                item.value[...] = copy

    def state_dict(self) -> dict[str, Any]:
        """Return the lowest loss, its epoch, and the weights and buffers by name."""
        copies = dict(zip(self._named, self._copies, strict=True))
        return {"loss": self.loss, "epoch": self.epoch, "weights": copies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the lowest loss, its epoch, and the weights and buffers."""
        check_names("BestWeights", state, ("loss", "epoch", "weights"))
        copies = dict(zip(self._named, self._copies, strict=True))
        check_arrays("BestWeights", state["weights"], copies)
        write_arrays(state["weights"], copies)
        self.loss, self.epoch = float(state["loss"]), int(state["epoch"])


def all_epochs_run(epochs: int, n_epochs: int) -> str:
    """Return why training ended: all epochs are run, or the checkpoint already had more."""
    if n_epochs > epochs:
        return f"the checkpoint has {n_epochs} epochs already, and epochs={epochs} counts them"
    return f"all {epochs} epochs run" if epochs > 1 else "1 epoch run"
