"""Training a part of a model: the rest stays as it is, and costs nothing."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from gpunn.kernels import kernels
from tests.conftest import Place

N = 12
X = np.random.default_rng(0).standard_normal((N, 4))
LABELS = np.random.default_rng(1).integers(0, 3, N)


class Scale(gn.Layer):
    """A layer that adds its gradient without asking whether anybody wants it."""

    def __init__(self, size: int) -> None:
        self.factor = gn.Parameter(np.linspace(0.5, 1.5, size))

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        if tape is not None:
            tape.push(self, x)
        return x * self.factor.value

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        (x,) = tape.pop(self)
        self.factor.add_grad(kernels(grad).column_sums(grad * x))
        return grad * self.factor.value


class Pair(gn.Layer):
    """Two layers in a layer of the user's own, which knows nothing of gradients left out."""

    def __init__(self, first: gn.Layer, second: gn.Layer) -> None:
        self.first, self.second = first, second

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        return self.second.forward(self.first.forward(x, tape), tape)

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        return self.first.backward(self.second.backward(grad, tape), tape)


def dense(a: int, b: int, name: str | None = None, seed: int = 0) -> gn.Dense:
    return gn.Dense(a, b, name, rng=seed, dtype="float64")


def network(own: bool = False) -> gn.Sequential:
    extra = [Scale(5)] if own else []
    return gn.Sequential(dense(4, 5, "tanh"), *extra, dense(5, 3, seed=1))


def weights(model: gn.Layer) -> list[Any]:
    return [np.array(gn.to_numpy(p.value)) for p in model.parameters()]


def assert_same(a: list[Any], b: list[Any]) -> None:
    for x, y in zip(a, b, strict=True):
        assert_array_equal(x, y)


def assert_close(a: list[Any], b: list[Any]) -> None:
    """Compare but for rounding: one pass for slopes and sums adds up in another order."""
    for x, y in zip(a, b, strict=True):
        assert_allclose(x, y, rtol=1e-12, atol=1e-15)


def by_hand(model: gn.Layer, loss: gn.Loss, optimizer: gn.Optimizer, x: Any, y: Any) -> None:
    """Make a step with all gradients, and forget those of what is not trained."""
    before = {p: p.grad for p in model.parameters()}
    for p in before:
        p.grad = None
    tape = gn.Tape()
    loss.forward(model.forward(x, tape), y, tape)
    model.backward(loss.backward(tape), tape)
    optimizer.step()
    for p, grad in before.items():
        p.grad = grad


@pytest.mark.parametrize("own", [False, True], ids=["dense", "own layer"])
def test_a_head_alone_leaves_no_gradients_behind(place: Place, own: bool) -> None:
    model = network(own).to(place.backend)
    x, y, loss = place.array(X), place.array(LABELS), gn.SoftmaxCrossEntropy()
    head = gn.SGD(model[-1].parameters())
    before = weights(model[:-1])
    for _ in range(50):
        gn.train_step(model, loss, head, x, y)
    assert_same(weights(model[:-1]), before)
    assert [p.grad for p in model.parameters()] == [None] * len(model.parameters())
    other = copy.deepcopy(model)
    for each, step in ((model, gn.train_step), (other, by_hand)):
        step(each, loss, gn.SGD(each.parameters(), 0.01), x, y)
    assert_same(weights(model), weights(other))


PARTS = {
    "head": lambda m: m[-1].parameters(),
    "base": lambda m: m[0].parameters(),
    "middle": lambda m: m[1].parameters(),
    "weights": lambda m: [layer.weight for layer in m if hasattr(layer, "weight")],
    "biases": lambda m: [layer.bias for layer in m if hasattr(layer, "bias")],
    "one bias": lambda m: [p for p in m.parameters() if p is not m[-1].bias],
}


def build(kind: str) -> gn.Sequential:
    first, second, third = dense(4, 5, "relu"), dense(5, 5, "tanh", 1), dense(5, 3, seed=2)
    if kind == "library":
        return gn.Sequential(first, gn.Residual(second), third)
    if kind == "own leaf":
        return gn.Sequential(first, Scale(5), second, third)
    if kind == "own leaf first":
        return gn.Sequential(Scale(4), first, third)
    return gn.Sequential(first, Pair(gn.Tanh(), Pair(Scale(5), second)), third)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["library", "own leaf", "own leaf first", "own composite"])
