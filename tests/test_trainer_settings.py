"""What a trainer refuses before it trains: with who speaks, what was wanted, and what to write."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn.errors import DataError, SettingError
from tests.conftest import Place

X = np.random.default_rng(0).standard_normal((8, 3)).astype("float32")
Y = np.arange(8) % 2
CE = gn.SoftmaxCrossEntropy()


class Bare(gn.Metric):
    def __init__(self, name: Any) -> None:
        self._name = name

    @property
    def name(self) -> Any:
        return self._name

    def measure(self, prediction: Any, target: Any) -> tuple[Any, ...]:
        return (prediction[0, 0],)


class Odd(Bare):
    higher_is_better: Any = "max"


def network() -> gn.Sequential:
    return gn.Sequential(gn.Dense(3, 4, "tanh", rng=0), gn.Dense(4, 2, rng=1))


def trainer(model: Any = None, optimizer: Any = None, **settings: Any) -> gn.Trainer:
    model = network() if model is None else model
    optimizer = gn.SGD(model.parameters(), 0.1) if optimizer is None else optimizer
    return gn.Trainer(model, settings.pop("loss", CE), optimizer, **settings)


def fit(epochs: Any = 1, **settings: Any) -> gn.History:
    return trainer().fit(gn.Loader(X, Y, batch_size=4), epochs, **settings)


def silent(*_: Any) -> None:
    pass


class Silent:
    def __call__(self, *_: Any) -> None:
        pass


Stop = gn.EarlyStopping
# fmt: off
MISTAKES: list[tuple[str, Callable[[], Any], tuple[str, ...]]] = [
    ("early True", lambda: fit(early_stopping=True),
     ("Trainer.fit: early_stopping must be None or an EarlyStopping, got True",
      "write early_stopping=gn.EarlyStopping()")),
    ("early False", lambda: fit(early_stopping=False), ("got False", "early_stopping=None")),
    ("early 5", lambda: fit(early_stopping=5), ("got 5", "gn.EarlyStopping(patience=5)")),
    ("early dict", lambda: fit(early_stopping={"patience": 3, "monitor": "loss"}),
     ("gn.EarlyStopping(patience=3, monitor='loss')",)),
    ("early name", lambda: fit(early_stopping="accuracy"),
     ("got 'accuracy'", "gn.EarlyStopping(monitor='accuracy')")),
    ("early class", lambda: fit(early_stopping=Stop),
     ("got the class EarlyStopping", "write early_stopping=gn.EarlyStopping()")),
    ("callback", lambda: fit(callbacks=silent),
     ("Trainer.fit: callbacks must be a list of functions, got a single", "callbacks=[silent]")),
    ("callback object", lambda: fit(callbacks=Silent()), ("got a single one", "callbacks=[")),
    ("callbacks 3", lambda: fit(callbacks=3), ("callbacks must be a list of functions, got 3",)),
    ("callbacks str", lambda: fit(callbacks="silent"), ("list of functions, got 'silent'",)),
    ("callbacks dict", lambda: fit(callbacks={"a": silent}), ("list of functions, got {",)),
    ("callbacks [3]", lambda: fit(callbacks=[silent, 3]),
     ("Trainer.fit: callbacks[1] must be a function of (trainer, history), got 3",)),
    ("callbacks [class]", lambda: fit(callbacks=[Silent]),
     ("callbacks[0]", "got the class Silent", "write Silent()")),
    ("epochs 1.5", lambda: fit(1.5), ("Trainer.fit: epochs must be a whole number above 0",)),
    ("epochs True", lambda: fit(True), ("epochs must be a whole number above 0, got True",)),
    ("epochs '3'", lambda: fit("3"), ("epochs must be a whole number above 0, got '3'",)),
    ("progress", lambda: fit(progress="yes"),
     ("Trainer.fit: progress must be one of None, True, False; got 'yes'",)),
    ("progress 1", lambda: fit(progress=1), ("progress must be one of None, True, False; got 1",)),
    *(
        (f"validation {given!r}", lambda given=given: fit(validation=given),
         ("Trainer.fit, validation: expected a Loader, (x, y) or (x, y, sample_weight), got", told))
        for given, told in ((True, "bool"), ({"x": X}, "dict"), (0.2, "float"), ("xy", "str"),
                            ((X,), "1 item"), (gn.Loader, "the class Loader"))
    ),
    ("evaluate", lambda: trainer().evaluate(X),
     ("Trainer.evaluate: expected a Loader, (x, y) or", "got ndarray")),
    ("loader class", lambda: trainer().fit(gn.Loader, 1),
     ("Trainer.fit: expected a Loader, got the class Loader", "gn.Loader(x, y, batch_size=32)")),
    ("predict", lambda: trainer().predict(X, batch_size=0),
     ("Trainer.predict: batch_size must be a whole number above 0, got 0",)),
    ("predict proba", lambda: trainer().predict_proba(X, batch_size=2.5),
     ("batch_size must be a whole number above 0, got 2.5",)),
    ("model class", lambda: gn.Trainer(gn.ReLU, CE, None),
     ("Trainer: model must be a Layer, got the class ReLU; write ReLU(...)",)),
    ("loss class", lambda: trainer(loss=gn.SoftmaxCrossEntropy),
     ("Trainer: loss must be a Loss, got the class SoftmaxCrossEntropy",
      "write SoftmaxCrossEntropy()")),
    ("loss name", lambda: trainer(loss="mse"), ("Trainer: loss must be a Loss, got str",)),
    ("optimizer class", lambda: trainer(optimizer=gn.SGD),
     ("Trainer: optimizer must be an Optimizer, got the class SGD",
      "write SGD(model.parameters())")),
    ("metric class", lambda: trainer(metrics=[gn.Accuracy]), ("a class", "write Accuracy()")),
    ("metric", lambda: trainer(metrics=gn.Accuracy()),
     ("Trainer: metrics must be a list, such as ['accuracy'], got Accuracy()",)),
    ("metrics class", lambda: trainer(metrics=gn.Accuracy), ("metrics must be a list", "class")),
    ("metrics set", lambda: trainer(metrics={"accuracy"}),
     ("metrics must be a list, such as ['accuracy'], got {'accuracy'}",)),
    ("metrics dict", lambda: trainer(metrics={"a": "accuracy"}), ("must be a list", "got {'a'")),
    ("metrics [[]]", lambda: trainer(metrics=[["accuracy"]]), ("unknown metric ['accuracy']",)),
    ("metrics [3]", lambda: trainer(metrics=[3]), ("unknown metric 3",)),
    ("metric twice", lambda: trainer(metrics=["accuracy", gn.Accuracy()]),
     ("Trainer: two columns of the history would be called 'accuracy'", "metrics")),
    *(
        (f"metric {name}", lambda name=name: trainer(metrics=[Bare(name)]),
         ("Trainer: ", f"{column!r}", "name"))
        for name, column in (("loss", "loss"), ("cost", "cost"), ("epoch", "epoch"),
                             ("stopped", "stopped"), ("learning_rate", "learning_rate"),
                             ("elapsed_s", "elapsed_s"), ("samples_per_s", "samples_per_s"),
                             ("validation_loss", "validation_loss"))
    ),
    ("metric over another", lambda: trainer(metrics=["mae", Bare("validation_mae")]),
     ("'validation_mae'",)),
    ("metric's direction", lambda: trainer(metrics=[Odd("odd")]),
     ("Odd(): higher_is_better must be one of None, True, False; got 'max'",)),
    *(
        (f"{name} of {loss!r}", lambda name=name, loss=loss: trainer(loss=loss, metrics=[name]),
         (f"Trainer: {name.upper()}() compares predictions", f"the model's outputs are {what}"))
        for name in ("r2", "mae")
        for loss, what in ((gn.Poisson(), "logarithms of means"), (gn.Hinge(), "margins"),
                           (gn.KLDivergence(), "logits"))
    ),
    ("perplexity of probabilities",
     lambda: trainer(gn.Dense(4, 3, "softmax"), loss=gn.CrossEntropy(), metrics=["perplexity"]),
     ("Trainer: Perplexity", "CrossEntropy() takes probabilities; use a loss of logits")),
    ("metric without a name", lambda: trainer(metrics=[Bare(None)]),
     ("the name of a metric must be a string, got None",)),
]
# fmt: on


@pytest.mark.parametrize(
    ("make", "parts"), [pytest.param(make, parts, id=name) for name, make, parts in MISTAKES]
)
def test_a_mistake_is_told(make: Callable[[], Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(SettingError) as caught:
        make()
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)


class TestWeightsThatAreAllZero:
    def data(self, place: Place, weight: Any, **settings: Any) -> gn.Loader:
        settings = {"batch_size": 4, "shuffle": False, "backend": place.backend, **settings}
        return gn.Loader(X, Y, sample_weight=weight, **settings)

    @pytest.mark.parametrize("resident", [True, False])
    def test_there_is_nothing_to_learn_from(self, place: Place, resident: bool) -> None:
        t = trainer(network().to(place.backend))
        zero = self.data(place, np.zeros(8), resident=resident)
        for use in (lambda: t.fit(zero, 1), lambda: t.check(zero), lambda: t.evaluate(zero)):
            with pytest.raises(DataError, match="every sample_weight is 0"):
                use()
        with pytest.raises(DataError, match="every sample_weight is 0"):
            t.fit(self.data(place, np.ones(8)), 1, validation=(X, Y, np.zeros(8)))
        assert t.optimizer.steps == 0

    def test_a_batch_of_them_is_fine(self, place: Place) -> None:
        t = trainer(network().to(place.backend))
        history = t.fit(self.data(place, [0, 0, 0, 0, 1, 1, 1, 1]), 1)
        assert history.loss[0] > 0.0

    def test_an_epoch_without_weight_has_no_loss(self) -> None:
        """The batch with the weights is left out."""
        data = gn.Loader(
            X[:5], Y[:5], batch_size=4, sample_weight=[0, 0, 0, 0, 1], shuffle=False, drop_last=True
        )
        with pytest.raises(DataError, match="weights of all samples"):
            trainer().fit(data, 1)

    def test_classes_without_weight_have_no_loss(self) -> None:
        t = trainer(loss=gn.SoftmaxCrossEntropy(class_weight=[1.0, 0.0]))
        with pytest.raises(DataError, match="weights of all samples"):
            t.evaluate((X, np.ones(8, int)))


class TestAModelThatChanges:
    data = gn.Loader(X, Y, batch_size=4)

    def refused(self, t: gn.Trainer, *parts: str) -> None:
        before = [p.value.copy() for p in t.model.parameters()]
        for use in (lambda: t.fit(self.data, 1), lambda: t.check(self.data)):
            with pytest.raises(SettingError) as caught:
                use()
            assert [part for part in parts if part not in str(caught.value)] == []
        for p, value in zip(t.model.parameters(), before, strict=True):
            assert np.array_equal(p.value, value)

    def test_a_layer_added(self) -> None:
        t = trainer()
        t.model.layers.append(gn.Dense(2, 2))
        self.refused(t, "layers.2.weight, layers.2.bias", "Build", "SGD(model.parameters()")

    def test_a_layer_replaced(self) -> None:
        t = trainer()
        t.model.layers[1] = gn.Dense(4, 2)
        self.refused(t, "layers.1.weight", "no longer the model's", "model.parameters()")

    def test_a_parameter_replaced(self) -> None:
        t = trainer()
        t.model[1].bias = gn.Parameter(np.zeros(2, "float32"))
        self.refused(t, "layers.1.bias")

    def test_a_parameter_removed(self) -> None:
        t = trainer()
        t.model[0].bias = None
        self.refused(t, "1 parameter", "no longer the model's")

    def test_a_layer_removed(self) -> None:
        model = network()
        model.layers.insert(1, gn.Dense(4, 4))
        t = trainer(model)
        model.layers.pop(1)
        self.refused(t, "2 parameters", "no longer the model's")

    def test_in_the_middle_of_training(self) -> None:
        """A layer that nobody trains gathers no gradients, and the next fit refuses it."""

        def grow(t: gn.Trainer, history: gn.History) -> None:
            if len(history) == 2:
                t.model.layers.insert(0, gn.Dense(3, 3))

        t = trainer()
        t.fit(self.data, 4, callbacks=[grow])
        assert all(p.grad is None for p in t.model.parameters())
        self.refused(t, "layers.0.weight")

    def test_a_new_optimizer_mends_it(self) -> None:
        t = trainer()
        t.model.layers.append(added := gn.Dense(2, 2, rng=0))
        t.optimizer = gn.SGD(t.model.parameters(), 0.1)
        before = added.weight.value.copy()
        t.fit(self.data, 1)
        assert not np.array_equal(added.weight.value, before)

    def test_a_layer_may_be_replaced_by_one_that_is_to_stay(self) -> None:
        """Freezing is on purpose where the trainer has seen the model as it is."""
        model = network()
        optimizer = gn.SGD(model[1].parameters(), 0.1)
        trainer(model, optimizer).fit(self.data, 1)
        model.layers[0] = gn.Dense(3, 4, rng=5)
        frozen = copy.deepcopy(model[0])
        trainer(model, optimizer).fit(self.data, 1)
        assert np.array_equal(model[0].weight.value, frozen.weight.value)
        assert all(p.grad is None for p in model.parameters())

    def test_a_layer_that_came_after_the_optimizer_is_named(self, caplog: Any) -> None:
        """It may be frozen on purpose, so this is no error; but it is most likely a mistake."""
        model = network()
        optimizer = gn.SGD(model.parameters(), 0.1)
        trainer(model, optimizer)
        assert not caplog.records
        model.layers.append(gn.Dense(2, 2, rng=3))
        trainer(model, optimizer)
        assert "layers.2.weight, layers.2.bias will not be trained" in caplog.text
        assert "SGD(model.parameters())" in caplog.text

    @pytest.mark.parametrize("kept", ["itself", "copied", "pickled"])
    def test_what_is_frozen_on_purpose_is_not(self, kept: str, caplog: Any) -> None:
        model = network()
        both = model, gn.SGD(model[1].parameters(), 0.1)
        if kept == "copied":
            both = copy.deepcopy(both)
        elif kept == "pickled":
            both = pickle.loads(pickle.dumps(both))  # noqa: S301
        trainer(*both).fit(self.data, 1)
        assert not caplog.records

    def test_evaluation_does_not_mind(self) -> None:
        t = trainer()
        t.model.layers.append(gn.Dense(2, 2))
        assert t.evaluate((X, Y))["loss"] > 0.0
