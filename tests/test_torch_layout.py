"""State dicts of PyTorch's, loaded into the same layers: they compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gpunn as gn
from gpunn.errors import FileError, SettingError

IMAGES, SEQUENCES = (5, 6, 4), (7, 4)

#: Our layer, theirs, the shape of a sample, and whether the two have the channels elsewhere.
PAIRS: dict[str, tuple[Any, Any, tuple[int, ...], bool]] = {
    "dense": (lambda: gn.Dense(4, 3), lambda nn: nn.Linear(4, 3), (4,), False),
    "conv": (
        lambda: gn.Conv2d(4, 6, (3, 2), stride=2, groups=2),
        lambda nn: nn.Conv2d(4, 6, (3, 2), stride=2, groups=2),
        IMAGES,
        True,
    ),
    "conv1d": (
        lambda: gn.Conv1d(4, 4, 3, groups=2),
        lambda nn: nn.Conv1d(4, 4, 3, groups=2),
        SEQUENCES,
        True,
    ),
    "transposed": (
        lambda: gn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2),
        lambda nn: nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2),
        IMAGES,
        True,
    ),
    "batch norm": (lambda: gn.BatchNorm(4), lambda nn: nn.BatchNorm2d(4), IMAGES, True),
    "layer norm": (lambda: gn.LayerNorm(4), lambda nn: nn.LayerNorm(4), SEQUENCES, False),
    "rms norm": (lambda: gn.RMSNorm(4), lambda nn: nn.RMSNorm(4, eps=1e-5), SEQUENCES, False),
    "group norm": (lambda: gn.GroupNorm(2, 4), lambda nn: nn.GroupNorm(2, 4), IMAGES, True),
    "prelu": (lambda: gn.PReLU(4), lambda nn: nn.PReLU(4), IMAGES, True),
}


def theirs_to_file(torch: Any, module: Any, path: Path, dtype: str = "float32") -> None:
    """Write a state dict of random numbers, as PyTorch's users do."""
    writer = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    with torch.no_grad():
        for each in module.state_dict().values():
            if each.is_floating_point():
                each.uniform_(0.2, 1.5)
    cast = {
        name: each.to(getattr(torch, dtype)) if each.is_floating_point() else each
        for name, each in module.state_dict().items()
    }
    writer.save_file(cast, path, metadata={"format": "pt"})


@pytest.mark.parametrize("name", PAIRS)
def test_layers(name: str, torch: Any, tmp_path: Path) -> None:
    ours, theirs, sample, moved = PAIRS[name]
    model, module = ours(), theirs(torch.nn).eval()
    theirs_to_file(torch, module, tmp_path / "file")
    assert gn.load(tmp_path / "file", model, layout="torch") == ([], [])
    x = np.random.default_rng(0).standard_normal((3, *sample)).astype("float32")
    given = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1) if moved else x))
    wanted = module(given).detach().numpy()
    wanted = np.moveaxis(wanted, 1, -1) if moved else wanted
    np.testing.assert_allclose(model(x), wanted, rtol=1e-5, atol=1e-5)


