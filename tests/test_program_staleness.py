"""Whatever changes between two epochs is noticed: both ways go on alike."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from gpunn.kernels import kernels
from tests import steps
from tests.runs import WAYS, Block, Run, assert_alike, assert_same_bits, state

compiled = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None or os.environ.get("GPUNN_COMPILED") == "0",
    reason="steps are compiled by numba, which is missing or switched off",
)
on_each_runner = pytest.mark.parametrize(
    "backend",
    [pytest.param("numpy", marks=compiled), pytest.param("cupy", marks=pytest.mark.gpu)],
)

RUN = Run(
    blocks=(
        Block("dense", 6, "leaky_relu"),
        Block("dropout"),
        Block("residual", inner=(Block("dense", 6, "tanh"),)),
        Block("activation", activation="elu"),
    ),
    optimizer="momentum",
    class_weight="dict",
)

#: What is given to a change: the trainer, its loader, and what undoes a change of a class.
Change = Callable[[gn.Trainer, gn.Loader, pytest.MonkeyPatch], object]


def doubled(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that gives twice as much."""

    def twice(*arguments: Any, **settings: Any) -> Any:
        return 2.0 * method(*arguments, **settings)

    return twice


def on_object(thing: Any, name: str) -> None:
    setattr(thing, name, doubled(getattr(thing, name)))


def on_class(patch: pytest.MonkeyPatch, kind: type, name: str) -> None:
    patch.setattr(kind, name, doubled(getattr(kind, name)))


def swap(items: list[Any], i: int, j: int) -> None:
    items[i], items[j] = items[j], items[i]


def dense(**settings: Any) -> gn.Dense:
    return gn.Dense(6, 6, "sigmoid", rng=9, dtype="float64", **settings)


def cleared(t: gn.Trainer) -> None:
    """Stop training what is not there any more."""
    t.optimizer = gn.SGD(t.model.parameters(), 0.01)


def frozen_rest(t: gn.Trainer) -> None:
    t.optimizer = gn.SGD(list(t.model.parameters())[2:], 0.01)


def weight(t: gn.Trainer) -> gn.Parameter:
    return t.model[0].weight


def full(t: gn.Trainer, number: float) -> Any:
    """Return an array for the weight, where the model is."""
    place = gn.backend_of(weight(t).value)
    assert place is not None
    return place.asarray(np.full((5, 6), number))


def turned(x: Any) -> Any:
    """Return a copy in Fortran's order."""
    return x.T.copy().T


def owner(x: Any) -> Any:
    """Return the array that may be written to."""
    return x if x.base is None else x.base


