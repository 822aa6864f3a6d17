"""Where arrays are born: the choice of library and device, made once, at the edges.

Inside, arrays carry their backend, and nothing asks which one it is.
"""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, Token
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn._typing import Array, Namespace
from gpunn.arrays.checks import one_of, whole_number
from gpunn.errors import BackendUnavailableError, DeviceError, DTypeError, SettingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ENVIRONMENT_VARIABLE = "GPUNN_BACKEND"
KNOWN = ("auto", "numpy", "cupy", "cupy:<device index>", "array-api-strict")
_INSTALL_CUPY = 'pip install "cupy-cuda12x[ctk]" (or "cupy-cuda13x[ctk]", to match the driver)'
_NAMESPACES = {
    "numpy": "array_api_compat.numpy",
    "cupy": "array_api_compat.cupy",
    "array-api-strict": "array_api_strict",
}


@dataclass(frozen=True)
class Backend:
    """A library of arrays and one of its devices; made by `get_backend`.

    Attributes
    ----------
    package : {"numpy", "cupy", "array-api-strict"}
        Whose arrays.
    index : int
        Which device; 0 where the library has only one.
    """

    package: str
    index: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        one_of("Backend", "package", self.package, list(_NAMESPACES))
        whole_number("Backend", "index", self.index, 0)

    @property
    def xp(self) -> Namespace:
        """The functions of the Array API standard, in this library."""
        name = _NAMESPACES[self.package]
        return sys.modules.get(name) or importlib.import_module(name)  # asked for at every batch

    @property
    def device(self) -> Any:
        """The device, as this library names it."""
        if self.package == "cupy":
            return importlib.import_module("cupy").cuda.Device(self.index)
        if self.package == "array-api-strict":
            return self.xp.Device(_strict_name(self.index))
        return "cpu"

    def scope(self) -> AbstractContextManager[Any]:
        """Return a context in which this backend's device is the library's current one."""
        scope: AbstractContextManager[Any] = (
            self.device if self.package == "cupy" else nullcontext()
        )
        return scope

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """Return `x` as an array of this backend, copied only if that is needed.

        Parameters
        ----------
        x : array of any library, or anything that `numpy.asarray` takes
            The values. An array on a GPU reaches another GPU without a trip through the host.
        dtype : str or dtype of the standard, optional
            Defaults to the dtype of `x`.
        """
        xp = self.xp
        if isinstance(dtype, str):
            if not hasattr(xp, dtype):
                raise SettingError(f"unknown dtype {dtype!r}; say 'float32', for example")
            dtype = getattr(xp, dtype)
        if self.package == "cupy":
            with self.scope():
                x = _to_cupy(x, self.index)
                return x if dtype is None else x.astype(dtype, copy=False)
        if self.package == "numpy":
            x = _plain(to_numpy(x))
        elif backend_of(x) != self:
            x = xp.asarray(_plain(to_numpy(x)), device=self.device)
        return x if dtype is None or x.dtype == dtype else xp.astype(x, dtype)

    def free_bytes(self) -> int | None:
        """Return how much memory the device has left, in bytes, or None where that is not known."""
        if self.package == "cupy":
            cupy = importlib.import_module("cupy")
            with self.scope():
                pool = cupy.get_default_memory_pool()
                free = int(cupy.cuda.runtime.memGetInfo()[0]) + int(pool.free_bytes())
                limit = int(pool.get_limit())
                return min(free, limit - int(pool.used_bytes())) if limit else free
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None

    def __str__(self) -> str:
        """Return the name that `get_backend` takes."""
        return self.package if self.package == "numpy" else f"{self.package}:{self.index}"


def get_backend(name: str | Backend | None = None) -> Backend:
    """Return the backend of that name.

    Parameters
    ----------
    name : str, Backend or None, default None
        ``"numpy"``; ``"cupy"`` (CuPy's current device) or ``"cupy:1"`` (that device);
        ``"array-api-strict"`` or ``"array-api-strict:1"``, for tests; ``"auto"``, which is the
        environment variable ``GPUNN_BACKEND`` if set, else CuPy if it works, else NumPy. None is
        what `use` has set, else ``GPUNN_BACKEND``, else NumPy.

    Raises
    ------
    BackendUnavailableError
        If that backend cannot work here; the message says why, and what mends it.
    SettingError
        If there is no backend of that name.
    """
    if isinstance(name, Backend):
        return name
    if name is None:
        chosen = _block_backend.get() or (_process_uses[-1].backend if _process_uses else None)
        return chosen or _from_environment() or Backend("numpy")
    if not isinstance(name, str):
        raise SettingError(f"backend must be a name such as 'numpy' or 'cupy', got {name!r}")
    if name == "auto":
        return _from_environment() or _automatic()
    library, _, index = name.partition(":")
    if library not in _NAMESPACES or (index and not index.isdecimal()) or name.endswith(":"):
        raise SettingError(f"unknown backend {name!r}; known are {', '.join(KNOWN)}")
    if library == "cupy":
        return Backend("cupy", _cupy_device(int(index) if index else None))
    if library == "array-api-strict":
        return Backend(library, _strict_device(int(index or 0)))
    if index not in ("", "0"):
        raise BackendUnavailableError(f"backend {name!r}: NumPy has one device; say 'numpy'")
    return Backend("numpy")


