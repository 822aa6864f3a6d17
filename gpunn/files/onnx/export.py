"""Export models as ONNX graphs, for other programs to run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpunn.arrays.backend import backend_of, get_backend
from gpunn.arrays.capacity import room_for
from gpunn.arrays.checks import sample_shape
from gpunn.arrays.facts import dtype_name
from gpunn.errors import SettingError
from gpunn.files.atomic import replace_file
from gpunn.files.onnx.graph import Graph, Value
from gpunn.files.onnx.layers import write_layer
from gpunn.nn.layer import Layer
from gpunn.nn.tree import entrance

if TYPE_CHECKING:
    from gpunn._typing import Array, Shape

#: The version of the operators, the first that has GELU, and that of the file format, equally old.
_OPERATORS, _FILE = 20, 9

#: The size limit of a file: the format counts bytes in 31 bits.
_MOST_BYTES = 2**31 - 1


def export_onnx(model: Layer, path: str | os.PathLike[str], input_shape: int | Shape) -> None:
    """Write a model as an ONNX file, from which other programs can compute predictions.

    The graph computes the same as ``model(x)`` without a tape: dropout passes its input through,
    and batch norm uses its running statistics. Its input ``input`` and its output ``output`` have
    gpunn's layout, channels last, with any number of samples; around ONNX operators that expect
    channels first, the axes are transposed. Parameters keep their dotted names. The file is
    replaced entirely or not at all, as by `save`.

    Parameters
    ----------
    model : Layer
        Built from gpunn's layers, with float32 parameters, on any backend.
    path : path
        Usually ends in ``.onnx``.
    input_shape : int or tuple of int
        The shape of one sample. Only the number of samples is left open in the graph.

    Raises
    ------
    ImportError
        If onnx is not installed: ``pip install onnx``.
    SettingError
        If a layer has no counterpart in ONNX, such as one of your own; if parameters are not
        float32, or too large for one file; if an argument is not valid.
    ShapeError
        If the model does not take samples of that shape.
    PathError
        If the file cannot be written.

    Notes
    -----
    Operators are of version 20. GroupNorm, RMSNorm, MultiHeadAttention, SiLU and LogSigmoid are
    written as several operators. Attention masks are not part of the graph. Detecting a token
    outside the table is left to the program that runs the graph.
    """
    if not isinstance(model, Layer):
        raise SettingError(
            "export_onnx: expected a model, a path and a shape, got "
            f"{type(model).__name__} as the model"
        )
    if not isinstance(path, (str, os.PathLike)):
        raise SettingError(f"export_onnx: expected a path, got {type(path).__name__}")
    try:
        import onnx  # noqa: F401, PLC0415 (optional)
    except ImportError as error:
        raise ImportError("gpunn.export_onnx needs onnx: pip install onnx") from error
    shape = sample_shape("export_onnx", input_shape)
    _check_numbers(model)
    sample = _sample(model, shape)
    model.forward(sample)  # its layers check shapes as they do in any pass
    graph = Graph(model)
    output = write_layer(graph, model, Value("input", sample))
    replace_file("export_onnx", Path(path), [_serialize(graph, Value("input", sample), output)])


def _check_numbers(model: Layer) -> None:
    """Refuse parameters that the file cannot hold."""
    held = {**model.named_parameters(), **model.named_buffers()}
    for name, item in held.items():
        if dtype_name(item.value) != "float32":
            raise SettingError(
                f"export_onnx: {name} is {dtype_name(item.value)}, and a graph has float32, since "
                'few programs support other dtypes; export a copy after .to(dtype="float32")'
            )
    size = sum(4 * item.value.size for item in held.values())
    if size > _MOST_BYTES:
        raise SettingError(
            f"export_onnx: the parameters have {size} bytes; an ONNX file holds up to {_MOST_BYTES}"
        )


def _sample(model: Layer, shape: Shape) -> Array:
    """Return one sample of zeros, on the model's device."""
    held = next(iter(model.parameters()), None)
    place = get_backend("numpy") if held is None else backend_of(held.value)
    assert place is not None  # noqa: S101 (parameters hold arrays)
    dtype = "int64" if entrance(model).takes_integers else "float32"
    with room_for("export_onnx, of a sample", place, shape):
        return place.full((1, *shape), 0, dtype)


def _serialize(graph: Graph, x: Value, y: Value) -> bytes:
    """Return the content of the file: the graph with its constants, input and output."""
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    def describe(name: str, value: Value) -> Any:
        integers = dtype_name(value.sample) == "int64"
        numbers = TensorProto.INT64 if integers else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, numbers, ["N", *value.shape])

    graph.nodes.append(helper.make_node("Identity", [y.name], ["output"], name="output"))
    graph_proto = helper.make_graph(
        graph.nodes,
        "gpunn",
        [describe("input", x)],
        [describe("output", y)],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
    )
    model: Any = helper.make_model(
        graph_proto,
        opset_imports=[helper.make_opsetid("", _OPERATORS)],
        ir_version=_FILE,
        producer_name="gpunn",
    )
    content: bytes = model.SerializeToString()
    return content
