"""Streams: what gpunn returns may be used on any, and what it keeps is ready on all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn import kernels
from tests.conftest import get_place

pytestmark = pytest.mark.gpu
try:
    import cudasim  # the emulator's counters
except ImportError:
    cudasim = None

cupy: Any = None
cupyx: Any = None


@pytest.fixture(autouse=True)
def _cupy() -> None:
    global cupy, cupyx
    get_place("cupy")  # or skip
    cupy, cupyx = pytest.importorskip("cupy"), pytest.importorskip("cupyx")


@pytest.fixture
def _new_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what kernels have kept so far: a test sees the first use."""
    known = {kind: k for kind, k in kernels._BY_TYPE.items() if kind is not cupy.ndarray}
    monkeypatch.setattr(kernels, "_BY_TYPE", known)


def bias_step(rows: int) -> Callable[[], Any]:
    """Return a function for the gradient of a layer's bias for rows of ones: their number."""
    layer, tape = gn.Dense(4, 2, rng=0, backend="cupy"), gn.Tape()
    grad = cupy.ones_like(layer(cupy.ones((rows, 4), "float32"), tape))
    cupy.cuda.Device().synchronize()

    def step() -> Any:
        layer.backward(grad, tape)
        return layer.bias.grad

    return step


def training_step(loss: gn.Loss) -> Callable[[], Any]:
    """Return a function for the weights after a step."""
    model = gn.Dense(4, 2, rng=0, backend="cupy")
    optimizer = gn.SGD(model.parameters(), 0.5)
    x = cupy.asarray(np.eye(4, dtype="float32"))
    y = cupy.asarray(np.array([0, 1, 1, 0]))
    cupy.cuda.Device().synchronize()

    def step() -> Any:
        gn.train_step(model, loss, optimizer, x, y)
        return model.weight.value

    return step


def streams(n: int) -> list[Any]:
    return [cupy.cuda.Stream(non_blocking=True) for _ in range(n)]


def in_turn(steps: list[Callable[[], Any]]) -> Any:
    """Run each step on a stream of its own; return the last one's result, read before the others.

    None of the others need have run by then.
    """
    for step, stream in zip(steps, streams(len(steps)), strict=True):
        with stream:
            result = step()
            kept.append(stream)
    with kept[-1]:
        return result.get()


#: Streams that must outlive their work.
kept: list[Any] = []


@pytest.mark.usefixtures("_new_kernels")
class TestWhatIsKept:
    """Arrays that are made once and then read by any thread, on any stream."""

    def test_a_row_of_ones_is_ready_in_every_thread(self) -> None:
        """Each thread has a default stream of its own, and all of them have one address."""
        steps = [bias_step(8), bias_step(8)]
        results: list[Any] = []
        done = threading.Event()

        def first() -> None:
            with cupy.cuda.Stream.ptds:
                steps[0]()
                results.append("queued")
                done.wait(60)

        def second() -> None:
            with cupy.cuda.Stream.ptds:
                results.append(steps[1]().get().tolist())

        one, two = threading.Thread(target=first), threading.Thread(target=second)
        one.start()
        while not results:
            time.sleep(0.001)
        two.start()
        two.join()
        done.set()
        one.join()
        assert results == ["queued", [8, 8]]

    def test_a_row_of_ones_is_ready_in_every_stream(self) -> None:
        assert in_turn([bias_step(8), bias_step(8)]).tolist() == [8, 8]

    def test_a_shorter_row_of_ones_is_part_of_a_longer_one(self) -> None:
        for rows in (8, 5000, 3):
            assert bias_step(rows)().get().tolist() == [rows, rows]

    def test_class_weights_are_ready_in_every_stream(self) -> None:
        alone = training_step(gn.SoftmaxCrossEntropy(class_weight=[1, 3]))().get()
        loss = gn.SoftmaxCrossEntropy(class_weight=[1, 3])
        np.testing.assert_array_equal(in_turn([training_step(loss), training_step(loss)]), alone)

    def test_class_weights_are_made_once_for_each_dtype(self) -> None:
        loss = gn.SoftmaxCrossEntropy(class_weight=[1, 3])
        labels, outputs = cupy.zeros(2, int), [cupy.zeros((2, 2), f"float{n}") for n in (32, 64)]
        for z in outputs:
            loss.forward(z, labels)
        kept = [x.data.ptr for _, x in loss._weights_there.values()]
        for z in outputs:
            loss.forward(z, labels)
        assert [x.data.ptr for _, x in loss._weights_there.values()] == kept
        assert len(kept) == 2

    def test_class_weights_are_not_let_go_while_another_stream_reads_them(self) -> None:
        alone = training_step(gn.SoftmaxCrossEntropy(class_weight=[1, 3]))().get()
        loss = gn.SoftmaxCrossEntropy(class_weight=[1, 3])
        steps = [training_step(loss), training_step(loss)]
        one, two = streams(2)
        with one:
            steps[0]()
            one.synchronize()
        with two:
            weights = steps[1]()
        with one:
            loss.class_weight = [5, 5]
            loss(cupy.zeros((2, 2), "float32"), cupy.zeros(2, int))
            junk = [cupy.full(2, 7, "float32") for _ in range(50)]
            one.synchronize()
        with two:
            np.testing.assert_array_equal(weights.get(), alone)
        del junk


