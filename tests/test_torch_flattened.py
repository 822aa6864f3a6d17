"""Networks that flatten images, which PyTorch does in another order; files in its layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import gpunn as gn
from gpunn.errors import FileError
from tests.cases import LAYERS, LayerCase
from tests.saved import bits
from tests.test_torch_layout import theirs_to_file


def cnn(*after: gn.Layer) -> gn.Sequential:
    return gn.Sequential(gn.Conv2d(1, 3, 3, "relu"), *after)


class Parts(gn.Layer):
    """A network whose layers are attributes, as PyTorch's users write it."""

    def __init__(self) -> None:
        self.features = gn.Sequential(gn.Conv2d(1, 3, 3), gn.BatchNorm(3), gn.MaxPool2d(2))
        self.classifier = gn.Sequential(gn.Flatten(), gn.Dropout(0.5), gn.Dense(12, 2))

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        return self.classifier.forward(self.features.forward(x, tape), tape)


#: A network of ours, the same of theirs, the shape of a sample, and the names where they differ.
Case = tuple[Callable[[], gn.Layer], Callable[[Any], Any], tuple[int, ...], dict[str, str]]
NETWORKS: dict[str, Case] = {
    "a matrix": (
        lambda: cnn(gn.MaxPool2d((2, 1)), gn.Flatten(), gn.Dense(30, 4, "relu"), gn.Dense(4, 2)),
        lambda nn: nn.Sequential(
            *(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d((2, 1)), nn.Flatten()),
            *(nn.Linear(30, 4), nn.ReLU(), nn.Linear(4, 2)),
        ),
        (6, 7, 1),
        {"layers.0": "0", "layers.3": "4", "layers.4": "6"},
    ),
    "sequences": (
        lambda: gn.Sequential(gn.Conv1d(2, 3, 2), gn.Flatten(), gn.Dense(18, 4)),
        lambda nn: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(18, 4)),
        (7, 2),
        {"layers.0": "0", "layers.2": "2"},
    ),
    "numbers for features": (
        lambda: cnn(gn.Reshape(60), gn.BatchNorm(60), gn.PReLU(60), gn.PReLU(), gn.Dense(60, 2)),
        lambda nn: nn.Sequential(
            *(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(60)),
            *(nn.PReLU(60), nn.PReLU(), nn.Linear(60, 2)),
        ),
        (6, 7, 1),
        {f"layers.{i}": str(j) for i, j in ((0, 0), (2, 3), (3, 4), (4, 5), (5, 6))},
    ),
    "back to images": (
        lambda: cnn(
            *(gn.Flatten(), gn.Dense(60, 24, "relu"), gn.BatchNorm(24)),
            *(gn.Reshape((3, 4, 2)), gn.ConvTranspose2d(2, 3, 2), gn.GlobalAveragePool()),
            gn.Dense(3, 2),
        ),
        lambda nn: nn.Sequential(
            *(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(60, 24), nn.ReLU()),
            *(nn.BatchNorm1d(24), nn.Unflatten(1, (2, 3, 4)), nn.ConvTranspose2d(2, 3, 2)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)),
        ),
        (6, 7, 1),
        {f"layers.{i}": str(j) for i, j in ((0, 0), (2, 3), (3, 5), (5, 7), (7, 10))},
    ),
    "attributes": (
        Parts,
        lambda nn: nn.ModuleDict(
            {
                "features": nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.MaxPool2d(2)),
                "classifier": nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(12, 2)),
            }
        ),
        (6, 7, 1),
        {
            f"{part}.layers.{i}": f"{part}.{i}"
            for part, i in (("features", 0), ("features", 1), ("classifier", 2))
        },
    ),
}


def compute(module: Any, x: Any) -> Any:
    for part in module.values() if hasattr(module, "values") else [module]:
        x = part(x)
    return x


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_the_same(name: str, torch: Any, tmp_path: Path) -> None:
    ours, theirs, sample, names = NETWORKS[name]
    model, module = ours(), theirs(torch.nn).eval()
    theirs_to_file(torch, module, tmp_path / "file")
    assert gn.load(tmp_path / "file", model, layout="torch", names=names) == ([], [])
    x = np.random.default_rng(0).standard_normal((3, *sample)).astype("float32")
    given = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
    wanted = compute(module, given).detach().numpy()
    np.testing.assert_allclose(model(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_they_load_what_we_save(name: str, torch: Any, tmp_path: Path) -> None:
    ours, theirs, _, names = NETWORKS[name]
    model, module, other = ours(), theirs(torch.nn), theirs(torch.nn)
    theirs_to_file(torch, module, tmp_path / "file")
    gn.load(tmp_path / "file", model, layout="torch", names=names)
    gn.save(tmp_path / "back", model, layout="torch", names=names)
    state = {key: torch.from_numpy(array) for key, array in load_file(tmp_path / "back").items()}
    other.load_state_dict(state)  # which refuses names that are missing or unexpected
    for key, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


def used_twice() -> gn.Sequential:
    dense = gn.Dense(60, 60)
    return cnn(gn.Flatten(), dense, dense)


REFUSED = {
    "it is used in two places": used_twice,
    "it adds flattened images": lambda: cnn(gn.Flatten(), gn.Residual(gn.Dense(60, 60))),
    "it joins flattened images": lambda: cnn(
        gn.Parallel(gn.Flatten(), gn.Sequential(gn.MaxPool2d(2), gn.Flatten())), gn.Dense(72, 2)
    ),
    "groups are of neighbouring": lambda: cnn(gn.Flatten(), gn.GroupNorm(2, 60), gn.Dense(60, 2)),
    "61 features cannot be images of 3": lambda: cnn(gn.Flatten(), gn.Dense(61, 2)),
    "they had 3 channels": lambda: cnn(gn.Flatten(), gn.Reshape((5, 6, 2)), gn.Conv2d(2, 2, 1)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_an_order_that_cannot_be_told_is_refused(why: str, tmp_path: Path) -> None:
    model = REFUSED[why]()
    gn.save(tmp_path / "ours", model)
    gn.load(tmp_path / "ours", model)  # which needs no order
    save_file(load_file(tmp_path / "ours"), tmp_path / "file")
    before = bits(model)
    for layout_of in (gn.save, gn.load):
        with pytest.raises(FileError, match=f"flattens in another order; .* {why}"):
            layout_of(tmp_path / "file", model, layout="torch")
    assert bits(model) == before


def test_a_layer_within_itself(tmp_path: Path) -> None:
    model = Parts()
    model.itself = model
    gn.save(tmp_path / "file", model, layout="torch")
    assert gn.load(tmp_path / "file", model, layout="torch") == ([], [])


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_what_is_saved_in_their_layout_comes_back(case: LayerCase, tmp_path: Path) -> None:
    model, fresh = case.make("float32"), case.make("float32")
    for item in fresh.parameters():
        item.value += 1
    gn.save(tmp_path / "file", model, layout="torch")
    assert gn.load(tmp_path / "file", fresh, layout="torch") == ([], [])
    assert bits(fresh) == bits(model)


def test_a_file_in_their_layout_says_so(tmp_path: Path) -> None:
    model = gn.Dense(3, 3)
    gn.save(tmp_path / "file", model, layout="torch")
    with pytest.raises(FileError, match=r"its format is 'pt 1'.*pass layout='torch'"):
        gn.load(tmp_path / "file", model)


def test_two_arrays_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="names gives 'x' for several arrays of the model"):
        gn.save(tmp_path / "file", gn.Dense(3, 3), names=lambda _: "x")
    assert not [*tmp_path.iterdir()]
