"""The choice of array library and device.

It is made where arrays are created. From then on arrays carry their backend, and layers need not
know which one it is.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from functools import lru_cache
from typing import Any

import numpy as np

from gpunn._typing import Array, Namespace, Shape
from gpunn.arrays.checks import one_of, shown, whole_number
from gpunn.arrays.exchange import plain, to_cupy, to_numpy
from gpunn.arrays.libraries import cupy_device, library_of, strict_device, strict_name
from gpunn.arrays.precision import DEFAULT, Precision, checked_precision
from gpunn.arrays.settings import Frozen
from gpunn.errors import BackendUnavailableError, DeviceError, SettingError

ENVIRONMENT_VARIABLE = "GPUNN_BACKEND"
KNOWN = ("auto", "numpy", "cupy", "cupy:<device index>", "array-api-strict")
_NAMESPACES = {
    "numpy": "array_api_compat.numpy",
    "cupy": "array_api_compat.cupy",
    "array-api-strict": "array_api_strict",
}


def _is_loading(module: Any) -> bool:
    """Return whether a thread is still importing a module; `import_module` waits for it."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


class Backend(Frozen):
    """An array library and one of its devices; use `get_backend` to create one.

    Attributes
    ----------
    package : {"numpy", "cupy", "array-api-strict"}
        The library.
    index : int
        The device; 0 if the library has only one.
    """

    package: str
    index: int

    def __init__(self, package: str, index: int = 0) -> None:
        one_of("Backend", "package", package, list(_NAMESPACES))
        whole_number("Backend", "index", index, 0)
        vars(self).update(package=package, index=index)

    @property
    def xp(self) -> Namespace:
        """The functions of the Array API standard, in this library."""
        name = _NAMESPACES[self.package]
        module = sys.modules.get(name)  # called for every batch, and `import_module` is slow
        if module is None or _is_loading(module):
            return importlib.import_module(name)
        return module

    @property
    def device(self) -> Any:
        """The device, as this library names it."""
        if self.package == "cupy":
            return importlib.import_module("cupy").cuda.Device(self.index)
        if self.package == "array-api-strict":
            return self.xp.Device(strict_name(self.index))
        return "cpu"

    def scope(self) -> AbstractContextManager[Any]:
        """Return a context that makes this device the library's current one."""
        scope: AbstractContextManager[Any] = (
            self.device if self.package == "cupy" else nullcontext()
        )
        return scope

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """Return `x` as an array of this backend; it is copied only if necessary.

        Parameters
        ----------
        x : array of any library, or anything that `numpy.asarray` takes
            The values. Copies from one GPU to another do not go through the host. An array on the
            host has been read when this returns, so it may be changed, unless the result is on the
            host as well. The result is ready on CuPy's current stream.
        dtype : str or dtype of the standard, optional
            Defaults to the dtype of `x`.
        """
        xp = self.xp
        if isinstance(dtype, str):
            if not hasattr(xp, dtype):
                raise SettingError(f"unknown dtype {shown(dtype)}; pass 'float32', for example")
            dtype = getattr(xp, dtype)
        if self.package == "cupy":
            with self.scope():
                x = to_cupy(x, self.index)
                return x if dtype is None else x.astype(dtype, copy=False)
        if self.package == "numpy":
            x = plain(to_numpy(x))
        elif backend_of(x) != self:
            x = xp.asarray(plain(to_numpy(x)), device=self.device)
        return x if dtype is None or x.dtype == dtype else xp.astype(x, dtype)

    def full(self, shape: Shape, value: float, dtype: str) -> Array:
        """Return a new array of this backend, filled with `value`."""
        with self.scope():
            where = {} if self.package == "cupy" else {"device": self.device}
            return self.xp.full(shape, value, dtype=getattr(self.xp, dtype), **where)

    def free_bytes(self, *, released: bool = False) -> int | None:
        """Return the free memory of the device in bytes, or None if unknown.

        Parameters
        ----------
        released : bool, default False
            Whether to return the unused blocks of CuPy's memory pool to the device first. Free
            parts of blocks in use then count as used: no large array fits into them.
        """
        if self.package == "cupy":
            with self.scope():
                return _free_on_gpu(released=released)
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None

    def __str__(self) -> str:
        """Return the name that `get_backend` takes."""
        return self.package if self.package == "numpy" else f"{self.package}:{self.index}"


