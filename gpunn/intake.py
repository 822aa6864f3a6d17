"""What a loader takes in: arrays of real numbers that belong together, and settings in range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpunn import backend
from gpunn._typing import Array
from gpunn.backend import adopt, backend_of, read_only, to_numpy
from gpunn.errors import DataError, DTypeError, SettingError, ShapeError


def as_array(name: str, x: Any) -> Any:
    """Return `x` as an array of real numbers with a first axis, where it is, to be read only."""
    x = adopt(x)
    if is_sparse(x):
        if name != "x":
            raise DTypeError(f"Loader: {name} is sparse; make it dense first, {name}.toarray()")
        return _by_rows(x)
    if backend_of(x) is None:
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
    return read_only(x)


def is_sparse(x: Any) -> bool:
    """Return whether `x` is a sparse matrix or array of SciPy."""
    return hasattr(x, "tocsr")


def _by_rows(x: Any) -> Any:
    """Return a sparse matrix in the format that rows are taken from."""
    if x.ndim != 2 or x.dtype.kind not in "biuf":
        raise DTypeError(
            "Loader: sparse x must be (N, features), of real numbers; "
            f"got {x.ndim} axes of {x.dtype}"
        )
    return x.tocsr()


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
        samples = _not_finite(part)
        if len(samples):
            raise DataError(
                f"Loader: {name} has {len(samples)} values that are NaN or infinite, the first "
                f"in sample {samples.min()}; drop or impute them"
            )


def _not_finite(x: Any) -> Any:
    """Return the sample of each entry that is NaN or infinite."""
    if is_sparse(x):
        entries = x.tocoo()
        return entries.coords[0][~np.isfinite(entries.data)]
    return np.nonzero(~np.isfinite(to_numpy(x)))[0]


def check_order(order: Any, n_samples: int) -> Any:
    """Return an epoch's order, as an array on the host, if it is of all samples.

    Raises
    ------
    SettingError
        If it is not N integers in [0, N); out of range, a device would read astray.
    """
    order = np.asarray(order)
    if order.shape != (n_samples,) or order.dtype.kind not in "iu":
        raise SettingError(
            f"Loader: shuffle must return {n_samples} integers, one a sample, "
            f"got {order.dtype} of shape {order.shape}"
        )
    if order.min() < 0 or order.max() >= n_samples:
        raise SettingError(
            f"Loader: shuffle must return indices in 0..{n_samples - 1}, "
            f"got {order.min()} to {order.max()}"
        )
    return order


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
    if is_sparse(x):
        return bool(x.dtype.kind == "f")
    place = backend_of(x)
    return place is not None and backend.is_floating(place.xp, x.dtype)