LAYERS: dict[str, Change] = {
    "dropout's rate": lambda t, *_: setattr(t.model[1], "rate", 0.7),
    "no dropout": lambda t, *_: setattr(t.model[1], "rate", 0.0),
    "an activation": lambda t, *_: setattr(t.model[0], "activation", gn.Tanh()),
    "an activation's setting": lambda t, *_: setattr(t.model[0].activation, "negative_slope", 0.5),
    "an activation layer's setting": lambda t, *_: setattr(t.model[3], "alpha", 0.2),
    "an activation inside": lambda t, *_: setattr(t.model[2].layer, "activation", gn.GELU()),
    "a layer replaced": lambda t, *_: t.model.layers.__setitem__(3, gn.SiLU()),
    "a layer added": lambda t, *_: t.model.layers.insert(1, gn.Softplus()),
    "a layer removed": lambda t, *_: t.model.layers.pop(1),
    "layers in another order": lambda t, *_: swap(t.model.layers, 2, 3),
    "a list of layers": lambda t, *_: setattr(
        t.model, "layers", [*t.model.layers[:1], *t.model.layers[2:]]
    ),
    "a layer twice": lambda t, *_: t.model.layers.insert(2, t.model[2]),
    "the layer inside": lambda t, *_: (
        setattr(t.model[2], "layer", dense().to(gn.backend_of(weight(t).value))),
        cleared(t),
    ),
    "a bias gone": lambda t, *_: (setattr(t.model[2].layer, "bias", None), cleared(t)),
    "an array": lambda t, *_: setattr(weight(t), "value", full(t, 0.1)),
    "an array turned": lambda t, *_: setattr(weight(t), "value", turned(weight(t).value)),
    "an array's numbers": lambda t, *_: weight(t).value.__imul__(0.5),
    "a parameter": lambda t, *_: (
        setattr(t.model[0], "weight", gn.Parameter(full(t, 0.1))),
        cleared(t),
    ),
    "a parameter's decay": lambda t, *_: setattr(weight(t), "decay", False),
    "a gradient": lambda t, *_: weight(t).add_grad(full(t, 1.0)),
    "a gradient and no optimizer": lambda t, *_: (
        frozen_rest(t),
        weight(t).add_grad(full(t, 1.0)),
    ),
    "a method of an object": lambda t, *_: on_object(t.model[0], "forward"),
    "a method of an activation": lambda t, *_: on_object(t.model[0].activation, "function"),
    "a method of the loss": lambda t, *_: on_object(t.loss, "_scale"),
    "a method of a class": lambda t, _, patch: on_class(patch, gn.Residual, "forward"),
    "a method of an activation's class": lambda t, _, patch: on_class(
        patch, gn.LeakyReLU, "gradient"
    ),
    "a method of a base class": lambda t, _, patch: on_class(patch, gn.Activation, "backward"),
    "a method of the loss's class": lambda t, _, patch: on_class(patch, gn.Loss, "_scale"),
    "another class": lambda t, *_: setattr(t.model[3], "__class__", gn.Softplus),
}

LOSSES: dict[str, Change] = {
    "label smoothing": lambda t, *_: setattr(t.loss, "label_smoothing", 0.3),
    "no class weights": lambda t, *_: setattr(t.loss, "class_weight", None),
    "class weights": lambda t, *_: setattr(t.loss, "class_weight", (1.0, 5.0, 2.0)),
    "a class weight": lambda t, *_: t.loss.class_weight.__setitem__(0, 9.0),
    "one more class weight": lambda t, *_: t.loss.class_weight.__setitem__(1, 9.0),
    "reduction": lambda t, *_: setattr(t.loss, "reduction", "sum"),
    "a loss": lambda t, *_: setattr(t, "loss", gn.SoftmaxCrossEntropy()),
}

OPTIMIZERS: dict[str, Change] = {
    "momentum": lambda t, *_: setattr(t.optimizer, "momentum", 0.5),
    "no momentum": lambda t, *_: setattr(t.optimizer, "momentum", 0.0),
    "nesterov": lambda t, *_: setattr(t.optimizer, "nesterov", True),
    "clip_norm": lambda t, *_: setattr(t.optimizer, "clip_norm", 0.01),
    "clip_value": lambda t, *_: setattr(t.optimizer, "clip_value", 0.001),
    "weight_decay": lambda t, *_: setattr(t.optimizer, "weight_decay", 0.5),
    "weight_decay for a moment": lambda t, *_: (
        setattr(t.optimizer, "weight_decay", 0.5),
        setattr(t.optimizer, "weight_decay", 0.0),
    ),
    "learning_rate": lambda t, *_: setattr(t.optimizer, "learning_rate", 0.05),
    "a schedule": lambda t, *_: setattr(t.optimizer, "schedule", gn.Cosine(0.05, 20)),
    "reset": lambda t, *_: t.optimizer.reset(),
    "steps": lambda t, *_: setattr(t.optimizer, "steps", 3),
    "another optimizer": lambda t, *_: setattr(t, "optimizer", gn.Adam(t.model.parameters(), 0.01)),
    "some parameters": lambda t, *_: frozen_rest(t),
}

