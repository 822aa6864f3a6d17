"""The precisions of matrix products on a GPU, and which devices support them."""

from __future__ import annotations

import os
from typing import Any, Literal, get_args

from gpunn.arrays.checks import one_of
from gpunn.arrays.libraries import on_rocm
from gpunn.errors import SettingError

Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
#: From CuPy's own setting, with the same meaning as for `cupy.dot`.
DEFAULT: Precision = "tf32" if int(os.environ.get("CUPY_TF32", "0")) else "float32"
_BFLOAT16_FROM = 80  # the lowest compute capability with bfloat16 products


def checked_precision(precision: Any, package: str, device: Any) -> Precision:
    """Return a precision after checking that the device supports it; None is the default.

    Raises
    ------
    SettingError
        If there is no such precision, or the device does not support it; the message says what to
        do.
    """
    if precision is None:
        return DEFAULT
    known: Precision = one_of("use", "products", precision, list(PRECISIONS))
    if known == "float32":
        return known
    setting = f"use: products={known!r}"
    instead = "omit products, or pass 'float32'"
    if package != "cupy":
        raise SettingError(
            f"{setting} is for GPUs, and the backend is {package}; {instead}, or backend='cupy'"
        )
    if on_rocm():
        raise SettingError(f"{setting} is for CUDA, and this CuPy is for ROCm; {instead}")
    capability = str(device.compute_capability)  # "90", and "120" from 12.0 on
    if known == "bfloat16" and int(capability) < _BFLOAT16_FROM:
        raise SettingError(
            f"{setting} needs a GPU of compute capability 8.0 or later, and cupy:{device.id} has "
            f"{capability[:-1]}.{capability[-1]}; {instead}"
        )
    return known
