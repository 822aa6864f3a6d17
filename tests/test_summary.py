"""The table of a model: what each layer returns, holds, computes and saves."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from tests.cases import LAYERS, LayerCase
from tests.conftest import Place
from tests.test_notebook import table


def test_a_network() -> None:
    inner = gn.Sequential(gn.Dense(5, 5, "tanh"), gn.Dropout(0.3))
    model = gn.Sequential(
        gn.Flatten(), gn.Dense(6, 5, "relu"), gn.Residual(inner), gn.Dense(5, 1000)
    )
    weights = "  (5, 1000), (1000,)"
    lines = (
        "layer                             output     parameters   FLOPs  tape bytes  shapes",
        "-" * 95,
        "Flatten()                         (N, 6)              0       0           0",
        "Dense(6, 5, activation='relu')    (N, 5)             35      60          20  (6, 5), (5,)",
        "Residual                          (N, 5)              0       0           0",
        "  Dense(5, 5, activation='tanh')  (N, 5)             30      50          20  (5, 5), (5,)",
        "  Dropout(0.3)                    (N, 5)              0       0          20",
        f"Dense(5, 1000)                    (N, 1000)       6,000  10,000       4,020{weights}",
        "6,065 parameters, 24,260 bytes",
        "a sample forward: 10,110 floating-point operations, 2 for each multiply-add of a product",
        "a sample on the tape: 4,104 bytes, with the 24 of the input",
    )
    assert tuple(model.summary((2, 3)).splitlines()) == lines
    assert repr(model.summary((2, 3))) == str(model.summary((2, 3)))


def test_memory_that_two_layers_save_counts_once() -> None:
    """What attention saves of its queries, keys and values is a view of what `Dense` has saved."""
    n, t, c, heads = 3, 5, 8, 2
    layer = gn.MultiHeadAttention(c, heads)
    report = layer.memory(n, input_shape=(t, c))
    assert 4 * n * t * (6 * c + heads * t) == sum(report.tape.values())


def column(summary: Any, name: str) -> list[str]:
    return [row[summary.names.index(name)] for row in summary.rows]


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_every_layer_is_counted(case: LayerCase, place: Place) -> None:
    """The columns are known for all of them, and have the sums that the model has."""
    layer = case.make("float32").to(place.backend)
    summary = layer.summary(case.sample)
    assert "?" not in str(summary)
    held = sum(int(np.prod(p.value.shape)) for p in layer.parameters())
    assert sum(int(cell.replace(",", "")) for cell in column(summary, "parameters")) == held
    one, two = (layer.memory(n, input_shape=case.sample).tape for n in (1, 2))
    saved = sum(two.values()) - sum(one.values())
    assert f"tape: {saved:,} bytes" in summary


def of(layer: gn.Layer, shape: Any) -> list[str]:
    return column(layer.summary(shape), "FLOPs")


def test_the_operations_of_products() -> None:
    assert of(gn.Dense(7, 4, "gelu"), (7,)) == ["56"]
    assert of(gn.Dense(7, 4), (3, 7)) == ["168"]  # for each of three positions
    assert of(gn.Conv2d(3, 4, 3, padding="same"), (5, 6, 3)) == [f"{2 * 30 * 9 * 3 * 4:,}"]
    assert of(gn.Conv2d(4, 6, 3, stride=2, groups=2), (7, 5, 4)) == [f"{2 * 6 * 9 * 2 * 6:,}"]
    t, c = 6, 8
    attention = of(gn.MultiHeadAttention(c, 2), (t, c))
    assert attention == [f"{4 * t * t * c:,}", f"{6 * t * c * c:,}", f"{2 * t * c * c:,}"]
    assert of(gn.Sequential(gn.Embedding(5, 3), gn.Dense(3, 2)), (4,)) == ["0", "48"]


class Mine(gn.Layer):
    """A layer whose forward pass is a function of x and its weights (3, 3)."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self.weight = gn.Parameter(np.ones((3, 3), "float32"))
        self.function = function

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        if tape is not None:
            tape.push(self, x)
        return self.function(x, self.weight.value)

    def __repr__(self) -> str:
        return "<b>Mine</b>"


def written(x: Any, out: Any) -> Any:
    out[...] = x
    return out


