"""The base class of the regressors: targets, predictions and R^2."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.base import RegressorMixin, _fit_context
from sklearn.metrics import r2_score
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import column_or_1d

from gpunn._typing import Array
from gpunn.arrays.backend import scope_of
from gpunn.arrays.exchange import to_numpy
from gpunn.estimators.base import NetworkEstimator
from gpunn.estimators.origin import namespace_of
from gpunn.estimators.samples import check_unmasked
from gpunn.estimators.solvers import is_stochastic
from gpunn.losses.base import Loss
from gpunn.losses.binary_cross_entropy import BinaryCrossEntropy
from gpunn.losses.cross_entropy import CrossEntropy
from gpunn.losses.poisson import Poisson
from gpunn.losses.squared_error import MeanSquaredError


class Regressing(RegressorMixin, NetworkEstimator):
    """A network whose outputs are numbers."""

    @available_if(is_stochastic)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train for one pass over some data, from the current weights; see `MLPClassifier`.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        self : estimator
        """
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> Any:
        """Return the predictions: the network's outputs, or the expected counts.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        y : array of shape (n_samples,), or (n_samples, n_outputs) for several outputs
            In the library and on the device of X.
        """
        outputs, origin = self._outputs(X, "predict")
        outputs = self._predictions(outputs)
        return origin.give(outputs[:, 0] if self.n_outputs_ == 1 else outputs)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R^2: 1 minus the squared error in units of the variance of y.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), or (n_samples, n_outputs)
            The true numbers.
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        score : float
        """
        check_unmasked(type(self).__name__, y=y, sample_weight=sample_weight)
        return float(super().score(X, y, sample_weight))

    def _learn_targets(
        self,
        y: Any,
        classes: Any,  # noqa: ARG002
        *,
        fresh: bool,
        incremental: bool,  # noqa: ARG002
    ) -> int:
        n_outputs = 1 if y.ndim == 1 else int(y.shape[1])
        if not fresh and n_outputs != self.n_outputs_:
            raise ValueError(
                f"y has {n_outputs} outputs a sample, and the network was trained with "
                f"{self.n_outputs_}"
            )
        return n_outputs

    def _targets(self, y: Any, dtype: str) -> Any:
        y = y.toarray() if hasattr(y, "toarray") else y
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        xp = namespace_of(y)
        with scope_of(y):
            y = xp.astype(y, getattr(xp, dtype))
        return xp.reshape(y, (-1, 1)) if y.ndim == 1 else y

    def _make_loss(self) -> Loss:
        if isinstance(self.loss, (CrossEntropy, BinaryCrossEntropy)):
            raise InvalidParameterError(
                f"{type(self).__name__}: {self.loss!r} is a loss of classes; use a classifier"
            )
        if isinstance(self.loss, Loss):
            loss = self.loss
        else:
            loss = Poisson(deviance=True) if self.loss == "poisson" else MeanSquaredError()
        if loss.outputs != "predictions" and not isinstance(loss, Poisson):
            raise InvalidParameterError(
                f"{type(self).__name__}: predict gives the network's outputs, and with {loss!r} "
                f"these are {loss.outputs}; train the network with gpunn.Trainer"
            )
        return loss

    def _loss_scale(self) -> float:
        return 1.0 / self.n_outputs_ if isinstance(self._loss, MeanSquaredError) else 1.0

    def _predictions(self, outputs: Array) -> Array:
        """Return predictions from outputs, which are logarithms for a Poisson loss."""
        if not isinstance(self._loss, Poisson):
            return outputs
        with scope_of(outputs):
            return namespace_of(outputs).exp(outputs)

    def _checks(self) -> dict[str, Any]:
        return super()._checks() | {"y_numeric": True}

    def _score_of(self, outputs: Array, target: Any, weight: Any) -> float:
        predictions = to_numpy(self._predictions(outputs))
        if not np.isfinite(predictions).all():
            return math.nan
        weight = None if weight is None else to_numpy(weight)
        return float(r2_score(target, predictions, sample_weight=weight))

    def __sklearn_tags__(self) -> Any:
        """Return the capabilities that scikit-learn checks."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        tags.target_tags.multi_output = True
        return tags
