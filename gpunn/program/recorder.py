"""Stand-ins for arrays, and how kernels that are asked of them are written down."""

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

    It answers what layers ask before they compute (shape, dtype, place, transpose) and refuses
    everything else.
    """

    __slots__ = ("__gpunn_backend__", "__gpunn_kernels__", "transposed", "value")
    __array_ufunc__ = None  # NumPy's arrays shall not compute with it, either

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
        """The dtype of the array that it stands for."""
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
        """The transpose, of two axes."""
        if self.ndim != 2:
            refuse(f"the transpose of {self.ndim} axes")
        return Traced(self.value, self.__gpunn_kernels__, transposed=not self.transposed)

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse what a stand-in does not have."""
        refuse(f"asking an array for `{name}`")

    def __bool__(self) -> bool:
        """Refuse to be a condition."""
        return refuse("a branch on the values of an array")

    def __len__(self) -> int:
        """Refuse, as for a number that the batch decides."""
        return refuse("len(array)")

    def __iter__(self) -> NoReturn:
        """Refuse to be taken apart."""
        refuse("a loop over an array")

    def __repr__(self) -> str:
        """Return what it stands for."""
        return f"Traced({self.shape}, {self.dtype})"


class _Facts:
    """What a namespace says of dtypes; it computes nothing."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        """Return a dtype, or what tells dtypes apart."""
        if name in ("isdtype", "finfo", "float32", "float64", "int64", "bool"):
            return getattr(self._xp, name)
        return refuse(f"`xp.{name}`")


@cache
def _facts_of(xp: Any) -> _Facts:
    return _Facts(xp)


class Recorder(Kernels):
    """The base of kernels that write down what they are asked to do.

    Parameters
    ----------
    backend : Backend
        Where the arrays would be.
    """

    def __init__(self, backend: Backend) -> None:
        super().__init__(_facts_of(backend.xp))
        self.backend = backend
        self.operations: list[Operation] = []
        self.batch_size = 1

    def _of_alike(self, kernel: str, x: Any, y: Any) -> Any:
        if not (is_batch(x) and is_batch(y) and x.shape == y.shape and x.dtype == y.dtype):
            refuse(f"`{kernel}` of arrays that are not two batches of one shape and dtype")
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
        """Record an operation with one result; return a stand-in for it, or where it went."""
        result = self._place(into, tuple(shape), dtype, by_sample=by_sample)
        self._append(kernel, inputs, (value_of(result),), formula, settings)
        return result

    def _place(
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
    """Return the value that a stand-in stands for, or anything else as it is."""
    if not isinstance(x, Traced):
        return x
    if x.transposed:
        refuse("a transposed batch outside of a product")
    return x.value


def is_batch(x: Any) -> bool:
    """Return whether this stands for an array of samples; see `Value`."""
    return isinstance(x, Traced) and x.value.by_sample and not x.transposed
