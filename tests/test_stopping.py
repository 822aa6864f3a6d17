"""Which way is better: early stopping, the best weights and the schedules by what they follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import gpunn as gn
from gpunn.errors import SettingError
from gpunn.optim.patience import Patience

X = np.random.default_rng(0).standard_normal((8, 3)).astype("float32")
LABELS = np.arange(8) % 2


class Scripted(gn.Metric):
    """A metric that gives the numbers it was told, an epoch each."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self._numbers = iter(numbers)

    name = "scripted"

    def measure(self, prediction: Any, target: Any) -> tuple[Any, ...]:
        return (prediction[0, 0],)

    def combine(self, statistics: Any, counts: Any) -> float:
        return next(self._numbers)


class Rising(Scripted):
    higher_is_better: ClassVar[bool] = True


class Falling(Scripted):
    higher_is_better: ClassVar[bool] = False


def trainer(metrics: Sequence[Any] = (), rate: Any = 0.1, **settings: Any) -> gn.Trainer:
    model = gn.Dense(3, 2, rng=0)
    optimizer = gn.SGD(model.parameters(), rate, **settings)
    return gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer, metrics=metrics, rng=0)


def loader(**settings: Any) -> gn.Loader:
    return gn.Loader(X, LABELS, **{"batch_size": 4, "rng": 0, **settings})


def fit(
    t: gn.Trainer, stopping: gn.EarlyStopping | None = None, epochs: int = 20, **settings: Any
) -> tuple[gn.History, list[Any]]:
    kept: list[Any] = []

    def keep(*_: Any) -> None:
        kept.append([p.value.copy() for p in t.model.parameters()])

    settings["callbacks"] = [*settings.get("callbacks", ()), keep]
    return t.fit(loader(), epochs, early_stopping=stopping, **settings), kept


def assert_weights(t: gn.Trainer, wanted: list[Any]) -> None:
    for p, value in zip(t.model.parameters(), wanted, strict=True):
        assert_array_equal(p.value, value)


ACCURACIES = [0.88, 0.92, 0.97, 0.96, 0.99, 0.985, 0.99, 0.5, 1.0]


class TestWhichWayIsBetter:
    @pytest.mark.parametrize("sign", [1, -1], ids=["the higher", "the lower"])
    def test_by_the_metric(self, sign: int) -> None:
        metric = (Rising if sign > 0 else Falling)([sign * a for a in ACCURACIES])
        t = trainer([metric])
        history, kept = fit(t, gn.EarlyStopping(3, monitor="scripted"))
        assert len(history) == 8
        assert history.best_epoch == 5
        verb = "risen" if sign > 0 else "fallen"
        assert history.stopped == f"scripted has not {verb} by more than 0.0001 in 3 epochs"
        assert_weights(t, kept[4])
        assert [line.split()[0] for line in repr(history).splitlines() if "best" in line] == ["5"]

    def test_on_validation_data(self) -> None:
        """Accuracy and validation accuracy take turns to read the numbers."""
        numbers = [n for pair in zip(ACCURACIES[::-1], ACCURACIES, strict=True) for n in pair]
        t = trainer([Rising(numbers)])
        stopping = gn.EarlyStopping(3, monitor="validation_scripted")
        history, kept = fit(t, stopping, validation=(X, LABELS))
        assert (len(history), history.best_epoch) == (8, 5)
        assert_weights(t, kept[4])

    @pytest.mark.parametrize(
        ("metric", "higher"),
        [
            (gn.Accuracy(), True),
            (gn.TopK(1), True),
            (gn.BinaryAccuracy(), True),
            (gn.R2(), True),
            (gn.MAE(), False),
            (gn.Metric(), None),
        ],
        ids=repr,
    )
    def test_every_metric_says(self, metric: gn.Metric, higher: bool | None) -> None:
        assert metric.higher_is_better is higher

    def test_the_accuracy_itself(self) -> None:
        """A rate that spoils everything after two epochs."""
        t = trainer(["accuracy"], lambda step: 0.5 if step < 4 else 1e3)
        stopping = gn.EarlyStopping(4, monitor="validation_accuracy")
        history, kept = fit(t, stopping, validation=(X, LABELS))
        assert history.best_epoch == 1 + int(np.argmax(history["validation_accuracy"]))
        assert_weights(t, kept[history.best_epoch - 1])

    def test_a_plateau(self) -> None:
        """It falls at an accuracy that no longer rises, not at one that does."""
        numbers = [0.1, 0.2, 0.3, 0.3, 0.3, 0.4]
        t = trainer([Rising(numbers)], gn.WarmUp(1, gn.ReduceOnPlateau(0.4, patience=2)))
        history, _ = fit(t, gn.EarlyStopping(9, monitor="scripted"), epochs=6)
        assert history["learning_rate"] == [0.4, 0.4, 0.4, 0.4, 0.4, 0.2]

    @pytest.mark.parametrize("sign", [1, -1])
    def test_a_history_by_hand(self, sign: int) -> None:
        history = gn.History("f1", higher_is_better=sign > 0)
        for value in (0.5, 0.9, math.nan, 0.7):
            history.append({"loss": 1.0, "f1": sign * value})
        assert history.best_epoch == 2
        assert gn.EarlyStopping(2).reason(history) is not None
        assert gn.EarlyStopping(3).reason(history) is None


