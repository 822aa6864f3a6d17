"""Exported graphs, computed by ONNX Runtime, return what the models return."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn.errors import PathError, SettingError, ShapeError
from tests.cases import LAYERS, LayerCase

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")


def computed(path: Path, x: Any) -> Any:
    """Return what ONNX Runtime computes from a file, which is also checked to be valid ONNX."""
    onnx.checker.check_model(onnx.load(path), full_check=True)
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = runtime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"input": x})
    return y


def stirred(model: gn.Layer) -> gn.Layer:
    """Return the model with parameters and buffers that differ from each other, all positive."""
    rng = np.random.default_rng(5)
    for item in (*model.parameters(), *model.named_buffers().values()):
        if item.value.ndim == 1:
            item.value[...] = rng.uniform(0.5, 1.5, item.value.shape)
    return model


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_every_layer(case: LayerCase, tmp_path: Path) -> None:
    old = tuple(map(int, runtime.__version__.split(".")[:2])) < (1, 24)  # the last for Python 3.10
    if old and case.name.startswith("LayerNorm(1)"):
        pytest.skip("ONNX Runtime before 1.24 refuses LayerNormalization over one feature")
    model, path = stirred(case.make("float32")), tmp_path / "model.onnx"
    gn.export_onnx(model, path, case.sample)
    for n in (1, 3):
        x = case.x(n).astype(case.dtype("float32"))
        wanted = model(x)
        got = computed(path, x)
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_parameters_keep_their_names_and_shared_ones_are_there_once(tmp_path: Path) -> None:
    layer = gn.Dense(4, 4, rng=0)
    gn.export_onnx(gn.Sequential(layer, layer), tmp_path / "model.onnx", 4)
    names = [each.name for each in onnx.load(tmp_path / "model.onnx").graph.initializer]
    assert names == ["layers.0.weight", "layers.0.bias"]


class Mine(gn.Dense):
    """A layer that may compute anything."""


class Curve(gn.Activation):
    """An activation that may compute anything."""

    def function(self, xp: Any, x: Any) -> Any:
        return x * x


@pytest.mark.parametrize(
    "model",
    [
        Mine(4, 4, rng=0),
        gn.Residual(gn.Sequential(gn.ReLU(), Mine(4, 4, rng=0))),
        Curve(),
        gn.Dense(4, 4, Curve(), rng=0),
    ],
    ids=["layer", "inner", "activation", "of a layer"],
)
def test_a_layer_without_a_counterpart_is_named(model: gn.Layer, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"export_onnx: (Mine|Curve), .*no counterpart"):
        gn.export_onnx(model, tmp_path / "model.onnx", 4)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", gn.Dense(4, 3, rng=0)
    with pytest.raises(ShapeError, match=r"Dense\(4, 3\).*got \(1, 5\)"):
        gn.export_onnx(model, path, 5)
    with pytest.raises(SettingError, match="weight is float64"):
        gn.export_onnx(gn.Dense(4, 3, rng=0, dtype="float64"), path, 4)
    with pytest.raises(SettingError, match="input_shape must be a shape"):
        gn.export_onnx(model, path, (None, 4))  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="got str as the model"):
        gn.export_onnx("model.onnx", model, 4)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="expected a path, got int"):
        gn.export_onnx(model, 3, 4)  # type: ignore[arg-type]
    with pytest.raises(PathError, match="no folder"):
        gn.export_onnx(model, tmp_path / "none" / "model.onnx", 4)
    assert not list(tmp_path.iterdir())


def test_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="needs onnx: pip install onnx"):
        gn.export_onnx(gn.Dense(4, 3), tmp_path / "model.onnx", 4)


@pytest.mark.gpu
def test_from_a_device(tmp_path: Path) -> None:
    model = gn.Sequential(gn.Dense(4, 5, "tanh", rng=0), gn.LayerNorm(5))
    gn.export_onnx(model, tmp_path / "host.onnx", 4)
    gn.export_onnx(model.to("cupy"), tmp_path / "device.onnx", 4)
    assert (tmp_path / "host.onnx").read_bytes() == (tmp_path / "device.onnx").read_bytes()
