"""What a loader takes in: arrays of real numbers that belong together, and settings in range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpunn import backend
from gpunn._typing import Array
from gpunn.backend import adopt, backend_of, to_numpy
from gpunn.errors import DataError, DTypeError, SettingError, ShapeError


def as_array(name: str, x: Any) -> Any:
    """Return `x` as an array of real numbers with a first axis, where it is."""
    x = adopt(x)
    if backend_of(x) is None:
        if hasattr(x, "toarray"):
            raise DTypeError(f"Loader: {name} is sparse; make it dense first, {name}.toarray()")
        try:
            x = to_numpy(x)
        except (TypeError, ValueError) as error:
            raise DTypeError(f"Loader: {name} cannot be read as an array: {error}") from error
    if isinstance(x, np.ma.MaskedArray):
        raise DTypeError(f"Loader: {name} is masked; fill the gaps first, e.g. {name}.filled(0)")
    kinds = ("bool", "integral", "real floating")
    place = backend_of(x)
    if place is None or not place.xp.isdtype(x.dtype, kinds):
        raise DTypeError(
            f"Loader: {name} must hold real numbers, got {x.dtype}; encode or convert it first"
        )
    if x.ndim == 0:
        raise ShapeError(f"Loader: {name} must have a first axis, the samples; got a single number")
    return x


def check_lengths(parts: Mapping[str, Any]) -> int:
    """Return the number of samples, if all agree on one that is not 0."""
    n = int(parts["x"].shape[0])
    for name, part in parts.items():
        if part is not None and part.shape[0] != n:
            raise DataError(f"Loader: x has {n} samples and {name} has {part.shape[0]}")
    if n == 0:
        raise DataError(f"Loader: x is empty, of shape {tuple(parts['x'].shape)}")
    return n


def check_weight(weight: Any) -> None:
    """Check that weights are (N,), finite and not negative."""
    if weight is None:
        return
    if weight.ndim != 1:
        raise ShapeError(f"Loader: sample_weight must be (N,), got {tuple(weight.shape)}")
    values = to_numpy(weight)
    for extreme in (float(values.min()), float(values.max())):
        if not 0 <= extreme < math.inf:
            raise DataError(
                f"Loader: sample_weight must be finite and not negative, got {extreme:g}"
            )


def check_finite(parts: Mapping[str, Any]) -> None:
    """Check that the arrays hold neither NaN nor infinity.

    Raises
    ------
    DataError
        Naming the array, how many there are, and the first sample that has one.
    """
    for name, part in parts.items():
        if part is None or not is_floating(part):
            continue
        bad = ~np.isfinite(to_numpy(part))
        if bad.any():
            first = int(np.argwhere(bad)[0][0])
            raise DataError(
                f"Loader: {name} has {int(bad.sum())} values that are NaN or infinite, the first "
                f"in sample {first}; drop or impute them"
            )


def check_batch_size(batch_size: int | None, n_samples: int) -> int:
    """Return the batch size, from 1 to the number of samples, which None stands for."""
    if batch_size is None:
        return n_samples
    if not hasattr(batch_size, "__index__") or isinstance(batch_size, bool):
        raise SettingError(f"Loader: batch_size must be a whole number or None, got {batch_size!r}")
    if not 1 <= batch_size <= n_samples:
        raise SettingError(
            f"Loader: batch_size must be from 1 to the number of samples, {n_samples}; got "
            f"{batch_size} (None is the full batch)"
        )
    return int(batch_size)


def check_count(name: str, value: int) -> int:
    """Return a setting that must be a whole number above 0."""
    if not hasattr(value, "__index__") or isinstance(value, bool) or value < 1:
        raise SettingError(f"Loader: {name} must be a whole number above 0, got {value!r}")
    return int(value)


def is_floating(x: Array) -> bool:
    """Return whether an array holds floating-point numbers."""
    place = backend_of(x)
    return place is not None and backend.is_floating(place.xp, x.dtype)