class TestNumbersThatAreNotFinite:
    @pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
    def test_they_are_never_the_best(self, odd: float) -> None:
        t = trainer([Rising([0.1, odd, 0.5, odd, odd])])
        history, kept = fit(t, gn.EarlyStopping(2, monitor="scripted"))
        assert (len(history), history.best_epoch) == (5, 3)
        assert_weights(t, kept[2])

    @pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
    def test_where_all_are_so_the_last_weights_stay(self, odd: float) -> None:
        t = trainer([Rising([odd] * 9)])
        history, kept = fit(t, gn.EarlyStopping(3, monitor="scripted"))
        assert (len(history), history.best_epoch) == (3, 0)
        assert history.stopped == "scripted was not finite in 3 epochs"
        assert "best" not in repr(history)
        assert_weights(t, kept[-1])

    def test_a_plateau_waits(self) -> None:
        schedule = gn.ReduceOnPlateau(1.0, patience=2)
        for loss in (1.0, -math.inf, 0.9, math.nan, math.inf):
            schedule.observe(loss)
        assert schedule(0) == 0.5


def append(name: str, every: int = 1) -> Callable[..., None]:
    def callback(_: gn.Trainer, history: gn.History) -> None:
        if (len(history) - 1) % every == 0:
            history.append({name: len(history) / 10})

    return callback


class TestColumnsOfCallbacks:
    @pytest.mark.parametrize("higher", [True, False])
    def test_with_a_direction(self, higher: bool) -> None:
        stopping = gn.EarlyStopping(3, monitor="f1", higher_is_better=higher)
        t = trainer()
        history, kept = fit(t, stopping, 6, callbacks=[append("f1")])
        assert (len(history), history.best_epoch) == ((6, 6) if higher else (4, 1))
        assert_weights(t, kept[history.best_epoch - 1])

    def test_epochs_without_a_number_are_no_improvement(self) -> None:
        """Early stopping does not see the number of an earlier epoch again."""
        stopping = gn.EarlyStopping(9, monitor="f1", higher_is_better=True)
        t = trainer()
        history, kept = fit(t, stopping, 4, callbacks=[append("f1", every=2)])
        assert history.best_epoch == 3
        assert_weights(t, kept[2])

    def test_a_column_has_one_number_an_epoch(self) -> None:
        with pytest.raises(SettingError, match="'accuracy' has a number for epoch 1 already"):
            fit(trainer(["accuracy"]), callbacks=[append("accuracy")])

    def test_a_column_that_does_not_come(self) -> None:
        stopping = gn.EarlyStopping(3, monitor="f1", higher_is_better=True)
        with pytest.raises(SettingError, match="there is no 'f1' to monitor; there are loss"):
            fit(trainer(), stopping, callbacks=[append("f2")])


