"""Valid settings of the estimators, for scikit-learn's checks."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.random import RandomState
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    Options,
    StrOptions,
    make_constraint,
)

from gpunn.arrays.backend import Backend, get_backend
from gpunn.arrays.checks import MOST, is_sized, shown
from gpunn.errors import SettingError
from gpunn.estimators.network import NAMES
from gpunn.losses.base import Loss
from gpunn.nn.activation import Activation
from gpunn.training.checkpoint import Checkpoint
from gpunn.training.metrics import Metric


class Numbers(Interval):
    """An interval of numbers that fit into 64 bits, as integers or as floats."""

    def is_satisfied_by(self, value: Any) -> bool:
        """Return whether a value is in the interval."""
        if not isinstance(value, self.type) or isinstance(value, np.timedelta64):
            return False
        if self.type is Integral:
            return bool(value <= MOST) and super().is_satisfied_by(value)
        try:
            held = float(value)
        except OverflowError:
            return False
        return (math.isfinite(held) or held == value) and super().is_satisfied_by(held)


_FRACTION = Numbers(Real, 0, 1, closed="left")
_NOT_NEGATIVE = Numbers(Real, 0, None, closed="left")
_POSITIVE = Numbers(Real, 0, None, closed="neither")
_COUNT = Numbers(Integral, 1, None, closed="left")

#: The maximum length of a list in a setting: more than the layers of any network.
_LONGEST = 10**6

#: Settings of all estimators.
TRAINING: dict[str, Any] = {
    "solver": [StrOptions({"sgd", "adam", "lbfgs"}), callable],
    "batch_size": [StrOptions({"auto"}), _COUNT],
    "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"})],
    "learning_rate_init": [_POSITIVE],
    "power_t": [_NOT_NEGATIVE],
    "max_iter": [_COUNT],
    "shuffle": ["boolean"],
    "random_state": [Numbers(Integral, 0, 2**32 - 1, closed="both"), RandomState, None],
    "tol": [_NOT_NEGATIVE],
    "verbose": ["verbose"],
    "warm_start": ["boolean"],
    "checkpoint": [str, os.PathLike, Checkpoint, None],
    "momentum": [_FRACTION],
    "nesterovs_momentum": ["boolean"],
    "early_stopping": ["boolean"],
    "validation_fraction": [Numbers(Real, 0, 1, closed="neither")],
    "beta_1": [_FRACTION],
    "beta_2": [_FRACTION],
    "epsilon": [_POSITIVE],
    "n_iter_no_change": [_COUNT, Options(Real, {np.inf})],
    "metrics": [str, Metric, "array-like"],
    "backend": [str, Backend, None],
    "device": [Numbers(Integral, 0, None, closed="left"), None],
}

#: The maximum number of evaluations of the cost by "lbfgs".
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


def check_settings(estimator: str, constraints: Mapping[str, Any], given: dict[str, Any]) -> None:
    """Check settings against constraints, with the messages of scikit-learn's `_validate_params`.

    Unlike there, values that cannot be compared or printed get a message too, and long values are
    abbreviated.

    Raises
    ------
    InvalidParameterError
        Names the first setting that satisfies none of its constraints.
    """
    for name, value in given.items():
        allowed = constraints.get(name, "no_validation")
        if isinstance(allowed, str):  # "no_validation"
            continue
        kinds = [make_constraint(kind) for kind in allowed]
        if any(_is_satisfied(kind, value) for kind in kinds):
            continue
        *others, last = [str(kind) for kind in kinds if not kind.hidden]
        wanted = f"{', '.join(others)} or {last}" if others else last
        raise InvalidParameterError(
            f"The {name!r} parameter of {estimator} must be {wanted}. Got {shown(value)} instead."
        )


def _is_satisfied(kind: Any, value: Any) -> bool:
    try:
        return bool(kind.is_satisfied_by(value))
    except Exception:  # noqa: BLE001 (a user's class may raise anything)
        return False


def loss_or(*names: str) -> list[Any]:
    """Return the constraint that a loss is one of these names, or a `Loss`."""
    return [StrOptions(set(names)), Loss]


def place_of(estimator: str, backend: Any, device: int | None, given: Backend | None) -> Backend:
    """Return the backend: that of the settings, else that of X, else gpunn's default."""
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
    """Return the items of a sequence as a list; refuse dicts, sets and strings."""
    unordered = isinstance(value, (Mapping, Set, str, bytes, bytearray)) or not is_sized(value)
    if not unordered and getattr(value, "ndim", 1) == 1 and len(value) <= _LONGEST:
        with suppress(TypeError):  # it has a length, but no items
            return list(value)
    raise InvalidParameterError(
        f"{estimator}: {name} must be a list or tuple, got a {type(value).__name__}, {shown(value)}"
    )


def as_metrics(estimator: str, value: Any) -> list[str | Metric]:
    """Return a setting, one metric or several, as a list of metrics."""
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
    """Return a setting for each hidden layer, from one value for all or a list."""
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
    """Return whether this is a valid dropout rate."""
    return isinstance(value, Real) and 0 <= float(value) < 1


_WANTED = {
    "activation": f"known are {', '.join(sorted(NAMES))}, and any Activation",
    "dropout": "a rate is a number in [0, 1)",
}
