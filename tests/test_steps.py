"""Many steps in one compiled call: the same as one by one, whoever runs them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from threadpoolctl import threadpool_limits

import gpunn as gn
from gpunn import program
from gpunn.kernels import blas
from gpunn.training import epoch
from gpunn.training.epoch import EpochRunner
from gpunn.training.readings import Readings

pytest.importorskip("numba", reason="steps are compiled by numba")
pytestmark = pytest.mark.skipif(
    os.environ.get("GPUNN_COMPILED") == "0", reason="GPUNN_COMPILED=0: nothing is compiled"
)


from gpunn.kernels.native import compiled  # noqa: E402
from gpunn.program import cpu, crew, interpreter, products  # noqa: E402

LOSSES: dict[str, Callable[..., gn.Loss]] = {
    "softmax": gn.SoftmaxCrossEntropy,
    "binary": gn.BinaryCrossEntropy,
    "squared": gn.MeanSquaredError,
}
OPTIMIZERS: dict[str, Callable[..., gn.Optimizer]] = {
    "sgd": gn.SGD,
    "momentum": lambda *a, **k: gn.SGD(*a, momentum=0.9, **k),
    "nesterov": lambda *a, **k: gn.SGD(*a, momentum=0.9, nesterov=True, **k),
    "adam": gn.Adam,
}
#: Low enough that no case diverges.
SCHEDULES = {"constant": 3e-4, "falling": gn.ExponentialDecay(5e-4, factor=0.9)}


@dataclass(frozen=True)
class Case:
    """A training run."""

    n: int = 50
    batch_size: int = 16
    sizes: tuple[int, ...] = (5, 7, 3)
    activation: str | None = "relu"
    apart: bool = False
    bias: bool = True
    loss: str = "softmax"
    reduction: Any = "mean"
    weights: str | None = None
    optimizer: str = "sgd"
    schedule: str = "constant"
    weight_decay: float = 0.0
    shuffle: bool = True
    drop_last: bool = False
    dtype: str = "float64"
    metrics: tuple[str, ...] = ()
    epochs: int = 3

    def loader(self) -> gn.Loader:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.n, self.sizes[0])).astype(self.dtype)
        weight = None
        dropping = self.drop_last and self.n >= self.batch_size
        if self.weights is not None:
            weight = rng.uniform(0, 2, self.n)
            if self.weights == "zero":
                weight[self.batch_size if dropping else 1 :] = 0.0  # not all that are trained on
        if self.loss == "softmax":
            y: Any = rng.integers(0, self.sizes[-1], self.n)
        else:
            y = rng.integers(0, 2, (self.n, self.sizes[-1]))
            y = y if self.loss == "binary" else y + rng.standard_normal(y.shape)
        return gn.Loader(
            x,
            y,
            sample_weight=weight,
            batch_size=min(self.batch_size, self.n),
            shuffle=self.shuffle,
            drop_last=dropping,
            dtype=self.dtype,
            backend="numpy",
            rng=1,
        )

    def model(self) -> gn.Sequential:
        rng = np.random.default_rng(2)
        layers: list[gn.Layer] = []
        last = len(self.sizes) - 2
        for i, (a, b) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            name = self.activation if i < last else None
            settings: Any = {"bias": self.bias, "rng": rng, "dtype": self.dtype}
            layers.append(gn.Dense(a, b, None if self.apart else name, **settings))
            if self.apart and name is not None:
                layers.append({"relu": gn.ReLU, "tanh": gn.Tanh, "sigmoid": gn.Sigmoid}[name]())
        return gn.Sequential(*layers)

    def trainer(self) -> gn.Trainer:
        model = self.model()
        optimizer = OPTIMIZERS[self.optimizer](
            model.parameters(), SCHEDULES[self.schedule], weight_decay=self.weight_decay
        )
        loss = LOSSES[self.loss](reduction=self.reduction)
        return gn.Trainer(model, loss, optimizer, metrics=self.metrics, rng=3)

    def run(self) -> tuple[gn.Trainer, gn.History, gn.Loader]:
        trainer, loader = self.trainer(), self.loader()
        return trainer, trainer.fit(loader, self.epochs, progress=False), loader


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many threads each call had."""
    seen: list[int] = []

    def run(function: Any, threads: int, *arguments: Any, **settings: Any) -> None:
        seen.append(threads)
        real(function, threads, *arguments, **settings)

    real = crew.run
    monkeypatch.setattr(crew, "run", run)
    return seen


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, however small the steps and few the processors."""
    monkeypatch.setattr(blas, "_WORK_OF_ONE_THREAD", 0)
    monkeypatch.setattr(cpu, "_WORK_OF_A_THREAD", 1)
    monkeypatch.setattr(cpu, "_ROWS_OF_A_THREAD", 1)
    with threadpool_limits(2, user_api="blas"):
        yield


@contextmanager
def one_by_one() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch, "sample_of", lambda _: None)
        yield


#: The two ways to train.
WAYS = (nullcontext, one_by_one)


def state(trainer: gn.Trainer) -> list[Any]:
    optimizer = trainer.optimizer
    arrays = [p.value for p in trainer.model.parameters()]
    return arrays + [x for kept in optimizer._states for x in kept]


def _run(case: Case, way: Any) -> tuple[gn.Trainer, gn.History, gn.Loader]:
    with way():
        return case.run()


def assert_the_same(case: Case) -> None:
    """Train both ways and compare all that is left."""
    many, few = (_run(case, way) for way in WAYS)
    tolerance: Any = {"float64": {"rtol": 1e-9, "atol": 1e-12}, "float32": {"rtol": 2e-3}}
    tolerance["float32"]["atol"] = 2e-5
    close = tolerance[case.dtype]
    for a, b in zip(state(many[0]), state(few[0]), strict=True):
        assert_allclose(a, b, **close)
    assert many[1].columns.keys() == few[1].columns.keys()
    for name in many[1].columns.keys() - {"elapsed_s", "samples_per_s"}:
        assert_allclose(many[1][name], few[1][name], **close, err_msg=name)
    for name in ("steps", "updates", "weight_decay", "learning_rate"):
        values = [getattr(run[0].optimizer, name, None) for run in (many, few)]
        assert values[0] == values[1], name
    assert_array_equal(many[2].draw_order(), few[2].draw_order())


CASES = st.builds(
    Case,
    n=st.integers(1, 70),
    batch_size=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5).map(tuple),
    activation=st.sampled_from([None, "relu", "tanh", "sigmoid"]),
    apart=st.booleans(),
    bias=st.booleans(),
    loss=st.sampled_from(sorted(LOSSES)),
    reduction=st.sampled_from(["mean", "sum"]),
    weights=st.sampled_from([None, "zero", "some"]),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    weight_decay=st.sampled_from([0.0, 0.1]),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)


class TestSteps:
    @given(case=CASES, threads=st.integers(1, 3), rows=st.sampled_from([1, 30, 1000]))
    def test_many_at_a_time_are_the_same(self, case: Case, threads: int, rows: int) -> None:
        with pytest.MonkeyPatch.context() as patch, threadpool_limits(threads, user_api="blas"):
            patch.setattr(blas, "_WORK_OF_ONE_THREAD", 0)
            patch.setattr(cpu, "_WORK_OF_A_THREAD", 1)
            patch.setattr(cpu, "_ROWS_OF_A_THREAD", 1)
            patch.setattr(cpu, "_ROWS_AT_ONCE", rows)
            assert_the_same(case)

    @pytest.mark.parametrize("loss", sorted(LOSSES))
    @pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_each_is_served(self, loss: str, optimizer: str, dtype: str, calls: list[int]) -> None:
        assert_the_same(Case(loss=loss, optimizer=optimizer, dtype=dtype))
        assert calls == [1] * 3  # epochs

    def test_more_threads_than_this_machine_may_have(
        self, monkeypatch: pytest.MonkeyPatch, calls: list[int]
    ) -> None:
        monkeypatch.setattr(blas, "_WORK_OF_ONE_THREAD", 0)
        monkeypatch.setattr(cpu, "_WORK_OF_A_THREAD", 1)
        monkeypatch.setattr(cpu, "_ROWS_OF_A_THREAD", 1)
        monkeypatch.setattr(crew, "available", lambda threads: threads)
        with threadpool_limits(5, user_api="blas"):
            assert_the_same(Case(sizes=(4, 3, 2), loss="binary", weights="some", epochs=1))
        assert calls == [5]

    def test_large_products_on_two_threads(self, calls: list[int]) -> None:
        case = Case(n=600, batch_size=250, sizes=(300, 270, 10), epochs=2, optimizer="adam")
        with threadpool_limits(2, user_api="blas"):
            assert_the_same(case)
        assert calls == [2] * 2

    @pytest.mark.parametrize("loss", ["softmax", "binary"])
    def test_metrics(self, loss: str, calls: list[int]) -> None:
        metric = {"softmax": "accuracy", "binary": "binary_accuracy"}[loss]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "_ROWS_AT_ONCE", 32)
            assert_the_same(Case(loss=loss, metrics=(metric,), weights="some"))
        assert len(calls) == 3 * 2

    def test_a_history_that_goes_on(self, calls: list[int]) -> None:
        """With validation, early stopping, and its best weights at the end."""
        case = Case(optimizer="momentum", epochs=8)

        def fit() -> Any:
            trainer, loader = case.trainer(), case.loader()
            stored = loader.stored
            early = gn.EarlyStopping(patience=2, tolerance=0.05)
            history = trainer.fit(
                loader, 8, validation=(stored.x, stored.y), early_stopping=early, progress=False
            )
            again = trainer.fit(loader, 2, progress=False)
            return [*state(trainer), history["validation_loss"], again["loss"]]

        many = fit()
        with one_by_one():
            few = fit()
        for a, b in zip(many, few, strict=True):
            assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        assert calls

    @pytest.mark.parametrize("what", ["x", "y", "weight", "parameter"])
    @pytest.mark.parametrize("loss", sorted(LOSSES))
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_what_is_not_finite_goes_where_it_would(
        self, what: str, loss: str, value: float, calls: list[int]
    ) -> None:
        case = Case(loss=loss, weights="some", activation="tanh", optimizer="adam")
        states = []
        for way in WAYS:
            trainer, loader = case.trainer(), case.loader()
            if what == "x":
                loader.stored.x.base[7, 2] = value  # the given array: views refuse writing
            elif what == "weight":
                loader.stored.sample_weight.base[7] = value
            elif what == "parameter":
                trainer.model.layers[0].weight.value[2, 3] = value
            else:  # a label out of range, or a number
                loader.stored = loader.stored._replace(y=loader.stored.y.astype("float64"))
                loader.stored.y[7] = 3 if loss == "softmax" else value
                if loss == "softmax":
                    loader.stored = loader.stored._replace(y=loader.stored.y.astype("int64"))
            readings = Readings(trainer.loss, [])
            with way(), np.errstate(all="ignore"):
                EpochRunner(loader).run(trainer.model, trainer.loss, trainer.optimizer, readings)
            states.append([np.isfinite(x) for x in [*state(trainer), readings.read()["loss"]]])
        for a, b in zip(*states, strict=True):
            assert_array_equal(a, b)
        assert calls == [1]

    def test_a_schedule_goes_by_the_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = []

        def schedule(step: int) -> float:
            seen.append(step)
            return 0.1 / (1 + step)

        monkeypatch.setitem(SCHEDULES, "own", schedule)
        assert_the_same(Case(schedule="own"))
        assert set(seen) == set(range(3 * 4 + 1))


class Own(gn.Dense):
    """A layer that may do anything."""


SERVED: dict[str, Callable[[gn.Trainer], None]] = {
    "clip_norm": lambda t: setattr(t.optimizer, "clip_norm", 0.1),
    "clip_value": lambda t: setattr(t.optimizer, "clip_value", 0.01),
    "both clips": lambda t: vars(t.optimizer).update(_clip_norm=0.1, _clip_value=0.01),
    "one more activation": lambda t: t.model.layers.append(gn.ELU()),
    "two activations": lambda t: t.model.layers.insert(1, gn.Tanh()),
    "dropout": lambda t: t.model.layers.insert(1, gn.Dropout(0.5)),
    "a residual": lambda t: t.model.layers.insert(
        1, gn.Residual(gn.Dense(3, 3, rng=5, dtype="float64"))
    ),
    "label smoothing": lambda t: setattr(t.loss, "label_smoothing", 0.1),
    "class weights": lambda t: setattr(t.loss, "class_weight", (1.0, 2.0, 3.0)),
    "probabilities": lambda t: setattr(t, "loss", gn.BinaryCrossEntropy(from_logits=False)),
    "an outer layer that was cut": lambda t: cut(t.model.layers[-1], 2),
    "part of the parameters": lambda t: setattr(
        t, "optimizer", gn.SGD(list(t.model.parameters())[2:])
    ),
    "one layer twice": lambda t: setattr(t.model, "layers", [t.model.layers[0]] * 2),
}

NOT_SERVED: dict[str, Callable[[gn.Trainer], None]] = {
    "a subclass": lambda t: setattr(t.model.layers[0], "__class__", Own),
    "a method of one's own": lambda t: setattr(t.model.layers[0], "forward", t.model[0].forward),
    "an inner layer that was cut": lambda t: cut(t.model.layers[0], 2),
    "biases of another dtype": lambda t: setattr(
        t.model[0].bias, "value", t.model[0].bias.value.astype("float32")
    ),
    "an activation's own function": lambda t: setattr(
        t.model[0].activation, "function", lambda xp, x: 2.0 * xp.maximum(x, 0.0)
    ),
    "an activation's own gradient": lambda t: setattr(
        t.model[0].activation, "gradient", lambda xp, grad, saved: 2.0 * grad
    ),
    "an activation of a subclass": lambda t: setattr(t.model[0], "activation", Doubled()),
    "a loss's own formula": lambda t: setattr(
        t.loss, "per_sample", lambda p, y, scale: (0.0 * p[:, 0] + 1.0, 0.0 * p + 0.1)
    ),
    "a loss's own scale": lambda t: setattr(t.loss, "_scale", lambda *_: 0.25),
    "a loss of a subclass": lambda t: setattr(t, "loss", Flat()),
    "a parameter of a subclass": lambda t: setattr(t.model[0], "weight", halved(t.model[0])),
}


def test_a_wide_layer_twice_with_a_small_batch() -> None:
    """A part of a gradient has more rows than the batch."""
    states = []
    for way in WAYS:
        layer = gn.Dense(90, 90, "tanh", rng=0, dtype="float64")
        model = gn.Sequential(layer, layer, gn.Dense(90, 3, rng=1, dtype="float64"))
        trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters(), 0.1))
        x = np.random.default_rng(0).standard_normal((20, 90))
        with way():
            trainer.fit(gn.Loader(x, np.arange(20) % 3, batch_size=4, dtype="float64", rng=0), 2)
        assert (trainer.why_not_recorded == "") == (way is nullcontext)
        states.append(state(trainer))
    for a, b in zip(*states, strict=True):
        assert_allclose(a, b, rtol=1e-9, atol=1e-12)


class Doubled(gn.ReLU):
    """Rises twice as steeply."""

    def function(self, xp: Any, x: Any) -> Any:
        return 2.0 * xp.maximum(x, 0.0)


class Flat(gn.SoftmaxCrossEntropy):
    """Has the same gradient everywhere."""

    def per_sample(self, prediction: Any, target: Any, scale: Any) -> Any:
        return 0.0 * prediction[:, 0] + 1.0, 0.0 * prediction + 0.1


class Halved(gn.Parameter):
    """Takes half of each gradient."""

    def add_grad(self, grad: Any) -> None:
        super().add_grad(0.5 * grad)


def halved(layer: gn.Dense) -> gn.Parameter:
    return Halved(layer.weight.value)


def cut(layer: gn.Dense, outputs: int) -> None:
    """Leave so many outputs, whatever `out_features` says."""
    layer.weight.value = layer.weight.value[:, :outputs].copy()
    layer.bias.value = layer.bias.value[:outputs].copy()


class TestWhatIsServed:
    @pytest.mark.parametrize("name", sorted(SERVED | NOT_SERVED))
    def test_what_is_and_what_is_not(self, name: str, calls: list[int]) -> None:
        """All is as it is one by one, errors, too."""
        results: list[Any] = []
        for way in WAYS:
            case = Case(sizes=(3, 3, 3), loss="binary" if name == "probabilities" else "softmax")
            trainer, loader = case.trainer(), case.loader()
            (SERVED | NOT_SERVED)[name](trainer)
            if name == "probabilities":
                trainer.model.layers[-1].activation = gn.Sigmoid()
            if "outer" in name:
                loader.stored.y.base[...] %= 2
            trained = trainer.model.parameters()[2 if name == "part of the parameters" else 0 :]
            given = trainer.optimizer
            clips: Any = {"clip_norm": given.clip_norm, "clip_value": given.clip_value}
            optimizer = gn.SGD(trained, 0.1, **clips)
            trainer = gn.Trainer(trainer.model, trainer.loss, optimizer, rng=3)
            with way():
                try:
                    trainer.fit(loader, 2, progress=False)
                    results.append(state(trainer))
                except (ValueError, TypeError) as error:
                    results.append(str(error))
            assert (trainer.why_not_recorded == "") == (name in SERVED and way is nullcontext)
        if isinstance(results[0], str):
            assert results[0] == results[1]
        else:
            for a, b in zip(*results, strict=True):
                assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        assert bool(calls) == (name in SERVED)

    @pytest.mark.parametrize("kind", [gn.SGD, gn.Adam])
    @pytest.mark.parametrize("method", ["_update", "update", "step", "step_sizes", "count_updates"])
    def test_an_optimizer_with_a_rule_of_its_own(
        self, kind: type[gn.Optimizer], method: str, calls: list[int]
    ) -> None:
        """Replaced on the object, or written in a subclass."""
        case = Case()

        def update_all(optimizer: gn.Optimizer, slots: Any) -> None:
            for value, grad in zip(slots.values, slots.grads, strict=True):
                value[...] = value - 0.5 * grad

        def update_one(
            optimizer: gn.Optimizer, xp: Any, value: Any, grad: Any, states: Any, step_size: float
        ) -> None:
            value -= 0.25 * grad

        own_rules = {"_update": update_all, "update": update_one}

        states = []
        for as_subclass in (True, False):
            trainer = case.trainer()
            rule: Any = own_rules.get(method) or getattr(kind, method)
            own = type("Own", (kind,), {method: rule}) if as_subclass else kind
            trainer.optimizer = own(trainer.model.parameters(), 0.01)
            if not as_subclass:
                setattr(trainer.optimizer, method, rule.__get__(trainer.optimizer))
            trainer.fit(case.loader(), 2, progress=False)
            states.append(state(trainer))
        for a, b in zip(*states, strict=True):
            assert_allclose(a, b, rtol=1e-12, atol=1e-14)  # a subclass has no fused kernel
        assert not calls

    def test_methods_in_the_place_of_those_of_a_class(
        self, monkeypatch: pytest.MonkeyPatch, calls: list[int]
    ) -> None:
        seen = []
        forward = gn.Dense.forward

        def patched(*arguments: Any) -> Any:
            seen.append(1)
            return forward(*arguments)

        monkeypatch.setattr(gn.Dense, "forward", patched)
        Case().run()
        assert len(seen) >= 3 * 4 * 2
        assert not calls

    @pytest.mark.parametrize(
        "change", [np.asfortranarray, lambda x: np.repeat(x, 2, axis=1)[:, ::2]]
    )
    def test_data_that_lie_otherwise(self, change: Any, calls: list[int]) -> None:
        case = Case()
        x, y, _ = case.loader().stored
        assert not change(x).flags.c_contiguous
        states = []
        for features in (x, change(x)):
            trainer = case.trainer()
            loader = gn.Loader(features, y, batch_size=16, dtype="float64", backend="numpy", rng=1)
            trainer.fit(loader, 2, progress=False)
            states.append(state(trainer))
        for a, b in zip(*states, strict=True):
            assert_array_equal(a, b)
        assert calls == [1] * 4

    def test_all_have_the_same_code(self) -> None:
        """It takes seconds to compile it."""
        case = Case(weights="some")
        case.run()
        known = list(interpreter.run_program.signatures)
        loader = case.loader()
        for part in loader.stored:
            part.flags.writeable = False
        case.trainer().fit(loader, 1, progress=False)
        odd = np.empty(loader.stored.x.nbytes + 1, np.uint8)[1:].view("float64").reshape(-1, 5)
        odd[...] = loader.stored.x
        assert not odd.flags.aligned
        loader.stored = loader.stored._replace(x=odd, y=loader.stored.y.astype(">i4"))
        case.trainer().fit(loader, 1, progress=False)
        assert interpreter.run_program.signatures == known

    def test_batches_that_are_made(self, calls: list[int]) -> None:
        """A transform, a subclass's own batches, and data that are not resident."""

        class Twice(gn.Loader):
            def __iter__(self) -> Any:
                yield from super().__iter__()
                yield from super().__iter__()

        x, y = np.ones((8, 5), "float32"), np.zeros(8, int)
        settings: Any = {"batch_size": 4, "backend": "numpy"}
        for loader in (
            gn.Loader(x, y, transform=lambda x: x + 1, **settings),
            gn.Loader(x, y, resident=False, **settings),
            Twice(x, y, **settings),
            gn.Loader(x, y, sample_weight=y + 1.0, dtype=None, **settings),
        ):
            trainer = Case(dtype="float32").trainer()
            if loader.dtype is None:
                with pytest.raises(gn.errors.DTypeError, match="sample_weight"):
                    trainer.fit(loader, 1, progress=False)
            else:
                trainer.fit(loader, 1, progress=False)
        assert calls == [1]  # of the data that are not resident: batches are rows of them

    def test_without_threadpoolctl(self, monkeypatch: Any, calls: list[int]) -> None:
        monkeypatch.setattr(cpu, "one_thread", lambda: None)
        program._cpu_steps.cache_clear()
        Case().run()
        program._cpu_steps.cache_clear()
        assert not calls

    def test_without_scipy(self, monkeypatch: Any, calls: list[int]) -> None:
        monkeypatch.setitem(sys.modules, "gpunn.program.cpu", None)
        program._cpu_steps.cache_clear()
        Case().run()
        program._cpu_steps.cache_clear()
        assert not calls

    def test_a_blas_of_other_integers(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(products, "_signature", lambda _: b"void (char *, long *)")
        with pytest.raises(ImportError, match="integers"):
            products._gemm("dgemm")


class TestChangesOnTheWay:
    def assert_both_alike(
        self,
        change: Callable[[gn.Trainer], object],
        case: Case,
        loaders: list[gn.Loader] | None = None,
    ) -> None:
        """Train both ways, with a callback after the second epoch."""
        loaders = [] if loaders is None else loaders
        states = []
        for way in WAYS:
            trainer = case.trainer()

            def callback(trainer: gn.Trainer, history: gn.History) -> None:
                if len(history) == 2:
                    change(trainer)

            loaders.append(case.loader())
            with way():
                trainer.fit(loaders[-1], 4, callbacks=[callback], progress=False)
            states.append(state(trainer))
        for a, b in zip(*states, strict=True):
            assert_allclose(a, b, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
    @pytest.mark.parametrize(
        "change",
        [
            lambda t: setattr(t.optimizer, "weight_decay", 0.1),
            lambda t: setattr(t.optimizer, "schedule", gn.Constant(0.001)),
            lambda t: setattr(t.optimizer, "clip_norm", 1e-3),
            lambda t: t.optimizer.reset(),
            lambda t: t.optimizer.to("numpy"),
            lambda t: setattr(t.model[0].weight, "value", np.ones((5, 7))),
            lambda t: setattr(t.model[0], "activation", gn.Tanh()),
            lambda t: t.model.layers.insert(1, gn.Tanh()),
            lambda t: setattr(t.loss, "label_smoothing", 0.2),
            lambda t: setattr(t, "loss", gn.SoftmaxCrossEntropy(reduction="sum")),
            lambda t: setattr(t, "optimizer", gn.Adam(t.model.parameters(), 0.01)),
            lambda t: setattr(t, "model", t.model[:]),
            lambda t: setattr(t.model[0], "weight", gn.Parameter(np.ones((5, 7)))),
            lambda t: setattr(t.model[1], "bias", None),
        ],
        ids=[
            *("decay", "rate", "clip", "reset", "moved", "value", "activation", "layer"),
            *("smoothing", "loss", "optimizer", "model", "weight", "bias"),
        ],
    )
    def test_they_are_heard(self, change: Any, optimizer: str) -> None:
        self.assert_both_alike(change, Case(optimizer=optimizer))

    @pytest.mark.parametrize(
        "change",
        [
            lambda loader: setattr(loader, "batch_size", 7),
            lambda loader: setattr(loader, "shuffle", False),
            lambda loader: setattr(loader, "transform", lambda x: 2 * x),
            lambda loader: loader.stored.x.base.__imul__(2),
            lambda loader: loader.stored.y.base.__ixor__(1),
            lambda loader: setattr(loader, "stored", loader.stored._replace(x=loader.stored.x + 1)),
        ],
        ids=["batch size", "order", "transform", "x", "y", "stored"],
    )
    def test_so_are_those_of_the_data(self, change: Any) -> None:
        case = Case(loss="binary")
        loaders: list[gn.Loader] = []
        self.assert_both_alike(lambda _: change(loaders[-1]), case, loaders)

    def test_data_of_another_shape(self) -> None:
        case = Case(n=48)
        loader = case.loader()

        def callback(trainer: gn.Trainer, history: gn.History) -> None:
            loader.stored.x.shape = (24, 10)

        with pytest.raises(gn.errors.ShapeError):
            case.trainer().fit(loader, 2, callbacks=[callback], progress=False)

    @pytest.mark.parametrize("momentum", [0.9, 0.0])
    @pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
    def test_momentum_that_begins_or_ends(self, optimizer: str, momentum: float) -> None:
        self.assert_both_alike(
            lambda t: setattr(t.optimizer, "momentum", momentum), Case(optimizer=optimizer)
        )

    def test_momentum_that_was_set_before(self) -> None:
        trainers = [Case(optimizer=optimizer).trainer() for optimizer in ("sgd", "momentum")]
        trainers[0].optimizer.momentum = trainers[1].optimizer.momentum
        for trainer in trainers:
            trainer.optimizer.weight_decay = 0.0
            trainer.optimizer.learning_rate = 0.1
            trainer.fit(Case().loader(), 3, progress=False)
        for a, b in zip(*(state(trainer) for trainer in trainers), strict=True):
            assert_array_equal(a, b)

    def test_momentum(self) -> None:
        self.assert_both_alike(
            lambda t: setattr(t.optimizer, "momentum", 0.5), Case(optimizer="nesterov")
        )


@pytest.mark.usefixtures("two_threads")
class TestThreads:
    CASE = Case(n=2000, batch_size=100, sizes=(20, 50, 3), optimizer="adam", dtype="float32")

    def test_one_thread_where_the_user_wants_one(self, calls: list[int]) -> None:
        with threadpool_limits(1, user_api="blas"):
            self.CASE.run()
        assert set(calls) == {1}
        self.CASE.run()
        assert set(calls[3:]) == {2}

    def test_the_same_each_time(self) -> None:
        one, other = self.CASE.run(), self.CASE.run()
        for a, b in zip(state(one[0]), state(other[0]), strict=True):
            assert_array_equal(a, b)

    def test_fits_at_the_same_time(self) -> None:
        wanted = state(self.CASE.run()[0])
        with ThreadPoolExecutor(4) as pool:
            found = [run[0] for run in pool.map(lambda _: self.CASE.run(), range(8))]
        for trainer in found:
            for a, b in zip(state(trainer), wanted, strict=True):
                assert_allclose(a, b, rtol=1e-3, atol=1e-4)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
    def test_a_process_that_was_forked(self) -> None:
        """Its parent's workers are not there."""
        wanted = state(self.CASE.run()[0])
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found = pool.apply_async(_state_of, (self.CASE,)).get(timeout=60)
        for a, b in zip(found, wanted, strict=True):
            assert_array_equal(a, b)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
    def test_a_process_that_was_forked_meanwhile(self) -> None:
        """It has as many threads of BLAS as there were before."""
        limit = blas.one_thread()
        with limit.hold(), multiprocessing.get_context("fork").Pool(1) as pool:
            assert limit.count() == 1
            assert pool.apply_async(_threads_of_blas).get(timeout=60) == 2
        assert limit.count() == 2

    @pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer here")
    @pytest.mark.parametrize("after_s", [0.001, 0.02, 0.05, 0.1])
    def test_control_c(self, after_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
        """Steps that were made are counted, and the next fit is as if nothing had been."""
        monkeypatch.setattr(cpu, "_WORK_AT_ONCE", 1 << 26)
        trainer, _, loader = self.CASE.run()
        before = trainer.optimizer.steps

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        handler = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, after_s)
            history = trainer.fit(loader, 100_000, progress=False)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
        assert "interrupted" in history.stopped
        made = trainer.optimizer.steps - before
        assert trainer.optimizer.updates == trainer.optimizer.steps
        assert 20 * len(history) <= made <= 20 * (len(history) + 1)
        trainer.fit(loader, 2, progress=False)
        assert trainer.optimizer.steps == before + made + 40

    def test_a_worker_that_fails(self) -> None:
        meeting = np.zeros(2, np.int64)

        def work(thread: int, threads: int) -> None:
            if thread == 1:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            crew.run(work, 2, meeting)
        assert meeting.tolist() == [0, 1]
        assert threading.active_count() < 20

    def test_an_interrupt_while_work_is_given_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Those that are known to be at work are through when it is raised."""
        began, done = threading.Event(), threading.Event()
        give_out, tasks = crew._Crew.give_out, []

        def interrupted(*arguments: Any) -> Any:
            tasks.append(give_out(*arguments))
            if len(tasks) == 2:
                began.wait()
                raise KeyboardInterrupt
            return tasks[0]

        def work(thread: int, threads: int) -> None:
            began.set()
            time.sleep(0.05)
            done.set()

        monkeypatch.setattr(crew._Crew, "give_out", interrupted)
        with pytest.raises(KeyboardInterrupt):
            crew.run(work, 3, np.zeros(2, np.int64))
        assert done.is_set()
        tasks[1].wait()

    def test_what_is_held_lives_as_long_as_a_worker_needs_it(self, monkeypatch: Any) -> None:
        """Also where this thread is interrupted while it waits."""
        held, done = np.zeros(3), threading.Event()
        alive = weakref.ref(held)
        seen = []

        def work(thread: int, threads: int) -> None:
            if thread == 0:
                raise KeyboardInterrupt
            done.wait()
            seen.append(alive() is not None)

        def interrupted(self: Any, work: Any) -> Any:
            task = give_out(self, work)
            monkeypatch.setattr(task, "wait", lambda: None)
            return task

        give_out = crew._Crew.give_out
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(crew._Crew, "give_out", interrupted)
            with pytest.raises(KeyboardInterrupt):
                crew.run(work, 2, np.zeros(2, np.int64), held=held)
        del held
        done.set()
        crew.run(lambda *_: None, 2, np.zeros(2, np.int64))  # by a new crew
        deadline = time.monotonic() + 10
        while not seen and time.monotonic() < deadline:
            time.sleep(0.001)
        assert seen == [True]

    def test_workers_leave_when_nobody_needs_them(self) -> None:
        def count() -> int:
            return sum(thread.name == "gpunn" for thread in threading.enumerate())

        before = count()
        thread = threading.Thread(target=self.CASE.run)
        thread.start()
        thread.join()
        deadline = time.monotonic() + 10
        while count() > before and time.monotonic() < deadline:
            time.sleep(0.001)
        assert count() <= before

    def test_as_many_as_there_are_processors(self) -> None:
        if not hasattr(os, "sched_getaffinity"):
            pytest.skip("this system does not say which processors there are")
        assert crew.available(1000) == len(os.sched_getaffinity(0))
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(own)})
        try:
            assert crew.available(2) == 1
        finally:
            os.sched_setaffinity(0, own)

    def test_threads_that_cannot_be_had(self, monkeypatch: Any, calls: list[int]) -> None:
        def start(self: Any) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", start)
        monkeypatch.setattr(crew, "_local", threading.local())
        self.CASE.run()
        assert set(calls) == {1}

    def test_in_another_thread_than_before(self, calls: list[int]) -> None:
        """There, too, BLAS has one thread for each of ours; and as many as before at the end."""
        seen = []
        real = cpu.OneThread.count
        self.CASE.run()

        def count(self: Any) -> int:
            seen.append(real(self))
            return seen[-1]

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
            patch.setattr(cpu.OneThread, "count", count)
            pool.submit(self.CASE.run).result()
        assert seen == [2, 1] * 3
        assert set(calls) == {2}
        assert blas.one_thread().count() == 2

    @pytest.mark.parametrize("way", ["atexit", "thread"])
    def test_fits_when_the_interpreter_ends(self, way: str) -> None:
        program = f"""
import atexit, threading, numpy as np, gpunn as gn
from gpunn.kernels import blas
from gpunn.program import cpu
blas._WORK_OF_ONE_THREAD, cpu._WORK_OF_A_THREAD = 0, 1

def fit():
    model = gn.Dense(20, 3, rng=0)
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters()))
    loader = gn.Loader(np.ones((400, 20)), np.zeros(400, int), batch_size=100, backend="numpy")
    print("done", len(trainer.fit(loader, 30, progress=False)), flush=True)

fit()
{"atexit.register(fit)" if way == "atexit" else "threading.Thread(target=fit).start()"}
"""
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
        assert done.stdout.split() == ["done", "30"] * 2, done.stderr
        assert done.returncode == 0

    def test_who_leaves_lets_the_others_go(self) -> None:
        """Here, thread 0 fails before the meeting that the worker waits at."""
        meeting = np.zeros(2, np.int64)
        came: list[bool] = []

        def work(thread: int, threads: int) -> None:
            if thread == 0:
                raise ZeroDivisionError
            came.append(_wait(meeting.ctypes.data, threads))

        with pytest.raises(ZeroDivisionError):
            crew.run(work, 2, meeting)
        assert came == [False]


def _state_of(case: Case) -> list[Any]:
    return state(case.run()[0])


def _threads_of_blas() -> int:
    return blas.one_thread().count()


@compiled
def _wait(meeting: Any, threads: int) -> bool:
    return interpreter._meet(meeting, threads)
