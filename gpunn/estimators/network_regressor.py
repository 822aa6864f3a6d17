"""Any network for regression, behind scikit-learn's interface."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from gpunn.arrays.backend import Backend
from gpunn.estimators.custom import CustomNetwork
from gpunn.estimators.perceptron import Solver
from gpunn.estimators.regressing import Regressing
from gpunn.estimators.settings import loss_or
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.training.checkpoint import Checkpoint
from gpunn.training.metrics import Metric


class NetworkRegressor(Regressing, CustomNetwork):
    r"""Any gpunn network as a regressor, with one or several outputs.

    Like `NetworkClassifier`, with the squared error: :math:`L_i = \frac12 \sum_p (\hat y_{ip} -
    y_{ip})^2`. The reported loss is divided by the number of outputs, but the gradient is not.

    Parameters
    ----------
    network : function or None, default None
        See `NetworkClassifier`; likewise the following except `loss`.
    network_params, solver, alpha, batch_size, learning_rate, learning_rate_init, power_t, max_iter
        What to train, and how.
    shuffle, random_state, tol, verbose, warm_start, momentum, nesterovs_momentum, early_stopping
        How to train; early stopping uses R^2.
    validation_fraction, beta_1, beta_2, epsilon, n_iter_no_change, max_fun, metrics, backend
        How long to train, what to measure, and where to compute; likewise `device`.
    checkpoint : path, Checkpoint or None, default None
        The file to resume from; see `MLPClassifier`.
    loss : {"squared_error", "poisson"} or Loss, default "squared_error"
        See `MLPRegressor`.

    Attributes
    ----------
    n_iter_, t_, loss_, best_loss_, loss_curve_, history_, n_outputs_, n_features_in_
        See `NetworkClassifier`; likewise the following.
    network_, validation_scores_, best_validation_score_, validation_loss_curve_
        The network; R^2 and the loss on the held-out data.

    Examples
    --------
    >>> import gpunn as gn
    >>> from gpunn.estimators import NetworkRegressor
    >>> X, y = gn.datasets.load_diabetes()
    >>> model = NetworkRegressor(learning_rate_init=0.01, batch_size=32, random_state=0)
    >>> model.fit(X, y.ravel()).score(X, y) > 0.5
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **CustomNetwork._CUSTOM,
        "loss": loss_or("squared_error", "poisson"),
    }

    def __init__(
        self,
        network: Callable[..., Layer] | None = None,
        *,
        network_params: dict[str, Any] | None = None,
        loss: str | Loss = "squared_error",
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
        metrics: Sequence[str | Metric] = (),
        backend: str | Backend | None = None,
        device: int | None = None,
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    ) -> None:
        self.network = network
        self.network_params = network_params
        self.loss = loss
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
        self.metrics = metrics
        self.backend = backend
        self.device = device
        self.checkpoint = checkpoint
