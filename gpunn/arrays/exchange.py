"""Convert arrays of any library to NumPy or CuPy, by DLPack and other interfaces."""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.libraries import INSTALL_CUPY, library_of, require, strict_name
from gpunn.errors import BackendUnavailableError, DeviceMemoryError, DTypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# From DLPack's enumeration of devices.
_GPU, _PINNED, _MANAGED = 2, 3, 13  # kDLCUDA, kDLCUDAHost, kDLCUDAManaged


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


def named_numpy(owner: str, name: str, x: Any) -> NDArray[Any]:
    """Return an argument as a NumPy array, as `to_numpy` does.

    Raises
    ------
    DTypeError
        If it cannot be converted to an array; the error names the owner and the argument.
    DeviceMemoryError
        If the array would be larger than the memory.
    """
    try:
        return to_numpy(x)
    except DeviceMemoryError as error:
        raise DeviceMemoryError(f"{owner}: {name} is too large: {error}") from error
    except (TypeError, ValueError) as error:
        raise DTypeError(f"{owner}: {name} cannot be read as an array: {error}") from error


def check_ordinary(owner: str, name: str, x: Any) -> None:
    """Check that an array behaves like a plain NumPy array.

    Raises
    ------
    DTypeError
        If it is a masked array, which has gaps, or a matrix, whose * is the matrix product.
    """
    if type(x) is np.ndarray or not isinstance(x, np.ndarray):
        return
    if isinstance(x, np.ma.MaskedArray):
        raise DTypeError(f"{owner}: {name} is masked; fill the gaps first, e.g. {name}.filled(0)")
    if isinstance(x, np.matrix):
        raise DTypeError(f"{owner}: {name} is a matrix; pass an array, numpy.asarray({name})")


def joined(arrays: list[Any]) -> NDArray[Any]:
    """Concatenate arrays of any libraries along the first axis, in NumPy; wait for devices."""
    if len(arrays) == 1:
        return to_numpy(arrays[0])
    return np.concatenate([to_numpy(x) for x in arrays]) if arrays else np.empty(0)


def adopt(x: Any) -> Any:
    """Return another library's GPU array as a CuPy array that shares its memory.

    It is ready on the current stream: DLPack tells the producer which stream reads. An instance of
    a subclass of CuPy's array becomes a plain one. Anything else is returned unchanged.
    """
    library = library_of(x)
    if library is not None:
        return _plain_cupy(x) if library == "cupy" else x
    # A torch tensor that requires a gradient cannot be read otherwise.
    if hasattr(x, "detach") and (hasattr(x, "__dlpack__") or hasattr(x, "__array__")):
        x = x.detach()
    kind, home = _dlpack_device(x)
    if kind in (_GPU, _MANAGED):
        cupy = require("cupy", INSTALL_CUPY)
        with cupy.cuda.Device(home):
            return cupy.from_dlpack(x)
    return _by_interface(x) if hasattr(x, "__cuda_array_interface__") else x


def to_cupy(x: Any, index: int) -> Array:
    """Return `x` as a CuPy array on the current device, number `index`.

    The caller may change an array on the host afterwards: CuPy copies it first, unless its memory
    is pinned; then this waits until it has been read.
    """
    cupy = importlib.import_module("cupy")
    x = adopt(x)
    if isinstance(x, cupy.ndarray):
        return x if x.device.id == index else _from_another_gpu(x)
    x = to_numpy(x)
    there = cupy.asarray(x)
    if cupy.cuda.pinned_memory.is_memory_pinned(x.__array_interface__["data"][0]):
        cupy.cuda.get_current_stream().record().synchronize()
    return there


def plain(x: NDArray[Any]) -> NDArray[Any]:
    """Return a plain `ndarray`, neither subclass nor scalar, in the machine's byte order."""
    x = np.asarray(x)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def _plain_cupy(x: Any) -> Array:
    """Return a CuPy array as one of CuPy's own class."""
    cupy = importlib.import_module("cupy")
    return x if type(x) is cupy.ndarray else x.view(cupy.ndarray)


def _from_another_gpu(x: Array) -> Array:
    """Return a copy on the current device, made once `x` is ready on its own device."""
    cupy = importlib.import_module("cupy")
    with x.device:
        ready = cupy.cuda.get_current_stream().record()
    cupy.cuda.get_current_stream().wait_event(ready)
    return cupy.array(x)


def _by_interface(x: Any) -> Array:
    """Return a CuPy array of an object that offers only `__cuda_array_interface__`."""
    cupy = require("cupy", INSTALL_CUPY)
    interface = x.__cuda_array_interface__
    pointer = interface["data"][0]
    if not pointer:  # an empty array is on no device
        return cupy.asarray(x)
    # CuPy assumes that the memory is on the current device.
    with cupy.cuda.Device(cupy.cuda.runtime.pointerGetAttributes(pointer).device) as device:
        if interface.get("version", 0) < 3:  # it does not say which stream may still write to it
            device.synchronize()
        return cupy.asarray(x)


def _dlpack_device(x: Any) -> tuple[int, int]:
    """Return the kind and number of an object's device; zeros if it does not support DLPack."""
    if not hasattr(x, "__dlpack_device__"):
        return 0, 0
    kind, home = x.__dlpack_device__()
    return int(kind), int(home)


def _foreign_to_numpy(x: Any) -> NDArray[Any]:
    x = adopt(x)
    if library_of(x) is not None:
        return to_numpy(x)
    kind, home = _dlpack_device(x)
    if kind == _PINNED:
        _wait_for_copies(home)
    if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
        return np.from_dlpack(x)
    try:
        array = np.asarray(x)
    except MemoryError as error:
        raise DeviceMemoryError(
            f"to_numpy: expected an array, got a {type(x).__name__} that is larger than the memory"
        ) from error
    except ValueError as error:  # such as rows of unequal lengths
        came = type(x).__name__
        raise DTypeError(f"to_numpy: expected an array, got a {came}: {error}") from error
    if array.dtype == object and array.ndim == 0:
        hint = "; the array of a Parameter is its .value" if hasattr(x, "value") else ""
        raise DTypeError(f"to_numpy: expected an array, got {type(x).__name__}{hint}")
    return array


def _wait_for_copies(home: int) -> None:
    """Wait until a device has finished writing to pinned memory, on any stream."""
    with suppress(BackendUnavailableError):  # without CuPy the device cannot be waited for
        require("cupy", INSTALL_CUPY).cuda.Device(home).synchronize()
