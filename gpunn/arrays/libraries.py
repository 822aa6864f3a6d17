"""The array libraries: which one an array belongs to, and whether it works on this machine."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from gpunn.errors import BackendUnavailableError, DeviceError

INSTALL_CUPY = 'pip install "cupy-cuda12x[ctk]" (or "cupy-cuda13x[ctk]", to match the driver)'
# cudaErrorInitializationError and cudaErrorNoDevice
_NOT_INITIALIZED, _NO_DEVICE = 3, 100
_INSTALL_STRICT = "pip install array-api-strict"


def library_of(x: Any) -> str | None:
    """Return the library of an array, or None if it is not an array of a known library.

    Returns
    -------
    {"numpy", "cupy", "array-api-strict"} or None
    """
    if isinstance(x, (np.ndarray, np.generic)):  # NumPy's reductions return scalars, not 0-d arrays
        return "numpy"
    kind: Any = type(x)
    return _library_of_class(kind)


_LIBRARIES = {"cupy": "cupy", "array_api_strict": "array-api-strict"}


@lru_cache(maxsize=256)  # called for every array
def _library_of_class(kind: type) -> str | None:
    """Return the library of a class, or of its nearest base class from a library."""
    modules = (base.__module__.partition(".")[0] for base in kind.__mro__)
    return next((_LIBRARIES[module] for module in modules if module in _LIBRARIES), None)


def require(module: str, remedy: str) -> Any:
    """Import a module.

    Parameters
    ----------
    module : str
        The name of the module.
    remedy : str
        The command that the user should run if it cannot be imported.

    Raises
    ------
    BackendUnavailableError
        If it cannot be imported, for whatever reason.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise BackendUnavailableError(f"{module} is not installed: {remedy}") from error
        raise BackendUnavailableError(
            f"{module} is installed but cannot be imported ({error}); reinstall it: {remedy}"
        ) from error


def strict_device(index: int) -> int:
    """Return `index` if array-api-strict has that device.

    Raises
    ------
    BackendUnavailableError
        If it does not.
    """
    strict = require("array_api_strict", _INSTALL_STRICT)
    try:
        strict.Device(strict_name(index))
    except ValueError as error:
        raise BackendUnavailableError(f"no device array-api-strict:{index}: {error}") from error
    return index


def strict_name(index: int) -> str:
    """Return the name of device number `index` in array-api-strict."""
    return f"device{index}" if index else "CPU_DEVICE"


class Vendor(NamedTuple):
    """The vendor of the GPUs that CuPy is built for.

    Attributes
    ----------
    name, platform : str
        For example, "NVIDIA" and "CUDA".
    tool, variable : str
        The command that lists the GPUs, and the environment variable that hides some.
    """

    name: str
    platform: str
    tool: str
    variable: str


NVIDIA = Vendor("NVIDIA", "CUDA", "nvidia-smi", "CUDA_VISIBLE_DEVICES")
AMD = Vendor("AMD", "ROCm", "rocm-smi", "ROCR_VISIBLE_DEVICES")


def vendor_of(runtime: Any) -> Vendor:
    """Return the vendor of the GPUs that CuPy's runtime supports."""
    return AMD if getattr(runtime, "is_hip", False) else NVIDIA


def on_rocm() -> bool:
    """Return whether CuPy is built for AMD GPUs."""
    return vendor_of(require("cupy", INSTALL_CUPY).cuda.runtime) is AMD


def cupy_device(index: int | None) -> int:
    """Return the index of a device that CuPy can use; None asks for its current one.

    Raises
    ------
    BackendUnavailableError
        If there is no CuPy, no driver or no such device.
    DeviceError
        If CUDA cannot start in this process, because it was forked.
    """
    cupy = require("cupy", INSTALL_CUPY)
    try:
        runtime = cupy.cuda.runtime
    except AttributeError as error:
        where = getattr(cupy, "__file__", None) or next(iter(cupy.__path__))  # a folder has none
        raise BackendUnavailableError(
            f"the module cupy in {where} is not CuPy ({error}): rename it, and {INSTALL_CUPY}"
        ) from error
    vendor = vendor_of(runtime)
    count = _count_devices(runtime, vendor)
    if count == 0:
        raise BackendUnavailableError(
            f"CuPy is installed, but there is no {vendor.platform} device: check that "
            f"`{vendor.tool}` lists a GPU and that the environment variable {vendor.variable} does "
            "not hide it"
        )
    if index is None:
        return int(cupy.cuda.Device().id)
    if index >= count:
        devices = "cupy:0" if count == 1 else f"cupy:0 to cupy:{count - 1}"
        raise BackendUnavailableError(
            f"there is no device cupy:{index}; this machine has {devices}"
        )
    return index


def _count_devices(runtime: Any, vendor: Vendor) -> int:
    try:
        return int(runtime.getDeviceCount())
    except runtime.CUDARuntimeError as error:
        status = getattr(error, "status", None)
        if status == _NO_DEVICE:
            return 0
        if status == _NOT_INITIALIZED:
            raise DeviceError(
                f"{vendor.platform} cannot start in this process ({error}). If the process was "
                f"forked after {vendor.platform} had started, spawn it instead: "
                "multiprocessing.get_context('spawn'), or use backend='numpy' in it. If not, "
                f"the driver is broken: repair it until `{vendor.tool}` lists the GPU"
            ) from error
        raise BackendUnavailableError(
            f"CuPy is installed, but there is no working {vendor.name} driver for it ({error}): "
            f"install or update the driver until `{vendor.tool}` lists the GPU"
        ) from error
