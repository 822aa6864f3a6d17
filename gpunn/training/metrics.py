"""Metrics: computed on the device batch by batch, and read once an epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of
from gpunn.arrays.checks import integer, listed, number, shown, whole_number
from gpunn.errors import DeviceError, DTypeError, SettingError, ShapeError
from gpunn.kernels import kernels


class Metric:
    """The base class of metrics.

    A subclass defines `measure`, which returns the statistics of one batch, still on the device,
    and `combine`, which combines those of all batches into one number, on the host. Sample weights
    do not apply to metrics.

    Examples
    --------
    >>> import gpunn as gn
    >>> class Bias(gn.Metric):
    ...     higher_is_better = False
    ...
    ...     def measure(self, prediction, target):
    ...         return (abs((prediction - target).mean()),)
    """

    #: Whether higher values are better, for early stopping; None if unknown, in which case the
    #: metric can be monitored only with ``EarlyStopping(higher_is_better=...)``.
    higher_is_better: ClassVar[bool | None] = None

    @property
    def name(self) -> str:
        """The name in the history: the class in lower case with underscores."""
        letters = (f"_{c.lower()}" if c.isupper() else c for c in type(self).__name__)
        return "".join(letters).lstrip("_")

    def measure(self, prediction: Array, target: Array) -> tuple[Array, ...]:
        """Return arrays shaped alike for all batches; the default `combine` takes one 0-d array."""
        raise NotImplementedError(f"{type(self).__name__} must define measure(prediction, target)")

    def combine(self, statistics: Sequence[Sequence[Any]], counts: Sequence[int]) -> float:
        """Return the metric from the statistics and sizes of all batches; by default the mean."""
        total = math.fsum(row[0] * n for row, n in zip(statistics, counts, strict=True))
        return total / max(1, sum(counts))

    def __repr__(self) -> str:
        """Return the expression that creates the metric."""
        return f"{type(self).__name__}()"


class Accuracy(Metric):
    """The share of samples whose largest output is the true class.

    Targets are labels (N,) or one-hot or soft rows (N, K), whose largest entry is the true class.
    """

    higher_is_better: ClassVar[bool | None] = True

    def measure(self, prediction: Array, target: Array) -> tuple[Array, ...]:
        """Return the share in this batch."""
        if prediction.shape[1] == 1:
            raise ShapeError(
                "Accuracy: the model has one output, not one for each class; use "
                "'binary_accuracy' for two classes, 'r2' or 'mae' for numbers"
            )
        xp = kernels(prediction).xp
        hits = xp.argmax(prediction, axis=1) == _labels(xp, prediction, target)
        return (_mean(xp, hits, prediction),)


class _OfPositions(Metric):
    """A mean over the labels that count.

    Parameters
    ----------
    ignore_label : int, default -100
        The label of positions that do not count, as for `SequenceCrossEntropy`. A trainer given
        the metric by name uses its loss's label.
    """

    def __init__(self, ignore_label: int = -100) -> None:
        self.ignore_label = integer(type(self).__name__, "ignore_label", ignore_label)

    def measure(self, prediction: Array, target: Array) -> tuple[Array, ...]:
        """Return the sum in this batch, and the number of labels that count."""
        _check_target(prediction, target)
        if tuple(target.shape) != tuple(prediction.shape[:-1]):
            raise ShapeError(
                f"{self!r}: expected labels of shape {tuple(prediction.shape[:-1])}, "
                f"got {tuple(target.shape)}"
            )
        k = kernels(prediction)
        xp = k.xp
        rows = xp.reshape(prediction, (-1, prediction.shape[-1]))
        labels = xp.reshape(xp.astype(target, xp.int64, copy=False), (-1,))
        counts = labels != self.ignore_label
        each = self._each(k, rows, xp.where(counts, labels, 0))
        counted = xp.astype(counts, prediction.dtype)
        return xp.sum(xp.where(counts, each, 0.0)), xp.sum(counted)

    def _each(self, k: Any, rows: Array, labels: Array) -> Array:
        """Return the value (M,) of each row of outputs (M, K) for its label (M,)."""
        raise NotImplementedError

    def combine(self, statistics: Sequence[Sequence[Any]], counts: Sequence[int]) -> float:  # noqa: ARG002
        """Return the mean over all labels that count; NaN if none does."""
        total, counted = (math.fsum(column) for column in zip(*statistics, strict=True))
        return total / counted if counted else math.nan

    def __repr__(self) -> str:
        """Return the expression that creates the metric."""
        given = "" if self.ignore_label == -100 else str(self.ignore_label)
        return f"{type(self).__name__}({given})"


class SequenceAccuracy(_OfPositions):
    """The share of positions whose largest output is the true label.

    Outputs are (N, T, K), targets labels (N, T). A trainer whose loss is `SequenceCrossEntropy`
    uses this metric for ``"accuracy"``.

    Parameters
    ----------
    ignore_label : int, default -100
        The label of positions that do not count, as for `SequenceCrossEntropy`. A trainer given
        the metric by name uses its loss's label.
    """

    higher_is_better: ClassVar[bool | None] = True

    @property
    def name(self) -> str:
        """The name in the history."""
        return "accuracy"

    def _each(self, k: Any, rows: Array, labels: Array) -> Array:
        return k.xp.astype(k.xp.argmax(rows, axis=1) == labels, rows.dtype)


class Perplexity(_OfPositions):
    r"""The perplexity of labels, :math:`\exp(-\frac1M \sum \log \mathrm{softmax}(z)_y)`.

    The number of equally likely labels that would leave a model just as unsure. Outputs are logits
    (N, T, K) or (N, K), targets labels (N, T) or (N,); M of these count. For
    `SequenceCrossEntropy` without smoothing, it is exp(loss).

    Parameters
    ----------
    ignore_label : int, default -100
        The label of positions that do not count, as for `SequenceCrossEntropy`. A trainer given
        the metric by name uses its loss's label.
    """

    higher_is_better: ClassVar[bool | None] = False

    def _each(self, k: Any, rows: Array, labels: Array) -> Array:
        xp = k.xp
        shifted = rows - xp.max(rows, axis=1, keepdims=True)
        y = k.one_hot(labels, rows)
        own = xp.sum(y * xp.where(y == 0, 0.0, shifted), axis=1)
        return xp.log(xp.sum(xp.exp(shifted), axis=1)) - own

    def combine(self, statistics: Sequence[Sequence[Any]], counts: Sequence[int]) -> float:
        """Return exp of the mean; infinity if that overflows."""
        mean = super().combine(statistics, counts)
        return math.exp(mean) if not mean > 709.0 else math.inf


class TopK(Metric):
    """The share of samples whose true class is among the k largest outputs.

    Parameters
    ----------
    k : int, default 5
        At least 1. Among equal outputs, the true class counts as the largest.
    """

    higher_is_better: ClassVar[bool | None] = True

    def __init__(self, k: int = 5) -> None:
        self.k = whole_number("TopK", "k", k)

    @property
    def name(self) -> str:
        """The name in the history, ``"top_5"``."""
        return f"top_{self.k}"

    def measure(self, prediction: Array, target: Array) -> tuple[Array, ...]:
        """Return the share in this batch."""
        if self.k >= prediction.shape[1]:
            raise ShapeError(
                f"TopK({self.k}): of {prediction.shape[1]} classes it is always 1; take a smaller k"
            )
        k = kernels(prediction)
        xp = k.xp
        onehot = k.one_hot(_labels(xp, prediction, target), prediction)
        own = xp.sum(prediction * onehot, axis=1, keepdims=True)
        # NaN compares false, so with counting from below it is a miss.
        reached = xp.sum(xp.astype(prediction <= own, prediction.dtype), axis=1)
        return (_mean(xp, reached > prediction.shape[1] - self.k, prediction),)

    def __repr__(self) -> str:
        """Return the expression that creates the metric."""
        return f"TopK({self.k})"


class BinaryAccuracy(Metric):
    """The share of outputs on the right side of a threshold.

    Parameters
    ----------
    threshold : float, default 0.0
        The output above which the answer is yes: 0 for logits, 0.5 for probabilities. A trainer
        given the name ``"binary_accuracy"`` chooses the threshold that fits its loss.
    """

    higher_is_better: ClassVar[bool | None] = True

    def __init__(self, threshold: float = 0.0) -> None:
        self.threshold = number("BinaryAccuracy", "threshold", threshold, "(-inf, inf)")

    def measure(self, prediction: Array, target: Array) -> tuple[Array, ...]:
        """Return the share in this batch."""
        xp = kernels(prediction).xp
        target = _alike(xp, self, prediction, target)
        return (_mean(xp, (prediction > self.threshold) == (target > 0.5), prediction),)

    def __repr__(self) -> str:
        """Return the expression that creates the metric."""
        return f"BinaryAccuracy({self.threshold})"


class MAE(Metric):
    """The mean absolute error, over samples and outputs."""

    higher_is_better: ClassVar[bool | None] = False

    @property
    def name(self) -> str:
        """The name in the history."""
        return "mae"

    def measure(self, prediction: Array, target: Array) -> tuple[Array, ...]:
        """Return the mean in this batch."""
        xp = kernels(prediction).xp
        target = _alike(xp, self, prediction, target)
        return (xp.mean(xp.abs(prediction - target)),)


class R2(Metric):
    r"""The coefficient of determination, :math:`1 - \sum (y - \hat y)^2 / \sum (y - \bar y)^2`.

    For several outputs, the mean of their R^2, as in scikit-learn. An output whose targets are all
    equal gives 1 if the prediction is exact, else 0.
    """

    higher_is_better: ClassVar[bool | None] = True

    @property
    def name(self) -> str:
        """The name in the history."""
        return "r2"

    def measure(self, prediction: Array, target: Array) -> tuple[Array, ...]:
        """Return the mean, variance, minimum and maximum of y and the mean squared error."""
        xp = kernels(prediction).xp
        target = _alike(xp, self, prediction, target)
        mean = xp.mean(target, axis=0)
        deviation, error = target - mean, target - prediction
        return (
            mean,
            xp.mean(deviation * deviation, axis=0),
            xp.min(target, axis=0),
            xp.max(target, axis=0),
            xp.mean(error * error, axis=0),
        )

    def combine(self, statistics: Sequence[Sequence[Any]], counts: Sequence[int]) -> float:
        """Return R^2 over all batches."""
        outputs = range(len(statistics[0][0]))
        return math.fsum(self._of_output(statistics, counts, p) for p in outputs) / len(outputs)

    def _of_output(
        self, statistics: Sequence[Sequence[Any]], counts: Sequence[int], p: int
    ) -> float:
        rows = [
            (mean[p], spread[p], error[p], n)
            for (mean, spread, _, _, error), n in zip(statistics, counts, strict=True)
        ]
        least, most = min(r[2][p] for r in statistics), max(r[3][p] for r in statistics)
        center = math.fsum(mean * n for mean, _, _, n in rows) / sum(counts)
        total = math.fsum((spread + (mean - center) ** 2) * n for mean, spread, _, n in rows)
        residual = math.fsum(error * n for _, _, error, n in rows)
        # `total` alone is not enough: rounding may give equal numbers a nonzero variance.
        if least == most or total == 0:
            return 1.0 if residual == 0 else 0.0
        return 1.0 - residual / total


METRICS: dict[str, type[Metric]] = {
    "accuracy": Accuracy,
    "perplexity": Perplexity,
    "top_k": TopK,
    "binary_accuracy": BinaryAccuracy,
    "r2": R2,
    "mae": MAE,
}


def get_metric(metric: str | Metric) -> Metric:
    """Return the metric with that name, or the given object."""
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, type) and issubclass(metric, Metric):
        name = metric.__name__
        raise SettingError(f"{name} is a class, and a metric is an object of it; write {name}()")
    if not isinstance(metric, str) or metric not in METRICS:
        raise SettingError(
            f"unknown metric {shown(metric)}; known are {listed(METRICS, metric)}, "
            "and any object of the class Metric"
        )
    return METRICS[metric]()


def _check_target(prediction: Array, target: Any) -> None:
    """Check that the target is on the same device; a GPU may read another's memory too early."""
    if not hasattr(target, "shape"):
        raise DTypeError(
            f"a metric needs an array of targets, got {type(target).__name__}; "
            "pass labels or targets, Loader(x, y)"
        )
    here, there = backend_of(prediction), backend_of(target)
    if here != there:
        raise DeviceError(
            f"a metric got a prediction on {here} and targets on {there}; move one of them: "
            f"gn.get_backend({str(here)!r}).asarray(target)"
        )


def _labels(xp: Any, prediction: Array, target: Array) -> Array:
    _check_target(prediction, target)
    if target.ndim == 1:
        return target
    if target.shape != prediction.shape:
        raise ShapeError(
            f"expected labels (N,) or targets of shape {tuple(prediction.shape)}, "
            f"got {tuple(target.shape)}"
        )
    return xp.argmax(target, axis=1)


def _alike(xp: Any, metric: Metric, prediction: Array, target: Array) -> Array:
    """Return the target in the prediction's shape and dtype; (N,) stands for (N, 1)."""
    _check_target(prediction, target)
    if prediction.shape not in (target.shape, (*target.shape, 1)):
        raise ShapeError(
            f"{metric!r}: expected a target of shape {tuple(prediction.shape)}, "
            f"as the prediction has, got {tuple(target.shape)}"
        )
    return xp.astype(xp.reshape(target, prediction.shape), prediction.dtype)


def _mean(xp: Any, hits: Array, like: Array) -> Array:
    return xp.mean(xp.astype(hits, like.dtype))