@pytest.mark.parametrize(
    ("function", "operations"),
    [
        (lambda x, w: x @ w, "18"),
        (lambda x, w: np.matmul(x, w) + x @ w.T, "36"),
        (lambda x, w: (w @ x.T).T, "18"),
        (lambda x, w: (x[:, None, :] @ w)[:, 0], "18"),
        (lambda x, w: np.stack([x @ w[0], x @ w[1], x[:, 0]], axis=1), "12"),
        (lambda x, w: np.where(x > 0, x, np.zeros_like(x)) * w[0], "0"),
        (lambda x, w: x / x.sum(axis=1, keepdims=True) + w.sum(), "0"),
        (lambda x, w: x.__array_namespace__().matmul(x, w), "18"),
        (lambda x, w: np.tanh(x, out=x @ w), "18"),
        # Where the numbers are no longer followed, nothing is said.
        (lambda x, w: np.asarray(x) @ w, "?"),
        (lambda x, w: np.array(x @ w), "?"),
        (np.dot, "?"),
        (lambda x, w: x.dot(w), "?"),
        (lambda x, w: np.einsum("ni,ij->nj", x, w), "?"),
        (lambda x, w: np.tensordot(x, w, axes=1), "?"),
        (lambda x, w: np.linalg.norm(x, axis=1)[:, None] * w[0], "?"),
        (lambda x, w: np.add(x, x, out=np.empty((len(x), 3), "float32")) @ w, "?"),
        (lambda x, w: written(x, np.empty((len(x), 3), "float32")) @ w, "?"),
        (lambda x, w: np.array(x.tolist(), dtype="float32") @ w, "?"),
    ],
)
def test_a_layer_of_ones_own(function: Any, operations: str) -> None:
    model = gn.Sequential(gn.Dense(2, 3), Mine(function), gn.Tanh())
    assert of(model, (2,)) == ["12", operations, "0"]
    summary = model.summary()
    assert column(summary, "output")[0] == column(summary, "output")[2] == "(N, 3)"
    least = "at least 12" if operations == "?" else f"{12 + int(operations)}"
    assert f"forward: {least} floating-point" in summary


def test_what_is_within_counts_once() -> None:
    shared = gn.Dense(3, 3)
    summary = gn.Sequential(shared, gn.Residual(gn.Sequential(shared, Mine(np.dot)))).summary()
    assert column(summary, "parameters") == ["12", "0", "0", "9"]
    assert column(summary, "FLOPs") == ["18", "?", "18", "?"]
    assert column(summary, "layer")[2] == "  Dense(3, 3)"


def test_parameters_of_layers_that_are_not_called() -> None:
    model = gn.Sequential(gn.Dense(3, 3))
    model.spare = gn.Dense(3, 2)  # type: ignore[attr-defined]
    summary = model.summary()
    assert summary.rows[-1] == [
        "(in no layer that was called)",
        "?",
        "8",
        "0",
        "0",
        "(3, 2), (2,)",
    ]
    assert "20 parameters" in summary


def test_weights_that_a_layer_takes_from_another() -> None:
    class Tied(gn.Layer):
        def __init__(self) -> None:
            self.inner = gn.Dense(3, 3)

        def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
            return x @ self.inner.weight.value

    assert of(Tied(), 3) == ["18"]
    assert column(Tied().summary(3), "parameters") == ["12"]


def test_without_a_shape() -> None:
    summary = gn.Residual(gn.Tanh()).summary()
    assert summary.rows == [["Residual(Tanh())", "?", "0", "?", "?", ""]]
    assert len(summary.notes) == 1


def test_a_layer_that_cannot_be_copied() -> None:
    model = gn.Sequential(gn.Dense(3, 3), Mine(lambda x, _: x))
    model[1].lock = threading.Lock()  # type: ignore[attr-defined]
    assert column(model.summary(), "FLOPs") == ["?", "?"]
    assert column(model.summary(), "parameters") == ["12", "9"]
    assert model.memory(2).batch_size == 2


FLIP = itertools.cycle([True, False, False]).__next__


def test_a_model_that_is_never_the_same() -> None:
    class Sometimes(gn.Layer):
        def __init__(self) -> None:
            self.inner = gn.Tanh()

        def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
            return self.inner.forward(x, tape) if FLIP() else x

    for _ in range(20):
        assert gn.Sequential(gn.Dense(2, 2), Sometimes()).summary().splitlines()


class Counting(gn.Layer):
    def __init__(self) -> None:
        self.passes = 0
        self.mean = gn.Buffer(np.zeros(3, "float32"))

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        self.passes += 1
        self.mean.value += x.mean(axis=0)
        return x


def test_nothing_changes() -> None:
    counting = Counting()
    model = gn.Sequential(gn.Dense(2, 3), counting)
    names, values = list(vars(counting)), [p.value for p in model.parameters()]
    assert column(model.summary(), "FLOPs") == ["12", "?"]  # the mean is kept elsewhere
    assert counting.passes == 0
    assert not counting.mean.value.any()
    assert list(vars(counting)) == names
    assert all(p.value is v for p, v in zip(model.parameters(), values, strict=True))


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(gn.errors.ShapeError, match=r"Dense\(4, 3\): expected x"):
        gn.Sequential(gn.Dense(2, 3), gn.Dense(4, 3)).summary()


def test_in_a_notebook() -> None:
    model = gn.Sequential(gn.Dense(2, 3), Mine(np.dot))
    summary = model.summary()
    title, rows = table(summary)
    assert title == "; ".join(summary.notes)
    assert rows == [list(summary.names), *summary.rows]
    assert rows[2][0] == "<b>Mine</b>"


def test_copies() -> None:
    summary = gn.Dense(2, 3).summary()
    for same in (copy.deepcopy(summary), pickle.loads(pickle.dumps(summary))):  # noqa: S301
        assert same == summary
        assert same.rows == summary.rows
        assert same.notes == summary.notes
