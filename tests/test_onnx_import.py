"""What is exported and read again computes the same; anything else is refused by name."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpunn as gn
from gpunn.errors import FileError, MissingFileError, SettingError
from tests.cases import LAYERS, LayerCase
from tests.conftest import Place
from tests.networks import BLOCKS, Block, made
from tests.test_onnx_export import stirred

onnx = pytest.importorskip("onnx")


def assert_comes_back(model: gn.Layer, path: Path, x: Any) -> gn.Sequential:
    """Export a model and import it: it computes the same, and so does it when exported again."""
    gn.export_onnx(model, path, x.shape[1:])
    read = gn.import_onnx(path)
    np.testing.assert_allclose(read(x), model(x), rtol=1e-6, atol=1e-6)
    gn.export_onnx(read, path, x.shape[1:])
    np.testing.assert_array_equal(gn.import_onnx(path)(x), read(x))
    return read


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_every_layer_there_and_back(case: LayerCase, tmp_path: Path) -> None:
    model = stirred(case.make("float32"))
    for n in (1, 3):
        x = case.x(n).astype(case.dtype("float32"))
        assert_comes_back(model, tmp_path / "model.onnx", x)


@given(blocks=BLOCKS, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=100)
def test_networks_there_and_back(blocks: tuple[Block, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers, _ = made(blocks, 5, rng, "float32")
    with TemporaryDirectory() as folder:
        x = rng.standard_normal((3, 5)).astype("float32")
        assert_comes_back(stirred(gn.Sequential(*layers)), Path(folder) / "model.onnx", x)


def transformer() -> gn.Sequential:
    def block(causal: bool) -> list[gn.Layer]:
        attention = gn.MultiHeadAttention(6, 2, causal=causal, bias=not causal, rng=2)
        dense = gn.Sequential(gn.LayerNorm(6), gn.Dense(6, 9, "gelu", rng=3), gn.Dense(9, 6, rng=4))
        return [gn.Residual(gn.Sequential(gn.RMSNorm(6), attention)), gn.Residual(dense)]

    parts = gn.Embedding(8, 6, rng=0), gn.Position(9, 6, rng=1), *block(True), *block(False)
    return gn.Sequential(*parts, gn.GlobalAveragePool(), gn.Dense(6, 3, rng=5))


def branches() -> gn.Sequential:
    def convolution(*sizes: int) -> gn.Conv2d:
        return gn.Conv2d(*sizes, "silu", padding="same", rng=sum(sizes))

    inner = gn.Parallel(convolution(4, 2, 1), gn.Residual(convolution(4, 4, 3)))
    deep = gn.Residual(gn.Sequential(inner, gn.GroupNorm(2, 6), convolution(6, 4, 3)))
    parts = convolution(3, 4, 3), gn.BatchNorm(4), deep, gn.Residual(gn.Dropout(0.5))
    more = gn.Residual(gn.Residual(gn.Sequential())), gn.Parallel(gn.ReLU(), gn.Tanh(), join="add")
    return gn.Sequential(*parts, *more, gn.MaxPool2d(2), gn.Flatten(), gn.Dense(24, 2, rng=0))


@pytest.mark.parametrize("make", [transformer, branches])
def test_a_whole_model_there_and_back(make: Any, tmp_path: Path) -> None:
    model, rng = make(), np.random.default_rng(0)
    x = rng.integers(0, 8, (3, 7)) if make is transformer else rng.random((3, 4, 6, 3), "float32")
    read = assert_comes_back(stirred(model), tmp_path / "model.onnx", x)
    for kind in (
        gn.MultiHeadAttention,
        gn.RMSNorm,
        gn.GroupNorm,
        gn.Residual,
        gn.Parallel,
        gn.SiLU,
    ):
        assert f"{kind.__name__}(" not in repr(model) or f"{kind.__name__}(" in repr(read)


def test_sums_after_a_product(tmp_path: Path) -> None:
    """A vector is a bias, a table that of positions."""
    model = gn.Sequential(gn.Dense(4, 6, bias=False, rng=0), gn.Position(3, 6, rng=1))
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype("float32")
    read = assert_comes_back(model, tmp_path / "model.onnx", x)
    assert [type(layer) for layer in read] == [gn.Dense, gn.Position]


def network() -> gn.Sequential:
    model = gn.Sequential(
        gn.Conv2d(2, 4, 3, "relu", padding="same", rng=0),
        gn.BatchNorm(4),
        gn.MaxPool2d(2),
        gn.Flatten(),
        gn.Dense(24, 5, "silu", rng=1),
        gn.Dropout(0.5),
        gn.Dense(5, 3, rng=2),
    )
    stirred(model)
    return model


@pytest.fixture
def path(tmp_path: Path) -> Path:
    gn.export_onnx(network(), tmp_path / "model.onnx", (5, 6, 2))
    return tmp_path / "model.onnx"


def test_a_network_trains_on(path: Path) -> None:
    model, read = network(), gn.import_onnx(path)
    x = np.random.default_rng(0).standard_normal((3, 5, 6, 2)).astype("float32")
    np.testing.assert_allclose(read(x), model(x), rtol=1e-5, atol=1e-6)
    kinds = " ".join(type(layer).__name__ for layer in read)
    assert kinds == "Conv2d ReLU BatchNorm MaxPool2d Flatten Dense SiLU Dense"
    optimizer = gn.SGD(read.parameters(), learning_rate=0.1)
    gn.train_step(read, gn.SoftmaxCrossEntropy(), optimizer, x, np.array([0, 1, 2]))
    assert not np.array_equal(read(x), model(x))


def test_it_comes_to_the_default_backend(path: Path, place: Place) -> None:
    with gn.use(backend=place.backend):
        read = gn.import_onnx(path)
    x = np.random.default_rng(0).standard_normal((3, 5, 6, 2)).astype("float32")
    got = gn.to_numpy(read(place.backend.asarray(x)))
    np.testing.assert_allclose(got, network()(x), rtol=1e-5, atol=1e-5)


def edited(path: Path, change: Any) -> Path:
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def node_of(model: Any, operator: str) -> Any:
    return next(node for node in model.graph.node if node.op_type == operator)


def other_operator(model: Any) -> None:
    node_of(model, "Relu").op_type = "Erf"


def other_domain(model: Any) -> None:
    node_of(model, "Relu").domain = "com.example"


def other_setting(model: Any) -> None:
    node_of(model, "Relu").attribute.append(onnx.helper.make_attribute("leak", 0.1))


def asymmetric(model: Any) -> None:
    (pads,) = [each for each in node_of(model, "Conv").attribute if each.name == "pads"]
    pads.ints[:] = [2, 1, 0, 1]


def external(model: Any) -> None:
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    entry = model.graph.initializer[0].external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def announces_more(model: Any) -> None:
    model.graph.initializer[0].dims[0] = 2**40


def negative(model: Any) -> None:
    model.graph.initializer[0].dims[0] *= -1
    model.graph.initializer[0].dims[1] *= -1


def far_version(model: Any) -> None:
    model.opset_import[0].version = 99


def no_lengths(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "H"


def many_groups(model: Any) -> None:
    (group,) = [each for each in node_of(model, "Conv").attribute if each.name == "group"]
    group.i = 2**40


def layout_first(model: Any) -> None:
    node = node_of(model, "Transpose")
    model.graph.node[1].input[0] = node.input[0]
    model.graph.node.remove(node)


def wide_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2**40


CHANGES = {
    other_operator: "the operator Erf cannot be read: gpunn has no layer",
    other_domain: "the operator com.example.Relu cannot be read: gpunn has no layer",
    other_setting: "the operator Relu cannot be read: its setting 'leak' is not known",
    asymmetric: r"the operator Conv cannot be read: pads are \[2, 1, 0, 1\]",
    external: "is in another file, which is not read",
    announces_more: r"the constant 'layers.0.weight' has 72 numbers",
    negative: r"the constant 'layers.0.weight' has 72 numbers",
    far_version: "of version 99",
    no_lengths: "must be given as numbers",
    many_groups: "the operator Conv cannot be read: .*groups",
    layout_first: "the operator Conv cannot be read: it needs the channels first",
    wide_input: "the operator Reshape cannot be read: samples of .* do not become",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_not_understood_is_refused(change: Any, path: Path) -> None:
    with pytest.raises(FileError, match=CHANGES[change]):
        gn.import_onnx(edited(path, change))


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Return the content with three bytes changed; the end may be missing."""
    end = rng.integers(1, len(content)) if rng.random() < 0.3 else len(content)
    changed = bytearray(content[:end])
    for place in rng.integers(0, end, 3):
        changed[place] = rng.integers(256)
    return bytes(changed)


def test_damage_is_refused_or_read(path: Path) -> None:
    content, refusals = path.read_bytes(), []
    rng = np.random.default_rng(0)
    for _ in range(400):
        path.write_bytes(damaged(content, rng))
        try:
            gn.import_onnx(path)
        except FileError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert all(10 < len(each) < 3000 for each in refusals)


def test_what_is_no_file_of_onnx(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no file"):
        gn.import_onnx(tmp_path / "none.onnx")
    with pytest.raises(SettingError, match="expected a path, got int"):
        gn.import_onnx(3)  # type: ignore[arg-type]
    gn.save(tmp_path / "weights", gn.Dense(3, 2))
    with pytest.raises(FileError, match="not an ONNX file, or is damaged"):
        gn.import_onnx(tmp_path / "weights")
