"""States: what an object needs to continue later, as plain numbers and arrays by name.

A state is a dict whose values are None, booleans, numbers, strings, arrays, lists of these, or
dicts of the same kind. It holds no objects, so it can be written to a file and read without running
any code.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of, scope_of
from gpunn.arrays.checks import is_whole
from gpunn.arrays.exchange import to_numpy
from gpunn.arrays.facts import dtype_name
from gpunn.errors import StateError

#: Types of code, which has no state.
_CODE = (FunctionType, BuiltinFunctionType, MethodType, type, partial, np.ufunc)

#: Types whose values are part of a state unchanged.
_PLAIN = (type(None), bool, int, float, str)

#: The sizes of the buffers of MT19937 and Philox, by the name of the position in them.
_BUFFER_SIZES = {"pos": 624, "buffer_pos": 4}


def generators() -> tuple[type[np.random.Generator], type[np.random.RandomState]]:
    """Return the classes of random generators, which NumPy imports lazily."""
    return np.random.Generator, np.random.RandomState


def attributes_of(instance: Any, *, known: Collection[str] = ()) -> dict[str, Any]:
    """Return the state in an object's attributes, by name without a leading underscore.

    It consists of numbers, strings, arrays, generators, and lists and tuples of these. Functions
    have no state.

    Parameters
    ----------
    instance : object
    known : collection of str
        Attributes that are handled elsewhere.

    Raises
    ------
    StateError
        If another attribute holds anything else, which might be state.
    """
    _check_code(instance)
    found = {}
    for name, value in getattr(instance, "__dict__", {}).items():
        if name in known:
            continue
        if isinstance(value, _CODE):
            _check_code(value)
            continue
        try:
            found[name.removeprefix("_")] = _as_state(value)
        except TypeError:
            kind = type(instance).__name__
            raise StateError(
                f"{kind}.state_dict: the attribute {name!r} is a {type(value).__name__}, whose "
                f"state is not known; define state_dict and load_state_dict in {kind}"
            ) from None
    return found


def _check_code(value: Any) -> None:
    """Refuse a function that draws from a generator, and an object whose attributes are hidden."""
    if isinstance(value, partial):
        parts: list[Any] = [*value.args, *value.keywords.values()]
    elif isinstance(value, MethodType):
        parts = list(getattr(value.__self__, "__dict__", {}).values())
    elif isinstance(value, FunctionType):
        cells = (value.__closure__ or ()) + (value.__defaults__ or ())
        parts = [getattr(cell, "cell_contents", cell) for cell in cells]
        parts += (value.__kwdefaults__ or {}).values()
    elif isinstance(value, _CODE) or hasattr(value, "__dict__"):
        return
    else:
        kind = type(value).__name__
        raise StateError(
            f"{kind}.state_dict: its attributes cannot be read; define state_dict and "
            f"load_state_dict in {kind}"
        )
    if any(isinstance(part, generators()) for part in parts):
        raise StateError(
            f"state_dict: {getattr(value, '__name__', value)!r} draws from a generator of its own, "
            "whose state cannot be saved; make it a class with the generator as an attribute"
        )


def _as_state(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, generators()):
        return generator_state(value)
    if isinstance(value, (list, tuple)):
        return [_as_state(item) for item in value]
    if isinstance(value, _PLAIN) or backend_of(value) is not None:
        return value
    raise TypeError


def set_attributes(instance: Any, values: Mapping[str, Any]) -> None:
    """Assign the values that `attributes_of` returned, through the attributes' checks, if any.

    Attributes to be False are set first: if True, they may need another setting to be on, as
    Nesterov's momentum needs momentum.
    """
    for name, value in sorted(values.items(), key=lambda item: item[1] is not False):
        public = getattr(type(instance), name, None)
        if isinstance(public, property) and public.fset is not None:
            if getattr(instance, name) != value:
                setattr(instance, name, value)
            continue
        held = vars(instance)
        own = name if name in held else f"_{name}"
        if isinstance(held[own], generators()):
            restore_generator(type(instance).__name__, held[own], value)
        elif backend_of(held[own]) is not None:
            check_arrays(type(instance).__name__, {name: value}, {name: held[own]})
            held[own] = _like(held[own], value)
        else:
            check_like(type(instance).__name__, {name: value}, {name: held[own]})
            held[own] = tuple(value) if isinstance(held[own], tuple) else value


def _like(array: Array, values: Any) -> Array:
    place = backend_of(array)
    assert place is not None  # noqa: S101 (the caller has checked)
    with place.scope():
        return place.xp.asarray(place.asarray(values), copy=True)


def check_like(owner: str, given: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    """Check that values are of the same kinds as others: booleans, numbers, strings, lists, dicts.

    None may be a number, a string or a list in the state, and anything may be None there.

    Raises
    ------
    StateError
        If a value is of another kind.
    """
    for name, held in like.items():
        here, there = _kind(held), _kind(given[name])
        appeared = here == "None" and there not in {"dict", "array"}
        if there not in {here, "None"} and not appeared:
            raise StateError(
                f"{owner}.load_state_dict: {name} is a {there} in the state; expected a {here}"
            )


def _kind(value: Any) -> str:
    """Return the kind of a value in a state, in words."""
    kinds: dict[str, Any] = {
        "boolean": bool,
        "number": (int, float),
        "string": str,
        "list": (list, tuple),
        "dict": Mapping,
    }
    if value is None:
        return "None"
    value = value.item() if isinstance(value, np.generic) else value
    return next((name for name, kind in kinds.items() if isinstance(value, kind)), "array")


def check_kind(owner: str, instance: Any, state: Any) -> None:
    """Check that a state is that of an object of the same class.

    Raises
    ------
    StateError
        If it is not.
    """
    kind = state.get("kind") if isinstance(state, Mapping) else None
    if kind != type(instance).__name__:
        raise StateError(
            f"{owner}.load_state_dict: the state is that of {kind or 'something else'}, and this "
            f"is {type(instance).__name__}; build the same objects as when the state was saved"
        )


@contextmanager
def all_or_nothing(instance: Any) -> Iterator[None]:
    """Return a context for loading a state: if it fails, the previous state is restored."""
    before = on_host(instance.state_dict())
    try:
        yield
    except BaseException:
        instance._load(before)
        raise


def check_names(owner: str, state: Any, wanted: Collection[str]) -> None:
    """Check that a state is a dict with exactly these names.

    Raises
    ------
    StateError
        If it is not.
    """
    if not isinstance(state, Mapping):
        raise StateError(
            f"{owner}.load_state_dict: expected a dict from state_dict, got {type(state).__name__}"
        )
    missing = [name for name in wanted if name not in state]
    unexpected = [str(name) for name in state if name not in wanted]
    if missing or unexpected:
        parts = [f"missing: {', '.join(missing)}"] * bool(missing)
        parts += [f"unexpected: {', '.join(unexpected)}"] * bool(unexpected)
        raise StateError(f"{owner}.load_state_dict: the state does not fit; {'; '.join(parts)}")


def check_arrays(owner: str, given: Any, held: Mapping[str, Array]) -> None:
    """Check that arrays have the names, shapes and dtypes of those that they will replace.

    Raises
    ------
    StateError
        With all differences.
    """
    check_names(owner, given, held)
    differences = [line for name in held for line in _differences(name, given[name], held[name])]
    if differences:
        raise StateError(
            f"{owner}.load_state_dict: the state does not fit:\n  " + "\n  ".join(differences)
        )


def _differences(name: str, given: Any, held: Array) -> Iterator[str]:
    if backend_of(given) is None:
        yield f"{name} is a {type(given).__name__}, not an array"
        return
    if tuple(given.shape) != tuple(held.shape):
        yield f"{name} is {tuple(given.shape)} in the state and {tuple(held.shape)} here"
    if dtype_name(given) != dtype_name(held):
        yield f"{name} is {dtype_name(given)} in the state and {dtype_name(held)} here"


def write_arrays(given: Mapping[str, Any], held: Mapping[str, Array]) -> None:
    """Overwrite arrays, in place, with those of the same names, of any library."""
    for name, array in held.items():
        place = backend_of(array)
        assert place is not None  # noqa: S101 (`check_arrays` has checked)
        with scope_of(array):
            array[...] = place.asarray(given[name])


def generator_state(rng: np.random.Generator | np.random.RandomState) -> dict[str, Any]:
    """Return the state of a generator: its kind, with numbers or arrays."""
    if isinstance(rng, np.random.RandomState):
        return dict(rng.get_state(legacy=False))
    return dict(rng.bit_generator.state)


def restore_generator(
    owner: str, rng: np.random.Generator | np.random.RandomState, state: Any
) -> None:
    """Restore the state of a generator.

    Raises
    ------
    StateError
        If it is the state of another kind of generator, or not a generator's.
    """
    here = generator_state(rng)["bit_generator"]
    kind = state.get("bit_generator") if isinstance(state, Mapping) else None
    if kind != here:
        raise StateError(
            f"{owner}.load_state_dict: the state is that of a generator {kind}, and this one is "
            f"{here}; create it by numpy.random.Generator(numpy.random.{kind}())"
        )
    try:
        _check_positions(state)
        if isinstance(rng, np.random.RandomState):
            rng.set_state(on_host(state))
        else:
            rng.bit_generator.state = on_host(state)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise StateError(
            f"{owner}.load_state_dict: that is not a state of a generator {here}: {error}"
        ) from error


def _check_positions(state: Mapping[str, Any]) -> None:
    """Check a generator's positions in its buffers: NumPy does not, and would read past the end."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            _check_positions(value)
        elif name in _BUFFER_SIZES and (
            not is_whole(value) or not 0 <= value <= _BUFFER_SIZES[name]
        ):
            raise ValueError(f"{name} is {value!r}, and must be from 0 to {_BUFFER_SIZES[name]}")


def on_host(state: Any) -> Any:
    """Return a copy of a state with all arrays as NumPy arrays."""
    if isinstance(state, Mapping):
        return {name: on_host(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [on_host(value) for value in state]
    return state if isinstance(state, _PLAIN) else np.array(to_numpy(state))