def _free_on_gpu(*, released: bool) -> int:
    """Return the free bytes of the current device; see `Backend.free_bytes`."""
    cuda = importlib.import_module("cupy").cuda
    # The pool that arrays are allocated from; an allocator without a pool is a plain function.
    pool: Any = getattr(cuda.get_allocator(), "__self__", None)
    if not hasattr(pool, "free_all_blocks"):
        return int(cuda.runtime.memGetInfo()[0])
    if released:
        pool.free_all_blocks()
    vacant = 0 if released else int(pool.free_bytes())
    free = int(cuda.runtime.memGetInfo()[0]) + vacant
    limit = int(pool.get_limit())
    return min(free, limit - int(pool.total_bytes()) + vacant) if limit else free


def get_backend(name: str | Backend | None = None) -> Backend:
    """Return the backend with a given name.

    Parameters
    ----------
    name : str, Backend or None, default None
        ``"numpy"``; ``"cupy"`` (CuPy's current device) or ``"cupy:1"`` (that device);
        ``"array-api-strict"`` or ``"array-api-strict:1"``, for tests; ``"auto"``, which is the
        environment variable ``GPUNN_BACKEND`` if set, else ``"cupy"`` if CuPy works, else NumPy.
        None is the backend set by `use`, else ``GPUNN_BACKEND``, else NumPy.

    Raises
    ------
    BackendUnavailableError
        If the backend does not work here; the message says why, and what to do.
    DeviceError
        If CUDA cannot start in this process, because it was forked.
    SettingError
        If there is no backend with that name.
    """
    if isinstance(name, Backend):
        return name
    if name is None:
        return _choice()[0] or _from_environment() or Backend("numpy")
    if not isinstance(name, str):
        raise SettingError(f"backend must be a name such as 'numpy' or 'cupy', got {shown(name)}")
    if name == "auto":
        return _from_environment() or _automatic()
    library, _, index = name.partition(":")
    if library not in _NAMESPACES or (index and not index.isdecimal()) or name.endswith(":"):
        raise SettingError(
            f"unknown backend {shown(name)}; known are {', '.join(KNOWN)}{_hint(library.lower())}"
        )
    if library == "cupy":
        return Backend("cupy", cupy_device(int(index) if index else None))
    if library == "array-api-strict":
        return Backend(library, strict_device(int(index or 0)))
    if index not in ("", "0"):
        raise BackendUnavailableError(f"backend {shown(name)}: NumPy has one device; use 'numpy'")
    return Backend("numpy")


def _hint(name: str) -> str:
    """Return what an unknown name of a backend was meant to say, if it is a common one."""
    if name in ("gpu", "cuda"):
        return " (did you mean 'cupy'?)"
    if name == "cpu":
        return " (did you mean 'numpy'?)"
    if name in ("float32", "float64"):
        return f" (that is a dtype: say dtype={name!r})"
    return ""


#: The backend and precision that `use` sets; the backend is None where it has not been called.
_Choice = tuple[Backend | None, Precision]


class use:  # noqa: N801 (reads as a verb: `with use(backend="cupy"):`)
    r"""Set the default backend, and the precision of products, for a block or for the process.

    Parameters
    ----------
    backend : str or Backend
        As for `get_backend`.
    products : {"float32", "tf32", "bfloat16"}, optional
        The format that the factors of float32 matrix products on a GPU are rounded to. Defaults to
        float32, or to tf32 if the environment variable ``CUPY_TF32`` is 1. Values, gradients, the
        optimizer's state and all sums stay float32. Products on the CPU, and of float64 arrays, are
        not affected.

    Raises
    ------
    BackendUnavailableError
        If the backend does not work here.
    SettingError
        If the backend does not support products of that precision.

    Notes
    -----
    A factor is rounded with a relative error of at most u, the unit roundoff of the format:
    :math:`2^{-11}` for tf32 (11 significant bits) and :math:`2^{-8}` for bfloat16 (8 significant
    bits). Both have the range of float32. The error of a sum of n products is

    .. math:: |\hat z - x \cdot y| \le (2 u + u^2 + n\, 2^{-23})\, |x| \cdot |y|

    where the last term is due to the summation. For "float32", u is 0. Rounding to bfloat16 is to
    nearest, ties to even. Rounding to tf32 is done by cuBLAS, which may truncate instead (then u is
    :math:`2^{-10}`), or not round at all, as on devices before compute capability 8.0. bfloat16
    needs compute capability 8.0.

    The choice is read at each product, and a captured training step is captured again when the
    choice has changed. It is not stored in arrays, models or pickles.

    Examples
    --------
    >>> import gpunn as gn
    >>> with gn.use(backend="numpy"):
    ...     layer = gn.Dense(2, 1)

    Without ``with``, it applies to the process. With it, it applies only to the block, and to the
    thread or task that runs the block.
    """

    def __init__(self, backend: str | Backend, *, products: Precision | None = None) -> None:
        self.backend = place = get_backend(backend)
        products = checked_precision(products, place.package, place.device)
        self.choice: _Choice = place, products
        self._tokens: list[Token[_Choice | None]] = []
        _process_uses.append(self)

    def __enter__(self) -> Backend:
        """Restrict the choice to the block."""
        if self in _process_uses:  # false if a block is entered a second time
            _process_uses.remove(self)
        self._tokens.append(_block_choice.set(self.choice))
        return self.backend

    def __exit__(self, *exception: object) -> None:
        """Restore the previous choice."""
        _block_choice.reset(self._tokens.pop())


