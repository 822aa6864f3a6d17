"""The inner loops: a fixed set of functions on arrays, chosen by the type of the array.

`reference` defines all of them readably, in functions of the standard. `numpy_`, `numba_` and
`cupy_` override those for which a benchmark shows a gain. Layers do not know which one they call.
"""

from __future__ import annotations

import os

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of
from gpunn.arrays.libraries import on_rocm
from gpunn.errors import DTypeError
from gpunn.kernels.reference import Kernels

__all__ = ["Kernels", "kernels"]

_BY_TYPE: dict[type, Kernels] = {}


def kernels(x: Array) -> Kernels:
    """Return the kernels for arrays of the type of `x`: a dict look-up after the first call."""
    try:
        return _BY_TYPE[type(x)]
    except KeyError:
        recorder: Kernels | None = getattr(x, "__gpunn_kernels__", None)
        if recorder is not None:  # a stand-in, while a step is recorded
            return recorder
        return _BY_TYPE.setdefault(type(x), _make(x))


def _make(x: Array) -> Kernels:
    backend = backend_of(x)
    if backend is None:
        raise DTypeError(
            f"expected an array of NumPy, CuPy or array-api-strict, got {type(x).__name__}; "
            "numpy.asarray(x) converts a list"
        )
    if backend.package == "cupy":
        return _for_cupy()(backend.xp)
    if backend.package == "numpy":
        return _for_numpy()(backend.xp)
    return Kernels(backend.xp)


def _for_cupy() -> type[Kernels]:
    """Return the CUDA kernels; on ROCm, the reference kernels."""
    if on_rocm():
        from gpunn.kernels.rocm import RocmKernels  # noqa: PLC0415 (rarely needed)

        return RocmKernels
    from gpunn.kernels.cupy_ import CupyKernels  # noqa: PLC0415 (imports CuPy)

    return CupyKernels


def _for_numpy() -> type[Kernels]:
    """Return the compiled kernels if numba is installed and `GPUNN_COMPILED` is not 0."""
    from importlib.util import find_spec  # noqa: PLC0415 (not needed by `import gpunn`)

    from gpunn.kernels.numpy_ import NumpyKernels  # noqa: PLC0415 (slow to import)

    if os.environ.get("GPUNN_COMPILED") == "0" or find_spec("numba") is None:
        return NumpyKernels
    from gpunn.kernels.start import numba_kernels  # noqa: PLC0415 (not needed without numba)

    try:
        return numba_kernels()
    except ImportError as error:  # for example, numba does not support this NumPy yet
        import logging  # noqa: PLC0415 (slow to import)

        logging.getLogger("gpunn").warning("numba is not used: %s", error)
        return NumpyKernels
