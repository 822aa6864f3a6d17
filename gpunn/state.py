"""Files of weights, in the safetensors format: names, shapes, dtypes and bytes, and no code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpunn.backend import backend_of, scope_of, to_numpy
from gpunn.errors import FileError, SettingError
from gpunn.layer import Layer
from gpunn.parameter import Buffer, Parameter

if TYPE_CHECKING:
    from numpy.typing import NDArray


class LoadReport(NamedTuple):
    """What a file and a model did not have in common.

    Attributes
    ----------
    missing : list of str
        Names that the model has and the file has not; left as they were.
    unexpected : list of str
        Names that the file has and the model has not; left out.
    """

    missing: list[str]
    unexpected: list[str]


def save(path: str | os.PathLike[str], model: Layer) -> None:
    """Write a model's parameters and buffers to a file, by dotted name.

    The file is written beside the target and then renamed, so that a failure on the way leaves an
    older file as it was; its permissions stay. It holds arrays and no code, and no layers either:
    `load` wants a model of the same structure.

    Parameters
    ----------
    path : path
        Customarily ends in ``.safetensors``.
    model : Layer
        On any backend; the file does not depend on it.
    """
    # Not needed to import gpunn, and slow to import.
    from pathlib import Path  # noqa: PLC0415

    from safetensors.numpy import save as to_bytes  # noqa: PLC0415

    # safetensors writes the memory as it lies: C order must be seen to.
    held = _held(model)
    arrays = {name: np.array(to_numpy(item.value), order="C") for name, item in held.items()}
    # One entry: safetensors writes several in any order, and equal models should be equal files.
    content = to_bytes(arrays, metadata={"format": "gpunn 1"})
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.urandom(6).hex()}.part")
    try:
        with beside.open("xb") as file:
            if target.exists():
                beside.chmod(target.stat().st_mode & 0o777)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)  # noqa: PTH105
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str], model: Layer, strict: bool = True) -> LoadReport:  # noqa: FBT001, FBT002
    """Read a model's parameters and buffers from a file, into the model, where it is.

    Parameters
    ----------
    path : path
        A file that `save` wrote, or any safetensors file with the model's names.
    model : Layer
        Of the structure that was saved; on any backend. Untouched when loading fails.
    strict : bool, default True
        Whether names and dtypes must agree exactly. If False, what both have is loaded and
        converted, and the rest reported. Shapes must agree in either case, and floats are never
        converted to integers.

    Returns
    -------
    LoadReport
        Names missing in the file, and names that the model does not have; both empty if strict.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    SettingError
        If `model` is no layer.
    FileError
        If it is no safetensors file, or does not fit the model; all that does not fit is listed.
    """
    held = _held(model)
    wanted = {name: item.value for name, item in held.items()}
    found = _read(path)
    report = LoadReport(
        missing=[name for name in wanted if name not in found],
        unexpected=[name for name in found if name not in wanted],
    )
    common = [name for name in wanted if name in found]
    dtypes = {name: (str(found[name].dtype), _dtype(wanted[name])) for name in common}
    problems = [
        f"misshapen: {name} is {found[name].shape} in the file and "
        f"{tuple(wanted[name].shape)} in the model"
        for name in common
        if found[name].shape != tuple(wanted[name].shape)
    ]
    problems += [
        f"of another kind: {name} is {there} in the file and {here} in the model"
        for name, (there, here) in dtypes.items()
        if not np.can_cast(there, here, "same_kind")
    ]
    advice = "" if problems or not strict else "; strict=False loads what fits"
    if strict:
        problems += [f"missing in the file: {name}" for name in report.missing]
        problems += [f"unexpected in the file: {name}" for name in report.unexpected]
        problems += [
            f"of another dtype: {name} is {there} in the file and {here} in the model"
            for name, (there, here) in dtypes.items()
            if there != here and np.can_cast(there, here, "same_kind")
        ]
    if problems:
        listed = "\n  ".join(problems)
        raise FileError(
            f"load: {path} does not fit the model, which is left as it was{advice}:\n  {listed}"
        )
    _write(held, {name: found[name] for name in common})
    return report


def _held(model: Layer) -> dict[str, Parameter | Buffer]:
    """Return the parameters and buffers of a model by dotted name."""
    if not isinstance(model, Layer):
        raise SettingError(
            f"save and load take a path and then a model, got {type(model).__name__} as the model"
        )
    return {**model.named_parameters(), **model.named_buffers()}


def _read(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    from pathlib import Path  # noqa: PLC0415

    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.numpy import load as from_bytes  # noqa: PLC0415

    content = Path(path).read_bytes()
    try:
        arrays: dict[str, NDArray[Any]] = from_bytes(content)
    except KeyError as error:
        raise FileError(
            f"load: {path} holds numbers of type {error}, which NumPy does not have; "
            "convert the file to F32 first"
        ) from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise FileError(f"load: {path} is no safetensors file, or is damaged: {error}") from error
    return arrays


def _write(held: Mapping[str, Parameter | Buffer], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays over the model's, in place; all that may fail comes before the first write."""
    moved = {}
    for name, array in arrays.items():
        place = backend_of(held[name].value)
        assert place is not None  # noqa: S101 (the values of a layer are arrays)
        moved[name] = place.asarray(array, held[name].value.dtype)
    for name, array in moved.items():
        if isinstance(held[name].value, np.generic):  # what NumPy makes of sums of 0-d arrays
            held[name].value = array.copy()
            continue
        with scope_of(array):
            held[name].value[...] = array


def _dtype(x: Any) -> str:
    return str(x.dtype).rpartition(".")[2]
