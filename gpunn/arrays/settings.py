"""Settings: attributes that are checked on assignment, and immutable objects."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any


class Frozen:
    """An immutable object with settings: compared by value, and usable as a key.

    A frozen dataclass would do the same, but adds half a millisecond to the import of gpunn. A
    subclass stores its settings in ``vars(self)``, in the order of its parameters.
    """

    def __eq__(self, other: object) -> bool:
        """Return whether both are of the same class and have equal settings."""
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        """Return the hash of the settings."""
        return hash(tuple(vars(self).values()))

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse: the object may be a key, and others may rely on it."""
        raise AttributeError(f"{self!r} is immutable; create another one")

    def __delattr__(self, name: str) -> None:
        """Refuse, as above."""
        raise AttributeError(f"{self!r} is immutable; create another one")

    def __repr__(self) -> str:
        """Return the expression that creates this object."""
        shown = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({shown})"


class _Checked(property):
    """An attribute that checks the values assigned to it.

    Its getter is written in C, because a training step reads several of them.
    """

    def __init__(self, check: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        super().__init__()
        self._check, self._arguments = check, arguments

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        doc = "The setting of this name; assigned values are checked."
        super().__init__(attrgetter("_" + name), self._put, doc=doc)

    def _put(self, instance: Any, value: Any) -> None:
        owner = type(instance).__name__
        value = self._check(owner, self._name, value, *self._arguments)
        vars(instance)["_" + self._name] = value


def checked(check: Callable[..., Any], *arguments: Any) -> Any:
    """Return an attribute for a class body whose values are checked on assignment.

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
