"""Files of weights, in the safetensors format: names, shapes, dtypes and bytes, and no code."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from gpunn.arrays.backend import backend_of, scope_of
from gpunn.arrays.capacity import memory_for
from gpunn.arrays.checks import flag, one_of
from gpunn.arrays.exchange import to_numpy
from gpunn.arrays.facts import dtype_name
from gpunn.arrays.memory import copy_of
from gpunn.errors import DeviceMemoryError, FileError, SettingError
from gpunn.files.flattened import channels_of
from gpunn.files.rearranged import Rearranged
from gpunn.files.states import CHECKPOINT, MODEL
from gpunn.files.tensors import WEIGHTS, File, Format, Stored, check_format, holds, read, write
from gpunn.files.torch_layout import Names, TorchLayout, file_names
from gpunn.nn.layer import Layer
from gpunn.nn.parameter import Buffer, Parameter

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

#: The formats whose dense weights are (outputs, inputs).
_TRANSPOSED = ("pt", "mlx")

#: The format that `save` writes in PyTorch's layout.
TORCH = Format("pt", 1)

#: How many names an error lists at most.
_MOST_NAMES = 10


class LoadReport(NamedTuple):
    """The names that are only in the file or only in the model.

    Attributes
    ----------
    missing : list of str
        Names that are only in the model; their values did not change.
    unexpected : list of str
        Names that are only in the file; they were ignored.
    """

    missing: list[str]
    unexpected: list[str]


def save(
    path: str | os.PathLike[str],
    model: Layer,
    *,
    layout: Literal["gpunn", "torch"] = "gpunn",
    names: Names = None,
) -> None:
    """Write a model's parameters and buffers to a file, by dotted name.

    The file is written under a temporary name, flushed to the disk and then renamed, so a crash at
    any instant leaves either the old file or the new one; permissions are kept, and symbolic links
    are followed. It holds arrays only, neither code nor layers: `load` needs a model of the same
    structure. Its metadata hold a digest of all bytes, by which `load` detects damage.

    Parameters
    ----------
    path : path
        Usually ends in ``.safetensors``.
    model : Layer
        On any backend; the file does not depend on the backend.
    layout, names
        The layout and names of arrays in the file, as for `load`.

    Raises
    ------
    PathError
        If the folder does not exist, or the file cannot be written.
    FileError
        If the format cannot hold a name, or two arrays have the same name; or if the order in which
        PyTorch flattens images in the model cannot be determined.
    DTypeError
        If the format does not support the dtype of a buffer.
    SettingError
        If `model` is not a layer, `path` is not a path, or a setting is not valid.
    """
    target = _path("save", path, model)
    held = _held_arrays("save", model)
    as_torch = one_of("save", "layout", layout, ("gpunn", "torch")) == "torch"
    torch = TorchLayout(model, channels_of(model, "PyTorch")) if as_torch else None
    theirs = file_names("save", held, torch.names if torch else {}, names)
    twice = [name for name, n in Counter(theirs.values()).items() if n > 1]
    if twice:
        raise FileError(f"save: names gives {twice[0]!r:.99} for several arrays of the model")
    arrays = {theirs[name]: item.value for name, item in held.items()}
    if torch:
        forms = {theirs[name]: torch.layouts.get(id(item)) for name, item in held.items()}
        differing = {name: form for name, form in forms.items() if form}
        arrays |= {name: form.to_theirs(to_numpy(arrays[name])) for name, form in differing.items()}
    write("save", target, TORCH if torch else WEIGHTS, arrays)


def load(
    path: str | os.PathLike[str],
    model: Layer,
    strict: bool = True,  # noqa: FBT001, FBT002
    *,
    convert: bool = False,
    layout: Literal["gpunn", "torch"] | None = None,
    names: Names = None,
) -> LoadReport:
    """Read a model's parameters and buffers from a file into the model, on its device.

    Parameters
    ----------
    path : path
        A file written by `save` or `Checkpoint`, or any safetensors file with the model's names.
    model : Layer
        With the structure that was saved, on any backend. Unchanged if loading fails.
    strict : bool, default True
        Whether names and dtypes must agree exactly. If False, arrays whose names are in both are
        loaded and converted, and the others reported. Shapes must always agree.
    convert : bool, default False
        Whether to convert numbers of another width than the model's, such as bfloat16, float16 or
        float64 to float32. Floats are never converted to integers, and no number may overflow or
        wrap around.
    layout : {"gpunn", "torch", None}, default None
        The layout and names of arrays in the file: gpunn's or PyTorch's. In PyTorch's, weights of
        `Dense` are (outputs, inputs) and filters (outputs, inputs, height, width), `Flatten`
        flattens images in the order (channels, height, width), and some names end differently (the
        gain of a norm is ``weight``, a running variance ``running_var``, the projection of
        attention ``in_proj_weight``). None means "gpunn", and refuses files that PyTorch wrote.
    names : dict, function or None, default None
        A mapping from names in the model, with the endings of `layout`, to names in the file; a
        dict may also map whole layers: ``{"layers.0": "fc1"}``. Names not in the dict are kept.

    Returns
    -------
    LoadReport
        The names missing in the file, and the unexpected ones in it; both empty if strict.

    Raises
    ------
    MissingFileError
        If the file does not exist.
    PathError
        If it cannot be read.
    SettingError
        If `model` is not a layer, or a setting is not valid.
    FileError
        If it is not a safetensors file, is damaged, is of a newer version of gpunn, or does not fit
        the model; all misfits are listed. Also if the order in which PyTorch flattens images in the
        model cannot be determined.
    DeviceMemoryError
        If the model's device has too little memory for another copy of the values.

    Notes
    -----
    Where a network flattens images, PyTorch's order of the features is found by following outputs
    from layer to layer: through `Sequential`, `Parallel` and `Residual`, and through a layer of
    another class as if the layers in it were applied in the order of its attributes. A batch is
    known to be images only after a convolution; for images that a network flattens right away, the
    pixels are assumed to have the same order in PyTorch.
    """
    place = _path("load", path, model)
    held = _held_arrays("load", model)
    one_of("load", "strict", strict, (True, False))
    flag("load", "convert", convert)
    one_of("load", "layout", layout, ("gpunn", "torch", None))
    torch = TorchLayout(model, channels_of(model, "PyTorch") if layout == "torch" else {})
    theirs = file_names("load", held, torch.names if layout == "torch" else {}, names)
    file = _read_weights(place, list(theirs.values()))
    found = {name: file.found[theirs[name]] for name in held if theirs[name] in file.found}
    _check_layout(place, file.written_by, layout)
    there, expected = set(file.names), {*theirs.values()}
    if layout == "torch":
        expected |= torch.ignored(theirs)
    report = LoadReport(
        missing=[name for name in held if theirs[name] not in there],
        unexpected=[name for name in file.names if name not in expected],
    )
    if (held or file.names) and not found:
        raise FileError(
            f"load: {path} and the model have no name in common, so nothing was loaded:\n"
            f"  in the file: {_some(file.names)}\n  in the model: {_some(list(theirs.values()))}"
        )
    layouts = {name: torch.layouts.get(id(item)) for name, item in held.items()}
    misfits = [
        line
        for name, stored in found.items()
        for line in _misfits(name, stored, held[name], theirs=layouts[name], layout=layout)
    ]
    names_differ = list(_differences(report)) if strict else []
    widths_differ = list(_conversions(found, held)) if strict and not convert else []
    _check_fit(path, misfits, names_differ, widths_differ)
    arrays = {name: stored.array for name, stored in found.items()}
    if layout == "torch":
        differing = {name: form for name, form in layouts.items() if form and name in arrays}
        arrays |= {name: form.to_ours(arrays[name]) for name, form in differing.items()}
    _write(held, arrays)
    return report


def _read_weights(path: Path, names: list[str]) -> File:
    """Read arrays of a model by name, from a file of weights or a checkpoint."""
    file = read("load", path, dict.fromkeys([*names, *(MODEL + name for name in names)]))
    kind = CHECKPOINT if file.written_by.startswith(CHECKPOINT.name) else WEIGHTS
    if file.written_by.split(" ")[0] == WEIGHTS.name:
        check_format("load", path, file, kind)
    return file.part(MODEL) if kind is CHECKPOINT else file


def _check_fit(
    path: Any, misfits: list[str], names_differ: list[str], widths_differ: list[str]
) -> None:
    """Raise for arrays that cannot be loaded, or only with ``strict=False`` or ``convert=True``."""
    if not misfits and not names_differ and not widths_differ:
        return
    advice = "" if misfits else "; strict=False loads what fits"
    if widths_differ and not misfits and not names_differ:
        advice = "; convert=True converts the numbers"
    listed = "\n  ".join(misfits + names_differ + widths_differ)
    raise FileError(f"load: {path} does not fit the model, which is unchanged{advice}:\n  {listed}")


def _path(owner: str, path: Any, model: Any) -> Path:
    """Return the path as a `Path`; check that it is one."""
    from pathlib import Path  # noqa: PLC0415

    if isinstance(path, (str, os.PathLike)):
        return Path(path)
    if isinstance(path, Layer) and isinstance(model, (str, os.PathLike)):
        kind = type(model).__name__
        raise SettingError(
            f"{owner}: expected a path and then a model, got {kind} as the model; swap them"
        )
    raise SettingError(
        f"{owner}: expected a path and then a model, got {type(path).__name__} as the path"
    )


def _held_arrays(owner: str, model: Layer) -> dict[str, Parameter | Buffer]:
    """Return the parameters and buffers of a model by dotted name."""
    if not isinstance(model, Layer):
        raise SettingError(
            f"{owner}: expected a path and then a model, got {type(model).__name__} as the model"
        )
    return {**model.named_parameters(), **model.named_buffers()}


def _check_layout(path: Path, written_by: str, layout: str | None) -> None:
    """Refuse a file whose weights may be transposed, unless `layout` is given."""
    if layout is None and written_by.partition(" ")[0] in _TRANSPOSED:
        raise FileError(
            f"load: {path} says that its format is {written_by!r}: there the weights of a dense "
            "layer are (outputs, inputs), and in gpunn (inputs, outputs); pass layout='torch' to "
            "transpose them, or layout='gpunn' if they are (inputs, outputs) already"
        )
    if layout == "torch" and written_by.startswith("gpunn"):
        raise FileError(
            f"load: {path} was written by gpunn.save, so its weights are in gpunn's layout; "
            "omit layout='torch'"
        )


def _misfits(
    name: str,
    stored: Stored,
    item: Parameter | Buffer,
    *,
    theirs: Rearranged | None,
    layout: str | None,
) -> Iterator[str]:
    """Yield why an array of a file cannot be loaded, even if converted."""
    there, here = stored.shape, tuple(item.value.shape)
    transposed = theirs is not None and layout == "torch"
    if there != (theirs.theirs if theirs is not None and transposed else here):
        hint = ", where it would be transposed" if transposed else ""
        if theirs is not None and not transposed and there == theirs.theirs:
            hint = "; it would fit transposed, layout='torch'"
        yield f"of another shape: {name} is {there} in the file and {here} in the model{hint}"
    if stored.array is None:
        yield (
            f"of a dtype that NumPy lacks: {name} is {stored.dtype} in the file; convert the file "
            "to F32 first"
        )
    elif not _converts(stored, item):
        yield (
            f"of another kind: {name} is {stored.dtype} in the file and "
            f"{dtype_name(item.value)} in the model"
        )
    elif not holds(dtype_name(item.value), stored.array):
        yield f"too large: {name} has numbers in the file that {dtype_name(item.value)} cannot hold"
    if isinstance(item.value, np.ndarray) and not item.value.flags.writeable:
        yield f"read-only: {name} cannot be written to in the model"


def _differences(report: LoadReport) -> Iterator[str]:
    """Yield the names that differ, which ``strict=False`` allows."""
    yield from (f"missing in the file: {name}" for name in report.missing)
    yield from (f"unexpected in the file: {name}" for name in report.unexpected)


def _conversions(
    found: Mapping[str, Stored], held: Mapping[str, Parameter | Buffer]
) -> Iterator[str]:
    """Yield the arrays of another width, which ``convert=True`` allows."""
    for name, stored in found.items():
        here = dtype_name(held[name].value)
        if stored.dtype != here and _converts(stored, held[name]):
            yield f"of another dtype: {name} is {stored.dtype} in the file and {here} in the model"


def _converts(stored: Stored, item: Parameter | Buffer) -> bool:
    """Return whether the dtype of an array is of a kind that converts to that of a value."""
    known = stored.array is not None
    return known and np.can_cast(stored.array.dtype, dtype_name(item.value), "same_kind")


def _write(held: Mapping[str, Parameter | Buffer], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays into the model, in place: all of them, or none."""
    moved = {}
    for name, array in arrays.items():
        place = backend_of(held[name].value)
        assert place is not None  # noqa: S101 (the values of a layer are arrays)
        with memory_for(f"load, of {name}", place, "free other memory on the device"):
            moved[name] = place.asarray(array, held[name].value.dtype)
    before: list[tuple[Parameter | Buffer, Any]] = []
    try:
        while moved:  # release each new array once it is written: they may be large
            name, array = moved.popitem()
            item = held[name]
            place = backend_of(item.value)
            assert place is not None  # noqa: S101
            with memory_for(f"load, of {name}", place, "free other memory on the device"):
                before.append((item, _backup(item.value)))
                _put(item, array)
    except BaseException as error:
        for item, value in before:
            with suppress(Exception):  # a value that cannot be written has not changed
                _put(item, value)
        if not isinstance(error, Exception) or isinstance(error, DeviceMemoryError):
            raise
        raise FileError(
            f"load: {name} cannot be written to in the model, which is unchanged: {error}"
        ) from error


def _backup(value: Any) -> Any:
    """Return a copy of a value; NumPy scalars are immutable and need none."""
    return value if isinstance(value, np.generic) else copy_of(value)


def _put(item: Parameter | Buffer, array: Any) -> None:
    """Write an array into a value, in place if it is an array."""
    if isinstance(item.value, np.generic):  # NumPy turns sums of 0-d arrays into scalars
        item.value = array.copy()
        return
    with scope_of(item.value):
        item.value[...] = array


def _some(names: Sequence[str]) -> str:
    """Return the first few names."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return (", ".join(names[:_MOST_NAMES]) or "none") + more
