"""The start of numba: its import, its tables of types, and code that is out of date."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from gpunn.kernels.reference import Kernels
from gpunn.kernels.stale import forget_stale_code


@cache
def numba_kernels() -> type[Kernels]:
    """Return the compiled kernels for NumPy's arrays.

    Raises
    ------
    ImportError
        If numba cannot be imported, for example because it does not support this NumPy yet.
    """
    made = _numba()
    package = Path(__file__).parent.parent
    program = package / "program"
    # Before the first call of anything compiled.
    forget_stale_code([package / "kernels", program, program / "instructions"])
    return made


def _numba() -> type[Kernels]:
    """Import what needs numba, and fill its tables, which would wait for its first function."""
    with _no_collection():
        from numba.core.registry import cpu_target  # noqa: PLC0415 (imports numba)

        from gpunn.kernels.numba_ import NumbaKernels  # noqa: PLC0415 (imports numba)

        cpu_target.target_context.refresh()
    return NumbaKernels


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for garbage.

    Numba makes some 90,000 objects with references as it starts, and they stay. Looking through
    them again and again took a third of a process's first fit (`bench/startup.py`).
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