#: Calls of `use` without a block; the last one applies. Entering a block removes the block's own
#: entry, wherever it is in the list, since threads may enter blocks at the same time.
_process_uses: list[use] = []
_block_choice: ContextVar[_Choice | None] = ContextVar("gpunn_choice", default=None)
_NO_CHOICE: _Choice = None, DEFAULT


def _choice() -> _Choice:
    chosen = _block_choice.get()
    if chosen is not None:
        return chosen
    for last in _process_uses[-1:]:  # other threads may empty the list
        return last.choice
    return _NO_CHOICE


def product_precision() -> Precision:
    """Return the precision of products set by `use`; called at every product on a GPU."""
    return _choice()[1]


@contextmanager
def held_choice() -> Iterator[None]:
    """Keep the choice of `use` for this thread, whatever other threads set for the process."""
    token = _block_choice.set(_choice())
    try:
        yield
    finally:
        _block_choice.reset(token)


_NUMPY = Backend("numpy")


def backend_of(x: Any) -> Backend | None:
    """Return the backend of an array, or None if it is not an array of a known library."""
    if isinstance(x, (np.ndarray, np.generic)):  # NumPy's reductions return scalars, not 0-d arrays
        return _NUMPY
    library = library_of(x)
    if library == "cupy":
        return _known("cupy", int(x.device.id))
    if library == "array-api-strict":
        name = str(x.device)
        digits = "".join(character for character in name if character.isdecimal())
        return _known("array-api-strict", int(digits or 0))
    return getattr(x, "__gpunn_backend__", None)  # a stand-in, while a step is recorded


@lru_cache(maxsize=64)  # called for every array
def _known(package: str, index: int) -> Backend:
    return Backend(package, index)


def scope_of(x: Any) -> AbstractContextManager[Any]:
    """Return a context that makes the device of `x` the current one of its library."""
    if not isinstance(x, np.ndarray) and library_of(x) == "cupy":
        device: AbstractContextManager[Any] = x.device
        return device
    return _NO_SCOPE


_NO_SCOPE: AbstractContextManager[Any] = nullcontext()


def on_one_device(arrays: Sequence[Array]) -> bool:
    """Return whether arrays of one library are on one device; faster than `backend_of`.

    An object that is not an array, or is of another library, counts as another device.
    """
    try:  # called at every step, and CuPy's own attribute takes half the time of the standard's
        devices = {x.data.device_id for x in arrays}
    except AttributeError:
        devices = {getattr(x, "device", None) for x in arrays}
    return len(devices) <= 1


def device_mismatch(owner: str, home: Backend | None, place: Backend | None) -> DeviceError:
    """Return the error for an array x that is on a different device than the owner."""
    return DeviceError(
        f"{owner} is on {home} and x on {place}; move one of them: "
        f"model.to({str(place)!r}), or gn.get_backend({str(home)!r}).asarray(x)"
    )


def _from_environment() -> Backend | None:
    """Return the backend named by the environment variable, if it is set."""
    wanted = os.environ.get(ENVIRONMENT_VARIABLE)
    if not wanted:
        return None
    try:
        return _automatic() if wanted == "auto" else get_backend(wanted)
    except SettingError as error:
        raise SettingError(f"environment variable {ENVIRONMENT_VARIABLE}: {error}") from None


def _automatic() -> Backend:
    """Return CuPy's current device if CuPy works, else NumPy's backend."""
    return get_backend("cupy") if _cupy_works() else Backend("numpy")


@lru_cache(maxsize=1)
def _cupy_works() -> bool:
    """Return whether CuPy works; log, once, which backend "auto" is, and why."""
    import logging  # noqa: PLC0415 (a tenth of the import time that gpunn may take)

    log = logging.getLogger("gpunn")
    try:
        get_backend("cupy")
    except BackendUnavailableError as error:
        # A user who has installed CuPy should learn that it does not work.
        report = log.info if "is not installed" in str(error) else log.warning
        report("backend 'auto' is numpy, since %s", error)
        return False
    log.info("backend 'auto' is cupy, since CuPy and a device work")
    return True