def test_attention(torch: Any, tmp_path: Path) -> None:
    model, module = gn.MultiHeadAttention(4, 2), torch.nn.MultiheadAttention(4, 2, batch_first=True)
    theirs_to_file(torch, module, tmp_path / "file")
    assert gn.load(tmp_path / "file", model, layout="torch") == ([], [])
    x = np.random.default_rng(0).standard_normal((3, 5, 4)).astype("float32")
    wanted, _ = module(*[torch.from_numpy(x)] * 3)
    np.testing.assert_allclose(model(x), wanted.detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_halves_are_read_where_asked(dtype: str, torch: Any, tmp_path: Path) -> None:
    model, module = gn.Conv2d(4, 6, 3), torch.nn.Conv2d(4, 6, 3)
    theirs_to_file(torch, module, tmp_path / "file", dtype)
    with pytest.raises(FileError, match=f"of another dtype: weight is {dtype}"):
        gn.load(tmp_path / "file", model, layout="torch")
    assert gn.load(tmp_path / "file", model, convert=True, layout="torch") == ([], [])
    wanted = module.weight.to(getattr(torch, dtype)).float().detach().numpy()
    np.testing.assert_array_equal(model.weight.value, wanted.transpose(2, 3, 1, 0))


def network(seed: int) -> gn.Sequential:
    settings: Any = {"rng": seed}
    return gn.Sequential(
        gn.Conv1d(2, 3, 3, **settings), gn.BatchNorm(3), gn.Flatten(), gn.Dense(9, 2, **settings)
    )


def as_torch(model: gn.Sequential, named: Any) -> dict[str, Any]:
    """Return the arrays of `network` as PyTorch has them, written out by hand."""
    conv, norm, _, dense = model.layers
    assert isinstance(conv, gn.Conv1d)
    assert isinstance(norm, gn.BatchNorm)
    assert isinstance(dense, gn.Dense)
    arrays = {
        "0.weight": conv.weight.value[0].transpose(2, 1, 0),
        "0.bias": conv.bias.value,
        "1.weight": norm.gain.value,
        "1.bias": norm.bias.value,
        "1.running_mean": norm.running_mean.value,
        "1.running_var": norm.running_variance.value + 2,
        "1.num_batches_tracked": np.array(7),
        # Its rows are those of 3 steps of 3 channels, which PyTorch flattens channel by channel.
        "3.weight": dense.weight.value.reshape(3, 3, 2).transpose(2, 1, 0).reshape(2, 9),
        "3.bias": dense.bias.value,
    }
    return {named(name): np.ascontiguousarray(x) for name, x in arrays.items()}


LAYERS = {"layers.0": "conv", "layers.1": "norm", "layers.3": "out", "layers.3.bias": "last"}
THEIRS = {"0": "conv", "1": "norm", "3": "out"}


def named_by_table(name: str) -> str:
    layer, _, end = name.partition(".")
    return "last" if name == "3.bias" else f"{THEIRS[layer]}.{end}"


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (None, lambda name: f"layers.{name}"),
        (lambda name: name.removeprefix("layers."), lambda name: name),
        (LAYERS, named_by_table),
    ],
    ids=["the model's", "a function", "a dict"],
)
def test_names_are_mapped(names: Any, named: Any, tmp_path: Path) -> None:
    saved, model = network(0), network(1)
    save_file(as_torch(saved, named), tmp_path / "file", metadata={"format": "pt"})
    assert gn.load(tmp_path / "file", model, layout="torch", names=names) == ([], [])
    for name, held in saved.named_parameters().items():
        np.testing.assert_array_equal(model.named_parameters()[name].value, held.value)
    np.testing.assert_array_equal(model.named_buffers()["layers.1.running_variance"].value, 3)


def test_names_without_a_layout(tmp_path: Path) -> None:
    saved, model = network(0), network(1)
    gn.save(tmp_path / "file", saved)
    arrays = {f"net.{name}": array for name, array in load_file(tmp_path / "file").items()}
    save_file(arrays, tmp_path / "file")
    assert gn.load(tmp_path / "file", model, names=lambda name: f"net.{name}") == ([], [])
    np.testing.assert_array_equal(model.parameters()[0].value, saved.parameters()[0].value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"layer.0": "conv"}, "names has 'layer.0', and the model has no such array or layer"),
        ({"layers.0": 3}, "names gives 3 for layers.0.weight; expected a string"),
        (lambda name: None, "names gives None for layers.0.weight"),
        ("conv", "names must be a dict or a function, got 'conv'"),
    ],
)
def test_what_maps_no_names(names: Any, message: str, tmp_path: Path) -> None:
    gn.save(tmp_path / "file", network(0))
    with pytest.raises(SettingError, match=message):
        gn.load(tmp_path / "file", network(1), names=names)


def test_a_count_without_statistics_is_unexpected(tmp_path: Path) -> None:
    arrays = as_torch(network(0), lambda name: f"layers.{name}")
    save_file({**arrays, "layers.3.num_batches_tracked": np.array(1)}, tmp_path / "file")
    with pytest.raises(FileError, match=r"unexpected in the file: layers\.3\.num_batches_tracked"):
        gn.load(tmp_path / "file", network(1), layout="torch")
