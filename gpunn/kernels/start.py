"""Start numba: import it, fill its type tables, and delete outdated machine code."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpunn.kernels.reference import Kernels
from gpunn.kernels.stale import forget_stale_code


def numba_kernels() -> type[Kernels]:
    """Return the compiled kernels for NumPy's arrays.

    Raises
    ------
    ImportError
        If numba cannot be imported, for example because it does not support this NumPy yet.
    """
    kernels = _numba()
    package = Path(__file__).parent.parent
    program = package / "program"
    # This must come before the first call of a compiled function.
    forget_stale_code([package / "kernels", program, program / "instructions"])
    return kernels


def _numba() -> type[Kernels]:
    """Import the compiled kernels, and fill numba's tables, as its first compilation would."""
    with _no_collection():
        from numba.core.registry import cpu_target  # noqa: PLC0415 (imports numba)

        from gpunn.kernels.numba_ import NumbaKernels  # noqa: PLC0415 (imports numba)

        cpu_target.target_context.refresh()
    return NumbaKernels


@contextmanager
def _no_collection() -> Iterator[None]:
    """Suspend Python's garbage collection.

    Numba creates some 90,000 permanent objects as it starts. Traversing them again and again took a
    third of a process's first fit (`bench/startup.py`).
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
