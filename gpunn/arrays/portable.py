"""Arrays in pickles, which can be loaded even without their device or library."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, backend_of, get_backend
from gpunn.arrays.exchange import to_numpy
from gpunn.arrays.memory import copy_of
from gpunn.errors import BackendUnavailableError


class Portable:
    """A wrapper of an array, for the state of an object that is pickled or copied.

    A pickle holds the values as a NumPy array, and the name of the backend. Loading puts them on
    the `nearest` backend. A copy in the same process never leaves the device.
    """

    __slots__ = ("array",)

    def __init__(self, array: Array) -> None:
        self.array = array

    def __deepcopy__(self, memo: dict[int, Any]) -> Portable:
        """Return a copy on the same device."""
        return Portable(copy_of(self.array))

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to restore the array; arrays of unknown libraries pickle themselves."""
        home = backend_of(self.array)
        if home is None:
            return Portable, (self.array,)
        return _restored, (to_numpy(self.array), str(home))


# Pickles refer to this function by its name.
def _restored(values: Any, home: str) -> Portable:
    return Portable(nearest(home).asarray(values))


def nearest(name: str) -> Backend:
    """Return the backend on which to restore arrays that were pickled on a given backend.

    This is the same backend; if its device is missing, the library's current device; if the library
    does not work, NumPy. A change is logged.
    """
    try:
        return get_backend(name)
    except BackendUnavailableError as error:
        try:
            found = get_backend(name.partition(":")[0])
        except BackendUnavailableError:
            found = get_backend("numpy")
        _log(name, str(found), str(error))
        return found


@lru_cache(maxsize=64)  # once, not for every array
def _log(home: str, place: str, why: str) -> None:
    import logging  # noqa: PLC0415 (a tenth of the import time that gpunn may take)

    logging.getLogger("gpunn").warning(
        "arrays that were pickled on %s are now on %s, since %s", home, place, why
    )
