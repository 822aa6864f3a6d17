"""The optimizer and the learning rates for an estimator's settings."""

from __future__ import annotations

from typing import Any

from gpunn.estimators.changes import alike
from gpunn.estimators.progress import Progress
from gpunn.optim.adam import Adam
from gpunn.optim.base import Optimizer
from gpunn.optim.gradient_sum import GradientSum
from gpunn.optim.schedules import Constant, observe
from gpunn.optim.sgd import SGD

#: "adaptive" divides the learning rate by _DIVISOR, and stops at _LOWEST_RATE.
_DIVISOR, _LOWEST_RATE = 5.0, 1e-6


def is_full_batch(solver: Any) -> bool:
    """Return whether a solver uses all data in each step, instead of batches."""
    return isinstance(solver, str) and solver == "lbfgs"


def is_stochastic(estimator: Any) -> bool:
    """Return True if an estimator can learn incrementally; otherwise raise, as in scikit-learn.

    Raises
    ------
    AttributeError
        If it cannot; `hasattr(estimator, "partial_fit")` is then False.
    """
    if is_full_batch(estimator.solver):
        raise AttributeError(
            "partial_fit is only available for stochastic optimizers. "
            f"{estimator.solver} is not stochastic; say solver='adam' or 'sgd'"
        )
    return True


def make_optimizer(estimator: Any) -> Optimizer:
    """Return a new optimizer for the estimator's settings and its network's parameters."""
    parameters, rate = estimator._network.parameters(), float(estimator.learning_rate_init)
    if estimator.solver == "adam":
        betas = {"beta_1": estimator.beta_1, "beta_2": estimator.beta_2}
        return Adam(parameters, rate, **betas, epsilon=estimator.epsilon)
    if estimator.solver == "sgd":
        momentum, nesterov = _momentum(estimator)
        return SGD(parameters, rate, momentum=momentum, nesterov=nesterov)
    if is_full_batch(estimator.solver):
        return GradientSum(parameters)
    name, optimizer = type(estimator).__name__, estimator.solver(parameters)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"{name}: solver must return a gpunn optimizer when given the "
            f"parameters, such as gpunn.SGD; it returned {type(optimizer).__name__}"
        )
    if optimizer.weight_decay:
        raise ValueError(
            f"{name}: solver returned an optimizer with weight_decay="
            f"{optimizer.weight_decay:g}; leave it out, the penalty is a setting of this "
            "estimator (alpha, or C)"
        )
    return optimizer


def up_to_date(estimator: Any, optimizer: Optimizer, solver: Any) -> Optimizer:
    """Return the optimizer for a call of `partial_fit`, with the current settings.

    This is the given optimizer, created for `solver`, with its velocities and moments; or a new one
    if the solver has changed, momentum was added or removed, or Adam's betas have changed (the bias
    correction assumes the same betas from the start).
    """
    if not alike(estimator.solver, solver):
        optimizer = make_optimizer(estimator)
    if callable(estimator.solver):
        return optimizer
    if isinstance(optimizer, SGD):
        momentum, nesterov = _momentum(estimator)
        if bool(momentum) != bool(optimizer.momentum):
            optimizer = make_optimizer(estimator)
        else:
            optimizer.momentum, optimizer.nesterov = momentum, nesterov
    elif isinstance(optimizer, Adam):
        optimizer.epsilon = float(estimator.epsilon)
        if (estimator.beta_1, estimator.beta_2) != (optimizer.beta_1, optimizer.beta_2):
            optimizer = make_optimizer(estimator)
    rate = float(estimator.learning_rate_init)
    if _schedule(estimator) == "invscaling":
        rate = _scaled(estimator)
    optimizer.schedule = Constant(rate)
    return optimizer


def epoch_ended(estimator: Any, progress: Progress, optimizer: Optimizer) -> bool:
    """Set the learning rate of the next epoch of `fit`; return whether to stop instead."""
    observe(optimizer.schedule, progress.loss_curve[-1])
    if _schedule(estimator) == "invscaling":
        optimizer.schedule = Constant(_scaled(estimator))
    message = progress.why_stop(estimator.n_iter_no_change, float(estimator.tol))
    if not message:
        return False
    stops = True
    if _schedule(estimator) == "adaptive":
        stops = optimizer.learning_rate <= _LOWEST_RATE
        message += " Learning rate too small." if stops else ""
    if stops:
        message += " Stopping."
    else:
        progress.patience.waited = 0
        optimizer.schedule = Constant(optimizer.learning_rate / _DIVISOR)
        message += f" Setting learning rate to {optimizer.learning_rate:f}"
    if estimator.verbose:
        print(message)  # noqa: T201
    return stops


def _momentum(estimator: Any) -> tuple[float, bool]:
    momentum = float(estimator.momentum)
    return momentum, bool(estimator.nesterovs_momentum) and momentum > 0


def _schedule(estimator: Any) -> str:
    """Return the schedule of the learning rate; "constant" if it does not apply to the solver."""
    scheduled = estimator.solver in estimator._SCHEDULED
    return str(estimator.learning_rate) if scheduled else "constant"


def _scaled(estimator: Any) -> float:
    """Return the rate of "invscaling" after the samples seen so far."""
    seen = estimator._progress.n_samples
    try:
        return float(estimator.learning_rate_init) / (seen + 1) ** float(estimator.power_t)
    except OverflowError as error:
        name = type(estimator).__name__
        raise ValueError(
            f"{name}: power_t={estimator.power_t:g} makes the learning rate 0; lower it"
        ) from error