ADAM: dict[str, Change] = {
    "beta_1": lambda t, *_: setattr(t.optimizer, "beta_1", 0.5),
    "beta_2": lambda t, *_: setattr(t.optimizer, "beta_2", 0.9),
    "epsilon": lambda t, *_: setattr(t.optimizer, "epsilon", 0.1),
    "Adam's clip_norm": lambda t, *_: setattr(t.optimizer, "clip_norm", 0.01),
    "Adam's reset": lambda t, *_: t.optimizer.reset(),
    "Adam's updates": lambda t, *_: setattr(t.optimizer, "updates", 2),
}

DATA: dict[str, Change] = {
    "batch_size": lambda _, loader, *__: setattr(loader, "batch_size", 7),
    "shuffle": lambda _, loader, *__: setattr(loader, "shuffle", False),
    "blocks": lambda _, loader, *__: setattr(loader, "shuffle", "blocks"),
    "an order": lambda _, loader, *__: setattr(loader, "shuffle", lambda: np.arange(50)[::-1]),
    "drop_last": lambda _, loader, *__: setattr(loader, "drop_last", True),
    "transform": lambda _, loader, *__: setattr(loader, "transform", lambda x: 2 * x),
    "features in place": lambda _, loader, *__: owner(loader.stored.x).__imul__(2),
    "targets in place": lambda _, loader, *__: owner(loader.stored.y).__ixor__(1),
}

#: What happens between the fits.
FITS: dict[str, Callable[[Run, gn.Trainer, gn.Loader], gn.Loader]] = {
    "another loader": lambda run, *_: replace(run, n=40, batch_size=9).loader(),
    "data of another kind": lambda run, *_: replace(run, targets="soft").loader(),
    "weights": lambda run, *_: replace(run, weights=True).loader(),
    "streamed data": lambda run, *_: replace(run, data="streamed uint8").loader(),
    "another loss": lambda _, t, loader: setattr(t, "loss", gn.SoftmaxCrossEntropy()) or loader,
}

CHANGES = LAYERS | LOSSES | OPTIMIZERS | DATA | ADAM


def fit(run: Run, change: Change, *, recorded: bool) -> Any:
    """Train with a change after the second epoch; return what is left, or the error."""
    trainer, loader = run.trainer(), run.loader()
    with pytest.MonkeyPatch.context() as patch:

        def callback(trainer: gn.Trainer, history: gn.History) -> None:
            # Epochs of few steps are captured from the second on.
            if len(history) == 2:
                assert (trainer.why_not_recorded == "") == recorded
            if len(history) == 2:
                change(trainer, loader, patch)

        try:
            return trainer, trainer.fit(loader, 4, callbacks=[callback], progress=False), loader
        except (ValueError, TypeError) as error:
            return f"{type(error).__name__}: {error}"


def assert_equal(run: Run, recorded: Any, readable: Any) -> None:
    """On a GPU both ways run the same kernels."""
    assert_alike(recorded, readable, run.dtype)
    if run.backend == "cupy":
        assert_same_bits(recorded, readable)


@on_each_runner
@pytest.mark.parametrize("name", sorted(CHANGES))
def test_a_change_between_epochs(name: str, backend: str) -> None:
    optimizer = "adam" if name in ADAM else "momentum"
    run = replace(RUN, optimizer=optimizer, backend=backend)
    if name == "targets in place":
        run = replace(run, outputs=4)
    results = []
    for way in WAYS:
        with way():
            results.append(fit(run, CHANGES[name], recorded=way is WAYS[0]))
    if isinstance(results[0], str) or isinstance(results[1], str):
        assert results[0] == results[1]
    else:
        assert_equal(run, *results)


@on_each_runner
@pytest.mark.parametrize("name", sorted(FITS))
def test_a_change_between_fits(name: str, backend: str) -> None:
    results = []
    run = replace(RUN, backend=backend)
    for way in WAYS:
        trainer, loader = run.trainer(), run.loader()
        with way():
            trainer.fit(loader, 2, progress=False)
            loader = FITS[name](run, trainer, loader)
            history = trainer.fit(loader, 2, progress=False)
        assert (trainer.why_not_recorded == "") == (way is WAYS[0])
        results.append((trainer, history, loader))
    assert_equal(run, *results)


