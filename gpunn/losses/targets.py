"""Checks of targets: class labels, values in an interval, signs and distributions."""

from __future__ import annotations

from typing import Any

from gpunn.arrays.backend import backend_of
from gpunn.arrays.facts import is_integer, is_kind
from gpunn.errors import DTypeError, LabelError
from gpunn.kernels.host import ROUNDING


def check_labels(owner: str, labels: Any, classes: int, ignored: int | None = None) -> None:
    """Check that `labels`, an array of any library, are integers in [0, classes), or `ignored`."""
    place = backend_of(labels)
    if place is None or not is_integer(place.xp, labels.dtype):
        raise not_integers(owner, labels)
    if 0 in labels.shape:
        return
    xp = place.xp
    with place.scope():
        if ignored is not None:
            labels = xp.astype(labels, xp.int64)
            labels = xp.where(labels == ignored, 0, labels)
        lowest, highest = int(xp.min(labels)), int(xp.max(labels))
    if lowest < 0 or highest >= classes:
        raise LabelError(
            f"{owner}: the model outputs {classes} classes, so labels must be in "
            f"0..{classes - 1}{'' if ignored is None else f', or {ignored} to be ignored'}; "
            f"got labels from {lowest} to {highest}{_advice(classes, lowest, highest)}"
        )


def _advice(classes: int, lowest: int, highest: int) -> str:
    """Return what labels that are out of range most likely call for."""
    if classes == 1 and (lowest, highest) == (0, 1):
        return "; use two outputs, or BinaryCrossEntropy"
    if lowest == 1 and highest == classes:
        return "; subtract 1"
    return ""


def not_integers(owner: str, labels: Any) -> DTypeError:
    """Return the error for class labels that are not integers."""
    return DTypeError(
        f"{owner}: class labels must be integers, got {labels.dtype}; "
        'convert them, e.g. y.astype("int64")'
    )


def check_interval(owner: str, target: Any, lowest: float, highest: float) -> None:
    """Check that all values of `target`, an array of any library, are in [lowest, highest]."""
    place = backend_of(target)
    if place is None or 0 in target.shape or is_kind(place.xp, target.dtype, "bool"):
        return
    with place.scope():
        least, most = float(place.xp.min(target)), float(place.xp.max(target))
    if not (lowest <= least and most <= highest):
        raise LabelError(
            f"{owner}: targets must be in [{lowest:g}, {highest:g}], "
            f"got values from {least:g} to {most:g}"
        )


def check_signs(owner: str, target: Any) -> None:
    """Check that all values of `target`, an array of any library, are 0 and 1, or -1 and 1."""
    place = backend_of(target)
    if place is None or 0 in target.shape or is_kind(place.xp, target.dtype, "bool"):
        return
    xp = place.xp
    with place.scope():
        ones = xp.abs(target) == 1
        if bool(xp.all(ones)) or bool(xp.all((ones & (target > 0)) | (target == 0))):
            return
        least, most = float(xp.min(target)), float(xp.max(target))
    raise LabelError(
        f"{owner}: targets must be 0 and 1, or -1 and 1; got other values, from {least:g} to "
        f"{most:g}"
    )


def check_distributions(owner: str, target: Any) -> None:
    """Check that each row of `target`, an array of any library, is a distribution."""
    check_interval(owner, target, 0.0, 1.0 + ROUNDING)
    place = backend_of(target)
    if place is None or 0 in target.shape:
        return
    xp = place.xp
    with place.scope():
        sums = xp.sum(xp.astype(target, xp.float64), axis=1)
        least, most = float(xp.min(sums)), float(xp.max(sums))
    if not (least >= 1.0 - ROUNDING and most <= 1.0 + ROUNDING):
        raise LabelError(
            f"{owner}: each row of the target must add up to 1, got sums from {least:g} to "
            f"{most:g}; divide each row by its sum, or use SoftmaxCrossEntropy(), which takes any"
        )
