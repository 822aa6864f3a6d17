"""Kernels for CuPy on ROCm: the reference, since the CUDA sources and cuBLAS need NVIDIA's GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from inspect import getmembers, isfunction
from typing import Any

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of, scope_of
from gpunn.kernels.reference import Kernels


class RocmKernels(Kernels):
    """The kernels of the reference, each on the device of its first array.

    CuPy computes on the current device, which may be another one in a step by hand.
    """


def _on_its_device(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def on_its_device(self: Kernels, *arguments: Any, **settings: Any) -> Any:
        with scope_of(next(_arrays(arguments), None)):
            return method(self, *arguments, **settings)

    return on_its_device


def _arrays(arguments: Iterable[Any]) -> Iterator[Array]:
    """Yield the arrays among arguments, also inside lists and tuples."""
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            yield from _arrays(argument)
        elif backend_of(argument) is not None:
            yield argument


for _name, _method in getmembers(Kernels, isfunction):
    if not _name.startswith("_"):
        setattr(RocmKernels, _name, _on_its_device(_method))
