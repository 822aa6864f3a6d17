"""Reading models from ONNX graphs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpunn.arrays.backend import get_backend, use
from gpunn.errors import FileError, GpunnError, SettingError
from gpunn.files.onnx.chain import Chain, Node, UnreadableError, array_of
from gpunn.files.onnx.readers import read_operator
from gpunn.files.opening import opened
from gpunn.nn.containers import Sequential

if TYPE_CHECKING:
    from gpunn._typing import Shape

#: The versions of ONNX's operators that mean what the readers take them for.
_OPERATORS = range(18, 24)

#: The longest file: the format counts bytes in 31 bits.
_MOST_BYTES = 2**31 - 1


def import_onnx(path: str | os.PathLike[str]) -> Sequential:
    """Read a network from an ONNX file: a chain of operators, each of which is a layer of gpunn's.

    That is what `export_onnx` writes for a `Sequential` of `Dense`, `Conv1d`, `Conv2d`,
    `ConvTranspose2d`, pools, `BatchNorm`, `LayerNorm`, `PReLU`, `Embedding`, `Position` (of its
    full length), `Flatten`, `Reshape` and activations, and such graphs of other programs if they
    take arrays with the channels last. An activation becomes a layer of its own; `Dropout` is gone.

    Parameters
    ----------
    path : path

    Returns
    -------
    Sequential
        On the default backend, as new layers are, in float32. It computes what the graph does.

    Raises
    ------
    ImportError
        If onnx is not installed: ``pip install "gpunn[onnx]"``.
    FileError
        If the file is no ONNX file, is damaged, or has anything that is not understood, such as an
        operator without a layer, which is named; if constants lie in other files, which are not
        followed.
    MissingFileError
        If the file does not exist.
    PathError
        If it cannot be read.

    Notes
    -----
    Operators of versions 18 to 23. Reading takes memory in proportion to the file, whatever it
    announces, and runs no code of it.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise SettingError(f"import_onnx: expected a path, got {type(path).__name__}")
    try:
        import onnx  # noqa: F401, PLC0415 (optional)
    except ImportError as error:
        raise ImportError('gpunn.import_onnx needs onnx: pip install "gpunn[onnx]"') from error
    place = Path(path)
    with opened("import_onnx", place) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MOST_BYTES:
            raise FileError(f"import_onnx: {path} is no ONNX file: those have up to 2 GiB")
        content = file.read(size)
    try:
        with use(backend="numpy"):  # constants are written into new layers, on the host
            model = Sequential(*_layers(content))
    except UnreadableError as error:
        raise FileError(f"import_onnx: {path}: {error!s:.900}") from error
    model.to(get_backend())
    return model


def _layers(content: bytes) -> list[Any]:
    """Return the layers of a file's graph."""
    graph = _parsed(content).graph
    constants = {each.name: array_of(each) for each in graph.initializer}
    if graph.sparse_initializer:
        raise UnreadableError("it has sparse constants, which are not read")
    inputs = [each for each in graph.input if each.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1:
        raise UnreadableError(
            f"it has {len(inputs)} inputs and {len(graph.output)} outputs, and one of each is "
            "expected"
        )
    nodes = [_node(each) for each in graph.node]
    chain = Chain(nodes, constants, inputs[0].name, _shape(inputs[0]))
    while (node := chain.take()) is not None:
        _read(chain, node)
    if chain.name != graph.output[0].name or chain.turned:
        raise UnreadableError("its output is not what the last operator returns, channels last")
    return chain.layers


def _read(chain: Chain, node: Node) -> None:
    """Add the layer of an operator, unless the layer refuses its settings."""
    try:
        read_operator(chain, node)
    except GpunnError as error:
        raise node.refused(str(error)) from error


def _parsed(content: bytes) -> Any:
    """Return a file's message, after checking its version."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415
    from onnx import ModelProto  # noqa: PLC0415

    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise UnreadableError(f"it is no ONNX file, or is damaged: {error}") from error
    versions = {each.domain: each.version for each in model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 0))
    if version not in _OPERATORS:
        raise UnreadableError(
            f"its operators are of version {version}, and those of {_OPERATORS[0]} to "
            f"{_OPERATORS[-1]} can be read"
        )
    if model.functions:
        raise UnreadableError(f"it defines an operator {model.functions[0].name!r:.99} of its own")
    return model


def _node(node: Any) -> Node:
    """Return an operator; one that is not ONNX's own is refused."""
    from onnx import helper  # noqa: PLC0415

    names = [node.domain, node.op_type, *node.input, *node.output]
    if not all(isinstance(name, str) for name in (*names, *(each.name for each in node.attribute))):
        raise UnreadableError("it is damaged: a name is no text")  # bytes, where it is no UTF-8
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    made = Node(operator[:199], list(node.input), list(node.output), {})
    if node.domain not in ("", "ai.onnx"):
        raise made.refused("gpunn has no layer for it")
    if not made.inputs or not made.outputs:
        raise made.refused("gpunn has no layer for it, since it reads nothing or returns nothing")
    try:
        made.settings = {
            each.name: helper.get_attribute_value(each) for each in node.attribute if each.name
        }
    except ValueError as error:
        raise made.refused(f"a setting is damaged ({error})") from error
    return made


def _shape(given: Any) -> Shape:
    """Return the shape of one sample that the graph takes."""
    dims = given.type.tensor_type.shape.dim
    shape = tuple(each.dim_value for each in dims)[1:]
    if not dims or not 0 < len(dims) < 9 or min(shape, default=1) < 1:
        raise UnreadableError(
            f"its input {given.name!r:.99} has the shape {[0, *shape]}: the lengths of all axes "
            "but the first must be given as numbers above 0"
        )
    return shape