class Thinning(gn.Layer):
    """Dropout whose setting is the class's."""

    records = True
    has_parameters = False
    share = 0.5

    def forward(self, x: Any, tape: Any = None) -> Any:
        if tape is None:
            return x
        y, mask = kernels(x).dropout(x, tape.draw_key(), self.share)
        tape.push(self, mask)
        return y

    def backward(self, grad: Any, tape: Any) -> Any:
        return kernels(grad).multiply(grad, *tape.pop(self))


@on_each_runner
def test_a_change_of_what_a_class_holds(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    run = replace(RUN, backend=backend)
    for way in WAYS:
        trainer, loader = run.trainer(), run.loader()
        trainer.model.layers[1] = Thinning()
        with way(), monkeypatch.context() as patch:
            trainer.fit(loader, 2, progress=False)
            patch.setattr(Thinning, "share", 0.9)
            history = trainer.fit(loader, 2, progress=False)
        assert (trainer.why_not_recorded == "") == (way is WAYS[0])
        results.append((trainer, history, loader))
    assert_equal(run, *results)


@on_each_runner
@pytest.mark.parametrize("failing", [0, 16, 19, 31])
def test_a_schedule_that_fails_on_the_way(backend: str, failing: int) -> None:
    """The steps before are made and counted, though rates are asked for many steps ahead."""

    def rate(step: int) -> float:
        if step >= failing:
            raise ValueError(f"no rate for step {step}")
        return 0.01 / (1 + step)

    results = []
    run = replace(RUN, backend=backend, optimizer="sgd", n=64, batch_size=8)
    for way in WAYS:
        trainer, loader = run.trainer(), run.loader()
        trainer.optimizer.learning_rate = rate
        with way(), pytest.raises(ValueError, match=f"^no rate for step {failing}"):
            trainer.fit(loader, 5, progress=False)
        assert trainer.optimizer.steps == failing
        results.append([gn.to_numpy(p.value) for p in trainer.model.parameters()])
    for a, b in zip(*results, strict=True):
        assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@compiled
class TestChangesOnTheWay:
    """Plain networks, with each optimizer."""

    def assert_both_alike(
        self,
        change: Callable[[gn.Trainer], object],
        case: steps.Case,
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

    @pytest.mark.parametrize("optimizer", sorted(steps.OPTIMIZERS))
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
        self.assert_both_alike(change, steps.Case(optimizer=optimizer))

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
        case = steps.Case(loss="binary")
        loaders: list[gn.Loader] = []
        self.assert_both_alike(lambda _: change(loaders[-1]), case, loaders)

    def test_data_of_another_shape(self) -> None:
        case = steps.Case(n=48)
        loader = case.loader()

        def callback(trainer: gn.Trainer, history: gn.History) -> None:
            loader.stored.x.shape = (24, 10)

        with pytest.raises(gn.errors.ShapeError):
            case.trainer().fit(loader, 2, callbacks=[callback], progress=False)

    @pytest.mark.parametrize("momentum", [0.9, 0.0])
    @pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
    def test_momentum_that_begins_or_ends(self, optimizer: str, momentum: float) -> None:
        self.assert_both_alike(
            lambda t: setattr(t.optimizer, "momentum", momentum), steps.Case(optimizer=optimizer)
        )

    def test_momentum_that_was_set_before(self) -> None:
        trainers = [steps.Case(optimizer=optimizer).trainer() for optimizer in ("sgd", "momentum")]
        trainers[0].optimizer.momentum = trainers[1].optimizer.momentum
        for trainer in trainers:
            trainer.optimizer.weight_decay = 0.0
            trainer.optimizer.learning_rate = 0.1
            trainer.fit(steps.Case().loader(), 3, progress=False)
        for a, b in zip(*(state(trainer) for trainer in trainers), strict=True):
            assert_array_equal(a, b)

    def test_momentum(self) -> None:
        self.assert_both_alike(
            lambda t: setattr(t.optimizer, "momentum", 0.5), steps.Case(optimizer="nesterov")
        )
