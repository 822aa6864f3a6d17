"""Pictures: what is drawn, where, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from tests.conftest import Place

mpl.use("Agg")

from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(autouse=True)
def _never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("a plot was shown"))


def history(**columns: list[float]) -> gn.History:
    made = gn.History()
    given = {"loss": [3.0, 2.0, 1.0], "validation_loss": [4.0, 2.5, 2.6]} | columns
    for numbers in zip(*given.values(), strict=True):
        made.append(dict(zip(given, numbers, strict=True)))
    return made


def curves(axes: Any) -> dict[str, list[float]]:
    return {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.lines}


class TestHistory:
    def test_a_panel_for_each_quantity(self) -> None:
        run = history(accuracy=[0.1, 0.2, 0.3], learning_rate=[1.0] * 3, elapsed_s=[1.0] * 3)
        loss, accuracy = gn.plot_history(run)
        drawn = curves(loss)
        assert drawn["training"] == run["loss"]
        assert drawn["validation"] == run["validation_loss"]
        assert list(loss.lines[0].get_xdata()) == [1, 2, 3]
        assert (loss.get_xlabel(), loss.get_ylabel()) == ("epoch", "loss")
        assert set(curves(accuracy)) == {"training", "best epoch"}
        assert accuracy.lines[-1].get_xdata()[0] == 2  # the best validation loss

    def test_chosen_quantities_on_given_axes(self) -> None:
        _, given = plt.subplots(1, 2)
        run = history(learning_rate=[1.0, 0.5, 0.2])
        drawn = gn.plot_history(run, ["learning_rate", "loss"], axes=given)
        assert drawn == list(given)
        assert curves(given[0])["training"] == [1.0, 0.5, 0.2]
        (alone,) = gn.plot_history(run, "loss", axes=given[0])
        assert alone is given[0]

    def test_a_column_with_gaps(self) -> None:
        run = history()
        run.append({"f1": 0.5})
        _, f1 = gn.plot_history(run)
        assert_array_equal(f1.lines[0].get_ydata(), [np.nan, np.nan, 0.5])

    def test_of_an_estimator(self) -> None:
        x, y = gn.datasets.load_iris()
        model = gn.estimators.MLPClassifier((4,), max_iter=2, metrics=["accuracy"])
        with pytest.warns(match="Maximum iterations"):
            model.fit(x, y)
        assert len(gn.plot_history(model.history_)) == 2

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: gn.plot_history([1.0]), "expected a History"),
            (lambda: gn.plot_history(gn.History()), "no epochs"),
            (lambda: gn.plot_history(history(), ["lss"]), "no column 'lss'; there are loss"),
            (lambda: gn.plot_history(history(), axes=3), "must be 1 matplotlib"),
            (lambda: gn.plot_history(history(), axes=plt.subplots(1, 2)[1]), "be 1 matplotlib"),
        ],
    )
    def test_mistakes(self, call: Any, message: str) -> None:
        with pytest.raises(gn.errors.SettingError, match=message):
            call()


def cells(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def ticks(axes: Any) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


class TestConfusion:
    Y = (0, 0, 2, 2, 2)
    PREDICTED = (0, 2, 2, 2, 0)

    def test_counts_of_labels(self, place: Place) -> None:
        axes = gn.plot_confusion(place.array(self.Y), place.array(self.PREDICTED))
        assert cells(axes) == ["1", "1", "1", "2"]
        assert ticks(axes) == ["0", "2"]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")

    def test_shares_with_names(self) -> None:
        axes = gn.plot_confusion(self.Y, self.PREDICTED, classes=["no", "yes"], normalize=True)
        assert cells(axes) == ["0.50", "0.50", "0.33", "0.67"]
        assert ticks(axes) == ["no", "yes"]

    def test_outputs(self) -> None:
        outputs = np.eye(3)[list(self.PREDICTED)]
        axes = gn.plot_confusion(self.Y, outputs)
        assert cells(axes) == ["1", "0", "1", "0", "0", "0", "1", "0", "2"]

    def test_strings_and_axes(self) -> None:
        _, given = plt.subplots()
        axes = gn.plot_confusion(np.array(["b", "a"]), np.array(["a", "a"]), axes=given)
        assert axes is given
        assert cells(axes) == ["1", "0", "1", "0"]

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: gn.plot_confusion([0, 1], [0]), r"got \(2,\) and \(1,\)"),
            (lambda: gn.plot_confusion([], []), r"got \(0,\) and \(0,\)"),
            (lambda: gn.plot_confusion([[0]], [0]), r"got \(1, 1\)"),
            (lambda: gn.plot_confusion([2], [[0.1, 0.9]]), "labels from 0 to 1"),
            (
                lambda: gn.plot_confusion([0, 1], [0, 1], classes=["a"]),
                "names for 2 classes, got \\['a'\\]",
            ),
            (lambda: gn.plot_confusion([0], [0], normalize="no"), "normalize"),
        ],
    )
    def test_mistakes(self, call: Any, message: str) -> None:
        with pytest.raises((gn.errors.SettingError, gn.errors.ShapeError), match=message):
            call()


class TestWeights:
    def test_neurons_that_see_an_image(self, place: Place) -> None:
        model = gn.Sequential(gn.Flatten(), gn.Dense(9, 5, rng=0)).to(place.backend)
        axes = gn.plot_weights(model)
        grid = axes.images[0].get_array()
        assert grid.shape == (2 * 4 - 1, 3 * 4 - 1)  # five images in a grid of two by three
        weight = gn.to_numpy(model[1].weight.value)
        assert_allclose(grid[:3, 4:7], weight[:, 1].reshape(3, 3))
        assert grid.mask[3].all()  # a line between them
        assert axes.get_title() == "layers.1.weight"
        highest = float(np.abs(weight).max())
        assert axes.images[0].get_clim() == pytest.approx((-highest, highest))

    def test_an_oblong_and_a_limit(self) -> None:
        layer = gn.Dense(6, 5, rng=0)
        grid = gn.plot_weights(layer, shape=(2, 3), limit=2).images[0].get_array()
        assert grid.shape == (2, 7)
        assert_allclose(grid[:, 4:], layer.weight.value[:, 1].reshape(2, 3))

    def test_a_matrix_that_is_no_image(self) -> None:
        layer = gn.Dense(6, 5, init=lambda *_: np.zeros((6, 5)))
        _, given = plt.subplots()
        axes = gn.plot_weights(layer, axes=given)
        assert axes is given
        assert axes.images[0].get_array().shape == (6, 5)

    def test_filters(self) -> None:
        class Filters(gn.Layer):
            def __init__(self) -> None:
                self.filters = gn.Parameter(np.arange(24.0).reshape(2, 3, 2, 2))

        layer = Filters()
        grid = gn.plot_weights(layer).images[0].get_array()
        assert grid.shape == (2 * 3 - 1, 2 * 4 - 1)
        assert_allclose(grid[:2, 4:], layer.filters.value[:, :, 0, 1])

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: gn.plot_weights(gn.ReLU()), r"ReLU\(\) has no weights"),
            (lambda: gn.plot_weights(gn.Dense), "expected a layer, got type"),
            (lambda: gn.plot_weights(gn.Dense(6, 2), shape=(2, 2)), "has 6 inputs, so shape must"),
            (lambda: gn.plot_weights(gn.Dense(6, 2), shape=6), "has 6 inputs, so shape must"),
            (lambda: gn.plot_weights(gn.Dense(6, 2), limit=0), "limit must be"),
        ],
    )
    def test_mistakes(self, call: Any, message: str) -> None:
        with pytest.raises(gn.errors.SettingError, match=message):
            call()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("plot_history", (history(),)),
        ("plot_confusion", ([0], [0])),
        ("plot_weights", (gn.Dense(4, 2),)),
    ],
)
def test_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, name: str, arguments: tuple[Any, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(ImportError, match=rf"gpunn\.{name} needs matplotlib: pip install mat"):
        getattr(gn, name)(*arguments)
