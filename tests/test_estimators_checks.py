"""scikit-learn's own checks of an estimator, on the host and with CuPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from gpunn.estimators import (
    LogisticRegression,
    MLPClassifier,
    MLPRegressor,
    NetworkClassifier,
    NetworkRegressor,
)

KINDS = (MLPClassifier, MLPRegressor, LogisticRegression, NetworkClassifier, NetworkRegressor)

# They train for a few epochs.
pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.usefixtures("one_thread"),
]


def of(check: Callable[..., None]) -> str | None:
    """Return the library whose arrays a check is of; None if of none, "mixed" if of several."""
    if "array_api" not in check.func.__name__:
        return None
    return check.keywords.get("array_namespace", "mixed")


def some(marked: Any, wanted: Callable[[Callable[..., None]], bool]) -> Any:
    """Return scikit-learn's parametrisation with the checks that are wanted."""
    names, pairs = marked.args
    return pytest.mark.parametrize(
        names, [pair for pair in pairs if wanted(pair[1])], **marked.kwargs
    )


def runs_on_a_gpu(check: Callable[..., None]) -> bool:
    """Return whether a check needs no more than what the tests install, and is not skipped."""
    return (
        of(check) in (None, "numpy", "array_api_strict", "cupy")
        and "decision_function" not in check.func.__name__
    )


@some(parametrize_with_checks([kind() for kind in KINDS]), lambda check: of(check) != "cupy")
def test_on_the_host(estimator: Any, check: Callable[..., None]) -> None:
    check(estimator)


@pytest.mark.gpu
@some(parametrize_with_checks([kind() for kind in KINDS]), lambda check: of(check) == "cupy")
def test_of_cupy_arrays(estimator: Any, check: Callable[..., None]) -> None:
    check(estimator)


@pytest.mark.gpu
@some(parametrize_with_checks([kind(backend="cupy") for kind in KINDS]), runs_on_a_gpu)
def test_on_a_gpu(estimator: Any, check: Callable[..., None]) -> None:
    check(estimator)
