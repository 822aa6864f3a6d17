"""Values that are not what one expects of a setting, and some that are; each is made anew."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import io
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

import gpunn as gn

D, F = decimal.Decimal, fractions.Fraction


class Untrue:
    def __bool__(self) -> bool:
        raise RuntimeError("neither true nor false")

    def __repr__(self) -> str:
        raise RuntimeError("not to be shown")


class Unequal:
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")


class Word(str):
    __slots__ = ()


class Choice(enum.Enum):
    ONE = 1


def nested(depth: int) -> list[Any]:
    """Return lists in lists; one that contains itself for a depth of 0."""
    inner: list[Any] = []
    if not depth:
        inner.append(inner)
    for _ in range(depth):
        inner = [inner]
    return inner


def layer() -> gn.Layer:
    return gn.Dense(4, 3, rng=0)


def loader() -> gn.Loader:
    return gn.Loader(np.zeros((4, 4), "float32"), [0, 1, 2, 0], batch_size=2, backend="numpy")


#: Python's numbers, and those of its library and of NumPy.
NUMBERS: dict[str, Callable[[], Any]] = {
    repr(value): lambda value=value: value
    for value in (
        *(True, False, 0, -1, 1, 2, 7, 10**12, 2**63, -(2**63), 2**64, 0.0, -0.0, 0.5, 1.0, 2.0),
        *(-0.5, float("nan"), float("inf"), -float("inf"), 1e-320, 1e308, 1j),
        *(F(1, 2), F(2), D("0.5"), D(2), D("NaN"), D("sNaN"), D("Infinity")),
        *(np.int8(2), np.uint64(2), np.int64(2**62), np.float16(0.5), np.float32(0.5)),
        *(np.float64(0.5), np.longdouble(0.5), np.bool_(True), np.complex64(1)),
        *(np.datetime64("2020-01-01"), np.timedelta64(3, "s"), dt.date(2020, 1, 1)),
    )
} | {
    "10**400": lambda: 10**400,
    "-10**400": lambda: -(10**400),
    "10**9999": lambda: 10**9999,  # which has no repr
    "a huge fraction": lambda: F(10**400),
}

TEXTS: dict[str, Callable[[], Any]] = {
    repr(value)[:20]: lambda value=value: value
    for value in (
        *("", "a", "relu", "same", "float64", "accuracy", "numpy", "numpy:1", "cupy:x", "sum"),
        *("a\0b", "\u65e5\u672c\U0001f600", "\ud800", "a\nb{0}%s", "x" * 10**6, "no/such/file"),
        *(b"relu", bytearray(b"a"), Word("relu"), np.str_("relu"), pathlib.Path("no/such/file")),
    )
}

ARRAYS: dict[str, Callable[[], Any]] = {
    "0-d integer": lambda: np.array(2),
    "0-d float": lambda: np.array(0.5),
    "0-d bool": lambda: np.array(True),
    "0-d object": lambda: np.array(None),
    "numbers": lambda: np.array([1.0, 2.0]),
    "integers": lambda: np.array([1, 2]),
    "a matrix": lambda: np.ones((2, 4), "float32"),
    "no numbers": lambda: np.zeros(0),
    "more than the memory": lambda: np.broadcast_to(np.float32(0), (10**6, 10**6)),
    "objects": lambda: np.array([None, "a"], object),
    "records": lambda: np.zeros(2, "f4,i4"),
    "masked": lambda: np.ma.masked_array([1.0, 2.0], [True, False]),
    "texts": lambda: np.array(["a", "b"]),
}

COLLECTIONS: dict[str, Callable[[], Any]] = {
    "[]": list,
    "[2]": lambda: [2],
    "[0, 1]": lambda: [0, 1],
    "[None]": lambda: [None],
    "['accuracy']": lambda: ["accuracy"],
    "ragged": lambda: [[1, 2], [3]],
    "nested": lambda: nested(80),
    "deeply nested": lambda: nested(10**5),
    "a list of itself": lambda: nested(0),
    "()": tuple,
    "(2, 3)": lambda: (2, 3),
    "(10**12, 10**12)": lambda: (10**12, 10**12),
    "(2, -1)": lambda: (2, -1),
    "(1.5, 2)": lambda: (1.5, 2),
    "long": lambda: [1] * 10**5,
    "{}": dict,
    "texts": lambda: {"a": 1},
    "classes": lambda: {0: 2.0, 1: 3.0},
    "NaN as a key": lambda: {float("nan"): 1},
    "a set": lambda: {1, 2},
    "a range": lambda: range(3),
    "a huge range": lambda: range(10**12),
    "a generator": lambda: (i for i in range(3)),
    "without end": itertools.count,
    "an iterator": lambda: iter([1, 2]),
}

OBJECTS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "an object": object,
    "...": lambda: ...,
    "NotImplemented": lambda: NotImplemented,
    "a slice": lambda: slice(3),
    "untrue": Untrue,
    "unequal": Unequal,
    "a choice": lambda: Choice.ONE,
    "a module": lambda: np,
    "an error": lambda: ValueError("x"),
    "a stream": io.StringIO,
    "a view": lambda: memoryview(b"abc"),
    "a dtype": lambda: np.dtype("float32"),
    "a Parameter": lambda: gn.Parameter(np.zeros(3)),
    "parameters": lambda: layer().parameters(),
    "a Tape": gn.Tape,
    "a Loader": loader,
    "a Backend": lambda: gn.get_backend("numpy"),
    "a Generator": lambda: np.random.default_rng(0),
    "a Metric": gn.Accuracy,
    "an Optimizer": lambda: gn.SGD(layer().parameters()),
    "a History": gn.History,
}

#: An error may come out of these themselves.
CALLABLES: dict[str, Callable[[], Any]] = {
    "a type": lambda: int,
    "a layer's class": lambda: gn.Dense,
    "a dtype's type": lambda: np.float64,
    "a function": lambda: lambda *_, **__: None,
    "a function of nothing": lambda: lambda: 1,
    "a Layer": layer,
    "a Loss": gn.MeanSquaredError,
    "an Activation": gn.ReLU,
    "a Schedule": lambda: gn.StepDecay(0.1, every=2),
    "a Checkpoint": lambda: gn.Checkpoint("no/such/folder"),
}

ODD: dict[str, Callable[[], Any]] = {
    f"{kind}: {name}": make
    for kind, table in {
        "number": NUMBERS,
        "text": TEXTS,
        "array": ARRAYS,
        "collection": COLLECTIONS,
        "object": OBJECTS,
        "callable": CALLABLES,
    }.items()
    for name, make in table.items()
}
