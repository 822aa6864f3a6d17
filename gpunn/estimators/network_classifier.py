"""Any network for classification, behind scikit-learn's interface."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from gpunn.arrays.backend import Backend
from gpunn.estimators.classifying import Classifying
from gpunn.estimators.custom import CustomNetwork
from gpunn.estimators.perceptron import Solver
from gpunn.estimators.settings import CLASSES, loss_or
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.training.checkpoint import Checkpoint
from gpunn.training.metrics import Metric


class NetworkClassifier(Classifying, CustomNetwork):
    """Any gpunn network as a classifier, such as one for images.

    `X` may be a table (N, P), sparse or not, or an array (N, ...) such as images (N, H, W, C).
    Cost, penalty and training are those of `MLPClassifier`.

    Parameters
    ----------
    network : function or None, default None
        Called by `fit` with the shape of a sample, a tuple, and the number of outputs: one for two
        classes, else one for each class. It returns a new network whose outputs are logits. If
        it takes the keyword `rng`, it gets a generator seeded from `random_state`. The network is
        moved to the device and dtype of the computation. None means a perceptron with 100 hidden
        neurons. To pickle the estimator, define the function at the top level of a module.
    network_params : dict or None, default None
        Further keywords for the function. A search may set each separately,
        ``{"network_params__width": [16, 32]}``.
    solver, alpha, batch_size, learning_rate, learning_rate_init, power_t, max_iter, shuffle
        See `MLPClassifier`; likewise the following.
    random_state, tol, verbose, warm_start, momentum, nesterovs_momentum, early_stopping
        How to train. With `warm_start` and in `partial_fit`, `network`, `network_params` and `loss`
        must not change.
    validation_fraction, beta_1, beta_2, epsilon, n_iter_no_change, max_fun, loss, class_weight
        How long to train, and on what cost; likewise `metrics`.
    backend, device, checkpoint
        Where to compute, and the file to resume from.

    Attributes
    ----------
    network_ : Layer
        The network.
    classes_, n_iter_, t_, loss_, best_loss_, loss_curve_, history_, n_outputs_, n_features_in_
        See `MLPClassifier`; likewise the following. `n_features_in_` is the length of the second
        axis of X.
    validation_scores_, best_validation_score_, validation_loss_curve_
        The accuracy and the loss on the held-out data.

    Examples
    --------
    >>> import gpunn as gn
    >>> from gpunn.estimators import NetworkClassifier
    >>> def two_layers(input_shape, n_outputs, *, width=32, rng=None):
    ...     n_inputs = input_shape[0] * input_shape[1]
    ...     return gn.Sequential(
    ...         gn.Flatten(),
    ...         gn.Dense(n_inputs, width, "tanh", rng=rng),
    ...         gn.Dense(width, n_outputs, rng=rng),
    ...     )
    >>> X, y = gn.datasets.load_digits()
    >>> settings = {"learning_rate_init": 0.01, "random_state": 0}
    >>> model = NetworkClassifier(two_layers, network_params={"width": 64}, **settings)
    >>> model.fit(X, y).score(X, y) > 0.97
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **CustomNetwork._CUSTOM,
        **CLASSES,
        "loss": loss_or("log_loss"),
    }

    def __init__(
        self,
        network: Callable[..., Layer] | None = None,
        *,
        network_params: dict[str, Any] | None = None,
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
        loss: str | Loss = "log_loss",
        class_weight: Any = None,
        metrics: Sequence[str | Metric] = (),
        backend: str | Backend | None = None,
        device: int | None = None,
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    ) -> None:
        self.network = network
        self.network_params = network_params
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
        self.loss = loss
        self.class_weight = class_weight
        self.metrics = metrics
        self.backend = backend
        self.device = device
        self.checkpoint = checkpoint
