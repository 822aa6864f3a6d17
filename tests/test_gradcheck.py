"""The check of gradients: it finds what is wrong, says where, and leaves the model alone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from tests.conftest import Place

X = np.linspace(-1.0, 1.0, 15).reshape(5, 3)
LABELS = np.array([0, 1, 1, 0, 1])
COARSE: dict[str, float] = {"step": 0.1, "tolerance": 1.0}  # for errors that are not rounding alone


class Wrong(gn.Layer):
    """A Dense layer, after whose backward pass something is done to its gradients."""

    def __init__(self, spoil: Any, dtype: str = "float64") -> None:
        self.inner = gn.Dense(3, 2, "tanh", rng=0, dtype=dtype)
        self.spoil = spoil

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        return self.inner.forward(x, tape)

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        return self.spoil(self.inner, self.inner.backward(grad, tape), tape)


def entry(inner: gn.Dense, grad: Any, tape: gn.Tape) -> Any:
    inner.weight.grad[2, 1] *= 1.001
    return grad


def bias_left_out(inner: gn.Dense, grad: Any, tape: gn.Tape) -> Any:
    inner.bias.grad = None
    return grad


def input_doubled(inner: gn.Dense, grad: Any, tape: gn.Tape) -> Any:
    return 2 * grad


def not_a_number(inner: gn.Dense, grad: Any, tape: gn.Tape) -> Any:
    inner.bias.grad[1] = np.nan
    return grad


def bias_misshapen(inner: gn.Dense, grad: Any, tape: gn.Tape) -> Any:
    inner.bias.grad = inner.bias.grad[None, :]
    return grad


def input_missing(inner: gn.Dense, grad: Any, tape: gn.Tape) -> Any:
    return None


def left_on_the_tape(inner: gn.Dense, grad: Any, tape: gn.Tape) -> Any:
    tape.push(inner, grad)
    return grad


def popped_twice(inner: gn.Dense, grad: Any, tape: gn.Tape) -> Any:
    return inner.backward(grad, tape)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (entry, r"at inner\.weight\[2, 1\]: backward gives"),
        (bias_left_out, r"at inner\.bias\[\d\]: backward gives 0, finite differences"),
        (input_doubled, r"error 5\.00e-01 at x\[\d, \d\]"),
        (not_a_number, r"error inf at inner\.bias\[1\]: backward gives nan"),
        (bias_misshapen, r"gradient of inner\.bias the shape \(1, 2\), expected \(2,\)"),
        (input_missing, r"Wrong\(\): backward returned no gradient of x"),
        (left_on_the_tape, r"left entries on the tape: Tape\(Dense\(3, 2, activation='tanh'\)\)"),
    ],
)
def test_what_is_wrong_is_found_and_named(spoil: Any, message: str) -> None:
    with pytest.raises(gn.errors.GradientError, match=message):
        gn.check_gradients(Wrong(spoil), X)


def test_a_tape_read_twice() -> None:
    with pytest.raises(gn.errors.TapeError):
        gn.check_gradients(Wrong(popped_twice), X)


def test_the_tolerance_is_the_largest_error_that_passes() -> None:
    report = gn.check_gradients(Wrong(entry), X, tolerance=1.01e-3)
    assert report.worst == "inner.weight[2, 1]"
    assert report.error == pytest.approx(1e-3, rel=1e-2)
    assert report.backward == pytest.approx(1.001 * report.numeric, rel=1e-6)
    with pytest.raises(gn.errors.GradientError):
        gn.check_gradients(Wrong(entry), X, tolerance=0.99 * report.error)


class TestAModelAndItsLoss:
    def model(self, dtype: str = "float32") -> gn.Layer:
        return gn.Sequential(
            gn.Dense(3, 4, "sigmoid", rng=0, dtype=dtype),
            gn.Dropout(0.3),
            gn.Dense(4, 2, rng=1, dtype=dtype),
        )

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_it_passes_and_is_left_as_it_was(self, place: Place, dtype: str) -> None:
        model = self.model(dtype).to(place.backend)
        kept = gn.to_numpy(model.layers[0].weight.value).copy()
        model.layers[0].weight.add_grad(place.array(np.ones((3, 4)), dtype))
        x, y = place.array(X, dtype), place.array(LABELS)
        weight = place.array(np.linspace(0, 1, 5), dtype)
        report = gn.check_gradients(
            model, x, y, loss=gn.SoftmaxCrossEntropy(), sample_weight=weight
        )
        assert report.error < 1e-6
        assert list(report.by_name) == ["x", *model.named_parameters()]
        assert report.checked == 15 + 12 + 4 + 8 + 2
        assert report.error == max(report.by_name.values())
        after = gn.to_numpy(model.layers[0].weight.value)
        assert after.dtype == dtype
        assert (after == kept).all()
        assert (gn.to_numpy(model.layers[0].weight.grad) == 1).all()
        assert model.layers[2].weight.grad is None

    def test_the_report_is_readable(self) -> None:
        report = gn.check_gradients(self.model(), X, **COARSE)
        first, *lines = str(report).splitlines()
        wanted = (
            r"largest relative error \S+ at [\w.]+\[.*\]: backward gives .* \(41 entries checked\)"
        )
        assert re.fullmatch(wanted, first)
        assert (
            str(gn.GradientReport(checked=3))
            == "largest relative error 0.00e+00 (3 entries checked)"
        )
        assert [line.split(":")[0].strip() for line in lines] == list(report.by_name)

    def test_of_a_large_array_some_entries_are_drawn(self) -> None:
        report = gn.check_gradients(gn.Dense(30, 20, rng=0), np.ones((2, 30)), max_entries=7)
        assert report.checked == 3 * 7

    def test_one_seed_gives_one_report(self) -> None:
        first, second, other = (
            gn.check_gradients(self.model(), X, rng=seed, **COARSE) for seed in (0, 0, 1)
        )
        assert first == second != other


@pytest.mark.parametrize("shape", [(5, 2), (0, 2), (1, 2)])
def test_a_loss_alone(place: Place, shape: tuple[int, int]) -> None:
    prediction = np.linspace(-1, 1, int(np.prod(shape))).reshape(shape)
    labels = place.array(LABELS[: shape[0]])
    report = gn.check_gradients(gn.SoftmaxCrossEntropy(), place.array(prediction), labels)
    assert (report.error < 1e-6, report.checked) == (True, prediction.size)


@pytest.mark.parametrize(
    ("arguments", "settings", "error"),
    [
        ((np.tanh, X), {}, gn.errors.SettingError),
        ((gn.MeanSquaredError(), X), {}, gn.errors.SettingError),
        ((gn.ReLU(), X), {"loss": gn.MeanSquaredError()}, gn.errors.SettingError),
        ((gn.ReLU(), [[1.0]]), {}, gn.errors.DTypeError),
    ],
)
def test_what_cannot_be_checked(arguments: Any, settings: Any, error: type) -> None:
    with pytest.raises(error, match="check_gradients: "):
        gn.check_gradients(*arguments, **settings)
