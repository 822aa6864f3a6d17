"""The multi-layer perceptron for regression."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, ClassVar

from sklearn.utils.validation import check_is_fitted

from gpunn.arrays.backend import Backend
from gpunn.estimators.perceptron import Perceptron, Solver
from gpunn.estimators.regressing import Regressing
from gpunn.estimators.settings import NETWORK, TRAINING, loss_or
from gpunn.losses.base import Loss
from gpunn.losses.poisson import Poisson
from gpunn.nn.activation import Activation
from gpunn.training.checkpoint import Checkpoint
from gpunn.training.metrics import Metric


class MLPRegressor(Regressing, Perceptron):
    r"""A multi-layer perceptron for regression, with one or several outputs.

    Like `MLPClassifier`, with the squared error: :math:`L_i = \frac12 \sum_p (\hat y_{ip} -
    y_{ip})^2`. As in scikit-learn, the reported loss is divided by the number of outputs, but the
    gradient is not.

    Parameters
    ----------
    loss : {"squared_error", "poisson"} or Loss, default "squared_error"
        "poisson" is half the deviance of counts y >= 0 from :math:`e^z`, for the network's outputs
        z; with it or `gpunn.Poisson`, `predict` returns :math:`e^z`. A loss object replaces both.
    hidden_layer_sizes, activation, solver, alpha, batch_size, learning_rate, learning_rate_init
        See `MLPClassifier`; likewise the following.
    power_t, max_iter, shuffle, random_state, tol, verbose, warm_start, momentum
        How to train.
    nesterovs_momentum, early_stopping, validation_fraction, beta_1, beta_2, epsilon
        How to train; early stopping uses R^2.
    n_iter_no_change, max_fun, dropout, metrics, backend, device, checkpoint
        How long to train, what to measure, and where to compute.

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
        "loss": loss_or("squared_error", "poisson"),
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
        max_fun: int = 15000,
        dropout: float | Sequence[float] = 0.0,
        metrics: Sequence[str | Metric] = (),
        backend: str | Backend | None = None,
        device: int | None = None,
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
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
        self.max_fun = max_fun
        self.dropout = dropout
        self.metrics = metrics
        self.backend = backend
        self.device = device
        self.checkpoint = checkpoint

    @property
    def out_activation_(self) -> str:
        """The function from outputs to predictions: "exp" for a loss of counts, else "identity"."""
        check_is_fitted(self)
        return "exp" if isinstance(self._loss, Poisson) else "identity"