class TestWhatIsRefused:
    """Before the first epoch, and with what to do."""

    @pytest.mark.parametrize(
        ("stopping", "metrics", "told"),
        [
            ({"monitor": "f1"}, (), ["no 'f1'", "loss, learning_rate", "higher_is_better=True"]),
            ({"monitor": "f1", "higher_is_better": True}, (), ["no 'f1'"]),
            ({"monitor": "validation_loss"}, (), ["no 'validation_loss'", "validation="]),
            ({"monitor": "validation_accuracy"}, ["accuracy"], ["validation="]),
            ({"monitor": "cost"}, (), ["no 'cost'"]),
            (
                {"monitor": "scripted"},
                [Scripted([])],
                ["higher_is_better", "metric's class", "EarlyStopping(monitor='scripted', "],
            ),
            ({"monitor": "learning_rate"}, (), ["EarlyStopping(monitor='learning_rate', "]),
            (
                {"monitor": "accuracy", "higher_is_better": False},
                ["accuracy"],
                ["accuracy is better the higher", "leave"],
            ),
            (
                {"monitor": None, "higher_is_better": True},
                (),
                ["loss is better the lower", "leave"],
            ),
        ],
    )
    def test_a_column(self, stopping: Any, metrics: Any, told: list[str]) -> None:
        t = trainer(metrics)
        before = [p.value.copy() for p in t.model.parameters()]
        with pytest.raises(SettingError) as caught:
            t.fit(loader(), 3, early_stopping=gn.EarlyStopping(**stopping))
        assert [part for part in told if part not in str(caught.value)] == [], str(caught.value)
        assert_weights(t, before)
        assert t.optimizer.steps == 0

    def test_a_metric_that_does_not_say_may_be_recorded(self) -> None:
        history, _ = fit(trainer([Scripted([1, 2, 3])]), gn.EarlyStopping(9), 3)
        assert history["scripted"] == [1, 2, 3]

    def test_or_early_stopping_says_it(self) -> None:
        t = trainer([Scripted(ACCURACIES)])
        stopping = gn.EarlyStopping(3, monitor="scripted", higher_is_better=True)
        assert fit(t, stopping)[0].best_epoch == 5


def test_the_cost_is_followed_to_the_end() -> None:
    """Also when a callback takes weight decay away."""

    def relax(trainer: gn.Trainer, history: gn.History) -> None:
        if len(history) == 2:
            trainer.optimizer.weight_decay = 0.0

    t = trainer(rate=0.01, weight_decay=0.1)
    history, _ = fit(t, gn.EarlyStopping(2), 5, callbacks=[relax])
    assert history.monitored == "cost"
    assert history["cost"][2:] == history["loss"][2:]
    assert len(history) == 5 == history.best_epoch


def test_what_is_followed_does_not_change_on_the_way() -> None:
    """A cost is no loss: with it, the loss would look as if it had risen."""

    def tighten(trainer: gn.Trainer, history: gn.History) -> None:
        trainer.optimizer.weight_decay = 10.0

    t = trainer(rate=1e-4)
    history, _ = fit(t, gn.EarlyStopping(3, tolerance=0.0), 5, callbacks=[tighten])
    assert history.monitored == "loss"
    assert "cost" in history


class TestPatience:
    def test_small_steps_add_up_unless_the_best_follows_them(self) -> None:
        fixed, following = Patience(), Patience(follows_minimum=True)
        for value in (1.0, 0.94, 0.88, 0.82):
            fixed.observe(value, 0.1)
            following.observe(value, 0.1)
        assert (fixed.best, fixed.waited) == (0.88, 1)
        assert (following.best, following.waited) == (0.82, 3)

    def test_an_equal_number_improves_only_on_a_best_that_follows(self) -> None:
        fixed, following = Patience(1.0, 2), Patience(1.0, 2, follows_minimum=True)
        fixed.observe(1.0, 0.0)
        following.observe(1.0, 0.0)
        assert (fixed.waited, following.waited) == (3, 0)

    def test_nan_is_never_the_best(self) -> None:
        for patience in (Patience(1.0), Patience(1.0, follows_minimum=True)):
            patience.observe(math.nan, 0.0)
            assert patience.best == 1.0
