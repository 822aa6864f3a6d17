"""Mistakes of a first day: each is named, with what to write instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn.errors import DTypeError, SettingError, ShapeError

X = np.linspace(-1.0, 1.0, 8, dtype="float32").reshape(2, 4)
Y = np.array([0, 2])


class NoReturn(gn.Layer):
    def forward(self, x: Any, tape: Any = None) -> Any:
        x * 2.0


class NoTape(gn.Layer):
    def forward(self, x: Any) -> Any:  # type: ignore[override]
        return x


def trainer(*layers: gn.Layer, **settings: Any) -> gn.Trainer:
    model = gn.Sequential(gn.Dense(4, 3, rng=0), *layers)
    return gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters()), **settings)


def fit(one: gn.Trainer, **settings: Any) -> gn.History:
    return one.fit(gn.Loader(X, Y, batch_size=2), 1, progress=False, **settings)


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.fit(X, Y, epochs=1),
        lambda t: t.fit(X, Y),
        lambda t: t.fit(X, Y, 1),
        lambda t: t.fit(loader=X, epochs=1),
    ],
)
def test_data_where_a_loader_is_wanted(call: Any) -> None:
    meant = r"write trainer\.fit\(gn\.Loader\(x, y, batch_size=32\), epochs=1\)$"
    with pytest.raises(
        SettingError, match=rf"^Trainer\.fit: expected a Loader, got ndarray; {meant}"
    ):
        call(trainer())


def test_features_of_another_number_are_told_with_the_shape_of_the_data() -> None:
    with pytest.raises(ShapeError, match=r"\(tried on one sample of the loader's x, \(2, 3\)\)$"):
        trainer().fit(gn.Loader(X[:, :3], Y, batch_size=2), 1, progress=False)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MSE", "MeanSquaredError"),
        ("mse", "MeanSquaredError"),
        ("BCE", "BinaryCrossEntropy"),
        ("Relu", "ReLU"),
        ("Sequental", "Sequential"),
        ("EarlyStoping", "EarlyStopping"),
        ("sgd", "SGD"),
        ("Linear", "Dense"),
        ("CrossEntropyLoss", "SoftmaxCrossEntropy"),
        ("MLPClassifier", "gpunn.estimators.MLPClassifier"),
    ],
)
def test_a_name_that_is_nearly_one_of_ours(name: str, meant: str) -> None:
    with pytest.raises(AttributeError, match=rf"no attribute {name!r}; did you mean {meant}\?$"):
        getattr(gn, name)


def test_a_name_that_is_like_none() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'qqqqqq'$"):
        gn.qqqqqq  # noqa: B018
    assert not hasattr(gn, "__wrapped__")


def test_a_forward_that_returns_nothing() -> None:
    with pytest.raises(SettingError, match=r"^NoReturn\(\): forward returned None; return the out"):
        NoReturn()(X)
    with pytest.raises(SettingError, match="forward returned None"):
        fit(trainer(NoReturn()))


@pytest.mark.parametrize("run", [lambda: NoTape()(X), lambda: fit(trainer(NoTape()))])
def test_a_forward_without_a_tape(run: Any) -> None:
    with pytest.raises(
        SettingError, match=r"^NoTape\(\): forward must take a batch and a tape, def"
    ):
        run()


def test_a_type_error_within_forward_stays_what_it_is() -> None:
    class Wrong(gn.Layer):
        def forward(self, x: Any, tape: Any = None) -> Any:
            return x + "1"

    with pytest.raises(TypeError, match="ufunc"):
        Wrong()(X)


def test_an_activation_of_an_unknown_kernel_runs_as_written() -> None:
    class Doubled(gn.Activation):
        kernel = "nosuch"
        saves_output = False

        def function(self, xp: Any, x: Any) -> Any:
            return 2.0 * x

        def gradient(self, xp: Any, grad: Any, saved: Any) -> Any:
            return 2.0 * grad

    one, other = trainer(Doubled()), trainer(Doubled())
    assert len(fit(one)) == 1
    gn.train_step(other.model, other.loss, other.optimizer, X, Y)
    for got, want in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert np.allclose(got.value, want.value, rtol=1e-6)


@pytest.mark.parametrize(
    "dtype", [np.float64, np.dtype("float64"), "float64", np.dtype(">f8").type]
)
def test_dtypes_as_objects(dtype: Any) -> None:
    assert gn.Dense(2, 1, dtype=dtype).weight.value.dtype == np.float64
    assert gn.Dense(2, 1).to(dtype=dtype).weight.value.dtype == np.float64
    assert gn.Loader(X, Y, batch_size=2, dtype=dtype).first_row().x.dtype == np.float64


@pytest.mark.parametrize("dtype", [int, float, np.float16, "f8", None, np.float64(1.0)])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(SettingError, match="dtype must be 'float32' or 'float64'"):
        gn.Dense(2, 1, dtype=dtype)


def test_one_metric_by_name() -> None:
    assert "accuracy" in fit(trainer(metrics="accuracy"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: gn.Dense(4, 3, "rleu"), r"silu, .*\(did you mean 'relu'\?\)"),
        (lambda: trainer(metrics=["acuracy"]), r"accuracy, binary_.*\(did you mean 'accuracy'\?\)"),
    ],
)
def test_the_nearest_name(make: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        make()


@pytest.mark.parametrize("loss", ["x", None, [1.0], np.ones(2)])
def test_a_plateau_observes_numbers(loss: Any) -> None:
    schedule = gn.ReduceOnPlateau(0.1)
    with pytest.raises(SettingError, match=r"^ReduceOnPlateau.observe: loss must be a number, got"):
        schedule.observe(loss)
    for number in (1, 0.5, np.float32(0.5), np.array(0.5), float("nan")):
        schedule.observe(number)


@pytest.mark.parametrize(
    "metric", [gn.Accuracy(), gn.TopK(1), gn.BinaryAccuracy(), gn.R2(), gn.MAE()]
)
def test_a_metric_without_targets(metric: gn.Metric) -> None:
    with pytest.raises(DTypeError, match="needs an array of targets, got NoneType"):
        metric.measure(X, None)


def test_a_finished_history_does_not_say_that_it_runs() -> None:
    history = gn.History()
    history.append({"loss": 1.0})
    assert "running" not in str(history)


def test_divergence_asks_for_the_data_first() -> None:
    wrong = X.copy()
    wrong[0, 0] = np.nan
    with pytest.raises(
        gn.errors.DivergenceError, match=r"Look for NaN in the training data first, Loader\("
    ):
        trainer().fit(gn.Loader(wrong, Y, batch_size=2), 1, progress=False)


def test_why_a_layer_that_works_without_kernels_is_not_recorded() -> None:
    class Scale(gn.Layer):
        records = True

        def __init__(self) -> None:
            self.factor = gn.Parameter(np.ones(3, "float32"))

        def forward(self, x: Any, tape: Any = None) -> Any:
            if tape is not None:
                tape.push(self, x)
            return x * self.factor.value

        def backward(self, grad: Any, tape: Any) -> Any:
            (x,) = tape.pop(self)
            self.factor.add_grad((grad * x).sum(axis=0))
            return grad * self.factor.value

    one = trainer(Scale())
    fit(one)
    assert one.why_not_recorded
    pytest.importorskip("numba", reason="steps are recorded with numba only")
    assert "the step does something that is not a kernel (" in one.why_not_recorded
