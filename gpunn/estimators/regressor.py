"""The multi-layer perceptron for numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin, _fit_context
from sklearn.metrics import r2_score
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.validation import check_is_fitted, column_or_1d

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, scope_of
from gpunn.arrays.exchange import to_numpy
from gpunn.estimators.hooks import with_callbacks
from gpunn.estimators.origin import namespace_of
from gpunn.estimators.perceptron import Perceptron, Solver
from gpunn.estimators.samples import given_validation
from gpunn.estimators.settings import (
    NETWORK,
    TRAINING,
    loss_or,
)
from gpunn.losses.base import Loss
from gpunn.losses.binary_cross_entropy import BinaryCrossEntropy
from gpunn.losses.cross_entropy import CrossEntropy
from gpunn.losses.squared_error import MeanSquaredError
from gpunn.nn.activation import Activation
from gpunn.training.metrics import Metric


class MLPRegressor(RegressorMixin, Perceptron):
    r"""A multi-layer perceptron for regression, with one or several outputs.

    As `MLPClassifier`, with the squared error: :math:`L_i = \frac12 \sum_p (\hat y_{ip} -
    y_{ip})^2`. As in scikit-learn, the reported loss is divided by the number of outputs, but the
    gradient is not.

    Parameters
    ----------
    loss : "squared_error" or Loss, default "squared_error"
        A loss object replaces the squared error. "poisson" is not supported.
    hidden_layer_sizes, activation, solver, alpha, batch_size, learning_rate, learning_rate_init
        See `MLPClassifier`; likewise the following.
    power_t, max_iter, shuffle, random_state, tol, verbose, warm_start, momentum
        How to train.
    nesterovs_momentum, early_stopping, validation_fraction, beta_1, beta_2, epsilon
        How to train; early stopping goes by R^2.
    n_iter_no_change, dropout, metrics, backend, device
        How long to train, what else, and where.

    Attributes
    ----------
    coefs_, intercepts_, n_iter_, t_, loss_, best_loss_, loss_curve_, history_
        See `MLPClassifier`; likewise the following.
    validation_scores_, best_validation_score_, validation_loss_curve_
        R^2 and the loss on the held-out data.
    n_features_in_, feature_names_in_, n_layers_, n_outputs_, out_activation_
        As in scikit-learn.

    Examples
    --------
    >>> import numpy as np
    >>> from gpunn.estimators import MLPRegressor
    >>> X = np.linspace(-1, 1, 200)[:, None]
    >>> settings = {"learning_rate_init": 0.01, "batch_size": 20, "random_state": 0}
    >>> model = MLPRegressor("squared_error", (20, 20), "tanh", **settings)
    >>> model.fit(X, np.sin(3 * X[:, 0])).score(X, np.sin(3 * X[:, 0])) > 0.99
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **TRAINING,
        **NETWORK,
        "loss": loss_or("squared_error"),
    }

    def __init__(
        self,
        loss: str | Loss = "squared_error",
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str | Activation | Sequence[str | Activation] = "relu",
        *,
        solver: Solver = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
        dropout: float | Sequence[float] = 0.0,
        metrics: Sequence[str | Metric] = (),
        backend: str | Backend | None = None,
        device: int | None = None,
    ) -> None:
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.dropout = dropout
        self.metrics = metrics
        self.backend = backend
        self.device = device

    @with_callbacks
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> MLPRegressor:
        """Train on all of the data.

        Parameters
        ----------
        X, sample_weight, X_val, y_val, sample_weight_val
            As for `MLPClassifier.fit`.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            The numbers.

        Returns
        -------
        self : MLPRegressor
        """
        validation = given_validation(type(self).__name__, X_val, y_val, sample_weight_val)
        return self._fit(X, y, sample_weight, validation=validation)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> MLPRegressor:
        """Go over some data once, and keep what was learned before; see `MLPClassifier`.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        self : MLPRegressor
        """
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> Any:
        """Return the network's answer for each sample.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        y : array of shape (n_samples,), or (n_samples, n_outputs) of several
            In the library and on the device of X.
        """
        outputs, origin = self._outputs(X, "predict")
        return origin.give(outputs[:, 0] if self.n_outputs_ == 1 else outputs)

    @property
    def out_activation_(self) -> str:
        """What the last layer's activation is."""
        check_is_fitted(self)
        return "identity"

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
                f"MLPRegressor: {self.loss!r} is a loss of classes; use MLPClassifier for them"
            )
        return self.loss if isinstance(self.loss, Loss) else MeanSquaredError()

    def _loss_scale(self) -> float:
        return 1.0 / self.n_outputs_ if isinstance(self._loss, MeanSquaredError) else 1.0

    def _checks(self) -> dict[str, Any]:
        return super()._checks() | {"y_numeric": True}

    def _score_of(self, outputs: Array, target: Any, weight: Any) -> float:
        answers = to_numpy(outputs)
        if not np.isfinite(answers).all():
            return math.nan
        weight = None if weight is None else to_numpy(weight)
        return float(r2_score(target, answers, sample_weight=weight))

    def __sklearn_tags__(self) -> Any:
        """Return the capabilities that scikit-learn checks."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        tags.target_tags.multi_output = True
        return tags
