"""Arrays that are not what one expects, made of ordinary ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np


class Labelled(np.ndarray):
    """A subclass as other libraries have them."""


def strided(x: Any) -> Any:
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype) if x.ndim else x
    wide[..., ::2] = x
    return wide[..., ::2] if x.ndim else x


def unaligned(x: Any) -> Any:
    room = np.zeros(x.nbytes + 1, np.uint8)
    view = room[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def read_only(x: Any) -> Any:
    x = x.copy()
    x.flags.writeable = False
    return x


def matrix(x: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        return np.asmatrix(x) if x.ndim == 2 else x


def with_value(value: float) -> Callable[[Any], Any]:
    def change(x: Any) -> Any:
        x = x.astype("float64")  # which holds it
        if x.size:
            x.flat[0] = value
        return x

    return change


#: Of the same values: what takes them gives what the ordinary array gives.
SAME: dict[str, Callable[[Any], Any]] = {
    "ordinary": lambda x: x,
    "strided": strided,
    "backwards": lambda x: x[::-1].copy()[::-1],
    "Fortran's order": np.asfortranarray,
    "unaligned": unaligned,
    "read-only": read_only,
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "a subclass": lambda x: x.view(Labelled),
    "nothing masked": np.ma.masked_array,
    "lists": lambda x: x.tolist(),
    "objects": lambda x: x.astype(object),
    "longer": lambda x: x.astype("longdouble") if x.dtype.kind == "f" else x.astype("int64"),
    "no strides": lambda x: np.broadcast_to(x[:1], x.shape) if x.ndim and len(x) else x,
}

#: Not finite, or not in float32: NumPy warns of what is computed with them.
NOT_FINITE = ("NaN", "infinity", "huge")

#: Of other values, or of none that are numbers.
OTHER: dict[str, Callable[[Any], Any]] = {
    "NaN": with_value(np.nan),
    "infinity": with_value(np.inf),
    "huge": with_value(1e300),
    "negative": with_value(-7.0),
    "half numbers": with_value(0.5),
    "empty": lambda x: x[:0],
    "no features": lambda x: x[..., :0] if x.ndim > 1 else x[:0],
    "one axis more": lambda x: x[..., None],
    "one axis less": lambda x: x[0] if x.ndim and len(x) else x,
    "a scalar": lambda _: np.float64(3.0),
    "complex": lambda x: x.astype("complex64"),
    "booleans": lambda x: x.astype(bool),
    "text": lambda x: x.astype(str),
    "times": lambda x: x.astype("int64").astype("datetime64[s]"),
    "records": lambda x: np.zeros(x.shape, [("a", "f4"), ("b", "i4")]),
    "masked": lambda x: np.ma.masked_array(x, np.ones(x.shape, bool)),
    "halves": lambda x: x.astype("float16"),
    "bytes": lambda x: x.astype("uint8"),
    "largest integers": lambda x: np.full(x.shape, 2**63, "uint64"),
    "ragged lists": lambda x: [[1.0, 2.0], [3.0]] if x.ndim else 1.0,
    "a matrix": matrix,
    "None": lambda _: None,
    "a dict": lambda x: {"x": x},
    "a string": lambda _: "array",
    "a generator": lambda x: (row for row in x) if x.ndim else None,
}
