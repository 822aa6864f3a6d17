"""The precisions of matrix products on a GPU, and where each is to be had."""

from __future__ import annotations

import os
from typing import Any, Literal, get_args

from gpunn.arrays.checks import one_of
from gpunn.arrays.libraries import on_rocm
from gpunn.errors import SettingError

Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
#: CuPy's own setting, with the meaning that it has for `cupy.dot`.
DEFAULT: Precision = "tf32" if int(os.environ.get("CUPY_TF32", "0")) else "float32"
_BFLOAT16_FROM = 80  # the compute capability of the first devices that multiply it


def checked_precision(precision: Any, package: str, device: Any) -> Precision:
    """Return a precision that products on this device can have; None is the default.

    Raises
    ------
    SettingError
        If there is no such precision, or not there; the message says what to do.
    """
    if precision is None:
        return DEFAULT
    known: Precision = one_of("use", "products", precision, list(PRECISIONS))
    if known == "float32":
        return known
    asked = f"use: products={known!r}"
    instead = "leave products out, or say 'float32'"
    if package != "cupy":
        raise SettingError(
            f"{asked} is for GPUs, and the backend is {package}; {instead}, or backend='cupy'"
        )
    if on_rocm():
        raise SettingError(f"{asked} is for CUDA, and this CuPy is for ROCm; {instead}")
    capability = str(device.compute_capability)  # "90", and "120" from 12.0 on
    if known == "bfloat16" and int(capability) < _BFLOAT16_FROM:
        raise SettingError(
            f"{asked} needs a GPU of compute capability 8.0 or later, and cupy:{device.id} has "
            f"{capability[:-1]}.{capability[-1]}; {instead}"
        )
    return known
