"""The loss and the metrics of an epoch, kept on the device and read once at its end."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gpunn._typing import Array
from gpunn.arrays.checks import is_whole
from gpunn.arrays.exchange import joined
from gpunn.arrays.state import check_names
from gpunn.data.batch import Batch
from gpunn.data.lending import is_ours, kept_apart
from gpunn.errors import DataError, StateError
from gpunn.kernels import kernels
from gpunn.losses.base import Loss
from gpunn.training.metrics import Metric

if TYPE_CHECKING:
    from gpunn.program.results import StepResults

#: After this many batches, their scalars are stacked into one array to save memory.
_FOLD = 1024


class _Column:
    """One small array per batch, always of the same shape."""

    def __init__(self, values: Array | None = None) -> None:
        self._folded: list[Array] = [] if values is None or not len(values) else [values]
        self._loose: list[Array] = []

    def append(self, x: Array) -> None:
        self._loose.append(x)
        if len(self._loose) >= _FOLD:
            self._fold()

    def extend(self, x: Array) -> None:
        """Add the values of several batches, in one array."""
        self._fold()
        self._folded.append(x)

    def read(self) -> list[Any]:
        """Return all values as Python numbers or lists; wait for the device."""
        values: list[Any] = self.values().tolist()
        return values

    def sum(self) -> float:
        """Return the sum of all values; wait for the device.

        The result does not depend on how many values were added at a time.
        """
        values = self.values()
        return _sum([float(values.sum(dtype="float64"))] if len(values) else [])

    def values(self) -> Any:
        """Return all values as one array on the host; wait for the device."""
        self._fold()
        return joined(self._folded)

    def _fold(self) -> None:
        if self._loose:
            self._folded.append(_stack(self._loose))
            self._loose = []


class Readings:
    """Collects the results of batches, and computes the numbers of the epoch from them.

    Parameters
    ----------
    loss : Loss
        The loss whose values are collected.
    metrics : sequence of Metric
        Further quantities to measure.
    scale : float, default 1.0
        A factor of the loss, but not of the penalty.
    weighted : bool, default True
        Whether the mean weights batches by their sample weights rather than by their sizes.
    """

    def __init__(
        self,
        loss: Loss,
        metrics: Sequence[Metric],
        *,
        scale: float = 1.0,
        weighted: bool = True,
    ) -> None:
        self.loss = loss
        self.metrics = metrics
        self._scale = scale
        self._weighted = weighted
        self.counts: list[int] = []
        self._costs = _Column()
        self._weights = _Column()
        self._statistics: list[tuple[Metric, list[_Column]]] = [(metric, []) for metric in metrics]
        self._all_ours = all(map(is_ours, metrics))
        #: Number of leading batches that already come from all processes.
        self._common = 0

    def add(
        self,
        cost: Array,
        prediction: Array,
        y: Array,
        sample_weight: Array | None,
        penalty: Array | None = None,
    ) -> None:
        """Add a batch: its cost, and the metrics of its prediction; nothing if it has no rows."""
        if not prediction.shape[0]:
            return
        self.counts.append(prediction.shape[0])
        cost = cost if self._scale == 1.0 else self._scale * cost
        self._costs.append(cost if penalty is None else cost + penalty)
        total = None
        if self._weighted:
            total = self.loss.total_weight(prediction, y, sample_weight)
        if total is not None:
            self._weights.append(total)
        self._measure(prediction, y)

    def add_many(
        self, results: StepResults, data: Batch | None, order: Any, batch_size: int
    ) -> None:
        """Add the results of several batches, rows of `data` in an order (None: as stored).

        The costs include the penalty, if it was computed.
        """
        start, stop, size = results.rows.start, results.rows.stop, batch_size
        whole, rest = divmod(stop - start, size)
        self.counts.extend([size] * whole + [rest] * bool(rest))
        costs = self._scale * results.costs
        self._costs.extend(costs if results.penalties is None else costs + results.penalties)
        if self._weighted and results.totals is not None:
            self._weights.extend(results.totals)
        if self.metrics:
            rows = results.rows if order is None else order[results.rows]
            outputs: Array = results.outputs
            targets: Any = results.targets
            if targets is None:
                assert data is not None  # noqa: S101 (one of the two holds them)
                stored: Any = data.y
                targets = stored[rows]
            for i in range(0, stop - start, size):
                batch = slice(i, min(i + size, stop - start))
                self._measure(outputs[batch], targets[batch])

    def _measure(self, prediction: Array, y: Array) -> None:
        for metric, columns in self._statistics:
            if self._all_ours:
                values = metric.measure(prediction, y)
            else:  # a metric must not see another one's writes
                values = metric.measure(kept_apart(prediction), kept_apart(y))
            columns.extend(_Column() for _ in range(len(values) - len(columns)))
            for column, value in zip(columns, values, strict=True):
                column.append(value)

    def read(self) -> dict[str, float]:
        """Return the loss and the metrics of the epoch as numbers.

        Raises
        ------
        DataError
            If the loss is a mean of samples whose weights are all zero.
        """
        if self.loss.reduction == "sum":
            loss = self._costs.sum()
        else:
            loss = self._mean_cost(self._weights.read() or self.counts)
        numbers = {"loss": loss}
        for metric, columns in self._statistics:
            rows = list(zip(*(column.read() for column in columns), strict=True))
            numbers[metric.name] = metric.combine(rows, self.counts)
        return numbers

    def are_finite(self) -> bool:
        """Return whether all costs so far are finite; wait for the device."""
        return math.isfinite(self._costs.sum())

    def merged(self, merge: Callable[[list[Any], int], list[Any]]) -> Readings:
        """Return the readings of all processes; wait for the device.

        Parameters
        ----------
        merge : function
            Takes this process's columns and the number of leading entries that all processes have
            in common; returns the columns of all processes.
        """
        own = self.state_dict()
        sizes = [len(columns) for columns in own["statistics"]]
        rest = [column for columns in own["statistics"] for column in columns]
        merged = merge([own["counts"], own["costs"], own["weights"], *rest], self._common)
        counts, costs, weights, *others = merged
        columns = iter(others)
        result = Readings(self.loss, self.metrics, scale=self._scale, weighted=self._weighted)
        state = {"counts": counts.tolist(), "costs": costs, "weights": weights}
        statistics = [[next(columns) for _ in range(size)] for size in sizes]
        result.load_state_dict(state | {"statistics": statistics})
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return all readings collected so far; wait for the device."""
        return {
            "counts": list(self.counts),
            "costs": self._costs.values(),
            "weights": self._weights.values(),
            "statistics": [[c.values() for c in columns] for _, columns in self._statistics],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state, to continue collecting from there.

        Raises
        ------
        StateError
            If it was collected with another number of metrics.
        """
        check_names("Readings", state, ("counts", "costs", "weights", "statistics"))
        if len(state["statistics"]) != len(self._statistics):
            raise StateError(
                f"Readings.load_state_dict: {len(state['statistics'])} metrics were measured, and "
                f"there are {len(self._statistics)} here; give the trainer the same ones"
            )
        n = len(state["counts"])
        columns = [state["costs"], *(each for metric in state["statistics"] for each in metric)]
        columns += [state["weights"]] * bool(len(state["weights"]))
        measured = all(map(len, state["statistics"])) or not n
        if not all(map(is_whole, state["counts"])) or not measured:
            raise StateError("Readings.load_state_dict: expected numbers for each batch")
        if any(tuple(getattr(column, "shape", ()))[:1] != (n,) for column in columns):
            raise StateError(
                f"Readings.load_state_dict: expected arrays of {n} numbers, one for each batch"
            )
        self.counts, self._common = list(state["counts"]), n
        self._costs, self._weights = _Column(state["costs"]), _Column(state["weights"])
        self._statistics = [
            (metric, [_Column(values) for values in columns])
            for metric, columns in zip(self.metrics, state["statistics"], strict=True)
        ]

    def _mean_cost(self, weights: list[Any]) -> float:
        """Return the mean of the costs, weighted by batch."""
        if weights and weights[0] and weights.count(weights[0]) == len(weights):
            return self._costs.sum() / len(weights)  # equal weights cancel
        total = math.fsum(weights)
        if total == 0 and self.counts:
            raise DataError(
                f"{self.loss!r}: the weights of all samples of an epoch add up to 0, so they "
                "have no mean loss; look at sample_weight, class_weight and labels to ignore"
            )
        return _sum(map(operator.mul, self._costs.read(), weights)) / (total or 1.0)


def _sum(terms: Iterable[float]) -> float:
    """Return the sum; NaN if it is not finite, for instance after an overflow."""
    try:
        total = math.fsum(terms)
    except (ValueError, OverflowError):  # inf - inf, or too large
        return math.nan
    return total if math.isfinite(total) else math.nan


def _stack(arrays: list[Array]) -> Array:
    """Stack the arrays along a new first axis."""
    return kernels(arrays[0]).stack(arrays)
