"""Attributes that are checked whenever they are assigned."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any


class _Checked(property):
    """An attribute that checks the values assigned to it.

    Its getter is written in C, because a training step reads several of them.
    """

    def __init__(self, check: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self._check, self._arguments = check, arguments

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        super().__init__(attrgetter("_" + name), self._put)

    def _put(self, instance: Any, value: Any) -> None:
        owner = type(instance).__name__
        value = self._check(owner, self._name, value, *self._arguments)
        vars(instance)["_" + self._name] = value


def checked(check: Callable[..., Any], *arguments: Any) -> Any:
    """Return an attribute for a class body that is checked whenever it is assigned.

    The value is stored under the same name with a leading underscore.

    Parameters
    ----------
    check : function
        One of `gpunn.arrays.checks`. It is called with the name of the class, the name of the
        attribute, the value and the `arguments`, and returns the value to store.
    *arguments
        Further arguments of the check, such as an interval.

    Examples
    --------
    >>> from gpunn.arrays.checks import number
    >>> from gpunn.arrays.settings import checked
    >>> class Scale:
    ...     factor: float = checked(number, "(0, inf)")
    >>> scale = Scale()
    >>> scale.factor = 2
    >>> scale.factor
    2.0
    """
    return _Checked(check, arguments)
