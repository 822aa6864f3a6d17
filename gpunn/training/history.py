"""The history of a training run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, NoReturn

from gpunn.arrays.checks import shown
from gpunn.arrays.state import check_like, check_names
from gpunn.errors import SettingError, StateError
from gpunn.nn.notebook import html_table

#: Columns that the table omits; its title gives the total time.
_TIMES = ("elapsed_s", "samples_per_s")


class History:
    """The numbers of each epoch, by column, and why training ended.

    ``history["loss"]`` is a list with one entry per epoch; so are ``"validation_loss"``, each
    metric by its name and as ``"validation_<name>"``, ``"learning_rate"``, ``"elapsed_s"`` (seconds
    of training, without validation) and ``"samples_per_s"``. With weight decay, ``"cost"`` is the
    training loss plus the penalty at the epoch's end.

    Parameters
    ----------
    monitor : str, optional
        The column that decides which epoch is best.
    higher_is_better : bool, default False
        Whether its highest value is the best, rather than its lowest.

    Attributes
    ----------
    columns : dict of str to list of float
        All columns.
    higher_is_better : bool
        As given.
    stopped : str
        Why training ended.
    """

    def __init__(self, monitor: str | None = None, *, higher_is_better: bool = False) -> None:
        self._monitor = monitor
        self.higher_is_better = higher_is_better
        self.columns: dict[str, list[float]] = {}
        self.stopped = ""

    def append(self, record: dict[str, float]) -> None:
        """Add the numbers of an epoch; a callback may add its own columns.

        A record with a "loss" begins an epoch. A column is NaN in epochs without a value.

        Raises
        ------
        SettingError
            If a column already has a number for the epoch, or a value is not a number.
        """
        _check_numbers(record)
        earlier = len(self) - (0 if "loss" in record else 1)
        for name in record:
            if len(self.columns.get(name, ())) > max(earlier, 0):
                raise SettingError(
                    f"History.append: {name!r} has a number for epoch {earlier + 1} already; "
                    "give the new column a name of its own"
                )
        for name, value in record.items():
            column = self.columns.setdefault(name, [])
            column.extend([math.nan] * (earlier - len(column)))
            column.append(value)

    def replace_last(self, record: Mapping[str, float]) -> None:
        """Take the numbers of the last epoch from another process, which may have more columns."""
        for name, value in record.items():
            column = self.columns.setdefault(name, [])
            column.extend([math.nan] * (len(self) - len(column)))
            column[-1] = value

    @property
    def last(self) -> dict[str, float]:
        """The numbers of the last epoch, by name."""
        return {name: self._filled(name)[-1] for name in self.columns}

    def __getitem__(self, name: str) -> list[float]:
        """Return a column."""
        if name not in self.columns:
            raise KeyError(
                f"no column {shown(name)}; there are {', '.join(self.columns) or 'none yet'}"
            )
        return self.columns[name]

    def __iter__(self) -> NoReturn:
        """Raise: otherwise Python would look up columns 0, 1, ... through `__getitem__`."""
        raise TypeError("History: it is no list; iterate over history.columns, or zip them")

    def __contains__(self, name: object) -> bool:
        """Return whether there is such a column."""
        return isinstance(name, str) and name in self.columns

    def __len__(self) -> int:
        """Return the number of epochs."""
        return len(self.columns.get("loss", ()))

    @property
    def loss(self) -> list[float]:
        """The training loss of each epoch."""
        return self.columns.get("loss", [])

    @property
    def monitored(self) -> str:
        """The column that decides which epoch is best.

        The one chosen, else ``"validation_loss"`` if there is one, else ``"cost"`` if
        there is a penalty, else ``"loss"``.
        """
        if self._monitor is not None:
            return self._monitor
        return next((name for name in ("validation_loss", "cost") if name in self.columns), "loss")

    @property
    def best_epoch(self) -> int:
        """The epoch, counted from 1, of the best monitored value; 0 if none was finite."""
        values = [v if math.isfinite(v) else math.inf for v in self.to_minimize]
        best = min(values, default=math.inf)
        return 1 + values.index(best) if math.isfinite(best) else 0

    @property
    def to_minimize(self) -> list[float]:
        """The monitored column, negated if higher is better; NaN where it has no entry."""
        if self.monitored not in self.columns:
            return [math.nan] * len(self)
        values = self._filled(self.monitored)
        return [-value for value in values] if self.higher_is_better else values

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and strings, ready for JSON or a data frame."""
        columns = {name: self._filled(name) for name in self.columns}
        return {"epoch": list(range(1, len(self) + 1)), **columns, "stopped": self.stopped}

    def state_dict(self) -> dict[str, Any]:
        """Return all columns, the monitored one's name, and why training ended."""
        return {
            "columns": {name: list(column) for name, column in self.columns.items()},
            "monitor": self._monitor,
            "higher_is_better": self.higher_is_better,
            "stopped": self.stopped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load all of a state; early stopping counts its patience from the columns."""
        check_names("History", state, ("columns", "monitor", "higher_is_better", "stopped"))
        like = {"columns": {}, "monitor": "", "higher_is_better": True, "stopped": ""}
        check_like("History", state, like)
        columns = state["columns"]
        for name, column in columns.items():
            shorter = isinstance(column, list) and len(column) <= len(columns.get("loss", ()))
            if not shorter or not all(map(_is_number, column)):
                raise StateError(
                    f"History.load_state_dict: {name!r} is not a list of numbers, one an epoch"
                )
        self.columns = {name: [*column] for name, column in columns.items()}
        self._monitor, self.higher_is_better = state["monitor"], state["higher_is_better"]
        self.stopped = state["stopped"]

    def _filled(self, name: str) -> list[float]:
        """Return a column with an entry for each epoch, NaN where there is none."""
        return self[name] + [math.nan] * (len(self) - len(self[name]))

    def __repr__(self) -> str:
        """Return a table of the first, the best and the last epochs."""
        if not len(self):
            return self._title()
        names, rows = self._table()
        widths = [5, *(max(len(name), 9) for name in names[1:])]
        lines = [self._title()]
        for cells in (names, *rows):
            line = "  ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=False))
            best = "  best" if cells[0] == str(self.best_epoch) else ""
            lines.append(f"  {line}{best}" if len(cells) > 1 else f"    {cells[0]}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Return the same table as HTML, for notebooks."""
        if not len(self):
            return html_table(self._title(), (), ())
        names, rows = self._table()
        best = [i for i, cells in enumerate(rows) if cells[0] == str(self.best_epoch)]
        return html_table(self._title(), names, rows, best)

    def _title(self) -> str:
        """Return the number of epochs, their total time, and why training ended."""
        if not len(self):
            return f"History(0 epochs; {self.stopped or 'not started'})"
        elapsed = math.fsum(self.columns.get("elapsed_s", ()))
        reason = f"; {self.stopped}" if self.stopped else ""
        epochs = f"{len(self)} epoch{'s' * (len(self) != 1)}"
        return f"History({epochs} in {elapsed:.3g} s{reason})"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """Return the names of the columns, and rows of the first, the best and the last epochs.

        A row with a single cell stands for omitted epochs.
        """
        columns = {n: self._filled(n) for n in self.columns if n not in _TIMES}
        shown = sorted({1, 2, self.best_epoch, len(self) - 1, len(self)} - {0})
        rows, before = [], 0
        for epoch in (e for e in shown if e <= len(self)):
            if epoch > before + 1:
                rows.append(["..."])
            rows.append([str(epoch), *(f"{column[epoch - 1]:.4g}" for column in columns.values())])
            before = epoch
        return ["epoch", *columns], rows


def _is_number(value: Any) -> bool:
    """Return whether a value is a number; 0-d arrays count as numbers."""
    if type(value) is float:  # the usual case; the test against an abstract class is slow
        return True
    return isinstance(value, Real) or getattr(value, "shape", None) == ()


def _check_numbers(record: Any) -> None:
    """Check that a record maps names to numbers; 0-d arrays count as numbers."""
    if not isinstance(record, Mapping):
        raise SettingError(
            f"History.append: expected a dict from columns to numbers, got {type(record).__name__}"
        )
    for name, value in record.items():
        if not isinstance(name, str):
            raise SettingError(
                f"History.append: the names of columns must be strings, got {shown(name)}"
            )
        if not _is_number(value):
            raise SettingError(
                f"History.append: {shown(name)} must be a number, got {shown(value)}"
            )


def columns_of(
    metrics: Iterable[Any], *, penalized: bool, validated: bool
) -> dict[str, bool | None]:
    """Return the columns of a history, and whether higher values are better (None if unknown)."""
    measured: dict[str, bool | None] = {"loss": False}
    measured |= {metric.name: metric.higher_is_better for metric in metrics}
    columns = dict(measured)
    if penalized:
        columns["cost"] = False
    if validated:
        columns |= {f"validation_{name}": higher for name, higher in measured.items()}
    return columns | dict.fromkeys(("learning_rate", "elapsed_s", "samples_per_s"))