def test_any_part_learns_as_by_hand(kind: str, part: str) -> None:
    models = [build(kind) for _ in range(2)]
    loss = gn.SoftmaxCrossEntropy()
    for model, step in zip(models, (gn.train_step, by_hand), strict=True):
        optimizer = gn.SGD(PARTS[part](model), 0.1, momentum=0.9)
        for _ in range(4):
            step(model, loss, optimizer, X, LABELS)
    assert_close(weights(models[0]), weights(models[1]))
    assert all(p.grad is None for p in models[0].parameters())


@pytest.mark.parametrize("lower", ["first", "all"])
def test_a_boundary_within_a_layer_of_layers(lower: str) -> None:
    """What is below has nothing to learn, and the user's layer still passes gradients on."""
    models = [gn.Sequential(Pair(dense(4, 5, "tanh"), dense(5, 5, seed=1)), Scale(5), dense(5, 3))]
    models.append(copy.deepcopy(models[0]))
    loss = gn.SoftmaxCrossEntropy()
    for model, step in zip(models, (gn.train_step, by_hand), strict=True):
        frozen = set((model[0].first if lower == "first" else model[0]).parameters())
        optimizer = gn.SGD([p for p in model.parameters() if p not in frozen], 0.1)
        for _ in range(3):
            step(model, loss, optimizer, X, LABELS)
    assert_same(weights(models[0]), weights(models[1]))


class TestProducts:
    """How many products of matrices a backward pass makes."""

    @pytest.mark.parametrize(
        ("part", "wanted"),
        [
            (lambda m: m.parameters(), 5),  # three X^T G, two G W^T
            (lambda m: m[-1].parameters(), 1),
            (lambda m: m[1:].parameters(), 3),
            (lambda m: m[0].parameters(), 3),  # one X^T G; G W^T on the way down
            (lambda m: [m[-1].bias], 0),
            (lambda m: [m[0].bias], 2),
        ],
        ids=["all", "head", "upper two", "base", "last bias", "first bias"],
    )
    def test_none_is_made_for_nobody(self, part: Any, wanted: int, monkeypatch: Any) -> None:
        model = gn.Sequential(dense(4, 5, "tanh"), gn.ReLU(), dense(5, 5, seed=1), dense(5, 3))
        model.layers.pop(1)
        optimizer, loss, made = gn.SGD(part(model)), gn.SoftmaxCrossEntropy(), []
        k = type(kernels(X))
        real = k.product
        monkeypatch.setattr(k, "product", lambda *a, **s: made.append(1) or real(*a, **s))
        gn.train_step(model, loss, optimizer, X, LABELS)
        assert len(made) - 3 == wanted  # three of the forward pass


