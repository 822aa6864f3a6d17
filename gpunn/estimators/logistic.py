"""Logistic regression, by stochastic gradient descent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval

from gpunn.arrays.backend import Backend
from gpunn.estimators.assigned import AssignedLinear
from gpunn.estimators.base import Sizes
from gpunn.estimators.network import dense
from gpunn.estimators.perceptron import Solver
from gpunn.estimators.settings import CLASSES, TRAINING
from gpunn.nn.containers import Sequential
from gpunn.training.checkpoint import Checkpoint
from gpunn.training.metrics import Metric


class LogisticRegression(AssignedLinear):
    r"""Logistic regression, trained by minibatches.

    Of two classes, :math:`h = \sigma(\theta^T x)` is the probability of the second; of more,
    :math:`h = \mathrm{softmax}(\Theta^T x)`. Minimised is scikit-learn's cost,

    .. math:: \frac12 \|\theta\|^2 + C \sum_i w_i L_i,

    divided by :math:`C \sum_i w_i`, so that a learning rate means the same for any C and N. The
    intercept is not in the penalty. The default schedule, "adaptive", lowers the learning rate of
    `fit` whenever the cost stops falling, until it is too small to matter; `partial_fit` has
    `learning_rate_init` in each call, and so follows data that drift. On standardised features the
    cost is then within 1 % of its minimum for C up to 1; where the penalty is weaker, a smaller
    `tol` and more epochs bring it as near. scikit-learn's own solvers are exact, and the
    better choice where they can be had; this one is for data that come in parts, and for a GPU.
    Its settings are those of the networks: there is no `penalty`, `l1_ratio` or `n_jobs`,
    `max_iter` counts epochs, and `tol` is how much of the cost an epoch must take off.

    In `partial_fit` the penalty is divided by the data of the call: where all data come in k parts,
    k times `C` gives the cost that `fit` has over all of them.

    Parameters
    ----------
    C : float, default 1.0
        The inverse of the penalty's strength, above 0; `numpy.inf` is no penalty.
    fit_intercept : bool, default True
        Whether there is an intercept.
    class_weight : dict, "balanced" or None, default None
        What multiplies the weights of each class's samples.
    solver : {"sgd", "adam"} or function, default "sgd"
        As for `MLPClassifier`; so are the following.
    batch_size, learning_rate, learning_rate_init, power_t, max_iter, shuffle, random_state, tol
        How to train: by default in batches of "auto" (here the smaller of 32 and N), "adaptive"
        from 0.1, in at most 500 epochs. An epoch that does not bring the cost 1e-5 down is in vain.
    verbose, warm_start, momentum, nesterovs_momentum, early_stopping, validation_fraction
        How to train.
    beta_1, beta_2, epsilon, n_iter_no_change, metrics, backend, device, checkpoint
        How to train, for how long, and where; `n_iter_no_change` is 5 by default.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
        The labels, in the library of y; see `MLPClassifier`.
    coef_ : array of shape (1, n_features) or (n_classes, n_features)
        :math:`\theta`, in the library of X. It may be assigned; before `fit`, together with
        `intercept_` and `classes_` (ascending), too.
    intercept_ : array of shape (1,) or (n_classes,)
        Zeros without `fit_intercept`.
    n_iter_, t_, loss_, best_loss_, loss_curve_, history_, validation_scores_
        As those of `MLPClassifier`.
    best_validation_score_, validation_loss_curve_, n_features_in_, feature_names_in_
        As those of `MLPClassifier`.

    Examples
    --------
    >>> from gpunn.estimators import LogisticRegression
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> LogisticRegression(random_state=0).fit(X - X.mean(axis=0), y).score(X - X.mean(axis=0), y)
    0.97...
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **TRAINING,
        **CLASSES,
        "C": [Interval(Real, 0, None, closed="right")],
        "fit_intercept": ["boolean"],
    }

    def __init__(
        self,
        *,
        C: float = 1.0,
        fit_intercept: bool = True,
        class_weight: Any = None,
        solver: Solver = "sgd",
        batch_size: int | str = "auto",
        learning_rate: str = "adaptive",
        learning_rate_init: float = 0.1,
        power_t: float = 0.5,
        max_iter: int = 500,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-5,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 5,
        metrics: Sequence[str | Metric] = (),
        backend: str | Backend | None = None,
        device: int | None = None,
        checkpoint: str | os.PathLike[str] | Checkpoint | None = None,
    ) -> None:
        self.C = C
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.solver = solver
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
        self.metrics = metrics
        self.backend = backend
        self.device = device
        self.checkpoint = checkpoint

    def decision_function(self, X: Any) -> Any:
        """Return the logits.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (n_samples, n_features)

        Returns
        -------
        z : array of shape (n_samples,) for two classes, else (n_samples, n_classes)
        """
        outputs, origin = self._outputs(X, "decision_function")
        return origin.give(outputs[:, 0] if self._labels.kind == "binary" else outputs)

    def _checks(self) -> dict[str, Any]:
        return super()._checks() | {"multi_output": False}

    def _structure(self) -> Iterator[tuple[str, Any]]:
        yield "fit_intercept", bool(self.fit_intercept)

    def _make_network(
        self,
        sizes: Sizes,
        rng: np.random.RandomState,  # noqa: ARG002 (a convex cost needs no luck)
        dtype: str,
        place: Backend,
    ) -> Sequential:
        bias = np.zeros(sizes.outputs) if self.fit_intercept else None
        weight = np.zeros((*sizes.inputs, sizes.outputs))
        return Sequential(dense(weight, bias, None, dtype, place))

    _SCHEDULED = ("sgd", "adam")
    _AUTO = 32

    def _decay(self, total: float) -> Callable[[float], float]:
        return lambda _: 1.0 / (self.C * total)