class use:  # noqa: N801 (reads as a verb: `with use(backend="cupy"):`)
    """Set the backend for those who do not name one: for a block, or for the process.

    Parameters
    ----------
    backend : str or Backend
        As for `get_backend`.

    Examples
    --------
    >>> import gpunn as gn
    >>> with gn.use(backend="numpy"):
    ...     layer = gn.Dense(2, 1)

    Called without ``with``, it holds for the process; within ``with``, for the block alone and
    for the thread or task that runs it.
    """

    def __init__(self, backend: str | Backend) -> None:
        self.backend = get_backend(backend)
        self._tokens: list[Token[Backend | None]] = []
        _process_uses.append(self)

    def __enter__(self) -> Backend:
        """Narrow the choice to the block."""
        if self in _process_uses:  # not when a block is entered a second time
            _process_uses.remove(self)
        self._tokens.append(_block_backend.set(self.backend))
        return self.backend

    def __exit__(self, *exception: object) -> None:
        """Return to what was set before."""
        _block_backend.reset(self._tokens.pop())


#: Those that no block has narrowed; the last one holds. Each removes itself, not what it found
#: before it, since threads may enter their blocks at the same time.
_process_uses: list[use] = []
_block_backend: ContextVar[Backend | None] = ContextVar("gpunn_backend", default=None)


_NUMPY = Backend("numpy")


@lru_cache(maxsize=64)  # asked at every call, of few dtypes
def is_floating(xp: Namespace, dtype: Any) -> bool:
    """Return whether a dtype is one of floating-point numbers."""
    return is_kind(xp, dtype, "real floating")


def is_kind(xp: Namespace, dtype: Any, kinds: str | tuple[str, ...]) -> bool:
    """Return whether a dtype is of one of these kinds, as the standard's `isdtype` names them.

    One that `isdtype` does not know is of none: it refuses NumPy's strings of variable width.
    """
    try:
        return bool(xp.isdtype(dtype, kinds))
    except TypeError:
        return False


def backend_of(x: Any) -> Backend | None:
    """Return the backend of an array, or None if it is no array of a known library."""
    if isinstance(x, (np.ndarray, np.generic)):  # NumPy's reductions return scalars, not 0-d arrays
        return _NUMPY
    library = type(x).__module__.partition(".")[0]
    if library == "cupy":
        return _known("cupy", int(x.device.id))
    if library == "array_api_strict":
        name = str(x.device)
        digits = "".join(character for character in name if character.isdecimal())
        return _known("array-api-strict", int(digits or 0))
    return getattr(x, "__gpunn_backend__", None)  # a stand-in, while a step is recorded


@lru_cache(maxsize=64)  # asked of each array
def _known(package: str, index: int) -> Backend:
    return Backend(package, index)


def scope_of(x: Any) -> AbstractContextManager[Any]:
    """Return a context in which the device of `x` is its library's current one."""
    if not isinstance(x, np.ndarray) and type(x).__module__.startswith("cupy"):
        device: AbstractContextManager[Any] = x.device
        return device
    return _NO_SCOPE


_NO_SCOPE: AbstractContextManager[Any] = nullcontext()


def apart(speaker: str, home: Backend | None, place: Backend | None) -> DeviceError:
    """Return the error for an x that is not where the speaker is."""
    return DeviceError(
        f"{speaker} is on {home} and x on {place}; move one of them: "
        f"model.to({str(place)!r}), or gn.get_backend({str(home)!r}).asarray(x)"
    )


def copy_of(x: Array) -> Array:
    """Return a copy of an array, where the array is."""
    backend = backend_of(x)
    if backend is None:
        raise DTypeError(f"expected an array of a known library, got {type(x).__name__}")
    with backend.scope():
        return backend.xp.asarray(x, copy=True)


def read_only(x: Any) -> Any:
    """Return a view of a NumPy array that refuses to be written to; anything else as it is."""
    if not isinstance(x, np.ndarray) or not x.flags.writeable:
        return x
    view = x.view()
    view.flags.writeable = False
    return view


def may_overlap(x: Array, y: Array) -> bool:
    """Return whether two arrays may share memory; no value is read."""
    if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
        return np.may_share_memory(x, y)
    place = backend_of(x)
    if place != backend_of(y):
        return False
    if place is not None and place.package == "cupy":
        return bool(importlib.import_module("cupy").may_share_memory(x, y))
    return True  # nobody says


def to_numpy(x: Any) -> NDArray[Any]:
    """Return any array, of any library and device, as a NumPy array.

    A NumPy array is returned as it is; others are copied where their memory cannot be shared.
    """
    backend = backend_of(x)
    if backend is None:
        return _foreign_to_numpy(x)
    if backend.package == "cupy":
        with backend.scope():
            on_host: NDArray[Any] = x.get()
            return on_host
    if backend.package == "array-api-strict":
        return np.asarray(x.to_device(backend.xp.Device("CPU_DEVICE")))
    return np.asarray(x)