class Shifted(gn.Dense):
    """A Dense of the user's, with one more parameter."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes, rng=0, dtype="float64")
        self.shift = gn.Parameter(np.zeros(sizes[1]))

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        return super().forward(x, tape) + self.shift.value

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        self.shift.add_grad(grad.sum(axis=0))
        return super().backward(grad, tape)


def test_a_parameter_that_a_subclass_adds_is_reached() -> None:
    model, loss = gn.Sequential(Shifted(4, 5), dense(5, 3, seed=1)), gn.SoftmaxCrossEntropy()
    shift = model[0].shift
    tape = gn.Tape(parameters=[shift], input_grad=False)
    loss(model(X, tape), LABELS, tape)
    model.backward(loss.backward(tape), tape)
    assert shift.grad is not None
    optimizer = gn.SGD([shift], 0.1)
    optimizer.clear()
    gn.train_step(model, loss, optimizer, X, LABELS)
    assert shift.value.any()


@pytest.mark.usefixtures("one_by_one")
def test_frozen_layers_count_for_the_number_of_threads(monkeypatch: Any) -> None:
    """Their products are among those of a step."""
    model, seen = network(), []
    k = type(kernels(X))
    real = k.threads
    monkeypatch.setattr(k, "threads", lambda *a: seen.append(sum(v.size for v in a[2])) or real(*a))
    t = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model[1].parameters()))
    t.fit(gn.Loader(X, LABELS, dtype="float64", batch_size=4), 1, validation=(X, LABELS))
    assert seen == [sum(p.value.size for p in model.parameters())] * 2


class TestTape:
    def test_it_wants_all_or_what_it_is_told(self) -> None:
        first, second = dense(4, 5), dense(5, 3)
        assert gn.Tape().wants(first.weight)
        for given in ([second.weight], iter([second.weight]), frozenset([second.weight])):
            tape = gn.Tape(parameters=given)
            assert [tape.wants(p) for p in (second.weight, second.bias)] == [True, False]

    def test_a_model_is_no_list_of_parameters(self) -> None:
        for given in (network(), [network()]):
            with pytest.raises(gn.errors.SettingError, match=r"model\.parameters\(\)"):
                gn.Tape(parameters=given)

    def test_by_hand_everything_is_wanted(self) -> None:
        model, loss, tape = network(own=True), gn.SoftmaxCrossEntropy(), gn.Tape()
        loss(model(X, tape), LABELS, tape)
        model.backward(loss.backward(tape), tape)
        assert all(p.grad is not None for p in model.parameters())

    def test_by_hand_a_part_is_asked_for(self) -> None:
        model, loss = network(), gn.SoftmaxCrossEntropy()
        tape = gn.Tape(parameters=model[1].parameters(), input_grad=False)
        loss(model(X, tape), LABELS, tape)
        assert model.backward(loss.backward(tape), tape) is None
        assert [p.grad is not None for p in model.parameters()] == [False, False, True, True]


class TestTwoOptimizers:
    """Adversaries: two optimizers, each of a part of one model."""

    def parts(self) -> Any:
        maker = gn.Sequential(dense(2, 5, "tanh"), Scale(5), dense(5, 4, seed=1))
        judge = gn.Sequential(dense(4, 5, "tanh", 2), Scale(5), dense(5, 1, seed=3))
        both = gn.Sequential(maker, judge)
        rates = {"learning_rate": 0.1, "momentum": 0.9}
        optimizers = [gn.SGD(part.parameters(), **rates) for part in (maker, judge)]
        return maker, judge, both, optimizers

    def play(self, step: Any) -> list[Any]:
        maker, judge, both, (of_maker, of_judge) = self.parts()
        loss, noise = gn.BinaryCrossEntropy(), np.random.default_rng(3).standard_normal((N, 2))
        for _ in range(5):
            step(judge, loss, of_judge, X, np.ones(N))
            step(judge, loss, of_judge, maker(noise), np.zeros(N))
            step(both, loss, of_maker, noise, np.ones(N))
        return weights(both)

    def test_each_moves_its_own(self) -> None:
        assert_close(self.play(gn.train_step), self.play(by_hand))

    @pytest.mark.parametrize("composite", [False, True])
    def test_a_gradient_that_waits_for_the_other_one_is_kept(self, composite: bool) -> None:
        """It lies in the place that a layer would write the next one to."""
        maker, judge, both, (of_maker, _) = self.parts()
        model = Pair(maker, judge) if composite else both
        loss, tape = gn.BinaryCrossEntropy(), gn.Tape()
        loss(judge(X, tape), np.ones(N), tape)
        judge.backward(loss.backward(tape), tape)
        held = [p.grad for p in judge.parameters()]
        before = [grad.copy() for grad in held]
        gn.train_step(model, loss, of_maker, X[:, :2], np.ones(N))
        assert all(p.grad is grad for p, grad in zip(judge.parameters(), held, strict=True))
        assert_same(held, before)
        assert all(p.grad is None for p in maker.parameters())


class TestAFailure:
    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, MemoryError])
    @pytest.mark.parametrize("method", ["forward", "backward"])
    def test_nothing_is_lost_and_nothing_left(
        self, error: Any, method: str, monkeypatch: Any
    ) -> None:
        model, loss = network(own=True), gn.SoftmaxCrossEntropy()
        optimizer = gn.SGD(model[1:].parameters())
        gn.SGD(model[0].parameters())
        waiting = [np.full(p.value.shape, 7.0) for p in model[0].parameters()]
        for p, grad in zip(model[0].parameters(), waiting, strict=True):
            p.add_grad(grad)

        def fail(*_: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(model[1], method, fail)
            with pytest.raises(error):
                gn.train_step(model, loss, optimizer, X, LABELS)
        assert all(p.grad is g for p, g in zip(model[0].parameters(), waiting, strict=True))
        assert model[0].weight.grad_buffer is None  # it is taken
        assert all(p.grad is None for p in model[1:].parameters())

    def test_a_step_after_a_failed_one_is_as_ever(self, monkeypatch: Any) -> None:
        models = [network() for _ in range(2)]
        loss = gn.SoftmaxCrossEntropy()
        for i, model in enumerate(models):
            optimizer = gn.SGD(model.parameters(), 0.1)
            if i:
                with monkeypatch.context() as patch:
                    patch.setattr(model[0], "backward", lambda *_: 1 / 0)
                    with pytest.raises(ZeroDivisionError):
                        gn.train_step(model, loss, optimizer, X, LABELS)
            gn.train_step(model, loss, optimizer, X, LABELS)
        assert_same(weights(models[0]), weights(models[1]))


class TestTheTrainer:
    """On NumPy with compiled steps, which serve whole models, too."""

    FROZEN: ClassVar[dict[str, Any]] = {
        "lower half": lambda m: m[0].parameters(),
        "one bias": lambda m: [m[0].bias],
        "nothing": lambda m: [],
    }

    @pytest.mark.parametrize("frozen", FROZEN)
    def test_it_is_as_by_hand(self, place: Place, frozen: str) -> None:
        models = [network().to(place.backend) for _ in range(2)]
        loss, epochs, optimizers = gn.SoftmaxCrossEntropy(), 3, []
        for model in models:
            still = set(self.FROZEN[frozen](model))
            trained = [p for p in model.parameters() if p not in still]
            optimizers.append(gn.SGD(trained, 0.1, momentum=0.9))
        settings = {"batch_size": 4, "dtype": "float64", "backend": place.backend, "shuffle": False}
        data = gn.Loader(X, LABELS, **settings)
        still_before = weights(models[0][0])
        gn.Trainer(models[0], loss, optimizers[0]).fit(data, epochs, progress=False)
        for _ in range(epochs):
            for x, y, _weight in data:
                by_hand(models[1], loss, optimizers[1], x, y)
        for got, want in zip(weights(models[0]), weights(models[1]), strict=True):
            assert_allclose(got, want, rtol=1e-10, atol=1e-13)
        assert all(p.grad is None for p in models[0].parameters())
        if frozen == "lower half":
            assert_same(weights(models[0][0]), still_before)

    def test_more_is_trained_from_an_epoch_on(self) -> None:
        model, moved = network(), []
        start = weights(model[0])

        def thaw(trainer: gn.Trainer, history: gn.History) -> None:
            moved.append(not np.array_equal(weights(model[0])[0], start[0]))
            if len(history) == 2:
                trainer.optimizer = gn.SGD(model.parameters(), 0.1)

        trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model[1].parameters(), 0.1))
        trainer.fit(gn.Loader(X, LABELS, dtype="float64", batch_size=4), 4, callbacks=[thaw])
        assert moved == [False, False, True, True]


@pytest.mark.parametrize("change", ["add", "replace", "replace the frozen one"])
def test_a_model_that_changes_between_steps_piles_up_nothing(change: str) -> None:
    """What an optimizer does not hold gets no gradients, whenever it came."""
    model, loss = network(), gn.SoftmaxCrossEntropy()
    frozen = change == "replace the frozen one"
    optimizer = gn.SGD((model[1] if frozen else model).parameters(), 0.1)
    gn.train_step(model, loss, optimizer, X, LABELS)
    if change == "add":
        model.layers.append(gn.Dense(3, 3, rng=5, dtype="float64"))
    else:
        old = model[0 if frozen else 1]
        new = gn.Dense(old.in_features, old.out_features, rng=5, dtype="float64")
        model.layers[0 if frozen else 1] = new
    for _ in range(3):
        gn.train_step(model, loss, optimizer, X, LABELS)
    assert all(parameter.grad is None for parameter in model.parameters())
    new_optimizer, want = gn.SGD(model.parameters(), 0.1), copy.deepcopy(model)
    gn.train_step(model, loss, new_optimizer, X, LABELS)
    gn.train_step(want, loss, gn.SGD(want.parameters(), 0.1), X, LABELS)
    for got, wanted in zip(weights(model), weights(want), strict=True):
        assert_array_equal(got, wanted)
