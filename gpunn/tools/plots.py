"""Plots by matplotlib: learning curves, confusion matrices, weights.

Each function returns the axes it drew on, and does not show them: ``axes.figure.savefig(...)``
writes a file, and a notebook shows the figure by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn._typing import Shape
from gpunn.arrays.checks import flag, is_sized, sample_shape, shown, whole_number
from gpunn.arrays.exchange import named_numpy, to_numpy
from gpunn.errors import SettingError, ShapeError
from gpunn.nn.layer import Layer
from gpunn.training.history import History

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Columns of a history that are drawn only on request.
_OMITTED = ("elapsed_s", "samples_per_s", "learning_rate")

#: The width and height of a panel, in inches.
_PANEL = (4.5, 3.5)


def plot_history(
    history: History, names: Sequence[str] | str | None = None, *, axes: Any = None
) -> list[Any]:
    """Draw the learning curves of a training run, with one panel per quantity.

    A column and its ``validation_`` twin share a panel; a line marks the best epoch.

    Parameters
    ----------
    history : History
        The history returned by `Trainer.fit`, or an estimator's ``history_``.
    names : str or sequence of str, optional
        The quantities to draw, such as ``["loss", "accuracy"]``. By default all except times and
        the learning rate.
    axes : matplotlib.axes.Axes or sequence of them, optional
        The axes to draw on, one per quantity; by default on a new figure.

    Returns
    -------
    axes : list of matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    SettingError
        If there is no such column, no epoch, or the wrong number of axes.
    """
    if not isinstance(history, History):
        raise SettingError(
            "plot_history: expected a History, as returned by trainer.fit, got "
            f"{type(history).__name__}"
        )
    if not len(history):
        raise SettingError("plot_history: the history has no epochs")
    names = [names] if isinstance(names, str) else list(names or _quantities(history))
    columns = history.to_dict()
    panels = _panels("plot_history", axes, len(names))
    for panel, name in zip(panels, names, strict=True):
        for column, label in ((name, "training"), (f"validation_{name}", "validation")):
            if column in history:
                panel.plot(columns["epoch"], columns[column], label=label)
        if not panel.lines:
            raise SettingError(
                f"plot_history: no column {shown(name)}; there are {', '.join(history.columns)}"
            )
        if history.best_epoch and len(history) > 1:
            panel.axvline(history.best_epoch, color="gray", ls=":", label="best epoch")
        panel.set(xlabel="epoch", ylabel=name.replace("_", " "))
        panel.grid(alpha=0.3)
        panel.legend()
    return panels


def _quantities(history: History) -> list[str]:
    """Return the names of the measured quantities, without the validation prefix, each once."""
    names = (name.removeprefix("validation_") for name in history.columns if name not in _OMITTED)
    return list(dict.fromkeys(names))


def plot_confusion(
    y: Any,
    predicted: Any,
    *,
    classes: Sequence[Any] | None = None,
    normalize: bool = False,
    axes: Any = None,
) -> Any:
    """Draw how often each class was predicted for each true class.

    Parameters
    ----------
    y : array of shape (N,)
        The true labels.
    predicted : array of shape (N,) or (N, K)
        The predicted labels; or outputs or probabilities, whose largest entry is the prediction. y
        must then hold labels from 0 to K - 1.
    classes : sequence, optional
        The name of each class that occurs, in ascending order of labels (for outputs, of all K).
    normalize : bool, default False
        Whether to show shares of each true class instead of counts.
    axes : matplotlib.axes.Axes, optional
        The axes to draw on; by default on a new figure.

    Returns
    -------
    axes : matplotlib.axes.Axes
        True classes are rows, predicted ones columns.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    ShapeError, SettingError
        If the arrays do not fit each other, or `classes` does not fit the labels.
    """
    flag("plot_confusion", "normalize", normalize)
    y, predicted = (
        named_numpy("plot_confusion", name, x) for name, x in (("y", y), ("predicted", predicted))
    )
    counts, labels = _confusion(y, predicted)
    names = labels.tolist() if classes is None else classes
    if not is_sized(names) or len(names) != len(labels):
        raise SettingError(
            f"plot_confusion: classes must be names for {len(labels)} classes, got {shown(classes)}"
        )
    (panel,) = _panels("plot_confusion", axes, 1, side=max(3.5, 0.5 * len(names)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    panel.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.ndindex(counts.shape):
        share = shares[row, column]
        text = f"{share:.2f}" if normalize else f"{counts[row, column]}"
        color = "white" if share > 0.5 else "black"
        panel.text(column, row, text, ha="center", va="center", color=color)
    panel.set_xticks(range(len(names)), [str(name) for name in names])
    panel.set_yticks(range(len(names)), [str(name) for name in names])
    panel.set(xlabel="predicted", ylabel="true")
    return panel


def _confusion(y: NDArray[Any], predicted: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the counts (K, K) of true and predicted labels, and the sorted labels."""
    scores = predicted.ndim == 2
    if y.ndim != 1 or predicted.ndim not in (1, 2) or len(y) != len(predicted) or not len(y):
        raise ShapeError(
            "plot_confusion: expected y of shape (N,) and predicted of shape (N,) or (N, K), "
            f"got {y.shape} and {predicted.shape}"
        )
    if scores:
        labels, predicted = np.arange(predicted.shape[1]), predicted.argmax(axis=1)
        if not np.isin(y, labels).all():
            raise SettingError(
                f"plot_confusion: predicted has outputs for {len(labels)} classes, so y must hold "
                f"labels from 0 to {len(labels) - 1}"
            )
    else:
        try:
            labels = np.unique(np.concatenate([y, predicted]))
        except TypeError as error:
            raise SettingError(
                f"plot_confusion: the labels in y and predicted cannot be sorted: {error}"
            ) from error
    k = len(labels)
    codes = k * np.searchsorted(labels, y) + np.searchsorted(labels, predicted)
    return np.bincount(codes, minlength=k * k).reshape(k, k), labels


