"""What a class declares about its own code, and whether that still holds.

``kernel = "relu"`` names the fused kernel that serves the class's formula. ``records = True`` says
that its objects do all their work in kernels, so that a step through them can be recorded; a class
with a kernel need not say so. A declaration holds for the code in that class body only. A subclass
must declare for itself, and a method that is replaced later, on the class or on an object, ends the
declaration.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple


class Declaration(NamedTuple):
    """What a class declares.

    Attributes
    ----------
    owner : type
        The class; its subclasses have declarations of their own.
    kernel : str or None
        The kernel that its body names, if any.
    formula : dict of str to function
        The methods that the kernel replaces.
    records : bool
        Whether steps through its objects can be recorded.
    functions : dict of str to function
        All its methods and properties, inherited ones included.
    look_up : function
        From the class to its current attributes with the names of `functions`, in one fast call:
        recorded steps make it before each epoch.
    """

    owner: type
    kernel: str | None
    formula: dict[str, Any]
    records: bool
    functions: dict[str, Any]
    look_up: Callable[[type], Any]


def declare(owner: type, formula: tuple[str, ...] = ()) -> Declaration:
    """Return the declaration of a new class; `__init_subclass__` stores it as `_declared`."""
    body, functions = vars(owner), _functions_of(owner)
    return Declaration(
        owner,
        body.get("kernel"),
        {name: getattr(owner, name) for name in formula},
        bool(body.get("records", body.get("kernel") is not None)),
        functions,
        attrgetter(*functions),
    )


def kernel_of(formula: Any) -> str | None:
    """Return the name of the kernel that serves this object's formula, or None.

    Layers call this in every pass, so it must be fast: a few tenths of a microsecond.
    """
    declared: Declaration | None = getattr(formula, "_declared", None)
    if declared is None or declared.kernel is None or declared.owner is not type(formula):
        return None
    owner, own = declared.owner, formula.__dict__
    for name, function in declared.formula.items():
        if getattr(owner, name) is not function or name in own:
            return None
    return declared.kernel


def may_record(part: Any) -> bool:
    """Return whether an object's class declares that it records, and its code is unchanged."""
    declared: Declaration | None = getattr(part, "_declared", None)
    if declared is None or not declared.records or declared.owner is not type(part):
        return False
    if not declared.functions.keys().isdisjoint(getattr(part, "__dict__", ())):
        return False
    return has_its_functions(declared)


def has_its_functions(declared: Declaration) -> bool:
    """Return whether a class still has its original methods and properties."""
    try:
        now = declared.look_up(declared.owner)
    except AttributeError:  # one has been deleted
        return False
    return bool(now == tuple(declared.functions.values()))


#: Descriptors that every class has.
_NO_CODE = ("__dict__", "__weakref__")


def _functions_of(owner: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in owner.__mro__[:-1]:  # all but `object`
        for name, item in vars(base).items():
            if name in found or name in _NO_CODE:
                continue
            if callable(item) or hasattr(type(item), "__get__"):
                found[name] = getattr(owner, name)
    return found