X = np.random.default_rng(0).standard_normal((96, 8)).astype("float32")
Y = (X[:, 0] + X[:, 1] > 0).astype(int)


def new_trainer(**settings: Any) -> gn.Trainer:
    model = gn.Sequential(gn.Dense(8, 16, "relu", rng=0), gn.Dense(16, 2, rng=1)).to("cupy")
    optimizer = gn.SGD(model.parameters(), **({"learning_rate": 0.5} | settings))
    return gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer, rng=0)


def fit(trainer: gn.Trainer, data: gn.Loader | None = None, **settings: Any) -> gn.History:
    data = data or gn.Loader(X, Y, backend="cupy", rng=0)
    return trainer.fit(data, 4, progress=False, **settings)


def rising(trainer: gn.Trainer, history: gn.History) -> None:
    """Spoil the last epochs: a callback that raises the learning rate."""
    trainer.optimizer.learning_rate = 30.0 if len(history) > 1 else 0.5


FITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "best weights": {
        "early_stopping": gn.EarlyStopping(monitor="loss", patience=9),
        "callbacks": [rising],
    },
}


class TestWhatIsReturned:
    """It may be used on any stream, also where its own would not have run yet."""

    @pytest.mark.parametrize("settings", FITS.values(), ids=FITS)
    @pytest.mark.parametrize("read", ["weights", "predict", "save"])
    def test_after_fit(self, settings: Any, read: str, tmp_path: Any) -> None:
        def result(stream: Any) -> Any:
            with stream:
                trainer = new_trainer()
                fit(trainer, **settings)
            if read == "weights":
                return [gn.to_numpy(p.value) for p in trainer.model.parameters()]
            if read == "predict":
                return [gn.to_numpy(trainer.predict(X))]
            gn.save(tmp_path / "model.safetensors", trainer.model)
            loaded = new_trainer().model.to("numpy")
            gn.load(tmp_path / "model.safetensors", loaded)
            return [p.value for p in loaded.parameters()]

        wanted = result(cupy.cuda.Stream.null)
        for found, right in zip(result(streams(1)[0]), wanted, strict=True):
            np.testing.assert_array_equal(found, right)

    def test_after_a_training_that_diverged(self) -> None:
        with streams(1)[0]:
            trainer = new_trainer()
            before = [gn.to_numpy(p.value) for p in trainer.model.parameters()]
            bad = gn.Loader(np.full_like(X, np.nan), Y, backend="cupy")
            with pytest.raises(gn.errors.DivergenceError):
                fit(trainer, bad)
        for parameter, right in zip(trainer.model.parameters(), before, strict=True):
            np.testing.assert_array_equal(parameter.value.get(), right)

    def test_after_an_interrupt(self) -> None:
        def interrupt(trainer: gn.Trainer, history: gn.History) -> None:
            for parameter in trainer.model.parameters():
                parameter.value += 1
            raise KeyboardInterrupt

        def weights(stream: Any) -> Any:
            with stream:
                trainer = new_trainer()
                fit(trainer, callbacks=[interrupt])
            return gn.to_numpy(trainer.model.parameters()[0].value)

        np.testing.assert_array_equal(weights(streams(1)[0]), weights(cupy.cuda.Stream.null))

    @pytest.mark.parametrize("method", ["predict", "predict_proba"])
    def test_by_predict(self, method: str) -> None:
        trainer = new_trainer()
        wanted = getattr(trainer, method)(X).get()
        cupy.cuda.Device().synchronize()
        with streams(1)[0]:
            found = getattr(trainer, method)(X, batch_size=32)
        np.testing.assert_allclose(found.get(), wanted, rtol=1e-5)

    def test_by_an_estimator(self) -> None:
        sklearn, estimators = (
            pytest.importorskip("sklearn"),
            pytest.importorskip("gpunn.estimators"),
        )
        x = cupy.asarray(X)
        cupy.cuda.Device().synchronize()
        with sklearn.config_context(array_api_dispatch=True):
            estimator = estimators.MLPRegressor(
                hidden_layer_sizes=(8,), max_iter=2, tol=0, random_state=0
            )
            with pytest.warns(match="Maximum iterations"), streams(1)[0]:
                estimator.fit(x, cupy.asarray(X[:, 0]))
            wanted = estimator.predict(x).get()
            with streams(1)[0]:
                found = estimator.predict(x)
            np.testing.assert_array_equal(found.get(), wanted)


