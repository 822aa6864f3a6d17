"""The library and device of a user's arrays, in which results are returned."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device, is_array_api_obj
from sklearn import get_config

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, backend_of, get_backend
from gpunn.arrays.exchange import to_numpy
from gpunn.arrays.portable import nearest
from gpunn.arrays.streams import finished


@dataclass(frozen=True)
class Origin:
    """An array library and one of its devices, by name, so that it can be pickled.

    A pickle also loads where the library or the device is missing; results then stay with the
    weights.

    Attributes
    ----------
    package : str
        A name for `get_backend` (``"numpy"``, ``"cupy:0"``), or the namespace of a library that
        gpunn does not support, such as PyTorch.
    device : str or None
        The device, for such a library.
    """

    package: str
    device: str | None = None

    @classmethod
    def of(cls, x: Any) -> Origin:
        """Return the origin of `x`; NumPy if `x` is not an array, or without dispatch.

        Raises
        ------
        TypeError
            If `x` is on a GPU, and scikit-learn's dispatch is off.
        """
        if not get_config()["array_api_dispatch"]:
            place = backend_of(x)
            if place is not None and place.package == "cupy":
                raise TypeError(
                    "X is a CuPy array; scikit-learn leaves arrays where they are after "
                    "sklearn.set_config(array_api_dispatch=True), and needs the environment "
                    "variable SCIPY_ARRAY_API=1 from the start of the process"
                )
            return HOST
        return cls.at(x)

    @classmethod
    def of_labels(cls, y: Any) -> Origin:
        """Return the origin of labels, which may differ from that of X."""
        return cls.at(y) if get_config()["array_api_dispatch"] else HOST

    @classmethod
    def at(cls, x: Any) -> Origin:
        """Return where `x` is, whatever the configuration; NumPy if `x` is not an array."""
        place = backend_of(x)
        if place is not None:
            return cls(str(place))
        if is_array_api_obj(x):
            return cls(array_namespace(x).__name__, str(device(x)))
        return HOST

    @property
    def backend(self) -> Backend | None:
        """The backend of this library and device; None for NumPy and unsupported libraries."""
        if self.device is not None or self == HOST:
            return None
        return get_backend(self.package)

    @property
    def place(self) -> Backend:
        """The backend of this library and device; the default if gpunn has none for it."""
        return get_backend(self.package if self.device is None else None)

    def give(self, x: Array) -> Any:
        """Convert an array of a backend to this library and device."""
        if self.device is None:
            return finished(get_backend(self.package).asarray(x))
        xp = importlib.import_module(self.package)
        place = backend_of(x)
        if place is not None and place.package == "cupy":
            return xp.from_dlpack(x)
        return xp.asarray(to_numpy(x), device=self.device)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name; loading gives this origin, or the nearest available one."""
        return _restored, (self.package, self.device)

    def __str__(self) -> str:
        """Return the names of library and device."""
        return self.package if self.device is None else f"{self.package} on {self.device}"


HOST = Origin("numpy")


def _restored(package: str, device: str | None) -> Origin:
    if device is None:
        return Origin(str(nearest(package)))
    try:
        importlib.import_module(package)
    except ImportError:
        return HOST
    return Origin(package, device)


def namespace_of(x: Any) -> Any:
    """Return the namespace of an array in any library."""
    place = backend_of(x)
    return array_namespace(x) if place is None else place.xp
