"""Import models from ONNX graphs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gpunn.arrays.backend import get_backend, use
from gpunn.arrays.checks import flag
from gpunn.errors import FileError, SettingError
from gpunn.files.onnx.chain import Budget, Chain
from gpunn.files.onnx.flow import read_all
from gpunn.files.onnx.nodes import UnreadableError, source_of
from gpunn.files.opening import opened
from gpunn.nn.containers import Sequential

#: The versions of ONNX's operators that the readers understand.
_OPERATORS = range(18, 24)

#: How often a constant may be used on average: each use creates a separate parameter.
_MOST_COPIES = 16

#: The size limit of a file: the format counts bytes in 31 bits.
_MOST_BYTES = 2**31 - 1


def import_onnx(path: str | os.PathLike[str], *, channels_first: bool = False) -> Sequential:
    """Read a network from an ONNX file, as gpunn layers.

    All graphs that `export_onnx` writes can be read: consecutive operators become a `Sequential`;
    branches that meet in a sum or concatenation become a `Residual` or `Parallel`. Graphs of other
    programs can be read if they consist of such operators. Activations become separate layers,
    `Dropout` is lost on export, and a layer that the graph uses twice becomes two; a `Position` has
    the length of the graph's input.

    Parameters
    ----------
    path : path
    channels_first : bool, default False
        Whether the graph takes images (N, C, H, W) or sequences (N, C, T), as PyTorch's do. The
        network takes the same numbers with the channels last, and returns images in that layout;
        where the graph flattens images, the weights that follow are reordered accordingly.

    Returns
    -------
    Sequential
        On the default backend, like any new layer, in float32. It computes the same as the graph.

    Raises
    ------
    ImportError
        If onnx is not installed: ``pip install onnx``.
    FileError
        If the file is not an ONNX file, is damaged, or contains anything unknown, such as an
        operator without a layer, which is named; if constants are in other files, which are not
        read.
    MissingFileError
        If the file does not exist.
    PathError
        If it cannot be read.
    SettingError
        If an argument is not valid.

    Notes
    -----
    Operators may be of versions 18 to 23. Layers that are several operators (GroupNorm, RMSNorm,
    MultiHeadAttention, SiLU and LogSigmoid) are recognised as `export_onnx` writes them. Reading
    takes memory in proportion to the size of the file, whatever it claims, and runs no code in it.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise SettingError(f"import_onnx: expected a path, got {type(path).__name__}")
    channels_first = flag("import_onnx", "channels_first", channels_first)
    try:
        import onnx  # noqa: F401, PLC0415 (optional)
    except ImportError as error:
        raise ImportError("gpunn.import_onnx needs onnx: pip install onnx") from error
    place = Path(path)
    with opened("import_onnx", place) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MOST_BYTES:
            raise FileError(f"import_onnx: {path} is not an ONNX file: those have up to 2 GiB")
        content = file.read(size)
    try:
        with use(backend="numpy"):  # constants are written into new layers, on the host
            model = Sequential(*_layers(content, channels_first=channels_first))
    except UnreadableError as error:
        raise FileError(f"import_onnx: {path}: {error!s:.900}") from error
    model.to(get_backend())
    return model


def _layers(content: bytes, *, channels_first: bool) -> list[Any]:
    """Return the layers of a file's graph."""
    source = source_of(_parse(content).graph)
    shape = source.shape
    if channels_first and len(shape) < 2:
        raise UnreadableError(f"its input has no channels to come first (channels_first): {shape}")
    shape = (*shape[1:], shape[0]) if channels_first else shape
    budget = Budget(_MOST_COPIES * len(content) + 2**20)
    chain = Chain(source.constants, budget, source.name, shape, channels_first, source.integers)
    read_all(chain, source.nodes, source.output)
    if chain.flattened or (len(chain.shape) > 1 and chain.channels_first != channels_first):
        raise UnreadableError(
            f"its output, {source.output!r:.99}, has the channels in another place than its input"
        )
    return chain.layers


def _parse(content: bytes) -> Any:
    """Return a file's message, after checking its version."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415
    from onnx import ModelProto  # noqa: PLC0415

    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise UnreadableError(f"it is not an ONNX file, or is damaged: {error}") from error
    versions = {each.domain: each.version for each in model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 0))
    if version not in _OPERATORS:
        raise UnreadableError(
            f"its operators are of version {version}; versions {_OPERATORS[0]} to "
            f"{_OPERATORS[-1]} can be read"
        )
    if model.functions:
        raise UnreadableError(f"it defines an operator {model.functions[0].name!r:.99} of its own")
    return model