class TestWhatIsGiven:
    """What the default stream has queued is done first."""

    def test_to_a_trainer_on_another_stream(self) -> None:
        wanted = new_trainer()
        right = fit(wanted)["loss"], wanted.predict(X).get(), wanted.evaluate((X, Y))
        trainer = new_trainer()
        data = gn.Loader(cupy.asarray(X) * 1.0, cupy.asarray(Y), backend="cupy", rng=0)
        with streams(1)[0]:
            losses = fit(trainer, data)["loss"]
        outputs = []
        for parameter in trainer.model.parameters():
            parameter.value *= 1.0
        with streams(1)[0]:
            outputs.append(trainer.predict(cupy.asarray(X)))
        with streams(1)[0]:
            numbers = trainer.evaluate((X, Y))
        assert losses == right[0]
        np.testing.assert_array_equal(outputs[0].get(), right[1])
        assert numbers == right[2]

    def test_to_an_estimator_on_another_stream(self) -> None:
        sklearn = pytest.importorskip("sklearn")
        estimators = pytest.importorskip("gpunn.estimators")

        def coefficients(stream: Any) -> Any:
            x = cupy.asarray(X) * 2.0
            estimator = estimators.MLPRegressor(hidden_layer_sizes=(8,), random_state=0)
            with stream:
                return estimator.partial_fit(x, x[:, 0]).coefs_[0]

        with sklearn.config_context(array_api_dispatch=True):
            found = coefficients(streams(1)[0]).get()
            np.testing.assert_array_equal(found, coefficients(cupy.cuda.Stream.null).get())

    def test_to_a_loader_on_another_stream(self) -> None:
        x = cupy.asarray(X, "float64") * 2.0
        with streams(1)[0]:
            data = gn.Loader(x, backend="cupy")
            np.testing.assert_array_equal(data.stored.x.get(), X * 2)

    def test_a_loop_on_another_stream_begins_after_the_default_one(self) -> None:
        data = gn.Loader(cupy.asarray(X) * 2.0, backend="cupy", shuffle=False)
        with streams(1)[0]:
            found = [batch.x.get() for batch in data]
        np.testing.assert_array_equal(np.concatenate(found), X * 2)


def pinned(x: Any) -> Any:
    buffer = cupyx.empty_pinned(x.shape, x.dtype)
    buffer[...] = x
    return buffer


def keep_busy() -> None:
    """Queue work: CuPy asks whether an upload is done, and the emulator then runs some of it."""
    x = cupy.zeros(3)
    for _ in range(20):
        x += 1


WAYS: dict[str, Callable[[Any], Any]] = {
    "asarray": lambda x: gn.get_backend("cupy").asarray(x),
    "asarray with a dtype": lambda x: gn.get_backend("cupy").asarray(x, "float64"),
    "a part of it": lambda x: gn.get_backend("cupy").asarray(x[2:5]),
    "its transpose": lambda x: gn.get_backend("cupy").asarray(x.T),
    "every second row": lambda x: gn.get_backend("cupy").asarray(x[::2]),
    "predict": lambda x: new_trainer().predict(x),
    "predict_proba": lambda x: new_trainer().predict_proba(x),
    "resident": lambda x: gn.Loader(x, backend="cupy", resident=True, shuffle=False).stored.x,
    "streamed": lambda x: (
        next(
            gn.Loader(x, backend="cupy", resident=False, batch_size=None, shuffle=False).in_order()
        ).x
    ),
    "a moved layer": lambda x: moved(x, "cupy"),
}


def moved(x: Any, home: str) -> Any:
    layer = gn.Dense(*x.shape, rng=0)
    layer.weight.value = x
    return layer.to(home).weight.value


class TestPinnedMemory:
    """CuPy uploads it without waiting; whoever gets a result may change it again."""

    @pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
    def test_has_been_read(self, way: Any) -> None:
        wanted = [way(X + i).get() for i in range(4)]
        buffer, found = pinned(X), []
        for i in range(4):
            buffer[...] = X + i
            keep_busy()
            found.append(way(buffer))
        for here, right in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(here.get(), right)

    def test_of_a_large_array(self) -> None:
        x = np.arange(3 << 20, dtype="float32").reshape(-1, 64)
        buffer = pinned(x)
        keep_busy()
        loader = gn.Loader(buffer, backend="cupy", resident=True, shuffle=False)
        buffer[...] = 0
        np.testing.assert_array_equal(loader.stored.x.get(), x)


if cudasim is not None:

    def test_only_pinned_memory_is_waited_for() -> None:
        backend, there = gn.get_backend("cupy"), cupy.asarray(X)
        cupy.cuda.Device().synchronize()
        with cudasim.count() as counted:
            for x in (X, X[::2], X.tolist(), there):
                backend.asarray(x)
                backend.asarray(x, "float64")
        assert counted["syncs"] == 0
        buffer = pinned(X)
        with cudasim.count() as counted:
            backend.asarray(buffer)
        assert (counted["syncs"], counted["event_syncs"]) == (1, 1)
