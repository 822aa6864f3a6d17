"""The class weights of a loss, as a setting and as a table for kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from gpunn.arrays.backend import backend_of
from gpunn.arrays.checks import is_whole, number, shown
from gpunn.arrays.exchange import to_numpy
from gpunn.arrays.facts import is_kind
from gpunn.errors import SettingError

#: The weights of all classes in order, or of some classes by number.
ClassWeight: TypeAlias = "tuple[float, ...] | dict[int, float]"


def as_class_weight(owner: str, name: str, given: Any) -> ClassWeight | None:
    """Return class weights as a tuple or a dict of floats, or None.

    Raises
    ------
    SettingError
        If they are of another kind, or one is not a number of at least 0.
    """
    if given is None:
        return None
    if isinstance(given, Mapping):
        for key in given:
            if not is_whole(key) or key < 0:
                raise SettingError(
                    f"{owner}: {name} has the key {shown(key)}; keys are classes, whole numbers "
                    "from 0"
                )
        return {
            int(key): number(owner, f"{name}[{key}]", weight, "[0, inf)")
            for key, weight in given.items()
        }
    weights = _in_order(given)
    if weights is None:
        raise SettingError(
            f"{owner}: {name} must be K numbers (a list, a tuple or an array of one axis) or a "
            f"dict from class to number, got {shown(given)}"
        )
    return tuple(
        number(owner, f"{name}[{i}]", weight, "[0, inf)") for i, weight in enumerate(weights)
    )


def table_of(loss: Any, given: ClassWeight | None, classes: int) -> list[float]:
    """Return the weight of each class, in order; 1 for a class that a dict does not name.

    Raises
    ------
    SettingError
        If there are weights for other classes, or a sequence is too short. The error names `loss`.
    """
    weights = as_class_weight(type(loss).__name__, "class_weight", given)  # a dict may have changed
    if isinstance(weights, dict):
        largest = max(weights, default=0)
        if largest >= classes:
            raise SettingError(
                f"{loss!r}: class_weight names class {largest}, and the model outputs "
                f"{classes} classes, 0..{classes - 1}"
            )
        return [weights.get(k, 1.0) for k in range(classes)]
    if weights is None:
        return [1.0] * classes
    if len(weights) != classes:
        raise SettingError(
            f"{loss!r}: class_weight has {len(weights)} entries, "
            f"and the model outputs {classes} classes"
        )
    return list(weights)


def _in_order(given: Any) -> list[Any] | tuple[Any, ...] | None:
    """Return the items of a list, a tuple or an array of numbers; None for anything else."""
    if isinstance(given, (list, tuple)):
        return given
    place = backend_of(given)
    if place is None or len(given.shape) != 1:
        return None
    if not is_kind(place.xp, given.dtype, ("integral", "real floating")):
        return None
    items: list[Any] = to_numpy(given).tolist()
    return items
