"""Valid settings of the estimators, for scikit-learn's checks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Set
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    Options,
    StrOptions,
)

from gpunn.arrays.backend import Backend, get_backend
from gpunn.arrays.checks import is_sized, shown
from gpunn.errors import SettingError
from gpunn.estimators.network import NAMES
from gpunn.losses.base import Loss
from gpunn.nn.activation import Activation
from gpunn.training.checkpoint import Checkpoint
from gpunn.training.metrics import Metric

_FRACTION = Interval(Real, 0, 1, closed="left")
_NOT_NEGATIVE = Interval(Real, 0, None, closed="left")
_POSITIVE = Interval(Real, 0, None, closed="neither")
_COUNT = Interval(Integral, 1, None, closed="left")

#: Settings of all estimators.
TRAINING: dict[str, Any] = {
    "solver": [StrOptions({"sgd", "adam", "lbfgs"}), callable],
    "batch_size": [StrOptions({"auto"}), _COUNT],
    "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"})],
    "learning_rate_init": [_POSITIVE],
    "power_t": [_NOT_NEGATIVE],
    "max_iter": [_COUNT],
    "shuffle": ["boolean"],
    "random_state": ["random_state"],
    "tol": [_NOT_NEGATIVE],
    "verbose": ["verbose"],
    "warm_start": ["boolean"],
    "checkpoint": [str, os.PathLike, Checkpoint, None],
    "momentum": [_FRACTION],
    "nesterovs_momentum": ["boolean"],
    "early_stopping": ["boolean"],
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "beta_1": [_FRACTION],
    "beta_2": [_FRACTION],
    "epsilon": [_POSITIVE],
    "n_iter_no_change": [_COUNT, Options(Real, {np.inf})],
    "metrics": [str, Metric, "array-like"],
    "backend": [str, Backend, None],
    "device": [Interval(Integral, 0, None, closed="left"), None],
}

#: The most evaluations of the cost by "lbfgs".
LIMIT: dict[str, Any] = {"max_fun": [_COUNT]}

#: The setting of scikit-learn's penalty.
PENALTY: dict[str, Any] = {"alpha": [_NOT_NEGATIVE]}

#: Further settings of the perceptrons.
NETWORK: dict[str, Any] = {
    **PENALTY,
    **LIMIT,
    "hidden_layer_sizes": ["array-like", _COUNT],
    "activation": [StrOptions(NAMES), Activation, list, tuple],
    "dropout": [_FRACTION, list, tuple],
}

CLASSES: dict[str, Any] = {"class_weight": [StrOptions({"balanced"}), dict, list, None]}


def loss_or(*names: str) -> list[Any]:
    """Return the constraint of a loss: one of these names, or a `Loss`."""
    return [StrOptions(set(names)), Loss]


def place_of(estimator: str, backend: Any, device: int | None, given: Backend | None) -> Backend:
    """Return where to compute: the settings, else the place of X, else gpunn's default."""
    if device is not None and not (isinstance(backend, str) and backend in ("cupy", "auto")):
        raise InvalidParameterError(
            f"{estimator}: device={device} is the index of a GPU and goes with backend='cupy' or "
            f"'auto', got backend={backend!r}"
        )
    try:
        if backend is None:
            return given or get_backend(None)
        place = get_backend(backend)
        if device is None or place.package != "cupy":
            return place
        return get_backend(f"cupy:{device}")
    except SettingError as error:
        raise InvalidParameterError(f"{estimator}: {error}") from error


def in_order(estimator: str, name: str, value: Any) -> list[Any]:
    """Return the items of a sequence; a dict or a set is not one."""
    if isinstance(value, (Mapping, Set, str, bytes, bytearray)) or not is_sized(value):
        raise InvalidParameterError(
            f"{estimator}: {name} must be a list or tuple, got a {type(value).__name__}, "
            f"{shown(value)}"
        )
    return list(value)


def as_metrics(estimator: str, value: Any) -> list[str | Metric]:
    """Return the metrics of a setting, which may be a single one, as a list."""
    if isinstance(value, (str, Metric)):
        return [value]
    metrics = in_order(estimator, "metrics", value)
    for metric in metrics:
        if not isinstance(metric, (str, Metric)):
            raise InvalidParameterError(
                f"{estimator}: metrics must be names or objects, such as ['accuracy', "
                f"gpunn.TopK(2)]; got {shown(metric)}"
            )
    return metrics


def per_layer(
    estimator: str, name: str, value: Any, n_hidden: int, is_valid: Callable[[Any], bool]
) -> list[Any]:
    """Return a setting of each hidden layer, given once for all or as a list."""
    if not isinstance(value, (list, tuple)):
        return [value] * n_hidden
    if len(value) != n_hidden:
        raise InvalidParameterError(
            f"{estimator}: {name} has {len(value)} entries and the network {n_hidden} hidden "
            "layers; give one for each, or one for all"
        )
    for i, item in enumerate(value):
        if not is_valid(item):
            raise InvalidParameterError(
                f"{estimator}: {name}[{i}] is {shown(item)}; {_WANTED[name]}, in a list as alone"
            )
    return list(value)


def is_activation(value: Any) -> bool:
    """Return whether a hidden layer can have this activation."""
    return isinstance(value, Activation) or (isinstance(value, str) and value in NAMES)


def is_rate(value: Any) -> bool:
    """Return whether this is a valid rate of dropout."""
    return isinstance(value, Real) and 0 <= float(value) < 1


_WANTED = {
    "activation": f"known are {', '.join(sorted(NAMES))}, and any Activation",
    "dropout": "a rate is a number in [0, 1)",
}
