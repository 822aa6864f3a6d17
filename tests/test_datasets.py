"""scikit-learn's bundled sets, as arrays."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn import datasets

import gpunn as gn

SETS = ("breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine")


@pytest.mark.parametrize("name", SETS)
def test_the_sets_are_those_of_scikit_learn(name: str) -> None:
    x, y = getattr(gn.datasets, f"load_{name}")()
    wanted_x, wanted_y = getattr(datasets, f"load_{name}")(return_X_y=True)
    scale = 16 if name == "digits" else 1
    np.testing.assert_allclose(x.reshape(len(x), -1), wanted_x / scale, rtol=1e-6)
    assert x.dtype == np.float32
    labels = np.issubdtype(wanted_y.dtype, np.integer)
    assert y.dtype == (np.int64 if labels else np.float32)
    assert y.ndim == (1 if labels else 2)
    np.testing.assert_allclose(y.ravel(), wanted_y.ravel(), rtol=1e-6)


def test_every_set_that_is_bundled_is_here() -> None:
    images = {"load_sample_image", "load_sample_images"}
    files = {"load_files", "load_svmlight_file", "load_svmlight_files"}
    bundled = {name for name in datasets.__all__ if name.startswith("load_")} - images - files
    assert bundled == {f"load_{name}" for name in SETS}


def test_digits_are_images_or_rows() -> None:
    x, y = gn.datasets.load_digits()
    assert x.shape == (1797, 8, 8, 1)
    assert gn.datasets.load_digits(flat=True).x.tobytes() == x.tobytes()
    assert (x.min(), x.max()) == (0.0, 1.0)
    assert set(y.tolist()) == set(range(10))
    with pytest.raises(gn.errors.SettingError, match="load_digits: flat"):
        gn.datasets.load_digits(flat="yes")  # type: ignore[arg-type]


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match="load_iris needs scikit-learn: pip install scikit-learn"):
        gn.datasets.load_iris()


def test_a_loader_takes_them() -> None:
    batch = next(iter(gn.Loader(*gn.datasets.load_wine(), batch_size=8)))
    assert batch.x.shape == (8, 13)
