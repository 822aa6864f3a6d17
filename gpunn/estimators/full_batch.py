"""Training on all data at once, with SciPy's L-BFGS-B."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import InvalidParameterError

from gpunn.data.loader import Loader
from gpunn.estimators.convergence import not_minimized
from gpunn.estimators.epochs import Epochs
from gpunn.estimators.hooks import DECORATORS, Hooks
from gpunn.estimators.loop import TrainingLoop
from gpunn.estimators.objective import Objective

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: The maximum number of rows per batch: a layer's outputs for these stay in the cache.
_ROWS = 1024


def equal_parts(n_samples: int) -> int:
    """Return the batch size that divides the samples into nearly equal batches."""
    return -(-n_samples // -(-n_samples // _ROWS))


class Penalty(NamedTuple):
    r"""The penalty :math:`\lambda_1 \|W\|_1 + \frac{\lambda_2}{2} \|W\|^2` of the weights W."""

    l1: float
    l2: float


class PenalizedCost:
    r"""J with a penalty, as a smooth function of the variables that SciPy optimizes.

    The variables z are the parameters. With an :math:`\ell_1` penalty, a weight w is the difference
    :math:`u - v` of two non-negative variables, and its penalty is :math:`\lambda_1 (u + v)`. This
    is smooth within the bounds and has the same minimum, where one of the two is 0. So weights can
    become exactly 0.

    Parameters
    ----------
    objective : Objective
    penalty : Penalty
    """

    def __init__(self, objective: Objective, penalty: Penalty) -> None:
        self._objective, self._penalty = objective, penalty
        self._weights = np.flatnonzero(objective.decaying)
        #: The penalty at the variables evaluated last.
        self.penalty = 0.0

    @property
    def start(self) -> NDArray[Any]:
        """The variables that represent the model's current parameters."""
        theta = self._objective.theta
        if not self._penalty.l1:
            return theta
        weights = theta[self._weights]
        theta[self._weights] = np.maximum(weights, 0.0)
        return np.concatenate([theta, np.maximum(-weights, 0.0)])

    @property
    def bounds(self) -> Any:
        """The bounds of the variables, for SciPy; None if there are none."""
        if not self._penalty.l1:
            return None
        n, m = self._objective.decaying.size, self._weights.size
        least = np.full(n + m, -np.inf)
        least[self._weights] = least[n:] = 0.0
        return np.stack([least, np.full(n + m, np.inf)], axis=1)

    def theta(self, z: NDArray[Any]) -> NDArray[Any]:
        """Return the parameters that variables represent."""
        n = self._objective.decaying.size
        theta = z[:n].copy()
        if self._penalty.l1:
            theta[self._weights] -= z[n:]
        return theta

    def __call__(self, z: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        """Return the penalized cost, and its gradient with respect to the variables."""
        (l1, l2), theta = self._penalty, self.theta(z)
        cost, grad = self._objective(theta)
        weights = theta[self._weights]
        self.penalty = 0.5 * l2 * float(weights @ weights)
        if l2:
            grad[self._weights] += l2 * weights
        if l1:
            negative = l1 - grad[self._weights]
            grad[self._weights] += l1
            self.penalty += l1 * float(z[self._weights].sum() + z[theta.size :].sum())
            grad = np.concatenate([grad, negative])
        return cost + self.penalty, grad

    def write(self, z: NDArray[Any]) -> None:
        """Write the parameters that variables represent to the model."""
        self._objective.theta = self.theta(z)


class _StopError(Exception):
    """A callback asks to stop."""


class _Minimization:
    """A run of SciPy's "L-BFGS-B".

    Parameters
    ----------
    cost : PenalizedCost
    begins, ends : function
        Called at the beginning and at the end of each iteration. `ends` returns whether to stop.

    Attributes
    ----------
    z : array
        The variables after the last iteration.
    value : float
        The cost at z.
    """

    def __init__(
        self, cost: PenalizedCost, begins: Callable[[], object], ends: Callable[[], bool]
    ) -> None:
        self.z, self._begins, self._ends = cost.start, begins, ends
        self._cost, self._within = cost, False
        self._first: Any = cost(self.z)  # SciPy evaluates it first
        self.value = self._latest = self._first[0]

    def run(self, options: dict[str, Any]) -> Any:
        """Minimize the cost; return SciPy's result, or None if a callback stopped it."""
        settings = {"jac": True, "bounds": self._cost.bounds, "options": options}
        try:
            result = minimize(
                self._evaluate, self.z, method="L-BFGS-B", callback=self._end, **settings
            )
        except _StopError:
            return None
        self.z, self.value = result.x, float(result.fun)
        return result

    def _evaluate(self, z: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        if not self._within:
            self._within = True
            self._begins()
        (self._latest, grad), self._first = self._first or self._cost(z), None
        return self._latest, grad

    def _end(self, z: NDArray[Any]) -> None:
        self.z, self.value, self._within = z.copy(), self._latest, False
        if self._ends():
            raise _StopError


class FullBatchTraining(TrainingLoop):
    """An estimator whose network can also be trained on all data at once."""

    def _penalty(self, total: float) -> Penalty:
        """Return the penalty added to the mean loss of data whose weights sum to `total`."""
        raise NotImplementedError

    def _limits(self) -> dict[str, Any]:
        """Return the options of SciPy's "L-BFGS-B" for the settings."""
        limits = {"maxiter": int(self.max_iter), "maxfun": int(self.max_fun)}
        return limits | {"gtol": float(self.tol)}

    def _minimize(self, epochs: Epochs, held_out: Loader | None, hooks: Hooks) -> None:
        """Minimize the cost, and record each iteration as an epoch."""
        if self.checkpoint is not None:
            raise InvalidParameterError(
                f"{type(self).__name__}: solver='lbfgs' cannot write checkpoints, since what SciPy "
                "remembers of earlier gradients cannot be saved; leave checkpoint out"
            )
        progress, objective = self._progress, epochs.objective()
        cost = PenalizedCost(objective, self._penalty(epochs.total_weight))
        warning, stacklevel = "", 4 + DECORATORS
        began = time.perf_counter()

        def ended() -> bool:
            nonlocal began
            now = time.perf_counter()
            epochs.record_time(now - began)
            began = now
            record = epochs.numbers(objective.numbers, cost.penalty)
            self._record(record, epochs, held_out, incremental=False)
            return hooks.epoch_ends()

        run = _Minimization(cost, hooks.epoch_begins, ended)
        self._check_function(objective)
        progress.first_loss = epochs.numbers(objective.numbers, cost.penalty)["loss"]
        try:
            result = run.run(self._limits())
            if result is not None and result.status:
                warning = not_minimized(type(self).__name__, result, self.max_iter)
        except KeyboardInterrupt:
            self._optimizer.clear()  # the gradient may be incomplete
            warnings.warn("Training interrupted by user.", stacklevel=stacklevel)
        cost.write(run.z)
        progress.n_samples += (objective.passes - progress.n_iter) * epochs.loader.n_samples
        if not math.isfinite(run.value):
            raise ValueError(self._diverged(f"the loss is {run.value}"))
        self._check_weights()
        hooks.fit_ends()
        if warning:
            warnings.warn(warning, ConvergenceWarning, stacklevel=stacklevel)

    def _check_function(self, objective: Objective) -> None:
        """Check that the mean loss, evaluated before, depends on the parameters alone."""
        buffers = list(dict(self._network.named_buffers()))
        if objective.is_random or buffers:
            why = f"keeps statistics ({buffers[0]})" if buffers else "draws random numbers"
            raise InvalidParameterError(
                f"{type(self).__name__}: solver='lbfgs' needs a network whose outputs depend on "
                f"its weights and X alone, and this one {why}, as dropout and batch norms do; "
                "say solver='adam' or 'sgd'"
            )
