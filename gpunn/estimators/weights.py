"""Weights as attributes of an estimator; assigning them writes to the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any, NoReturn

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of
from gpunn.arrays.checks import shown
from gpunn.arrays.exchange import to_numpy
from gpunn.estimators.origin import Origin, namespace_of
from gpunn.nn.parameter import Parameter


class Weights(list[Any]):
    """The weights of each layer, in the library of X; assigning an entry changes the network.

    Parameters
    ----------
    name : str
        The beginning of error messages, such as ``"MLPClassifier: coefs_"``.
    parameters : list of Parameter
        The parameters of the network.
    give : function
        Converts a parameter's value to the user's library.
    """

    def __init__(
        self, name: str, parameters: list[Parameter], give: Callable[[Array], Any]
    ) -> None:
        super().__init__(give(parameter.value) for parameter in parameters)
        self._name, self._parameters, self._give = name, parameters, give

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write the weights of one layer, or of several."""
        if isinstance(index, slice):
            self._write(range(len(self))[index], value)
        else:
            self._write([self._place(index)], [value])

    def _place(self, index: Any) -> int:
        """Return an index as a non-negative integer."""
        try:
            return range(len(self))[index]
        except TypeError as error:
            raise TypeError(
                f"{self._name} takes whole numbers and slices as indices, got {shown(index)}"
            ) from error
        except IndexError as error:
            raise IndexError(
                f"{self._name} has {len(self)} entries, one for each layer; got index {index}"
            ) from error

    def replace(self, values: Any) -> None:
        """Write the weights of all layers; if one does not fit, write none."""
        self._write(range(len(self)), values)

    def _write(self, places: Any, values: Any) -> None:
        if isinstance(values, (str, Mapping, Set)) or len_of(values) != len(places):
            raise ValueError(
                f"{self._name} takes a list of {len(places)} arrays, one for each layer; "
                f"got {_described(values)}"
            )
        new = [
            fitting(f"{self._name}[{i}]", value, self._parameters[i].value)
            for i, value in zip(places, values, strict=True)
        ]
        for i, value in zip(places, new, strict=True):
            write(self._parameters[i], value)
            super().__setitem__(i, self._give(self._parameters[i].value))

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            f"{self._name} has an entry for each layer of the network; assign to its entries, "
            "or copy it with list(...)"
        )

    append = extend = insert = remove = pop = clear = sort = reverse = _refuse
    __delitem__ = __iadd__ = __imul__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as a plain list, detached from the network."""
        return list, (list(self),)


def handed_out(origin: Origin, value: Array) -> Any:
    """Return a parameter's value for the user: itself, or a copy in the library of X.

    Writes to a copy would be lost, so a NumPy copy is read-only.
    """
    given = origin.give(value)
    if isinstance(given, np.ndarray) and not isinstance(value, np.ndarray):
        given = given.view()
        given.setflags(write=False)
    return given


def fitting(name: str, value: Any, like: Array) -> Array:
    """Return a value as an array with the device and dtype of `like`; check its shape.

    Raises
    ------
    ValueError
        If it is not an array of real numbers, or has another shape.
    """
    value = numbers(name, value)
    if tuple(value.shape) != tuple(like.shape):
        raise ValueError(f"{name}: expected shape {tuple(like.shape)}, got {tuple(value.shape)}")
    place = backend_of(like)
    assert place is not None  # noqa: S101 (parameters hold arrays)
    with place.scope():
        return place.asarray(value, like.dtype)


def numbers(name: str, value: Any) -> Array:
    """Return a value as an array of real numbers, in any library."""
    if backend_of(value) is None:
        try:
            value = to_numpy(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} cannot be read as an array: {error}") from error
    real = isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
    if not isinstance(value, np.ndarray):
        real = namespace_of(value).isdtype(value.dtype, ("real floating", "integral", "bool"))
    if not real:
        raise ValueError(f"{name} must hold real numbers, got {value.dtype}")
    return value


def write(parameter: Parameter, value: Array) -> None:
    """Overwrite a parameter's value in place."""
    place = backend_of(parameter.value)
    assert place is not None  # noqa: S101 (parameters hold arrays)
    with place.scope():
        parameter.value[...] = value


def len_of(values: Any) -> int | None:
    """Return the length of a value, or None if it has none."""
    try:
        return len(values)
    except TypeError:
        return None


def _described(values: Any) -> str:
    length = len_of(values)
    return f"{type(values).__name__}" + ("" if length is None else f" of {length}")