def adopt(x: Any) -> Any:
    """Return what another library has on a GPU as a CuPy array on the same memory.

    Anything else is returned as it is.
    """
    if backend_of(x) is not None:
        return x
    if hasattr(x, "detach"):  # a torch tensor that requires a gradient refuses to be read
        x = x.detach()
    if hasattr(x, "__cuda_array_interface__"):
        cupy = _require("cupy", _INSTALL_CUPY)
        pointer = x.__cuda_array_interface__["data"][0]
        # CuPy takes memory to be on the current device; null, of an empty array, is on none.
        home = cupy.cuda.runtime.pointerGetAttributes(pointer).device if pointer else None
        with nullcontext() if home is None else cupy.cuda.Device(home):
            return cupy.asarray(x)
    if hasattr(x, "__dlpack_device__"):
        kind, home = (int(part) for part in x.__dlpack_device__())
        if kind == _DLPACK_CUDA:
            cupy = _require("cupy", _INSTALL_CUPY)
            with cupy.cuda.Device(home):
                return cupy.from_dlpack(x)
    return x


_DLPACK_CUDA = 2  # kDLCUDA of DLPack's enumeration of devices


def _foreign_to_numpy(x: Any) -> NDArray[Any]:
    x = adopt(x)
    if backend_of(x) is not None:
        return to_numpy(x)
    if hasattr(x, "__dlpack__") and not hasattr(x, "__array__"):
        return np.from_dlpack(x)
    array = np.asarray(x)
    if array.dtype == object and array.ndim == 0:
        hint = "; the array of a Parameter is its .value" if hasattr(x, "value") else ""
        raise DTypeError(f"expected an array, got {type(x).__name__}{hint}")
    return array


def _to_cupy(x: Any, index: int) -> Array:
    """Return `x` on CuPy's current device, whose index is given."""
    cupy = importlib.import_module("cupy")
    x = adopt(x)
    if isinstance(x, cupy.ndarray):
        return x if x.device.id == index else cupy.array(x)
    return cupy.asarray(to_numpy(x))


def _plain(x: NDArray[Any]) -> NDArray[Any]:
    """Return an `ndarray` and no subclass or scalar, in the machine's byte order."""
    x = np.asarray(x)
    return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))


def _require(module: str, remedy: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken installation may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            raise BackendUnavailableError(f"{module} is not installed: {remedy}") from error
        raise BackendUnavailableError(
            f"{module} is installed but cannot be imported ({error}); reinstall it: {remedy}"
        ) from error


def _strict_device(index: int) -> int:
    """Return the index of a device that array-api-strict has."""
    strict = _require("array_api_strict", "pip install array-api-strict")
    try:
        strict.Device(_strict_name(index))
    except ValueError as error:
        raise BackendUnavailableError(f"no device array-api-strict:{index}: {error}") from error
    return index


def _strict_name(index: int) -> str:
    return f"device{index}" if index else "CPU_DEVICE"


def _cupy_device(index: int | None) -> int:
    """Return the index of a device that CuPy can use; None asks for its current one."""
    cupy = _require("cupy", _INSTALL_CUPY)
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        no_device = getattr(runtime, "cudaErrorNoDevice", 100)
        if getattr(error, "status", None) == no_device:
            count = 0
        else:
            raise BackendUnavailableError(
                f"CuPy is installed, but there is no working NVIDIA driver for it ({error}): "
                "install or update the driver until `nvidia-smi` lists the GPU"
            ) from error
    if count == 0:
        raise BackendUnavailableError(
            "CuPy is installed, but there is no CUDA device: check that `nvidia-smi` lists a GPU "
            "and that the environment variable CUDA_VISIBLE_DEVICES does not hide it"
        )
    if index is None:
        return int(cupy.cuda.Device().id)
    if index >= count:
        devices = "cupy:0" if count == 1 else f"cupy:0 to cupy:{count - 1}"
        raise BackendUnavailableError(
            f"there is no device cupy:{index}; this machine has {devices}"
        )
    return index


def _from_environment() -> Backend | None:
    """Return the backend that the environment variable names, if it names one."""
    wanted = os.environ.get(ENVIRONMENT_VARIABLE)
    if not wanted:
        return None
    try:
        return _automatic() if wanted == "auto" else get_backend(wanted)
    except SettingError as error:
        raise SettingError(f"environment variable {ENVIRONMENT_VARIABLE}: {error}") from None


@lru_cache(maxsize=1)
def _automatic() -> Backend:
    """Return CuPy's backend if it works, else NumPy's; say once which, and why."""
    import logging  # noqa: PLC0415 (a tenth of the time that importing gpunn may take)

    log = logging.getLogger("gpunn")
    try:
        backend = get_backend("cupy")
    except BackendUnavailableError as error:
        # Who has installed CuPy wants to know that it is of no use.
        say = log.info if "is not installed" in str(error) else log.warning
        say("backend 'auto' is numpy, since %s", error)
        return Backend("numpy")
    log.info("backend 'auto' is %s, since CuPy and a device work", backend)
    return backend
