"""Files of states: the arrays of a state by name, and everything else as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpunn.errors import FileError, StateError
from gpunn.files.tensors import Format, read_as, write

if TYPE_CHECKING:
    from pathlib import Path

#: The format of a training run, and the prefix of the names of its weights.
CHECKPOINT, MODEL = Format("gpunn checkpoint", 1), "trainer/model/"

#: The only key of the dict that stands for an array in the JSON; its value is the array's name.
_ARRAY = "$array"


def write_state(owner: str, path: Path, kind: Format, state: Mapping[str, Any]) -> None:
    """Write a state (see `gpunn.arrays.state`), replacing any old file: all of it, or nothing.

    An array's name joins the keys that lead to it: ``model/layers.0.weight``.

    Raises
    ------
    PathError
        If the file cannot be written.
    StateError
        If the state holds anything but numbers, strings, arrays, lists and dicts.
    """
    arrays: dict[str, Any] = {}
    rest = {name: _extract_arrays(value, name, arrays) for name, value in state.items()}
    write(owner, path, kind, arrays, rest)


def read_state(owner: str, path: Path, kind: Format) -> dict[str, Any]:
    """Read a state that `write_state` wrote, with all arrays as NumPy arrays.

    Raises
    ------
    PathError
        If the file does not exist or cannot be read.
    FileError
        If it is of another format or of a newer version, or is damaged.
    """
    arrays, rest = read_as(owner, path, kind)
    try:
        return {name: _insert_arrays(value, arrays) for name, value in rest.items()}
    except (KeyError, TypeError, RecursionError) as error:
        raise FileError(
            f"{owner}: {path} is damaged: an array that it refers to is not in it: {error}"
        ) from error


def _extract_arrays(value: Any, name: str, arrays: dict[str, Any]) -> Any:
    """Return a value as JSON, with its arrays moved to `arrays`, by name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) or key == _ARRAY for key in value):
            raise StateError(f"{name} in the state: the keys of a dict must be names")
        return {key: _extract_arrays(item, f"{name}/{key}", arrays) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_extract_arrays(item, f"{name}/{i}", arrays) for i, item in enumerate(value)]
    if not hasattr(value, "dtype"):
        raise StateError(
            f"{name} in the state is a {type(value).__name__}; a state holds numbers, strings, "
            "arrays, and lists and dicts of these"
        )
    if name in arrays:
        raise StateError(f"{name} in the state stands for two arrays; remove '/' from the names")
    arrays[name] = value
    return {_ARRAY: name}


def _insert_arrays(value: Any, arrays: Mapping[str, Any]) -> Any:
    """Return a value of a state from its JSON and the arrays that it names."""
    if isinstance(value, list):
        return [_insert_arrays(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        return arrays[value[_ARRAY]]
    return {key: _insert_arrays(item, arrays) for key, item in value.items()}
