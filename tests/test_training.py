"""Training: one step by hand, the trainer's loop and what ends it, metrics against scikit-learn."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import metrics as sk

import gpunn as gn
from gpunn.errors import SettingError
from tests.conftest import Place, get_place

N, K = 23, 3
_RNG = np.random.default_rng(0)
X = _RNG.standard_normal((N, 4))
LABELS = np.argmax(X[:, :K] + 0.5 * _RNG.standard_normal((N, K)), axis=1)
NOISE = _RNG.integers(0, K, N)  # labels that nothing can learn
WEIGHT = _RNG.uniform(0.0, 2.0, N)


def network(place: Place, dropout: float = 0.0) -> gn.Sequential:
    first = gn.Dense(4, 6, "tanh", rng=0, dtype="float64")
    second = gn.Dense(6, K, rng=1, dtype="float64")
    return gn.Sequential(first, gn.Dropout(dropout), second).to(place.backend)


def trainer(
    place: Place,
    rate: Any = 0.1,
    *,
    dropout: float = 0.0,
    loss: gn.Loss | None = None,
    **settings: Any,
) -> gn.Trainer:
    model = network(place, dropout)
    optimizer = gn.SGD(model.parameters(), rate, momentum=0.9)
    return gn.Trainer(model, loss or gn.SoftmaxCrossEntropy(), optimizer, **{"rng": 0, **settings})


def loader(place: Place, y: Any = LABELS, x: Any = X, **settings: Any) -> gn.Loader:
    settings = {"batch_size": 5, "rng": 0, "dtype": "float64", **settings}
    return gn.Loader(x, y, backend=place.backend, **settings)


def weights(model: gn.Layer) -> list[Any]:
    return [gn.to_numpy(p.value).copy() for p in model.parameters()]


def assert_same(a: list[Any], b: list[Any]) -> None:
    for x, y in zip(a, b, strict=True):
        assert_array_equal(x, y)


def record(into: list[Any]) -> Callable[[gn.Trainer, gn.History], None]:
    """Return a callback that keeps the weights after each epoch."""
    return lambda trainer, _: into.append(weights(trainer.model))


@pytest.fixture
def host() -> Place:
    return get_place("numpy")


class TestOneStep:
    def test_it_is_backpropagation_by_hand(self, place: Place) -> None:
        model, loss = network(place), gn.SoftmaxCrossEntropy()
        optimizer = gn.SGD(model.parameters(), 0.5)
        w1, b1, w2, b2 = weights(model)
        for start in range(0, 20, 5):
            x, y = X[start : start + 5], LABELS[start : start + 5]
            h = np.tanh(x @ w1 + b1)
            z = h @ w2 + b2
            p = scipy.special.softmax(z, axis=1)
            dz = (p - np.eye(K)[y]) / 5
            dh = dz @ w2.T * (1 - h**2)
            w1, b1 = w1 - 0.5 * x.T @ dh, b1 - 0.5 * dh.sum(axis=0)
            w2, b2 = w2 - 0.5 * h.T @ dz, b2 - 0.5 * dz.sum(axis=0)
            cost, prediction = gn.train_step(model, loss, optimizer, place.array(x), place.array(y))
            assert_allclose(gn.to_numpy(cost), -np.log(p[range(5), y]).mean(), rtol=1e-12)
            assert_allclose(gn.to_numpy(prediction), z, rtol=1e-11)
        for got, want in zip(weights(model), (w1, b1, w2, b2), strict=True):
            assert_allclose(got, want, rtol=1e-11, atol=1e-14)

    def test_a_full_batch_is_the_mean_of_its_parts(self, host: Place) -> None:
        model, loss = network(host), gn.SoftmaxCrossEntropy()

        def gradient(rows: slice) -> list[Any]:
            tape = gn.Tape()
            loss(model(X[rows], tape), LABELS[rows], tape)
            model.backward(loss.backward(tape), tape)
            grads = [p.grad * (rows.stop - rows.start) / N for p in model.parameters()]
            gn.SGD(model.parameters()).clear()
            return grads

        whole = gradient(slice(0, N))
        for size in (1, 5):
            parts = [gradient(slice(i, min(i + size, N))) for i in range(0, N, size)]
            for got, want in zip(map(sum, zip(*parts, strict=True)), whole, strict=True):
                assert_allclose(got, want, rtol=1e-11, atol=1e-15)


class TestEpochLoss:
    LOSSES = (
        gn.SoftmaxCrossEntropy(),
        gn.SoftmaxCrossEntropy(class_weight=[0.2, 1.0, 3.0]),
        gn.SoftmaxCrossEntropy(reduction="sum"),
    )

    @pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
    @pytest.mark.parametrize("loss", LOSSES, ids=repr)
    def test_it_is_the_mean_over_the_samples(
        self, place: Place, loss: gn.SoftmaxCrossEntropy, weight: Any, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr("gpunn.training.readings._FOLD", 2)  # as in an epoch of many batches
        model = network(place)
        logits = gn.to_numpy(model(place.array(X)))
        w = np.ones(N) if weight is None else weight
        w = w * np.asarray(loss.class_weight or np.ones(K))[LABELS]
        total = -(w * scipy.special.log_softmax(logits, axis=1)[range(N), LABELS]).sum()
        wanted = total if loss.reduction == "sum" else total / w.sum()
        # With so small a learning rate all batches see the initial weights.
        t = gn.Trainer(model, loss, gn.SGD(model.parameters(), 1e-300))
        data = loader(place, sample_weight=weight)
        assert t.fit(data, 1).loss == [pytest.approx(wanted, rel=1e-12)]
        for given in (data, (X, LABELS) if weight is None else (X, LABELS, weight)):
            assert t.evaluate(given) == {"loss": pytest.approx(wanted, rel=1e-12)}

    def test_it_leaves_out_what_drop_last_does(self, host: Place) -> None:
        t = trainer(host, 1e-300)
        data = loader(host, drop_last=True, shuffle=False)
        assert t.fit(data, 1).loss[0] == pytest.approx(t.evaluate((X[:20], LABELS[:20]))["loss"])
        assert t.evaluate(data) == pytest.approx(t.evaluate((X, LABELS)))

    def test_the_cost_contains_the_penalty(self, place: Place) -> None:
        model = network(place)
        optimizer = gn.SGD(model.parameters(), 0.1, weight_decay=0.3)
        history = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer).fit(loader(place), 2)
        penalty = 0.15 * sum((w**2).sum() for w in weights(model)[::2])  # not of the biases
        assert history["cost"][-1] == pytest.approx(history.loss[-1] + penalty, rel=1e-12)
        assert history.monitored == "cost"

    def test_a_weight_of_zero_is_no_sample(self, place: Place) -> None:
        some, models = np.arange(N) % 3 > 0, []
        for rows, weight in [(slice(None), some.astype(float)), (some, None)]:
            t = trainer(place)
            data = loader(place, LABELS[rows], X[rows], sample_weight=weight, batch_size=None)
            t.fit(data, 4)
            models.append(weights(t.model))
        for a, b in zip(*models, strict=True):
            assert_allclose(a, b, rtol=1e-10, atol=1e-13)


CE, ONE_HOT, YES = gn.SoftmaxCrossEntropy(), np.eye(4)[LABELS], (X[:, ::-1] > 0.3).astype(int)
METRICS: list[tuple[Any, gn.Loss, Any, Callable[[Any, Any], float]]] = [
    ("accuracy", CE, NOISE, lambda y, z: sk.accuracy_score(y, z.argmax(axis=1))),
    ("accuracy", CE, ONE_HOT, lambda y, z: sk.accuracy_score(y.argmax(axis=1), z.argmax(axis=1))),
    (gn.TopK(2), CE, NOISE, lambda y, z: sk.top_k_accuracy_score(y, z, k=2, labels=range(4))),
    ("binary_accuracy", gn.BinaryCrossEntropy(), YES, lambda y, z: (y == (z > 0)).mean()),
    ("r2", gn.MeanSquaredError(), 3 * X + 1, sk.r2_score),
    ("mae", gn.MeanSquaredError(), np.sin(X), sk.mean_absolute_error),
]


class TestMetrics:
    @pytest.mark.parametrize("batch_size", [1, 7, N])
    @pytest.mark.parametrize(("metric", "loss", "y", "oracle"), METRICS)
    def test_as_in_scikit_learn(
        self, place: Place, metric: Any, loss: gn.Loss, y: Any, oracle: Any, batch_size: int
    ) -> None:
        # A layer that gives x back
        model = gn.Dense(4, 4, init=lambda *_: np.eye(4), dtype="float64", backend=place.backend)
        t = gn.Trainer(model, loss, gn.SGD(model.parameters()), metrics=[metric])
        data = loader(place, y, batch_size=batch_size)
        assert t.evaluate(data)[t.metrics[0].name] == pytest.approx(oracle(y, X), rel=1e-12)

    def test_r2_of_targets_that_are_all_alike(self, host: Place) -> None:
        for error, wanted in ((0.0, 1.0), (0.5, 0.0)):
            rows = [gn.R2().measure(np.full((n, 1), 0.1 + error), np.full(n, 0.1)) for n in (7, 3)]
            assert gn.R2().combine([[s.tolist() for s in row] for row in rows], [7, 3]) == wanted

    def test_nothing_is_a_hit_where_the_model_gives_no_numbers(self, place: Place) -> None:
        nan = place.array(np.full((5, 4), np.nan))
        (hits,) = gn.TopK(2).measure(nan, place.array(LABELS[:5]))
        assert float(hits) == 0.0


class TestPrediction:
    def test_nothing_is_drawn(self, place: Place) -> None:
        rng = np.random.default_rng(0)
        before = rng.bit_generator.state
        fitted = trainer(place, dropout=0.5, rng=rng)
        fitted.predict(X)
        fitted.evaluate((X, LABELS))
        assert rng.bit_generator.state == before

    def test_it_is_the_model_in_batches(self, place: Place) -> None:
        t, wanted = trainer(place, dropout=0.5), network(place)(place.array(X))
        for given in (X, X.tolist(), loader(place, batch_size=4)):
            for batch_size in (1, 7, 1024):
                got = t.predict(given, batch_size=batch_size)
                assert gn.backend_of(got) == place.backend
                assert_allclose(gn.to_numpy(got), gn.to_numpy(wanted), rtol=1e-12)

    @pytest.mark.parametrize(
        ("loss", "meaning"),
        [
            (gn.SoftmaxCrossEntropy(), lambda z: scipy.special.softmax(z, axis=1)),
            (gn.BinaryCrossEntropy(), scipy.special.expit),
            (gn.MeanSquaredError(), lambda z: z),
        ],
        ids=["softmax", "sigmoid", "itself"],
    )
    def test_probabilities(self, place: Place, loss: gn.Loss, meaning: Any) -> None:
        t = trainer(place, loss=loss)
        wanted = meaning(gn.to_numpy(t.predict(X)))
        assert_allclose(gn.to_numpy(t.predict_proba(X, batch_size=5)), wanted, rtol=1e-12)


class TestHistory:
    def test_what_a_callback_adds_is_of_its_epoch(self) -> None:
        history = gn.History()
        history.append({"loss": 3.0})
        history.append({"loss": 2.0, "other": 5.0})
        history.append({"own": 7.0})
        history.append({"loss": 1.0})
        assert_array_equal(history["other"], [math.nan, 5.0])
        assert_array_equal(history["own"], [math.nan, 7.0])
        assert_array_equal(history.to_dict()["own"], [math.nan, 7.0, math.nan])
        assert math.isnan(history.last["other"])

    def test_an_entry_an_epoch(self, place: Place) -> None:
        t = trainer(place, gn.StepDecay(0.2, every=5), metrics=["accuracy"])
        history = t.fit(loader(place), 4, validation=(X, NOISE))
        names = ["loss", "accuracy", "validation_loss", "validation_accuracy", "learning_rate"]
        assert list(history.columns) == [*names, "elapsed_s", "samples_per_s"]
        assert {len(column) for column in history.columns.values()} == {len(history)} == {4}
        assert history["learning_rate"] == pytest.approx([0.2, 0.02, 0.002, 0.0002])
        assert history.best_epoch == 1 + int(np.argmin(history["validation_loss"]))
        assert history.stopped == "all 4 epochs run"
        assert t.optimizer.steps == 4 * 5
        plain = json.loads(json.dumps(history.to_dict()))
        assert plain == {"epoch": [1, 2, 3, 4], **history.columns, "stopped": history.stopped}

    def test_it_is_readable(self) -> None:
        history = gn.History()
        assert repr(history) == "History(0 epochs; not started)"
        assert history.best_epoch == 0
        for loss in (math.nan, 2.0, 0.5, 3.0, 1.0, 1.25):
            history.append({"loss": loss, "learning_rate": 0.1, "elapsed_s": 0.5})
        history.stopped = "enough"
        assert repr(history).splitlines() == [
            "History(6 epochs in 3 s; enough)",
            "  epoch       loss  learning_rate",
            "      1        nan            0.1",
            "      2          2            0.1",
            "      3        0.5            0.1  best",
            "    ...",
            "      5          1            0.1",
            "      6       1.25            0.1",
        ]
        with pytest.raises(KeyError, match="no column 'accuracy'; there are loss, learning_rate"):
            history["accuracy"]


class TestEarlyStopping:
    @pytest.mark.parametrize(
        ("losses", "settings", "stops"),
        [
            ([3, 2, 1, 1, 1], {"patience": 2}, True),
            ([3, 2, 1, 1], {"patience": 2}, False),
            ([3, 2, 1, 1.5, 0.9, 1], {"patience": 2}, False),
            ([1, 0.95, 0.92], {"patience": 2, "tolerance": 0.1}, True),
            ([1, 0.95, 0.85], {"patience": 2, "tolerance": 0.1}, False),
            ([1, 0.99], {"patience": 1, "tolerance": 0.0}, False),
            ([1, 1], {"patience": 1, "tolerance": 0.0}, True),
        ],
    )
    def test_patience_and_tolerance(self, losses: Any, settings: Any, stops: bool) -> None:
        history = gn.History()
        for loss in losses:
            history.append({"loss": float(loss)})
        reason = gn.EarlyStopping(**settings).reason(history)
        assert (reason is not None) == stops
        assert not stops or reason.startswith("loss has not fallen by more than")

    @pytest.mark.parametrize("restore_best", [True, False])
    @pytest.mark.parametrize("monitor", [None, "loss", "validation_loss"])
    @pytest.mark.parametrize("validation", [None, (X, NOISE)], ids=["", "validation"])
    def test_it_goes_back_to_the_best_weights(
        self, place: Place, validation: Any, monitor: Any, restore_best: bool
    ) -> None:
        # The learning rate leaps after three epochs, which spoils the loss at once.
        t, kept = trainer(place, lambda step: 0.1 if step < 15 else 20.0), []
        stopping = gn.EarlyStopping(2, monitor=monitor, restore_best=restore_best)
        settings = {"early_stopping": stopping, "callbacks": [record(kept)]}
        if monitor == "validation_loss" and validation is None:
            with pytest.raises(gn.errors.SettingError, match="there is no 'validation_loss'"):
                t.fit(loader(place), 20, **settings)
            return
        history = t.fit(loader(place), 20, validation=validation, **settings)
        watched = history[monitor or ("validation_loss" if validation else "loss")]
        best = int(np.argmin(watched))
        assert best + 1 == history.best_epoch < len(history) < 20
        assert "has not fallen" in history.stopped
        assert_same(weights(t.model), kept[best if restore_best else -1])


class TestWhatEndsTraining:
    def test_a_callback(self, host: Place) -> None:
        seen = []

        def enough(t: gn.Trainer, history: gn.History) -> object:
            seen.append((t, len(history)))
            return "yes" if len(history) < 3 else True  # only True itself ends it

        t = trainer(host)
        history = t.fit(loader(host), 9, callbacks=[enough])
        assert seen == [(t, 1), (t, 2), (t, 3)]
        assert history.stopped == "enough asked for it"

    @pytest.mark.parametrize("steps", [0, 7], ids=["at once", "in the second epoch"])
    def test_control_c(self, place: Place, steps: int) -> None:
        calls, kept = [], []

        def transform(x: Any) -> Any:
            calls.append(1)
            if len(calls) == steps + 2:  # the first is the trainer's check of the data
                raise KeyboardInterrupt
            return x

        t = trainer(place)
        before = weights(t.model)
        data, stopping = loader(place, transform=transform), gn.EarlyStopping(20)
        history = t.fit(data, 9, early_stopping=stopping, callbacks=[record(kept)])
        assert len(history) == steps // 5
        assert history.stopped == f"interrupted in epoch {1 + steps // 5}"
        assert history.stopped in repr(history)
        assert_same(weights(t.model), kept[-1] if kept else before)
        assert t.fit(data, 2).stopped == "all 2 epochs run"

    def test_control_c_in_the_middle_of_a_step(self, host: Place, monkeypatch: Any) -> None:
        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        t = trainer(host)
        before = weights(t.model)
        monkeypatch.setattr(t.model[0], "backward", interrupt)
        t.fit(loader(host), 9)
        assert [p.grad for p in t.model.parameters()] == [None] * 4  # no half of a gradient
        assert_same(weights(t.model), before)

    @pytest.mark.parametrize("epoch", [1, 3])
    def test_a_loss_that_is_not_finite(self, place: Place, epoch: int) -> None:
        def rate(step: int) -> float:
            return 0.01 if step < 5 * (epoch - 1) else 1e200

        t, kept = trainer(place, rate, loss=gn.MeanSquaredError()), []
        before, data = weights(t.model), loader(place, np.eye(K)[LABELS])
        wanted = pytest.raises(gn.errors.DivergenceError, match=rf"epoch {epoch} .*lower learning")
        with np.errstate(all="ignore"), wanted as raised:
            t.fit(data, 9, callbacks=[record(kept)])
        history = raised.value.history
        assert len(history) == epoch
        assert not math.isfinite(history.loss[-1])
        assert history.stopped == f"the loss was not finite in epoch {epoch}"
        assert_same(weights(t.model), kept[history.best_epoch - 1] if epoch > 1 else before)
        t.optimizer.schedule = gn.Constant(0.01)
        assert math.isfinite(t.fit(data, 1).loss[-1])  # no velocity is left that is not finite

    def test_a_validation_loss_that_is_not_finite(self, host: Place) -> None:
        wanted = "the validation loss is nan in epoch 1 .* NaN in the validation data"
        with pytest.raises(gn.errors.DivergenceError, match=wanted):
            trainer(host).fit(loader(host), 9, validation=(np.full_like(X, np.nan), LABELS))


class TestSeeds:
    def run(self, place: Place, seed: int = 0) -> Any:
        t = trainer(place, dropout=0.4, rng=seed)
        return t.fit(loader(place), 3).loss, weights(t.model)

    def test_one_seed_gives_one_run(self, place: Place) -> None:
        (losses, first), (again, second) = self.run(place), self.run(place)
        assert losses == again
        assert_same(first, second)
        assert self.run(place, seed=1)[0] != losses

    def test_looking_changes_nothing(self, place: Place) -> None:
        t, data = trainer(place, dropout=0.4), loader(place)
        losses = t.fit(data, 1).loss
        t.evaluate(data)
        t.predict(data)
        losses += t.fit(data, 2).loss  # and goes on where it was
        wanted, final = self.run(place)
        assert losses == wanted
        assert_same(weights(t.model), final)


def test_a_plateau_is_seen_once_an_epoch(host: Place) -> None:
    schedule = gn.ReduceOnPlateau(0.4, patience=1, tolerance=1e3)
    history = trainer(host, gn.WarmUp(1, schedule)).fit(loader(host), 4)
    assert history["learning_rate"] == [0.4, 0.4, 0.2, 0.1]


@pytest.mark.parametrize(
    ("progress", "terminal", "shown"),
    [(None, False, False), (None, True, True), (True, False, True), (False, True, False)],
)
def test_the_progress_bar(
    host: Place, capsys: Any, monkeypatch: Any, progress: Any, terminal: bool, shown: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    trainer(host).fit(loader(host), 2, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("10/10" in err and "loss=" in err) if shown else err == ""


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "History.append: expected a dict from columns to numbers, got NoneType"),
        ({"f1": "0.5"}, "History.append: 'f1' must be a number, got '0.5'"),
        ({"f1": None}, "History.append: 'f1' must be a number, got None"),
        ({"f1": np.ones(2)}, r"History.append: 'f1' must be a number, got array\("),
        ({1: 0.5}, "History.append: the names of columns must be strings, got 1"),
    ],
)
def test_a_history_holds_numbers(record: Any, message: str) -> None:
    history = gn.History()
    history.append({"loss": 1.0})
    with pytest.raises(SettingError, match=message):
        history.append(record)
    assert list(history.columns) == ["loss"]
    history.append({"f1": np.float32(0.5), "rank": 3, "mean": np.array(0.25)})
    assert history.last == {"loss": 1.0, "f1": 0.5, "rank": 3, "mean": 0.25}
