"""Graphs that other programs write: they compute what ONNX Runtime computes, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn.errors import FileError, SettingError
from tests.test_onnx_export import computed

onnx = pytest.importorskip("onnx")
from onnx import helper, numpy_helper  # noqa: E402

Nodes = list[tuple[str, list[str], dict[str, Any]]]
RNG = np.random.default_rng(0)


def numbers(*shape: int) -> Any:
    return RNG.uniform(0.5, 1.5, shape).astype("float32")


#: What graphs read, by name.
CONSTANTS: dict[str, Any] = {
    "filters": numbers(4, 3, 3, 3) - 1,
    "more filters": numbers(4, 4, 3, 3) - 1,
    "filters of sequences": numbers(4, 3, 3) - 1,
    "of two": numbers(2),
    "of three": numbers(3),
    "of four": numbers(4),
    "of four also": numbers(4),
    "of four, in front": numbers(4, 1, 1),
    "of one": numbers(1),
    "of eighty": numbers(80),
    "(80, 2)": numbers(80, 2) - 1,
    "(2, 80)": numbers(2, 80) - 1,
    "(4, 2)": numbers(4, 2) - 1,
    "(4, 4)": numbers(4, 4) - 1,
    "(2, 2)": numbers(2, 2),
    "a rate": np.float32(0.3),
    "flat": np.array([0, -1]),
    "flat, too": np.array([-1, 80]),
    "(0, 4)": np.array([0, 4]),
    "pixels": np.array([2, 3]),
    "pixels from the end": np.array([-2, -1]),
    "the last": np.array([-1]),
}

CONV: Any = ("Conv", ["", "filters", "of four"], {"kernel_shape": [3, 3], "pads": [1] * 4})
NORM: Any = ("BatchNormalization", ["", *["of four", "of four also"] * 2], {})
HALF = {"kernel_shape": [2, 2], "strides": [2, 2]}


def written(path: Path, nodes: Nodes, *shape: int) -> Path:
    """Write a graph.

    A node reads the one before for "", the input for "x", and what the third returns for "@2".
    """
    made, last, used = [], "input", set()
    for i, (operator, inputs, settings) in enumerate(nodes):
        known = {"": last, "x": "input", f"@{len(nodes) - 1}": "output"}
        names = [known.get(name, name.replace("@", "value ")) for name in inputs]
        used.update(names)
        last = "output" if i == len(nodes) - 1 else f"value {i}"
        made.append(helper.make_node(operator, names, [last], **settings))
    tensor = helper.make_tensor_value_info
    held = [numpy_helper.from_array(np.asarray(CONSTANTS[n]), n) for n in CONSTANTS if n in used]
    ends = [tensor("input", 1, ["N", *shape])], [tensor("output", 1, None)]
    model = helper.make_model(
        helper.make_graph(made, "graph", *ends, held),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )
    model = onnx.shape_inference.infer_shapes(model)
    if not model.graph.output[0].type.tensor_type.HasField("shape"):  # of operators it cannot
        model.graph.output[0].CopyFrom(tensor("output", 1, ["N", *"abc"[: len(shape)]]))
    path.write_bytes(model.SerializeToString())
    return path


#: Graphs of images (3, 5, 4) with the channels first.
IMAGES: dict[str, Nodes] = {
    "a convolution": [CONV],
    "a small network": [
        CONV,
        NORM,
        ("Relu", [""], {}),
        ("Conv", ["", "more filters"], {"pads": [1] * 4}),
        ("PRelu", ["", "of four, in front"], {}),
        ("Softmax", [""], {"axis": 1}),
    ],
    "flattened": [CONV, ("Flatten", [""], {}), ("Gemm", ["", "(80, 2)", "of two"], {})],
    "reshaped": [
        CONV,
        ("Reshape", ["", "flat"], {}),
        ("Tanh", [""], {}),
        ("MatMul", ["", "(80, 2)"], {}),
        ("Add", ["of two", ""], {}),
    ],
    "normalised while flat": [
        CONV,
        ("Reshape", ["", "flat, too"], {}),
        ("BatchNormalization", ["", *["of eighty"] * 4], {}),
        ("Dropout", ["", "a rate"], {}),
        ("Gemm", ["", "(2, 80)"], {"transB": 1}),
    ],
    "a pool of all pixels": [
        CONV,
        ("GlobalAveragePool", [""], {}),
        ("Flatten", [""], {}),
        ("Gemm", ["", "(4, 2)", "of two"], {}),
    ],
    "the largest of all pixels": [CONV, ("GlobalMaxPool", [""], {})],
    "a mean of all pixels": [
        CONV,
        ("ReduceMean", ["", "pixels"], {"keepdims": 0}),
        ("MatMul", ["", "(4, 2)"], {}),
    ],
    "a mean that keeps the axes": [CONV, ("ReduceMean", ["", "pixels from the end"], {})],
    "pools": [
        CONV,
        ("MaxPool", [""], HALF),
        ("AveragePool", [""], {"kernel_shape": [2, 2], "pads": [1, 0, 1, 0]}),
    ],
    "groups": [CONV, ("GroupNormalization", ["", "of four", "of four also"], {"num_groups": 2})],
    "a residual block": [
        CONV,
        ("Conv", ["", "more filters", "of four"], {"pads": [1] * 4}),
        NORM,
        ("Relu", [""], {}),
        ("Conv", ["", "more filters"], {"pads": [1] * 4}),
        ("Add", ["", "@0"], {}),
        ("Relu", [""], {}),
    ],
    "channels joined": [
        CONV,
        ("Sigmoid", ["@0"], {}),
        ("Tanh", ["@0"], {}),
        ("Concat", ["@1", "@2", "@0"], {"axis": 1}),
    ],
    "swish, as a product": [CONV, ("Sigmoid", ["@0"], {}), ("Mul", ["@0", "@1"], {})],
    "constants by operators": [
        ("Constant", [], {"value": numpy_helper.from_array(CONSTANTS["filters"])}),
        ("Identity", ["@0"], {}),
        ("Constant", [], {"value_floats": [0.5, 1.0, 1.5, 2.0]}),
        ("Conv", ["x", "@1", "@2"], {"pads": [1] * 4}),
    ],
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_with_the_channels_first(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "model.onnx", IMAGES[name], 3, 5, 4)
    read = gn.import_onnx(path, channels_first=True)
    x = np.random.default_rng(1).standard_normal((2, 3, 5, 4)).astype("float32")
    wanted, got = computed(path, x), read(np.moveaxis(x, 1, -1))
    if wanted.ndim > 2:
        wanted = np.moveaxis(wanted, 1, -1)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(FileError, match="channels"):
        gn.import_onnx(path)


def test_sequences_with_the_channels_first(tmp_path: Path) -> None:
    nodes: Nodes = [
        ("Conv", ["", "filters of sequences", "of four"], {}),
        ("MaxPool", [""], {"kernel_shape": [2]}),
        ("LeakyRelu", [""], {"alpha": 0.25}),
    ]
    path = written(tmp_path / "model.onnx", nodes, 3, 8)
    x = np.random.default_rng(1).standard_normal((2, 3, 8)).astype("float32")
    got = gn.import_onnx(path, channels_first=True)(np.moveaxis(x, 1, -1))
    np.testing.assert_allclose(np.moveaxis(got, -1, 1), computed(path, x), rtol=1e-5, atol=1e-5)


#: Graphs of rows (4,).
ROWS: dict[str, Nodes] = {
    "a bias in front": [("MatMul", ["", "(4, 4)"], {}), ("Add", ["of four", ""], {})],
    "branches that are read in turns": [
        ("Relu", ["x"], {}),
        ("Tanh", ["x"], {}),
        ("MatMul", ["@0", "(4, 4)"], {}),
        ("MatMul", ["@1", "(4, 4)"], {}),
        ("Sum", ["@3", "@2", "x"], {}),
    ],
    "a sum with itself": [("Add", ["x", "x"], {})],
    "joined with itself": [("Concat", ["x", "x"], {"axis": 1}), ("Relu", [""], {})],
    "a skip within a skip": [
        ("Relu", ["x"], {}),
        ("Tanh", ["@0"], {}),
        ("Add", ["@0", "@1"], {}),
        ("Add", ["@2", "x"], {}),
    ],
    "norms": [
        ("LayerNormalization", ["", "of four"], {}),
        ("LayerNormalization", ["", "of four", "of four also"], {"epsilon": 0.1}),
    ],
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "model.onnx", ROWS[name], 4)
    x = np.random.default_rng(1).standard_normal((3, 4)).astype("float32")
    np.testing.assert_allclose(gn.import_onnx(path)(x), computed(path, x), rtol=1e-5, atol=1e-5)


#: Graphs of rows that are refused, and why.
REFUSED: dict[str, tuple[Nodes, str]] = {
    "a product of values": (
        [("Relu", ["x"], {}), ("MatMul", ["@0", "x"], {})],
        "MatMul cannot be read: it joins branches",
    ),
    "no end": (
        [("Relu", ["x"], {}), ("Tanh", ["x"], {})],
        "Relu cannot be read: the branches that start before it do not meet again",
    ),
    "a value that comes later": (
        [("Relu", ["@1"], {}), ("Tanh", ["@0"], {})],
        "Relu cannot be read: nothing before it returns 'output'",
    ),
    "entangled": (
        [
            ("Relu", ["x"], {}),
            ("Tanh", ["@0"], {}),
            ("Sigmoid", ["@0"], {}),
            ("Add", ["@1", "@2"], {}),
            ("Concat", ["@3", "@2"], {"axis": -1}),
        ],
        "Concat cannot be read: its branches share operators",
    ),
    "shapes that differ": (
        [("MatMul", ["x", "(4, 2)"], {}), ("Add", ["@0", "x"], {})],
        "Add cannot be read: its branches return",
    ),
    "an axis that is no feature": (
        [("Relu", ["x"], {}), ("Concat", ["@0", "x"], {"axis": 0})],
        "Concat cannot be read: axis is 0",
    ),
    "constants alone": (
        [("Tanh", ["of four"], {}), ("Add", ["x", "@0"], {})],
        "Tanh cannot be read: it reads nothing but constants",
    ),
    "a constant of another kind": (
        [("Constant", [], {"value_string": "x"}), ("Add", ["x", "@0"], {})],
        "Constant cannot be read: it is given by 'value_string'",
    ),
    "a scale": ([("Mul", ["x", "of four"], {})], "Mul cannot be read: gpunn has no layer"),
    "nothing of the input": (
        [("Relu", ["x"], {}), ("Identity", ["of four"], {})],
        "its last operator does not return",
    ),
    "a group norm of something else": (
        [
            ("Mul", ["x", "x"], {}),
            ("ReduceMean", ["", "the last"], {}),
            ("Add", ["", "a rate"], {}),
            ("Sqrt", [""], {}),
            ("Div", ["", "x"], {}),
            ("Mul", ["", "of four"], {}),
        ],
        "Div cannot be read: it joins branches",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    nodes, told = REFUSED[name]
    with pytest.raises(FileError, match=told):
        gn.import_onnx(written(tmp_path / "model.onnx", nodes, 4))


def nested(depth: int) -> Nodes:
    """Return skips within skips."""
    nodes: Nodes = [("Relu", ["x" if i == 0 else f"@{i - 1}"], {}) for i in range(depth)]
    for i in range(depth):
        skipped = "x" if i == depth - 1 else f"@{depth - 2 - i}"
        nodes.append(("Add", [f"@{depth - 1 + i}", skipped], {}))
    return nodes


def test_branches_too_deep_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "model.onnx", nested(20), 4)
    x = np.random.default_rng(1).standard_normal((3, 4)).astype("float32")
    np.testing.assert_allclose(gn.import_onnx(path)(x), computed(path, x), rtol=1e-5)
    with pytest.raises(FileError, match="more than 30 deep"):
        gn.import_onnx(written(path, nested(99), 4))


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        ([CONV, ("Flatten", [""], {})], "has the channels in another place"),
        ([CONV, ("Flatten", [""], {}), ("Tanh", [""], {})], "has the channels in another place"),
        ([CONV, ("MatMul", ["", "(4, 4)"], {})], "MatMul cannot be read: .*channels last"),
        ([CONV, ("Softmax", [""], {"axis": -1})], "Softmax cannot be read: axis is -1"),
        ([CONV, ("Concat", ["@0", "@0"], {"axis": 3})], "Concat cannot be read: axis is 3"),
        ([CONV, ("Reshape", ["", "(0, 4)"], {})], "Reshape cannot be read: samples of"),
    ],
)
def test_what_is_refused_with_the_channels_first(nodes: Nodes, told: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=told):
        gn.import_onnx(written(tmp_path / "model.onnx", nodes, 3, 5, 4), channels_first=True)


def test_a_network_far_larger_than_the_file_is_refused(tmp_path: Path) -> None:
    """Each use of a constant is a layer of its own."""
    square = numpy_helper.from_array(numbers(200, 200), "square")
    tensor = helper.make_tensor_value_info
    for uses, enough in ((3, True), (60, False)):
        names = ["input", *(f"value {i}" for i in range(uses - 1)), "output"]
        nodes = [
            helper.make_node("MatMul", [names[i], "square"], [names[i + 1]]) for i in range(uses)
        ]
        ends = [tensor("input", 1, ["N", 200])], [tensor("output", 1, ["N", 200])]
        model = helper.make_model(helper.make_graph(nodes, "graph", *ends, [square]))
        model.opset_import[0].version = 20
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        if enough:
            assert len(gn.import_onnx(tmp_path / "model.onnx")) == uses
            continue
        with pytest.raises(FileError, match="far larger than the file"):
            gn.import_onnx(tmp_path / "model.onnx")


def test_channels_first_is_a_flag_of_images(tmp_path: Path) -> None:
    path = written(tmp_path / "model.onnx", [("Relu", ["x"], {})], 4)
    with pytest.raises(FileError, match="no channels to come first"):
        gn.import_onnx(path, channels_first=True)
    with pytest.raises(SettingError, match="channels_first must be True or False, got 'yes'"):
        gn.import_onnx(path, channels_first="yes")  # type: ignore[arg-type]
