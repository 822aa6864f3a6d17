"""Arrays that count operations: a forward pass on them counts its products and skips them.

A layer that uses kernels, or NumPy's functions and operators, computes with them as with any array.
Anything that would lose count raises `UncountedError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from gpunn._typing import Array, Shape
from gpunn.arrays.backend import Backend, get_backend
from gpunn.kernels.reference import Kernels

#: Products that are not counted.
_OTHER_PRODUCTS = frozenset(
    ("convolve", "correlate", "cross", "dot", "einsum", "inner", "kron", "matvec", "outer")
) | {"tensordot", "vdot", "vecdot", "vecmat"}


class UncountedError(Exception):
    """The number of operations of some computation is not known."""


class Count:
    """The floating-point operations of products so far: 2 for each multiplication with its sum."""

    def __init__(self) -> None:
        self.operations = 0
        self.kernels = Kernels(_Namespace(self))
        self.backend = get_backend("numpy")

    def wrap(self, x: Any) -> Any:
        """Return an array, or the arrays in a list or tuple, as arrays that count here."""
        if isinstance(x, (np.ndarray, np.generic)):
            return Counted(np.asarray(x), self)
        if isinstance(x, (list, tuple)):
            return type(x)(map(self.wrap, x))
        return x

    def product(self, x: Any, y: Any) -> Counted:
        """Count the product of two stacks of matrices; return zeros of its shape."""
        x, y = _plain(x), _plain(y)
        shape = _shape_of_product(x.shape, y.shape)
        self.operations += 2 * math.prod(shape) * x.shape[-1]
        return Counted(np.zeros(shape, np.result_type(x, y)), self)

    def call(
        self, function: Callable[..., Any], name: str, *arguments: Any, **settings: Any
    ) -> Any:
        """Call a function of arrays, and count it if it is a product."""
        if name == "matmul" and not settings:
            return self.product(*arguments)
        if name in _OTHER_PRODUCTS or name == "matmul":
            raise UncountedError(f"{name} is not counted")
        with np.errstate(all="ignore"):  # the numbers mean nothing
            return self.wrap(function(*map(_plain, arguments), **_plain(settings)))


class Counted(NDArrayOperatorsMixin):
    """A NumPy array that reports its products to a `Count`."""

    def __init__(self, array: Array, count: Count) -> None:
        self._array = array
        self._count = count

    @property
    def __gpunn_kernels__(self) -> Kernels:
        """The kernels for arrays that count."""
        return self._count.kernels

    @property
    def __gpunn_backend__(self) -> Backend:
        """The backend of the array."""
        return self._count.backend

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        """Return the functions of the standard."""
        return self._count.kernels.xp

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **settings: Any) -> Any:
        """Compute an elementwise function, or count a product."""
        (out,) = settings.pop("out", (None,))
        if out is not None and not isinstance(out, Counted):
            raise UncountedError("the result is written to an array that does not count")
        if ufunc is np.matmul and method == "__call__" and out is None:
            return self._count.product(*inputs)
        if ufunc.signature is not None:
            raise UncountedError(f"{ufunc.__name__} is not counted")
        place = {} if out is None else {"out": _plain(out)}
        with np.errstate(all="ignore"):
            result = getattr(ufunc, method)(*map(_plain, inputs), **_plain(settings), **place)
        return self._count.wrap(result) if out is None else out

    def __array_function__(self, function: Any, _: Any, arguments: Any, settings: Any) -> Any:
        """Call a NumPy function."""
        if function.__module__ != "numpy":  # linear algebra, Fourier transforms
            raise UncountedError(f"{function.__module__}.{function.__name__} is not counted")
        return self._count.call(function, function.__name__, *arguments, **settings)

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse to be converted to an array that does not count."""
        raise UncountedError("the array is converted to one that does not count")

    __cuda_array_interface__ = __array_interface__ = __dlpack__ = property(__array__)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute, or a method that returns arrays that count."""
        found = getattr(self._array, name)
        if not callable(found):
            return self._count.wrap(found) if isinstance(found, np.ndarray) else found
        return lambda *arguments, **settings: self._count.call(found, name, *arguments, **settings)

    def __getitem__(self, key: Any) -> Any:
        """Return a part, a view if NumPy's is one."""
        return self._count.wrap(self._array[_plain(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        """Write to a part."""
        self._array[_plain(key)] = _plain(value)

    def __len__(self) -> int:
        """Return the length of the first axis."""
        return len(self._array)

    def __bool__(self) -> bool:
        """Return a single value as a condition."""
        return bool(self._array)

    def __int__(self) -> int:
        """Return a single value."""
        return int(self._array)

    def __float__(self) -> float:
        """Return a single value."""
        return float(self._array)

    def __index__(self) -> int:
        """Return a single integer."""
        return int(self._array.__index__())


class _Namespace:
    """The functions of the standard, for arrays that count."""

    def __init__(self, count: Count) -> None:
        self._count = count

    def __getattr__(self, name: str) -> Any:
        """Return a dtype, a number or a submodule; or a function that counts."""
        found = getattr(get_backend("numpy").xp, name)
        if isinstance(found, type) or not callable(found):
            return found
        return lambda *arguments, **settings: self._count.call(found, name, *arguments, **settings)


def _plain(x: Any) -> Any:
    """Return NumPy arrays for arrays that count, also inside lists, tuples and dicts."""
    if isinstance(x, Counted):
        return x._array
    if isinstance(x, dict):
        return {name: _plain(item) for name, item in x.items()}
    if isinstance(x, (list, tuple)) and type(x) in (list, tuple):
        return type(x)(map(_plain, x))
    return x


def _shape_of_product(x: Shape, y: Shape) -> Shape:
    """Return the shape of x @ y; a 1-d x is a row, and a 1-d y a column."""
    rows, columns = x[-2:-1], y[-1:] if len(y) > 1 else ()
    if x[-1] != (y[-2] if len(y) > 1 else y[0]):
        raise ValueError(f"matmul: the shapes {x} and {y} do not fit")
    return (*np.broadcast_shapes(x[:-2], y[:-2]), *rows, *columns)
