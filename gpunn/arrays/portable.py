"""Arrays in pickles, which must load where their device or their library is missing."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, backend_of, get_backend
from gpunn.arrays.exchange import to_numpy
from gpunn.arrays.memory import copy_of
from gpunn.errors import BackendUnavailableError


class Portable:
    """An array in the state of an object that is pickled or copied.

    A pickle holds its values in NumPy, and the name of its backend. Loading brings them to
    `nearest` of that name. A copy in the same process never leaves the device.
    """

    __slots__ = ("array",)

    def __init__(self, array: Array) -> None:
        self.array = array

    def __deepcopy__(self, memo: dict[int, Any]) -> Portable:
        """Return a copy on the same device."""
        return Portable(copy_of(self.array))

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what makes the array again; those of unknown libraries pickle themselves."""
        home = backend_of(self.array)
        if home is None:
            return Portable, (self.array,)
        return _restored, (to_numpy(self.array), str(home))


def _restored(values: Any, home: str) -> Portable:
    return Portable(nearest(home).asarray(values))


def nearest(name: str) -> Backend:
    """Return where to put what was pickled on the backend of that name.

    It is that backend; where its device is missing, the library's current one; where the library
    does not work, NumPy. The log says which.
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
        "what was pickled on %s is on %s now, since %s", home, place, why
    )
