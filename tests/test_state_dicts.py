"""States of the parts of training: told by name, and taken on any backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Place

import gpunn as gn
from gpunn.arrays.state import attributes_of, generator_state, on_host, restore_generator
from gpunn.errors import StateError

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: gn.SGD(p, momentum=0.9, nesterov=True),
    "adam": gn.Adam,
    "adamw": gn.AdamW,
    "rmsprop": lambda p: gn.RMSprop(p, momentum=0.5, centered=True),
    "adagrad": gn.Adagrad,
    "lion": gn.Lion,
}
SCHEDULES: dict[str, Any] = {
    "constant": lambda: gn.Constant(0.1),
    "steps": lambda: gn.StepDecay(0.1, every=2),
    "exponential": lambda: gn.ExponentialDecay(0.1, factor=0.5),
    "cosine": lambda: gn.Cosine(0.1, steps=9),
    "plateau": lambda: gn.ReduceOnPlateau(0.1, patience=1),
    "warm-up": lambda: gn.WarmUp(3, gn.ReduceOnPlateau(0.1, patience=1)),
}
X, Y = np.linspace(-1, 1, 12, dtype="float32").reshape(4, 3), np.ones((4, 2), "float32")


def made(kind: str, place: Place, steps: int) -> tuple[gn.Layer, gn.Optimizer]:
    model = gn.Dense(3, 2, rng=0).to(place.backend)
    optimizer: gn.Optimizer = OPTIMIZERS[kind](model.parameters())
    step(model, optimizer, place, steps)
    return model, optimizer


def step(model: gn.Layer, optimizer: gn.Optimizer, place: Place, steps: int) -> None:
    x, y = place.backend.asarray(X), place.backend.asarray(Y)
    for _ in range(steps):
        gn.train_step(model, gn.MeanSquaredError(), optimizer, x, y)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_and_its_model(kind: str, place: Place) -> None:
    """Whatever was done to them meanwhile, they do what they would have done."""
    model, optimizer = made(kind, place, 3)
    kept = on_host({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    step(model, optimizer, place, 2)
    other, again = made(kind, place, 1)
    again.clip_value = 0.5
    again.learning_rate = 0.5
    again.load_state_dict(kept["optimizer"])
    other.load_state_dict(kept["model"])
    step(other, again, place, 2)
    assert str(on_host(again.state_dict())) == str(on_host(optimizer.state_dict()))
    assert str(on_host(other.state_dict())) == str(on_host(model.state_dict()))


def test_settings_that_depend_on_each_other(place: Place) -> None:
    model, optimizer = made("sgd", place, 2)
    kept = on_host(optimizer.state_dict())
    plain = gn.SGD(model.parameters(), 0.3)
    off = on_host(plain.state_dict())
    plain.load_state_dict(kept)
    assert str(on_host(plain.state_dict())) == str(kept)
    plain.load_state_dict(off)
    assert plain.momentum == 0.0
    assert not plain.nesterov


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_schedule(kind: str) -> None:
    schedule, other = SCHEDULES[kind](), SCHEDULES[kind]()
    for loss in (1.0, 1.0, 0.5, 0.5):
        gn.schedules.observe(schedule, loss)
    other.load_state_dict(schedule.state_dict())
    for one in (schedule, other):
        gn.schedules.observe(one, 0.5)
    assert [schedule(i) for i in range(12)] == [other(i) for i in range(12)]


def test_a_loader_and_its_images() -> None:
    def loader() -> gn.Loader:
        x = np.arange(40.0).reshape(10, 2, 2, 1)
        return gn.Loader(x, batch_size=3, rng=1, transform=gn.Augment(1, rng=2))

    one, other = loader(), loader()
    list(one)
    one.batch_size = 4
    other.load_state_dict(one.state_dict())
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.x, b.x, strict=True)


def test_what_is_not_known_is_refused() -> None:
    class Own(gn.SGD):
        pass

    optimizer = Own(gn.Dense(2, 1).parameters())
    optimizer.seen = {1, 2}  # type: ignore[attr-defined]
    with pytest.raises(StateError, match=r"attribute 'seen' is a set.*define state_dict"):
        optimizer.state_dict()


def test_what_attributes_have_to_remember() -> None:
    class Part:
        def __init__(self) -> None:
            self.n, self.rng, self._x = np.int64(3), np.random.default_rng(0), np.ones(2)
            self.shape, self.function = (1, 2), len

    found = attributes_of(Part())
    assert list(found) == ["n", "rng", "x", "shape"]
    assert found["rng"]["bit_generator"] == "PCG64"
    assert found["shape"] == [1, 2]
    assert attributes_of(len) == {}


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s.pop("states"), "missing: states"),
            (lambda s: s.update(more=1), "unexpected: more"),
            (lambda s: s["states"].pop("0.0"), r"missing: 0\.0"),
            (lambda s: s["states"].update({"0.0": np.ones(3)}), r"0\.0 is \(3,\) in the state"),
            (lambda s: s["states"].update({"0.0": 3}), r"0\.0 is a int, not an array"),
            (lambda s: s.update(kind="SGD"), "the state is that of SGD, and this is Adam"),
            (lambda s: s["settings"].update(beta_1=2.0), r"beta_1 must be .*\[0, 1\)"),
            (lambda s: s["schedule"].update(kind="Cosine"), "that of Cosine, and this is Const"),
        ],
    )
    def test_and_nothing_changes(self, place: Place, change: Any, message: str) -> None:
        _, optimizer = made("adam", place, 2)
        state = on_host(optimizer.state_dict())
        change(state)
        before = str(on_host(optimizer.state_dict()))
        with pytest.raises(gn.errors.GpunnError, match=message):
            optimizer.load_state_dict(state)
        assert str(on_host(optimizer.state_dict())) == before

    @pytest.mark.parametrize(
        ("kind", "change"),
        [
            (kind, {name: value})
            for kind, names in {
                "constant": ("learning_rate",),
                "steps": ("learning_rate", "every", "factor"),
                "exponential": ("learning_rate", "steps", "factor"),
                "cosine": ("learning_rate", "steps", "final"),
                "warm-up": ("steps",),
                "plateau": ("factor", "patience", "tolerance", "minimum", "waited"),
            }.items()
            for name in names
            for value in (-1, float("nan"), float("inf"))
        ]
        + [("plateau", {"best": float("nan")}), ("steps", {"every": 0})],
    )
    def test_a_schedule_beyond_its_ranges(self, kind: str, change: dict[str, Any]) -> None:
        schedule = SCHEDULES[kind]()
        before = schedule.state_dict()
        (name,) = change
        with pytest.raises(StateError, match=rf"\w+\.load_state_dict: .*{name}"):
            schedule.load_state_dict({**before, **change})
        assert str(schedule.state_dict()) == str(before)

    def test_no_state(self) -> None:
        for part in (gn.Dense(2, 1), gn.History(), gn.Constant(0.1), gn.Loader(X)):
            with pytest.raises(StateError):
                part.load_state_dict([])  # type: ignore[arg-type, attr-defined]

    @pytest.mark.parametrize("position", [-1, 10**9, "1", None, 0.5])
    @pytest.mark.parametrize("kind", ["MT19937", "Philox"])
    def test_a_generator_that_would_read_past_its_numbers(self, kind: str, position: Any) -> None:
        rng = np.random.Generator(getattr(np.random, kind)(1))
        state = generator_state(rng)
        before = str(state)
        inner = state["state"] if kind == "MT19937" else state
        inner["pos" if kind == "MT19937" else "buffer_pos"] = position
        with pytest.raises(StateError, match=f"that is not a state of a generator {kind}"):
            restore_generator("Part", rng, state)
        assert str(generator_state(rng)) == before
