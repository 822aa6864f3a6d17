"""Stand-ins for arrays, and the base of kernels that record calls on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NoReturn

from gpunn._typing import Array, Shape
from gpunn.arrays.backend import Backend
from gpunn.kernels.reference import Kernels
from gpunn.program.values import Operation, Value, refuse


class Traced:
    """A stand-in for an array while a step is recorded.

    It has the properties that layers read before they compute (shape, dtype, backend, transpose)
    and refuses everything else.
    """

    __slots__ = ("__gpunn_backend__", "__gpunn_kernels__", "transposed", "value")
    __array_ufunc__ = None  # NumPy's arrays refuse to compute with it

    def __init__(self, value: Value, recorder: Recorder, *, transposed: bool = False) -> None:
        self.value = value
        self.transposed = transposed
        self.__gpunn_kernels__ = recorder
        self.__gpunn_backend__ = recorder.backend

    @property
    def shape(self) -> Shape:
        """The lengths of the axes."""
        return self.value.shape[::-1] if self.transposed else self.value.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the array."""
        return self.value.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.value.shape)

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.value.shape)

    @property
    def T(self) -> Traced:  # noqa: N802 (as in the standard)
        """The transpose of a matrix."""
        if self.ndim != 2:
            refuse(f"the transpose of an array of {self.ndim} axes")
        return Traced(self.value, self.__gpunn_kernels__, transposed=not self.transposed)

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse any other attribute."""
        refuse(f"reading an array's `{name}`")

    def __bool__(self) -> bool:
        """Refuse to be used as a condition."""
        return refuse("a branch on the values of an array")

    def __len__(self) -> int:
        """Refuse: the length depends on the batch."""
        return refuse("len(array)")

    def __iter__(self) -> NoReturn:
        """Refuse to be iterated over."""
        refuse("a loop over an array")

    def __repr__(self) -> str:
        """Return the shape and dtype."""
        return f"Traced({self.shape}, {self.dtype})"


class _Dtypes:
    """The part of an array namespace that is about dtypes; it computes nothing."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        """Return a dtype, or a function of dtypes."""
        if name in ("isdtype", "finfo", "float32", "float64", "int64", "bool"):
            return getattr(self._xp, name)
        return refuse(f"`xp.{name}`")


@cache
def _dtypes_of(xp: Any) -> _Dtypes:
    return _Dtypes(xp)


class Recorder(Kernels):
    """The base of kernels that record their calls instead of computing.

    Parameters
    ----------
    backend : Backend
        The backend of the arrays.
    """

    def __init__(self, backend: Backend) -> None:
        super().__init__(_dtypes_of(backend.xp))
        self.backend = backend
        self.operations: list[Operation] = []
        self.batch_size = 1

    def _add_elementwise(self, kernel: str, x: Any, y: Any) -> Any:
        if not (is_batch(x) and is_batch(y) and x.shape == y.shape and x.dtype == y.dtype):
            refuse(f"`{kernel}` of anything but two batches of the same shape and dtype")
        return self._add(kernel, (x, y), x.shape, x.dtype)

    def _add(
        self,
        kernel: str,
        inputs: tuple[Any, ...],
        shape: Sequence[int],
        dtype: Any,
        *,
        into: Array | None = None,
        formula: Any = None,
        settings: dict[str, Any] | None = None,
        by_sample: bool = True,
    ) -> Any:
        """Record an operation with one result; return `into`, or a stand-in for the result."""
        result = self._result(into, tuple(shape), dtype, by_sample=by_sample)
        self._append(kernel, inputs, (value_of(result),), formula, settings)
        return result

    def _result(
        self, into: Array | None, shape: Shape, dtype: Any, *, by_sample: bool = False
    ) -> Any:
        return Traced(Value(shape, dtype, by_sample=by_sample), self) if into is None else into

    def _append(
        self,
        kernel: str,
        inputs: tuple[Any, ...],
        outputs: tuple[Any, ...],
        formula: Any = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        taken = tuple(map(value_of, inputs))
        self.operations.append(Operation(kernel, taken, outputs, formula, settings or {}))


def value_of(x: Any) -> Any:
    """Return a stand-in's value; return anything else unchanged."""
    if not isinstance(x, Traced):
        return x
    if x.transposed:
        refuse("a transposed batch outside a product")
    return x.value


def is_batch(x: Any) -> bool:
    """Return whether x is a stand-in for an array of samples; see `Value`."""
    return isinstance(x, Traced) and x.value.by_sample and not x.transposed
