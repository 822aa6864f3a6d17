"""Logistic regression, by stochastic gradient descent or by L-BFGS on all data."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils._param_validation import InvalidParameterError, StrOptions

from gpunn.arrays.backend import Backend
from gpunn.estimators.assigned import AssignedLinear
from gpunn.estimators.base import Sizes
from gpunn.estimators.full_batch import Penalty
from gpunn.estimators.hooks import DECORATORS
from gpunn.estimators.network import dense
from gpunn.estimators.perceptron import Solver
from gpunn.estimators.settings import CLASSES, TRAINING, Numbers
from gpunn.estimators.solvers import is_full_batch
from gpunn.nn.containers import Sequential
from gpunn.training.checkpoint import Checkpoint
from gpunn.training.metrics import Metric


class LogisticRegression(AssignedLinear):
    r"""Logistic regression, on minibatches or on all data at once.

    For two classes, :math:`h = \sigma(\theta^T x)` is the probability of the second; for more,
    :math:`h = \mathrm{softmax}(\Theta^T x)`. Training minimises scikit-learn's cost,

    .. math:: \rho \|\theta\|_1 + \frac{1 - \rho}{2} \|\theta\|^2 + C \sum_i w_i L_i,

    divided by :math:`C \sum_i w_i`, so that a learning rate means the same for any C and N. The
    intercept is not in the penalty.

    ``solver="lbfgs"`` minimises it as scikit-learn does, by a quasi-Newton method on the gradient
    over all data: on standardised features the cost is within 0.1 % of its minimum for C from 0.01
    to 100, on the CPU or with the data on a GPU. It also supports the penalty of absolute values,
    and then finds weights that are exactly 0.

    The default, "sgd", is for data that arrive in parts, and for large data sets. Its schedule,
    "adaptive", lowers the learning rate of `fit` whenever the cost stops falling, until it is too
    small to matter; `partial_fit` uses `learning_rate_init` in each call, and so follows data that
    drift. On standardised features the cost is then within 1 % of its minimum for C up to 1; for a
    weaker penalty, this takes a smaller `tol` and more epochs.

    Its settings are those of the networks, plus scikit-learn's `penalty`, `C` and `l1_ratio`;
    `max_iter` counts epochs, or iterations of "lbfgs", and there is no `n_jobs` or `dual`.

    In `partial_fit` the penalty is divided by the weight sum of the call's data: if the data arrive
    in k equal parts, k times `C` gives the cost of `fit` over all of them.

    Parameters
    ----------
    penalty : {"auto", "l2", "l1", "elasticnet"} or None, default "auto"
        "auto" and "elasticnet" use `l1_ratio`; "l2" and "l1" are the ratios 0 and 1; None means no
        penalty. Ratios above 0 need ``solver="lbfgs"``.
    C : float, default 1.0
        The inverse of the penalty's strength, above 0; `numpy.inf` means no penalty.
    l1_ratio : float or None, default 0.0
        :math:`\rho`, from 0 to 1; None is 0.
    fit_intercept : bool, default True
        Whether there is an intercept.
    class_weight : dict, "balanced" or None, default None
        A factor of the sample weights of each class.
    solver : {"sgd", "adam", "lbfgs"} or function, default "sgd"
        As for `MLPClassifier`, like the settings below.
    batch_size, learning_rate, learning_rate_init, power_t, max_iter, shuffle, random_state, tol
        How to train: by default in batches of "auto" (here the smaller of 32 and N), "adaptive"
        from 0.1, in at most 500 epochs. An improvement lowers the cost by at least 1e-5.
        "lbfgs" stops where no entry of the gradient is above `tol` (divided by C, from 1 to 100).
    verbose, warm_start, momentum, nesterovs_momentum, early_stopping, validation_fraction
        How to train.
    beta_1, beta_2, epsilon, n_iter_no_change, metrics, backend, device, checkpoint
        How to train, for how long, and where; `n_iter_no_change` is 5 by default.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
        The labels, in the library of y; see `MLPClassifier`.
    coef_ : array of shape (1, n_features) or (n_classes, n_features)
        :math:`\theta`, in the library of X. It may be assigned, even before `fit`, together
        with `intercept_` and `classes_` (ascending).
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
        "penalty": [StrOptions({"auto", "l2", "l1", "elasticnet"}), None],
        "C": [Numbers(Real, 0, None, closed="right")],
        "l1_ratio": [Numbers(Real, 0, 1, closed="both"), None],
        "fit_intercept": ["boolean"],
    }

    def __init__(
        self,
        *,
        penalty: str | None = "auto",
        C: float = 1.0,
        l1_ratio: float | None = 0.0,
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
        self.penalty = penalty
        self.C = C
        self.l1_ratio = l1_ratio
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

    def _begin(self, *arguments: Any) -> None:
        self._check_penalty()
        super()._begin(*arguments)

    def _checks(self) -> dict[str, Any]:
        return super()._checks() | {"multi_output": False}

    def _structure(self) -> Iterator[tuple[str, Any]]:
        yield "fit_intercept", bool(self.fit_intercept)

    def _make_network(
        self,
        sizes: Sizes,
        rng: np.random.RandomState,  # noqa: ARG002 (the cost is convex, so training starts at zero)
        dtype: str,
        place: Backend,
    ) -> Sequential:
        bias = np.zeros(sizes.outputs) if self.fit_intercept else None
        weight = np.zeros((*sizes.inputs, sizes.outputs))
        return Sequential(dense(weight, bias, None, dtype, place))

    _SCHEDULED = ("sgd", "adam")
    _AUTO = 32

    def _decay(self, total: float) -> Callable[[float], float]:
        l1, l2 = self._penalty(total)
        if l1 and not is_full_batch(self.solver):
            raise InvalidParameterError(
                f"{type(self).__name__}: solver={self.solver!r} has the penalty 'l2' or none; for "
                "'l1' and 'elasticnet' (an l1_ratio above 0) say solver='lbfgs'"
            )
        return lambda _: l2

    def _penalty(self, total: float) -> Penalty:
        if self.penalty is None:
            return Penalty(0.0, 0.0)
        ratio, whole = self._ratio(), float(self.C) * total
        strength = 1.0 / whole if whole else math.inf
        if math.isinf(strength):
            raise InvalidParameterError(
                f"{type(self).__name__}: C={float(self.C):g} is too small: the penalty of data "
                f"whose weights sum to {total:g} is no number; raise C"
            )
        return Penalty(ratio * strength, (1.0 - ratio) * strength)

    def _ratio(self) -> float:
        """Return the share of the L1 norm in the penalty."""
        ratio = self.l1_ratio
        if self.penalty in ("l1", "l2"):
            return float(self.penalty == "l1")
        if ratio is None and self.penalty == "elasticnet":
            raise InvalidParameterError(
                f"{type(self).__name__}: l1_ratio must be specified when penalty is elasticnet: a "
                "number from 0 (all 'l2') to 1 (all 'l1')"
            )
        return float(ratio or 0.0)

    def _check_penalty(self) -> None:
        """Warn of settings that have no effect, as scikit-learn does."""
        ignored = ""
        if self.penalty is None and self.C != 1.0:
            ignored = "Setting penalty=None will ignore the C and l1_ratio parameters"
        elif self.penalty in ("l1", "l2") and self.l1_ratio not in (None, 0.0, self._ratio()):
            ignored = (
                "l1_ratio parameter is only used when penalty is 'elasticnet' or 'auto'. Got "
                f"(penalty={self.penalty})"
            )
        if ignored:
            warnings.warn(f"{type(self).__name__}: {ignored}", stacklevel=6 + DECORATORS)

    def _limits(self) -> dict[str, Any]:
        # A weaker penalty flattens the minimum: the same gradient is then farther from it.
        weakness = 100.0 if self.penalty is None else min(max(float(self.C), 1.0), 100.0)
        # As in scikit-learn, so as not to stop before the gradient is small. With bounds, steps may
        # gain nothing long before that.
        gain = 0.0 if self._penalty(1.0).l1 else 64 * np.finfo(np.float64).eps
        limits = {"maxiter": int(self.max_iter), "gtol": float(self.tol) / weakness}
        return limits | {"maxls": 50, "ftol": gain}
