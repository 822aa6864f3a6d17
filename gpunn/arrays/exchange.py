"""Arrays from and for other libraries: to NumPy, to CuPy, and whatever speaks DLPack."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.libraries import INSTALL_CUPY, library_of, require, strict_name
from gpunn.errors import DTypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DLPACK_CUDA = 2  # kDLCUDA in DLPack's enumeration of devices


def to_numpy(x: Any) -> NDArray[Any]:
    """Return any array, of any library and device, as a NumPy array.

    A NumPy array is returned unchanged; others are copied unless their memory can be shared.
    """
    library = library_of(x)
    if library is None:
        return _foreign_to_numpy(x)
    if library == "cupy":
        with x.device:
            on_host: NDArray[Any] = x.get()
            return on_host
    if library == "array-api-strict":
        strict = importlib.import_module("array_api_strict")
        return np.asarray(x.to_device(strict.Device(strict_name(0))))
    return np.asarray(x)


def adopt(x: Any) -> Any:
    """Return another library's GPU array as a CuPy array that shares its memory.

    Anything else is returned unchanged.
    """
    if library_of(x) is not None:
        return x
    if hasattr(x, "detach"):  # a torch tensor that requires a gradient cannot be read otherwise
        x = x.detach()
    if hasattr(x, "__cuda_array_interface__"):
        cupy = require("cupy", INSTALL_CUPY)
        pointer = x.__cuda_array_interface__["data"][0]
        # CuPy takes memory to be on the current device; an empty array's null pointer is on none.
        home = cupy.cuda.runtime.pointerGetAttributes(pointer).device if pointer else None
        with nullcontext() if home is None else cupy.cuda.Device(home):
            return cupy.asarray(x)
    if hasattr(x, "__dlpack_device__"):
        kind, home = (int(part) for part in x.__dlpack_device__())
        if kind == _DLPACK_CUDA:
            cupy = require("cupy", INSTALL_CUPY)
            with cupy.cuda.Device(home):
                return cupy.from_dlpack(x)
    return x


def to_cupy(x: Any, index: int) -> Array:
    """Return `x` as a CuPy array on the current device, number `index`."""
    cupy = importlib.import_module("cupy")
    x = adopt(x)
    if isinstance(x, cupy.ndarray):
        return x if x.device.id == index else cupy.array(x)
    return cupy.asarray(to_numpy(x))


def plain(x: NDArray[Any]) -> NDArray[Any]:
    """Return a plain `ndarray`, neither subclass nor scalar, in the machine's byte order."""
    x = np.asarray(x)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def _foreign_to_numpy(x: Any) -> NDArray[Any]:
    x = adopt(x)
    if library_of(x) is not None:
        return to_numpy(x)
    if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
        return np.from_dlpack(x)
    array = np.asarray(x)
    if array.dtype == object and array.ndim == 0:
        hint = "; the array of a Parameter is its .value" if hasattr(x, "value") else ""
        raise DTypeError(f"expected an array, got {type(x).__name__}{hint}")
    return array
