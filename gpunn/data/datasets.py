"""Data to try networks on: scikit-learn's bundled sets, and files of MNIST's kind.

Nothing is downloaded. Features are float32 and labels int64, on the host, as a `Loader` takes them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpunn.arrays.checks import flag
from gpunn.data.idx import read_idx
from gpunn.errors import FileError, PathError, SettingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Dataset",
    "Split",
    "load_breast_cancer",
    "load_diabetes",
    "load_digits",
    "load_idx",
    "load_iris",
    "load_linnerud",
    "load_wine",
    "read_idx",
]


class Dataset(NamedTuple):
    """Features and targets.

    Attributes
    ----------
    x : ndarray of shape (N, ...)
        Features, float32.
    y : ndarray of shape (N,) or (N, P)
        Labels from 0, int64; or numbers, float32.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]


class Split(NamedTuple):
    """The data to train on, and those to test on."""

    train: Dataset
    test: Dataset


def load_digits(*, flat: bool = False) -> Dataset:
    """Return 1,797 handwritten digits, 8 x 8 pixels in [0, 1], in 10 classes.

    Parameters
    ----------
    flat : bool, default False
        Whether an image is a row, (N, 64), or (N, 8, 8, 1).

    Returns
    -------
    Dataset

    Raises
    ------
    ImportError
        If scikit-learn is not installed.

    Examples
    --------
    >>> import gpunn as gn
    >>> x, y = gn.datasets.load_digits()
    >>> x.shape, x.dtype.name, y.dtype.name
    ((1797, 8, 8, 1), 'float32', 'int64')
    """
    x, y = _bundled("load_digits")
    return Dataset(_images(x.reshape(-1, 8, 8), 16, flat=flag("load_digits", "flat", flat)), y)


def load_iris() -> Dataset:
    """Return 150 flowers with 4 measurements in cm, (150, 4), of 3 species of iris."""
    return _bundled("load_iris")


def load_wine() -> Dataset:
    """Return 178 wines with 13 results of chemical analysis, (178, 13), of 3 growers."""
    return _bundled("load_wine")


def load_breast_cancer() -> Dataset:
    """Return 569 tumours with 30 measurements, (569, 30); label 0 is malignant, 1 benign."""
    return _bundled("load_breast_cancer")


def load_diabetes() -> Dataset:
    """Return 442 patients with 10 standardised features, (442, 10), and their progression."""
    return _bundled("load_diabetes")


def load_linnerud() -> Dataset:
    """Return 20 men with 3 exercises, (20, 3); y are 3 measurements of the body, (20, 3)."""
    return _bundled("load_linnerud")


def load_idx(folder: str | os.PathLike[str], *, flat: bool = False) -> Split:
    """Read MNIST, Fashion-MNIST, or another set in the same four files, from a folder.

    The files are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``,
    ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``, as they are or with ``.gz``.

    Parameters
    ----------
    folder : path
        Where they are.
    flat : bool, default False
        Whether an image is a row, (N, H W), or (N, H, W, 1).

    Returns
    -------
    Split
        ``train`` and ``test``, each with ``x`` and ``y``; pixels are in [0, 1].

    Raises
    ------
    PathError
        If the folder or a file is missing, or cannot be read.
    FileError
        If a file is damaged or of another kind, or the files do not fit each other.

    Examples
    --------
    >>> import gpunn as gn
    >>> (x, y), test = gn.datasets.load_idx("fashion-mnist")  # doctest: +SKIP
    """
    flag("load_idx", "flat", flat)
    if not isinstance(folder, (str, os.PathLike)):
        raise SettingError(f"load_idx: expected the path of a folder, got {type(folder).__name__}")
    train, test = (_pair(Path(folder), part) for part in ("train", "t10k"))
    sizes = [x.shape[1:] for x, _ in (train, test)]
    if sizes[0] != sizes[1]:
        raise FileError(
            f"load_idx: the images in {folder} have {sizes[0]} pixels to train on, and {sizes[1]} "
            "to test on; the files belong to different sets"
        )

    return Split(
        *(Dataset(_images(x, 255, flat=flat), y.astype(np.int64)) for x, y in (train, test))
    )


def _pair(folder: Path, part: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Read images (N, H, W) and labels (N,)."""
    images, labels = (
        _read(folder, f"{part}-{kind}-idx{axes}-ubyte", axes)
        for kind, axes in (("images", 3), ("labels", 1))
    )
    if len(images) != len(labels):
        raise FileError(
            f"load_idx: {folder} has {len(images):,} {part} images and {len(labels):,} labels; "
            "the files belong to different sets"
        )
    return images, labels


def _read(folder: Path, name: str, n_axes: int) -> NDArray[Any]:
    """Read one of the four files, plain or compressed, and check that it holds such bytes."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
    if path is None:
        raise PathError(
            f"load_idx: there is no {name} in {folder}, and no {name}.gz; the folder must have "
            "the four files of MNIST or Fashion-MNIST"
        )
    array = read_idx(path)
    if array.dtype != np.uint8 or array.ndim != n_axes:
        raise FileError(
            f"load_idx: {path} must hold unsigned bytes along {n_axes} axes; it holds "
            f"{array.dtype} of shape {array.shape}"
        )
    return array


def _images(pixels: NDArray[Any], highest: int, *, flat: bool) -> NDArray[np.float32]:
    """Return images (N, H, W) as numbers in [0, 1], channels last, or a row each."""
    x = pixels.astype(np.float32)
    x /= highest
    return x.reshape(len(x), -1) if flat else x[..., None]


def _bundled(name: str) -> Dataset:
    """Return one of scikit-learn's sets; whole numbers are labels."""
    try:
        from sklearn import datasets  # noqa: PLC0415 (optional)
    except ImportError as error:
        raise ImportError(
            f"gpunn.datasets.{name} needs scikit-learn: pip install scikit-learn"
        ) from error
    x, y = getattr(datasets, name)(return_X_y=True)
    if np.issubdtype(y.dtype, np.integer):
        return Dataset(x.astype(np.float32), y.astype(np.int64))
    return Dataset(x.astype(np.float32), y.astype(np.float32).reshape(len(y), -1))
