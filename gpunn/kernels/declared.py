"""What a class says of itself in its own body, and whether it is still true.

``kernel = "relu"`` names the fused kernel that serves the class's formula; ``records = True`` says
that its objects do all their work in kernels, so that a step through them can be recorded; a kernel
says that, too. Either holds for the code that the class had when it was made, and for no other: not
for that of a subclass, which says so itself or goes without, and not for a method that was put in
the place of another one later, on the class or on an object.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Declaration(NamedTuple):
    """What a class says of itself.

    Attributes
    ----------
    owner : type
        The class; its subclasses have declarations of their own.
    kernel : str or None
        The kernel that serves its formula, if its body names one.
    formula : dict of str to function
        The methods that the kernel stands for.
    records : bool
        Whether its body says that a step through it can be recorded.
    functions : dict of str to function
        All its methods and properties, those of its bases included.
    """

    owner: type
    kernel: str | None
    formula: dict[str, Any]
    records: bool
    functions: dict[str, Any]


def declare(owner: type, formula: tuple[str, ...] = ()) -> Declaration:
    """Return what a new class says: for its `__init_subclass__`, which keeps it as `_declared`."""
    body = vars(owner)
    return Declaration(
        owner,
        body.get("kernel"),
        {name: getattr(owner, name) for name in formula},
        bool(body.get("records", body.get("kernel") is not None)),
        _functions_of(owner),
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


def may_record(part: Any) -> bool:
    """Return whether an object's own class says that it records, and its code is the class's."""
    declared: Declaration | None = getattr(part, "_declared", None)
    if declared is None or not declared.records or declared.owner is not type(part):
        return False
    if not declared.functions.keys().isdisjoint(getattr(part, "__dict__", ())):
        return False
    return has_its_functions(declared)


def has_its_functions(declared: Declaration) -> bool:
    """Return whether a class still has the methods and properties that it was made with."""
    owner = declared.owner
    for name, function in declared.functions.items():
        if getattr(owner, name, None) != function:
            return False
    return True


def _functions_of(owner: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for base in owner.__mro__[:-1]:  # all but `object`
        for name, item in vars(base).items():
            if callable(item) or hasattr(type(item), "__get__"):
                found.setdefault(name, getattr(owner, name))
    return found
