"""Sample weights from the setting `class_weight`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import compute_class_weight
from sklearn.utils._param_validation import InvalidParameterError

from gpunn.arrays.checks import number, shown
from gpunn.errors import SettingError
from gpunn.estimators.labels import Labels

if TYPE_CHECKING:
    from numpy.typing import NDArray


def check_class_weight(owner: str, value: Any, labels: Labels) -> None:
    """Check that class weights are valid and suit the kind of labels.

    Raises
    ------
    InvalidParameterError
        If not.
    """
    if labels.kind != "multilabel":
        if isinstance(value, list):
            raise InvalidParameterError(
                f"{owner}: class_weight is a list, which is for several labels a sample, and y has "
                "one; give a dict from labels to weights, such as "
                f"{dict.fromkeys(labels.classes.tolist()[:3], 1.0)}, 'balanced' or None"
            )
        _check_weights(owner, "class_weight", value)
        return
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, list) or len(value) != len(labels.classes):
        raise InvalidParameterError(
            f"{owner}: class_weight of {len(labels.classes)} labels a sample must be a list of as "
            f"many dicts, such as {{0: 1.0, 1: 2.0}}, 'balanced' or None; got {shown(value)}"
        )
    for i, one in enumerate(value):
        name = f"class_weight[{i}]"
        _check_weights(owner, name, one)
        if isinstance(one, dict) and any(label not in (0, 1) for label in one):
            raise InvalidParameterError(
                f"{owner}: {name} is of the labels 0 and 1, got {shown(one)}"
            )


def by_class(
    class_weight: Any, y: NDArray[Any], labels: Labels, weight: NDArray[Any] | None = None
) -> NDArray[Any] | None:
    """Return the class weight of each sample, or None if all are equal.

    The classes are those of `labels`; y may have only some of them. "balanced" makes the sums of
    `weight` times class weight equal for all classes in y, as scikit-learn's linear models do.
    """
    if class_weight is None:
        return None
    if labels.kind == "multilabel":
        columns = [class_weight] * y.shape[1] if isinstance(class_weight, str) else class_weight
        factors = [_column_factors(c, y[:, i], weight) for i, c in enumerate(columns)]
        return np.prod(factors, axis=0)
    if isinstance(class_weight, str):
        return _balanced_factors(y, weight)
    weights = compute_class_weight(class_weight, classes=labels.classes, y=labels.classes)
    return weights[labels.places(y)]


def needs_all_labels(class_weight: Any) -> bool:
    """Return whether the class weights depend on the frequencies of the labels."""
    given = class_weight if isinstance(class_weight, list) else [class_weight]
    return any(isinstance(one, str) for one in given)


def _column_factors(
    class_weight: Any, column: NDArray[Any], weight: NDArray[Any] | None
) -> NDArray[Any]:
    if class_weight is None:
        return np.ones(len(column))
    if isinstance(class_weight, dict):
        no, yes = (float(class_weight.get(label, 1.0)) for label in (0, 1))
        return np.where(column > 0, yes, no)
    return _balanced_factors(column, weight)


def _balanced_factors(y: NDArray[Any], weight: NDArray[Any] | None) -> NDArray[Any]:
    """Return factors that equalise the weight sums of the labels; sums of 0 remain 0."""
    _, codes = np.unique(y, return_inverse=True)
    sums = np.bincount(codes, weight)
    present = sums > 0
    factors = sums.sum() / present.sum() / np.where(present, sums, 1.0)
    return factors[codes]


def _check_weights(owner: str, name: str, value: Any) -> None:
    if value is None or (isinstance(value, str) and value == "balanced"):
        return
    if not isinstance(value, dict):
        raise InvalidParameterError(
            f"{owner}: {name} must be a dict from labels to weights, 'balanced' or None; "
            f"got {shown(value)}"
        )
    try:
        for label, weight in value.items():
            number(owner, f"{name}[{label!r}]", weight, "[0, inf)")
    except SettingError as error:
        raise InvalidParameterError(str(error)) from error
