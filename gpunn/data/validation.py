"""Checks of a loader's data and settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.arrays import facts
from gpunn.arrays.backend import backend_of, get_backend
from gpunn.arrays.checks import one_of, shown, whole_number
from gpunn.arrays.exchange import adopt, check_ordinary, named_numpy, to_numpy
from gpunn.arrays.facts import dtype_name, is_kind
from gpunn.arrays.memory import read_only
from gpunn.data.chunks import Chunked, is_chunked
from gpunn.errors import DataError, DTypeError, SettingError, ShapeError

#: Entries checked at a time; a check allocates arrays of that size.
_ENTRIES_AT_ONCE = 1 << 20


class _Default(int):
    """A default that may be replaced by a number that fits the data."""


DEFAULT_BATCH_SIZE = _Default(32)


def as_array(name: str, x: Any) -> Any:
    """Return `x` as a read-only array of real numbers, on its device, with at least one axis."""
    if name == "x" and is_chunked(x):
        return Chunked(x)
    x = adopt(x)
    if is_sparse(x):
        if name != "x":
            raise DTypeError(f"Loader: {name} is sparse; make it dense first, {name}.toarray()")
        return _by_rows(x)
    if backend_of(x) is None:
        x = _read(name, x)
    check_ordinary("Loader", name, x)
    kinds = ("bool", "integral", "real floating")
    place = backend_of(x)
    if place is None or not is_kind(place.xp, x.dtype, kinds):
        raise DTypeError(
            f"Loader: {name} must hold real numbers, got {x.dtype}{_example(x)}; {_advice(x.dtype)}"
        )
    if x.ndim == 0:
        raise ShapeError(f"Loader: {name} must have a first axis, the samples; got a single number")
    return read_only(x)


def _read(name: str, x: Any) -> Any:
    """Convert lists, DataFrames and the like to a NumPy array."""
    if hasattr(x, "iloc") and hasattr(x, "dtypes"):
        dtypes = [x.dtypes] if hasattr(x, "dtype") else list(x.dtypes)
        return x.to_numpy(dtype=_common_dtype(name, x, dtypes))
    if hasattr(x, "isna") and hasattr(x, "dtype"):  # pandas' own arrays, and an index
        return x.to_numpy(dtype=_common_dtype(name, x, [x.dtype]))
    try:
        return named_numpy("Loader", name, x)
    except DTypeError as error:
        reason = _unequal_rows(x)
        if reason is None:
            raise
        raise DTypeError(f"Loader: {name} cannot be read as an array: {reason}") from error


def _common_dtype(name: str, frame: Any, dtypes: list[Any]) -> Any:
    """Return the NumPy dtype that holds all columns of a pandas DataFrame or Series.

    Raises
    ------
    DTypeError, DataError
        Names the columns that hold no real numbers or have missing values.
    """
    labels = [repr(label) for label in getattr(frame, "columns", [])] or [name]
    named = list(zip(labels, dtypes, strict=True)) if dtypes else []
    odd = [(label, dtype) for label, dtype in named if dtype.kind not in "biuf"]
    if odd:
        listed = ", ".join(f"{label} ({dtype})" for label, dtype in odd)
        raise DTypeError(
            f"Loader: {name} must hold real numbers, got {listed}; {_advice(odd[0][1])}, or leave "
            "it out"
        )
    gaps = [label for i, (label, dtype) in enumerate(named) if _has_gaps(frame, i, dtype)]
    if gaps:
        raise DataError(
            f"Loader: {name} has missing values in {', '.join(gaps)}; drop or impute them"
        )
    return np.result_type(*(_of_numpy(dtype) for dtype in dtypes)) if dtypes else np.float64


def _has_gaps(frame: Any, i: int, dtype: Any) -> bool:
    """Return whether a column has missing values that are not NaN."""
    if not hasattr(dtype, "numpy_dtype"):
        return False
    column = frame.iloc[:, i] if hasattr(frame, "columns") else frame
    return bool(column.isna().any())


def _of_numpy(dtype: Any) -> Any:
    """Return the NumPy dtype of a pandas dtype, which may be nullable or sparse."""
    return getattr(dtype, "numpy_dtype", getattr(dtype, "subtype", dtype))


def _unequal_rows(x: Any) -> str | None:
    """Describe rows of unequal lengths; None if that is not what is wrong."""
    if not isinstance(x, (list, tuple)):
        return None
    lengths = sorted({len(row) if hasattr(row, "__len__") else 0 for row in x})
    if len(lengths) < 2:
        return None
    return f"its rows have {lengths[0]} to {lengths[-1]} entries; make them equally long"


def _example(x: Any) -> str:
    """Describe one entry of an object array that is not a number."""
    if str(x.dtype) != "object":
        return ""
    for place, entry in np.ndenumerate(x):
        if not isinstance(entry, Real):
            return f", such as {type(entry).__name__} in sample {place[0] if place else 0}"
    return ""


def _advice(dtype: Any) -> str:
    """Return how to convert a dtype to numbers."""
    if getattr(dtype, "kind", "") in "mM":
        return "convert times first: subtract a date, and divide by numpy.timedelta64(1, 'D')"
    return "encode or convert it first"


def is_sparse(x: Any) -> bool:
    """Return whether `x` is a sparse SciPy matrix or array."""
    return hasattr(x, "tocsr")


def _by_rows(x: Any) -> Any:
    """Return a sparse matrix in the row format."""
    if x.ndim != 2 or x.dtype.kind not in "biuf":
        raise DTypeError(
            "Loader: sparse x must be (N, features), of real numbers; "
            f"got {x.ndim} axes of {x.dtype}"
        )
    return x.tocsr()


def range_of(x: Any) -> tuple[int, int] | None:
    """Return the least and the largest of some integers; None for those in a file, which is long.

    Raises
    ------
    DTypeError
        If they are not integers.
    """
    place = get_backend("numpy") if isinstance(x, Chunked) else backend_of(x)
    if place is None or not facts.is_integer(place.xp, x.dtype):
        raise DTypeError(f"Loader: x must hold integers, as keep_integers says, got {x.dtype}")
    if isinstance(x, (np.memmap, Chunked)) or not math.prod(x.shape):
        return None
    with place.scope():
        return int(place.xp.min(x)), int(place.xp.max(x))


def check_lengths(parts: Mapping[str, Any]) -> int:
    """Return the number of samples; check that all parts have it, and that it is not 0."""
    n = int(parts["x"].shape[0])
    for name, part in parts.items():
        if part is not None and part.shape[0] != n:
            raise DataError(f"Loader: x has {n} samples and {name} has {part.shape[0]}")
    if n == 0:
        raise DataError(f"Loader: x is empty, of shape {tuple(parts['x'].shape)}")
    return n


def check_weight(weight: Any, dtype: str | None) -> None:
    """Check that weights are (N,), not negative, and finite in the dtype of the batches."""
    if weight is None:
        return
    if weight.ndim != 1:
        raise ShapeError(f"Loader: sample_weight must be (N,), got {tuple(weight.shape)}")
    values, limit = to_numpy(weight), _too_large(weight, dtype)
    for extreme in (values.min(), values.max()):
        if not 0 <= extreme < limit:
            infinite = f", which is infinite in {dtype}" if limit <= extreme < np.inf else ""
            raise DataError(
                "Loader: sample_weight must be finite and not negative, "
                f"got {float(extreme):g}{infinite}"
            )


def check_finite(parts: Mapping[str, Any], dtypes: Sequence[str | None]) -> None:
    """Check that the arrays have no NaN or infinity in the dtypes of the batches.

    Values are looked at where they are; of an array on a device one small array is read.

    Raises
    ------
    DataError
        Names the array, the number of such entries, and the first sample with one.
    """
    for (name, part), dtype in zip(parts.items(), dtypes, strict=True):
        if part is None or not is_floating(part):
            continue
        limit = _too_large(part, dtype)
        found, first = _not_finite(part, limit)
        if found:
            where = "" if np.isinf(limit) else f" in {dtype}"
            advice = "" if np.isinf(limit) else ", or scale them, or say another dtype"
            raise DataError(
                f"Loader: {name} has {found} values that are NaN or infinite{where}, the "
                f"first in sample {first}; drop or impute them{advice}"
            )


def _too_large(x: Any, dtype: str | None) -> Any:
    """Return the smallest number that overflows in `dtype`, in the dtype of `x`."""
    own = dtype_name(x)
    if dtype is None or not is_floating(x) or np.finfo(own).max <= np.finfo(dtype).max:
        return np.inf
    limits, of = np.finfo(dtype), np.dtype(own).type
    # Numbers from halfway between the largest and the next one are rounded to infinity.
    return of(limits.max) + np.ldexp(of(1), limits.maxexp - limits.nmant - 2)


def _not_finite(x: Any, limit: Any) -> tuple[int, int]:
    """Return how many entries are NaN or not below `limit` in size, and the first's sample."""
    if is_sparse(x):
        if not x.has_canonical_format:  # entries with the same index are added
            x = x.copy()
            x.sum_duplicates()
        entries = x.tocoo()
        samples = entries.coords[0][~(np.abs(entries.data) < limit)]
        return len(samples), int(samples.min(initial=x.shape[0]))
    if isinstance(x, Chunked):
        faulty_rows = [~(np.abs(chunk) < limit).reshape(len(chunk), -1) for chunk in x.chunks()]
        counts = np.concatenate([rows.sum(axis=1) for rows in faulty_rows])
        return int(counts.sum()), int(np.argmax(counts > 0))
    rows = max(1, _ENTRIES_AT_ONCE // (math.prod(x.shape[1:]) or 1))
    starts = range(0, x.shape[0], rows)
    place = backend_of(x)
    assert place is not None  # noqa: S101 (see `as_array`)
    xp = place.xp
    limit = limit if place.package == "numpy" else float(limit)  # longdouble is NumPy's alone

    def faulty(start: int) -> Array:
        return xp.logical_not(xp.abs(x[start : min(start + rows, x.shape[0]), ...]) < limit)

    with place.scope():
        sums = [xp.sum(xp.astype(faulty(start), xp.int8), dtype=xp.int64) for start in starts]
        counts = to_numpy(xp.stack(sums))
        if not counts.any():
            return 0, 0
        worst = starts[int(np.argmax(counts > 0))]
        return int(counts.sum()), worst + int(np.nonzero(to_numpy(faulty(worst)))[0].min())


def check_order(order: Any, n_samples: int) -> Any:
    """Return an epoch's order as an array on the host; check that its indices are in range.

    Raises
    ------
    SettingError
        If it is not N integers in [0, N). A device would not check the range.
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


def check_shuffle(owner: str, name: str, shuffle: Any) -> Any:
    """Return a valid `shuffle` setting."""
    if callable(shuffle):
        return shuffle
    return one_of(owner, name, shuffle, (True, False, "blocks"), otherwise="a function or ")


def check_transform(owner: str, name: str, transform: Any) -> Any:
    """Return a valid `transform` setting: None or a function."""
    if transform is None or callable(transform):
        return transform
    raise SettingError(f"{owner}: {name} must be a function, got {shown(transform)}")


def check_batch_size(batch_size: int | None, n_samples: int) -> int:
    """Return the batch size, from 1 to the number of samples; None means all of them."""
    if batch_size is None:
        return n_samples
    if batch_size is DEFAULT_BATCH_SIZE:
        return min(int(batch_size), n_samples)
    size = whole_number("Loader", "batch_size", batch_size, otherwise="None or ")
    if size > n_samples:
        raise SettingError(
            f"Loader: batch_size must be from 1 to the number of samples, {n_samples}; got "
            f"{size} (None is the full batch)"
        )
    return size


def is_floating(x: Array) -> bool:
    """Return whether an array holds floating-point numbers."""
    if is_sparse(x) or isinstance(x, Chunked):
        return bool(x.dtype.kind == "f")
    place = backend_of(x)
    return place is not None and facts.is_floating(place.xp, x.dtype)
