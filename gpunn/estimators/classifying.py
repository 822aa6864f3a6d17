"""The base class of the classifiers: labels, probabilities and accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.metrics import accuracy_score
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import is_multilabel
from sklearn.utils.validation import check_is_fitted

from gpunn._typing import Array
from gpunn.arrays.backend import scope_of
from gpunn.arrays.exchange import to_numpy
from gpunn.estimators.base import NetworkEstimator
from gpunn.estimators.class_weights import by_class, check_class_weight, needs_all_labels
from gpunn.estimators.labels import (
    Labels,
    as_labels,
    ascending,
    converted,
    in_library,
    known_classes,
    readable,
)
from gpunn.estimators.origin import Origin, namespace_of
from gpunn.estimators.samples import check_unmasked
from gpunn.estimators.solvers import is_stochastic
from gpunn.kernels import kernels
from gpunn.losses.base import Loss
from gpunn.losses.binary_cross_entropy import BinaryCrossEntropy
from gpunn.losses.cross_entropy import CrossEntropy, SoftmaxCrossEntropy
from gpunn.nn.activation import LogSoftmax, Softplus
from gpunn.training.metrics import BinaryAccuracy


class Classifying(ClassifierMixin, NetworkEstimator):
    """A network whose outputs represent class labels."""

    _labels: Labels

    def _given_loss(self) -> Loss | None:
        """Return the user's loss, or None to choose one for the labels."""
        loss = getattr(self, "loss", None)
        return loss if isinstance(loss, Loss) else None

    @property
    def classes_(self) -> Any:
        """The class labels, ascending, in the library of y; strings are NumPy's."""
        if not hasattr(self, "_labels"):
            if "classes_" in self._assigned:
                return self._assigned["classes_"]
            raise AttributeError(f"{type(self).__name__} has no classes_ before it is fitted")
        return self._labels.given

    @classes_.setter
    def classes_(self, values: Any) -> None:
        known = getattr(self, "_labels", None)
        classes = ascending(f"{type(self).__name__}: classes_", values, known)
        origin = Origin.of_labels(values)
        if known is None:
            self._assign("classes_", in_library(classes, origin))
        else:
            self._labels = Labels(classes, known.kind, origin, known.sparse)

    @property
    def _assigned(self) -> dict[str, Any]:
        """The parts assigned before the network exists."""
        return {}

    def _assign(self, part: str, value: Any) -> None:  # noqa: ARG002
        """Assign a part before the network exists."""
        check_is_fitted(self)

    # Training

    @available_if(is_stochastic)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Any:
        """Train for one pass over some data, from the current weights.

        A call does not count as an epoch of `fit`: it lowers only the learning rate of
        "invscaling", and does not use up patience. Its cost does not grow with the number of calls.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : array-like of shape (n_classes,), optional
            All labels that may occur in any call. Required in the first call, unless y has several
            columns; the labels are then the column indices.

        Returns
        -------
        self : estimator
        """
        if needs_all_labels(self.class_weight):
            raise ValueError(
                "class_weight='balanced' needs to see all labels, but partial_fit sees some; give "
                "a dict of weights, which sklearn.utils.compute_class_weight can compute"
            )
        known = None
        if classes is not None:
            known = known_classes(f"{type(self).__name__}.partial_fit: classes", classes)
            classes = in_library(known, Origin.of_labels(classes))
        if not self.__sklearn_is_fitted__():
            if known is None and not is_multilabel(y):
                raise ValueError("classes must be passed on the first call to partial_fit.")
        elif known is not None and not np.array_equal(self._labels.classes, known):
            raise ValueError(
                f"`classes={known.tolist()}` is not the same as on last call to partial_fit, "
                f"was: {self._labels.classes}"
            )
        return self._fit(X, y, sample_weight, classes=classes, incremental=True)

    def _learn_targets(self, y: Any, classes: Any, *, fresh: bool, incremental: bool) -> int:
        if incremental and not fresh:  # y may have only some of the labels; `encode` checks them
            return self._labels.n_outputs
        several = isinstance(self._given_loss(), CrossEntropy)
        labels = Labels.of(y, several=several)
        if fresh and classes is not None:
            if labels.kind == "multilabel":
                self._check_columns(labels, to_numpy(classes))
            else:
                labels = Labels.among(classes, several=several)
        if fresh:
            self._labels = labels
        elif not _same_classes(labels, self._labels):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous "
                f"call to fit. Previously got {self._labels.classes}, `y` has {labels.classes}"
            )
        return self._labels.n_outputs

    def _check_columns(self, labels: Labels, classes: Any) -> None:
        """Check that the given classes are the columns of y."""
        if not np.array_equal(labels.classes, classes):
            raise ValueError(
                f"{type(self).__name__}.partial_fit: y has {len(labels.classes)} columns, one a "
                f"label; classes must be their indices, {labels.classes.tolist()}, or be left out; "
                f"got {classes.tolist()}"
            )

    def _targets(self, y: Any, dtype: str) -> Any:
        one_hot = not isinstance(self._loss, CrossEntropy)
        return self._labels.encode(as_labels(y), dtype, one_hot=one_hot)

    def _class_weights(self, y: Any, weight: Any) -> Any:
        check_class_weight(type(self).__name__, self.class_weight, self._labels)
        return by_class(self.class_weight, as_labels(y), self._labels, weight)

    def _make_loss(self) -> Loss:
        given = self._given_loss()
        if isinstance(given, CrossEntropy) and self._labels.kind == "multilabel":
            raise ValueError(
                f"{type(self).__name__}: {given!r} is for labels that exclude each other, but y "
                "has several per sample; omit loss, or pass loss=gpunn.BinaryCrossEntropy()"
            )
        if given is not None:
            return given
        return SoftmaxCrossEntropy() if self._labels.kind == "multiclass" else BinaryCrossEntropy()

    def _metric(self, metric: Any) -> Any:
        exclusive = self._labels.kind == "multiclass"
        return (
            metric if metric != "accuracy" or exclusive else _RenamedBinaryAccuracy(self._threshold)
        )

    def _score_of(self, outputs: Array, target: Any, weight: Any) -> float:
        with scope_of(outputs):
            xp = namespace_of(outputs)
            if not bool(xp.all(xp.isfinite(outputs))):
                return math.nan  # they represent no class
        codes = to_numpy(self._codes(outputs))
        if self._labels.kind == "binary":
            target = target[:, 0]
        elif self._labels.kind == "multiclass" and target.ndim == 2:
            target = target.argmax(axis=1)
        weight = None if weight is None else to_numpy(weight)
        return float(accuracy_score(target.astype(np.int64), codes, sample_weight=weight))

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy: the share of samples whose labels are all right.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), or (n_samples, n_labels)
            The true labels.
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        score : float
        """
        check_unmasked(type(self).__name__, y=y, sample_weight=sample_weight)
        return float(super().score(X, readable(y), sample_weight))

    # Predictions

    @property
    def _threshold(self) -> float:
        """The output above which a label is predicted."""
        return 0.0 if self._loss.from_logits else 0.5

    def _codes(self, outputs: Array) -> Array:
        with scope_of(outputs):
            return self._labels.codes(outputs, self._threshold)

    def predict(self, X: Any) -> Any:
        """Return the most probable label of each sample.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        y : array of shape (n_samples,), or (n_samples, n_classes) of zeros and ones
            In the library and on the device of X.
        """
        outputs, origin = self._outputs(X, "predict")
        return self._labels.decode(self._codes(outputs), origin)

    def predict_proba(self, X: Any) -> Any:
        """Return the probability of each class.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        p : array of shape (n_samples, n_classes)
            In the order of `classes_`. Rows sum to 1, unless a sample may have several labels.
        """
        outputs, origin = self._outputs(X, "predict_proba")
        with scope_of(outputs):
            return origin.give(self._probabilities(outputs))

    def predict_log_proba(self, X: Any) -> Any:
        """Return the logarithm of `predict_proba`, finite however small the probability.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        log_p : array of shape (n_samples, n_classes)
        """
        outputs, origin = self._outputs(X, "predict_log_proba")
        with scope_of(outputs):
            return origin.give(self._log_probabilities(outputs))

    def _probabilities(self, outputs: Array) -> Array:
        loss, kind = self._loss, self._labels.kind
        ours = isinstance(loss, CrossEntropy)
        if not ours and (kind == "multiclass" or not isinstance(loss, BinaryCrossEntropy)):
            return namespace_of(outputs).exp(self._log_probabilities(outputs))
        p = loss.probabilities(outputs)
        if kind != "binary":
            return p
        if len(self._labels.classes) == 1:
            return 1.0 - 0.0 * p
        return namespace_of(p).concat([1.0 - p, p], axis=1)

    def _log_probabilities(self, outputs: Array) -> Array:
        loss, kind, xp = self._loss, self._labels.kind, namespace_of(outputs)
        if _inherits_probabilities(SoftmaxCrossEntropy, loss):
            return LogSoftmax()(outputs)
        if _inherits_probabilities(BinaryCrossEntropy, loss) and loss.from_logits:
            yes, no = -Softplus()(-outputs), -Softplus()(outputs)  # log s(z) = -log(1 + e^-z)
            if kind == "multilabel":  # equal where `probabilities` rounds to equal values
                p = kernels(outputs).clip(loss.probabilities(outputs), 0.5, 1.0)
                yes = xp.where(outputs > 0, xp.log(p), yes)
        else:  # clipped, as 0 has no logarithm
            eps = float(xp.finfo(outputs.dtype).eps)
            p = kernels(outputs).clip(loss.probabilities(outputs), eps, 1.0 - eps)
            yes, no = xp.log(p), xp.log1p(-p)
        if isinstance(loss, CrossEntropy):
            return yes
        if kind == "multiclass":
            return LogSoftmax()(yes)  # probabilities sum to 1
        if kind == "multilabel":
            return yes
        return 0.0 * yes if len(self._labels.classes) == 1 else xp.concat([no, yes], axis=1)

    def __sklearn_array_api_convert__(self, convert: Callable[[Any], Any]) -> Any:
        """Return a copy with all arrays moved, for scikit-learn's `move_estimator_to`."""
        moved = super().__sklearn_array_api_convert__(convert)
        if self.__sklearn_is_fitted__():
            known = self._labels
            origin = Origin.at(converted(known.given, convert))
            moved._labels = Labels(known.classes, known.kind, origin, known.sparse)
        return moved

    def __sklearn_tags__(self) -> Any:
        """Return the capabilities that scikit-learn checks."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = self._checks()["multi_output"]
        tags.input_tags.sparse = True
        tags.array_api_support = True
        return tags


class _RenamedBinaryAccuracy(BinaryAccuracy):
    """Binary accuracy, reported as "accuracy"."""

    name = "accuracy"


def _inherits_probabilities(kind: type[Loss], loss: Loss) -> bool:
    """Return whether a loss inherits `probabilities` from that class unchanged."""
    own = type(loss).probabilities is not kind.probabilities or "probabilities" in vars(loss)
    return isinstance(loss, kind) and not own


def _same_classes(labels: Labels, other: Labels) -> bool:
    return labels.kind == other.kind and np.array_equal(labels.classes, other.classes)
