"""Which fused kernel serves an object's formula: the one that its own class names.

A class says so in its body, ``kernel = "relu"``. The name stands for the formula that the class
had when it was made, and for no other: not for that of a subclass, which says so itself or goes
without, and not for a formula that was put in its place later, on the class or on an object.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Declaration(NamedTuple):
    """What a class says of its formula.

    Attributes
    ----------
    owner : type
        The class itself; its subclasses have declarations of their own.
    kernel : str or None
        The name of the kernel, if the body of the class has one.
    formula : dict of str to function
        The methods that the kernel stands for, as they were when the class was made.
    """

    owner: type
    kernel: str | None
    formula: dict[str, Any]


def declare(owner: type, methods: tuple[str, ...]) -> Declaration:
    """Return what a new class says: for its `__init_subclass__`, which keeps it as `_declared`."""
    return Declaration(
        owner, vars(owner).get("kernel"), {name: getattr(owner, name) for name in methods}
    )


def kernel_of(formula: Any) -> str | None:
    """Return the name of the kernel that serves this object's formula, or None.

    It takes some tenths of a microsecond: layers ask at every call.
    """
    declared: Declaration | None = getattr(formula, "_declared", None)
    if declared is None or declared.kernel is None or declared.owner is not type(formula):
        return None
    owner, own = declared.owner, formula.__dict__
    for name, function in declared.formula.items():
        if getattr(owner, name) is not function or name in own:
            return None
    return declared.kernel


def functions_of(owner: type) -> dict[str, Any]:
    """Return all methods and properties of a class, those of its bases included, by name."""
    found: dict[str, Any] = {}
    for base in owner.__mro__[:-1]:  # all but `object`
        for name, item in vars(base).items():
            if callable(item) or hasattr(type(item), "__get__"):
                found.setdefault(name, getattr(owner, name))
    return found


def is_unchanged(part: object, functions: dict[str, Any]) -> bool:
    """Return whether an object runs just these functions: nobody has replaced one since."""
    owner = type(part)
    for name, function in functions.items():
        if getattr(owner, name, None) != function:
            return False
    return functions.keys().isdisjoint(getattr(part, "__dict__", ()))