def plot_weights(
    layer: Layer, *, shape: Shape | None = None, limit: int = 64, axes: Any = None
) -> Any:
    """Draw the weights of a layer as images, one per neuron, red above zero and blue below.

    Parameters
    ----------
    layer : Layer
        A layer or network; its first parameter with at least two axes is drawn.
    shape : tuple of int, optional
        The height and width of a dense layer's input images, such as ``(28, 28)``. By default a
        square if the number of inputs allows; otherwise the whole matrix is drawn as one image.
    limit : int, default 64
        The largest number of images.
    axes : matplotlib.axes.Axes, optional
        The axes to draw on; by default on a new figure.

    Returns
    -------
    axes : matplotlib.axes.Axes

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    SettingError
        If there are no weights, or they do not have that shape.
    """
    limit = whole_number("plot_weights", "limit", limit)
    name, weight = _weight(layer)
    images = list(_images(name, weight, shape))[:limit]
    (panel,) = _panels("plot_weights", axes, 1)
    highest = max(float(np.abs(image).max(initial=0.0)) for image in images) or 1.0
    drawn = panel.imshow(_mosaic(images), cmap="RdBu_r", vmin=-highest, vmax=highest)
    panel.set(title=name, xticks=[], yticks=[])
    panel.figure.colorbar(drawn, ax=panel)
    return panel


def _weight(layer: Any) -> tuple[str, NDArray[Any]]:
    """Return the name and values of a layer's first parameter with two axes or more."""
    if not isinstance(layer, Layer):
        raise SettingError(f"plot_weights: expected a layer, got {type(layer).__name__}")
    for name, parameter in layer.named_parameters().items():
        if parameter.value.ndim > 1:
            return name, to_numpy(parameter.value)
    raise SettingError(f"plot_weights: {layer!r} has no weights with two axes or more")


def _images(name: str, weight: NDArray[Any], shape: Shape | None) -> Iterator[NDArray[Any]]:
    """Yield the weights (..., outputs) of each output, and each channel, as an image.

    A matrix whose rows are not images is a single image.
    """
    if weight.ndim == 2:
        sides = _sides(name, weight.shape[0], shape)
        if sides is None:
            yield weight
            return
        weight = weight.reshape(*sides, -1)
    yield from np.moveaxis(weight.reshape(*weight.shape[:2], -1), 2, 0)


def _sides(name: str, n_inputs: int, shape: Any) -> Shape | None:
    """Return the height and width of an image with `n_inputs` pixels; None if not a square."""
    if shape is None:
        side = math.isqrt(n_inputs)
        return (side, side) if side * side == n_inputs else None
    sides = sample_shape("plot_weights", shape, "shape")
    if len(sides) != 2 or math.prod(sides) != n_inputs:
        raise SettingError(
            f"plot_weights: {name} has {n_inputs} inputs, so shape must be two numbers whose "
            f"product is {n_inputs}, got {shown(shape)}"
        )
    return sides


def _mosaic(images: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return images of equal shape arranged in a grid, separated by lines of NaN."""
    n_columns = math.ceil(math.sqrt(len(images)))
    n_rows = math.ceil(len(images) / n_columns)
    height, width = images[0].shape
    grid = np.full((n_rows * (height + 1) - 1, n_columns * (width + 1) - 1), np.nan)
    for i, image in enumerate(images):
        top, left = (i // n_columns) * (height + 1), (i % n_columns) * (width + 1)
        grid[top : top + height, left : left + width] = image
    return grid


def _panels(owner: str, axes: Any, n: int, side: float | None = None) -> list[Any]:
    """Return the axes to draw on: the given ones, or a row of n new ones."""
    try:
        from matplotlib import pyplot as plt  # noqa: PLC0415 (optional)
        from matplotlib.axes import Axes  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"gpunn.{owner} needs matplotlib: pip install matplotlib") from error
    if axes is None:
        size = (_PANEL[0] * n, _PANEL[1]) if side is None else (side, side)
        _, panels = plt.subplots(1, n, figsize=size, squeeze=False, layout="constrained")
        return list(panels[0])
    given = axes.ravel().tolist() if isinstance(axes, np.ndarray) and axes.size == n else axes
    given = given if isinstance(given, (list, tuple)) else [given]
    if len(given) != n or not all(isinstance(each, Axes) for each in given):
        raise SettingError(f"{owner}: axes must be {n} matplotlib Axes, got {shown(axes)}")
    return list(given)
