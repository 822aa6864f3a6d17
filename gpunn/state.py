"""Files of weights, in the safetensors format: names, shapes, dtypes and bytes, and no code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpunn.backend import backend_of, scope_of, to_numpy
from gpunn.errors import FileError
from gpunn.layer import Layer

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
    older file as it was. It holds arrays and no code, and no layers either: `load` wants a model
    of the same structure.

    Parameters
    ----------
    path : path
        Customarily ends in ``.safetensors``.
    model : Layer
        On any backend; the file does not depend on it.
    """
    # Not needed to import gpunn, and slow to import.
    import tempfile  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    from safetensors.numpy import save as to_bytes  # noqa: PLC0415

    # safetensors writes the memory as it lies: C order and native byte order must be seen to.
    arrays = {name: np.array(to_numpy(x), order="C") for name, x in _values(model).items()}
    content = to_bytes(arrays, metadata={"format": "gpunn", "version": "1"})
    target = Path(path)
    handle, beside = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; give it the permissions that `open` would have.
        os.chmod(beside, 0o666 & ~_umask())  # noqa: PTH101
        os.replace(beside, target)  # noqa: PTH105
    except BaseException:
        Path(beside).unlink(missing_ok=True)
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
        converted, and the rest reported. Shapes must agree in either case.

    Returns
    -------
    LoadReport
        Names missing in the file, and names that the model does not have; both empty if strict.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileError
        If it is no safetensors file, or does not fit the model; all that does not fit is listed.
    """
    found = _read(path)
    wanted = _values(model)
    report = LoadReport(
        missing=[name for name in wanted if name not in found],
        unexpected=[name for name in found if name not in wanted],
    )
    common = [name for name in wanted if name in found]
    problems = [
        f"misshapen: {name} is {found[name].shape} in the file and "
        f"{tuple(wanted[name].shape)} in the model"
        for name in common
        if found[name].shape != tuple(wanted[name].shape)
    ]
    if strict:
        problems += [f"missing in the file: {name}" for name in report.missing]
        problems += [f"unexpected in the file: {name}" for name in report.unexpected]
        problems += [
            f"of another dtype: {name} is {found[name].dtype} in the file and "
            f"{_dtype(wanted[name])} in the model"
            for name in common
            if str(found[name].dtype) != _dtype(wanted[name])
        ]
    if problems:
        listed = "\n  ".join(problems)
        advice = "; strict=False loads what fits" if strict else ""
        raise FileError(
            f"load: {path} does not fit the model, which is left as it was{advice}:\n  {listed}"
        )
    _write(wanted, {name: found[name] for name in common})
    return report


def _values(model: Layer) -> dict[str, Any]:
    """Return the arrays of a model by dotted name."""
    held = {**model.named_parameters(), **model.named_buffers()}
    return {name: item.value for name, item in held.items()}


def _read(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    from pathlib import Path  # noqa: PLC0415

    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.numpy import load as from_bytes  # noqa: PLC0415

    content = Path(path).read_bytes()
    try:
        arrays: dict[str, NDArray[Any]] = from_bytes(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FileError(f"load: {path} is no safetensors file, or is damaged: {error}") from error
    return arrays


def _write(targets: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays over the model's, in place; all that may fail comes before the first write."""
    moved = {}
    for name, array in arrays.items():
        place = backend_of(targets[name])
        assert place is not None  # noqa: S101 (the values of a layer are arrays)
        moved[name] = place.asarray(array, targets[name].dtype)
    for name, array in moved.items():
        with scope_of(array):
            targets[name][...] = array


def _dtype(x: Any) -> str:
    return str(x.dtype).rpartition(".")[2]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
