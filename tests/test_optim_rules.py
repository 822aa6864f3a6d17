"""AdamW, RMSprop, Adagrad and Lion: formulas, settings, states."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from gpunn.errors import SettingError
from gpunn.training.epoch import EpochRunner
from gpunn.training.readings import Readings
from tests.by_hand import (
    STEPS,
    assert_near,
    gradients,
    parameters,
    rate,
    regularised,
    update,
    values,
)
from tests.conftest import Place, get_place
from tests.runs import WAYS

LIMITS = [
    {},
    {"weight_decay": 0.3, "clip_norm": 4.0, "clip_value": 2.0},
    {"weight_decay": 0.0, "clip_value": 0.5},
]

State = dict[str, Any]


def adamw(state: State, g: Any, alpha: float, t: int, chosen: dict[str, Any]) -> Any:
    b, c, eps = (chosen[name] for name in ("beta_1", "beta_2", "epsilon"))
    state["m"] = b * state.get("m", 0) + (1 - b) * g
    state["v"] = c * state.get("v", 0) + (1 - c) * g**2
    return alpha * state["m"] / (1 - b**t) / (np.sqrt(state["v"] / (1 - c**t)) + eps)


def rmsprop(state: State, g: Any, alpha: float, t: int, chosen: dict[str, Any]) -> Any:
    b = chosen["beta"]
    state["v"] = b * state.get("v", 0) + (1 - b) * g**2
    state["m"] = b * state.get("m", 0) + (1 - b) * g
    spread = state["v"] - (state["m"] ** 2 if chosen["centered"] else 0)
    state["b"] = chosen["momentum"] * state.get("b", 0) + g / (np.sqrt(spread) + chosen["epsilon"])
    return alpha * state["b"]


def adagrad(state: State, g: Any, alpha: float, t: int, chosen: dict[str, Any]) -> Any:
    state["s"] = state.get("s", chosen["initial_sum"]) + g**2
    return alpha * g / (np.sqrt(state["s"]) + chosen["epsilon"])


def lion(state: State, g: Any, alpha: float, t: int, chosen: dict[str, Any]) -> Any:
    b, c, m = chosen["beta_1"], chosen["beta_2"], state.get("m", 0)
    state["m"] = c * m + (1 - c) * g
    return alpha * np.sign(b * m + (1 - b) * g)


#: Optimizers, their steps by hand, and settings.
RULES: dict[str, tuple[Any, Callable[..., Any], dict[str, Any]]] = {
    "AdamW": (gn.AdamW, adamw, {"beta_1": 0.9, "beta_2": 0.99, "epsilon": 1e-3}),
    "AdamW without means": (gn.AdamW, adamw, {"beta_1": 0.0, "beta_2": 0.0, "epsilon": 0.1}),
    **{
        f"RMSprop{', momentum' * bool(mu)}{', centered' * centered}": (
            gn.RMSprop,
            rmsprop,
            {"beta": 0.8, "momentum": mu, "centered": centered, "epsilon": 1e-3},
        )
        for mu in (0.0, 0.9)
        for centered in (False, True)
    },
    "Adagrad": (gn.Adagrad, adagrad, {"initial_sum": 0.0, "epsilon": 1e-10}),
    "Adagrad from 2": (gn.Adagrad, adagrad, {"initial_sum": 2.0, "epsilon": 0.1}),
    "Lion": (gn.Lion, lion, {"beta_1": 0.9, "beta_2": 0.99}),
}


def by_hand(
    theta: list[Any], step: Callable[..., Any], chosen: Any, *, decoupled: bool, **limits: Any
) -> list[Any]:
    """Return the parameters after some updates, by the docstrings."""
    states: list[State] = [{} for _ in theta]
    decay = limits.pop("weight_decay", 0.0)
    for t in range(STEPS):
        alpha = rate(t)
        gs = regularised(t, theta, 0.0 if decoupled else decay, **limits)
        for i, g in enumerate(gs):
            kept = 1 - alpha * decay * decoupled * (i != 1)
            theta[i] = kept * theta[i] - step(states[i], g, alpha, t + 1, chosen)
    return theta


@pytest.mark.parametrize("limits", LIMITS, ids=["plain", "all limits", "clipped entries"])
@pytest.mark.parametrize("in_buffers", [False, True], ids=["new arrays", "in buffers"])
@pytest.mark.parametrize("name", RULES)
def test_the_formulas(place: Place, name: str, limits: dict[str, Any], in_buffers: bool) -> None:
    make, step, chosen = RULES[name]
    limits = {"weight_decay": 0.0} | limits
    held = parameters(place)
    wanted = by_hand(values(held), step, chosen, decoupled=make.decoupled, **limits)
    optimizer = make(held, rate, **chosen, **limits)
    for t in range(STEPS):
        update(place, optimizer, gradients(t), in_buffers)
    assert_near(held, wanted)


@pytest.mark.parametrize("name", RULES)
def test_nan_shows(place: Place, name: str) -> None:
    make, _, chosen = RULES[name]
    held = parameters(place, "float32")
    optimizer = make(held, 0.1, **chosen)
    grads = gradients(0)
    grads[0][1, 2] = math.nan
    update(place, optimizer, grads)
    for step in (1, 2):
        for i, value in enumerate(values(held)):
            assert np.isnan(value).sum() == (i == 0)
        with place.backend.scope():
            held[0].value[...] = place.backend.asarray(np.ones((3, 4), "float32"))
        update(place, optimizer, gradients(step))  # the states are NaN still


def test_decoupled_decay_is_no_penalty(place: Place) -> None:
    held = parameters(place)
    before = values(held)
    optimizer = gn.AdamW(held, 0.1, weight_decay=0.5)
    assert optimizer.penalty() is None
    update(place, optimizer, [0 * g for g in gradients(0)])
    for i, (now, then) in enumerate(zip(values(held), before, strict=True)):
        assert_allclose(now, then * (1.0 if i == 1 else 0.95), rtol=1e-15)


def test_a_history_has_no_cost_of_decoupled_decay() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 3)), rng.standard_normal((40, 1))
    for make, has_cost in ((gn.AdamW, False), (partial(gn.Adam, weight_decay=0.1), True)):
        model = gn.Dense(3, 1, rng=0)
        trainer = gn.Trainer(model, gn.MeanSquaredError(), make(model.parameters()))
        history = trainer.fit(gn.Loader(x, y, batch_size=8), 1, progress=False)
        assert ("cost" in history) == has_cost


@pytest.mark.parametrize("make", [gn.AdamW, gn.Lion, gn.Adam])
def test_decays_of_each_step(make: Any) -> None:
    """As estimators give them: recorded steps and the loop do the same, penalty or not."""
    pytest.importorskip("numba", reason="steps are compiled by numba")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 3)), rng.standard_normal((40, 1))
    found = []
    for way in WAYS:
        model = gn.Dense(3, 1, rng=0, dtype="float64")
        optimizer = make(model.parameters(), 0.1, weight_decay=0.0)
        loader = gn.Loader(x, y, batch_size=8, dtype="float64", rng=1)
        loss = gn.MeanSquaredError()
        readings = Readings(loss, ())
        runner = EpochRunner(loader)
        with way():
            runner.run(model, loss, optimizer, readings, decays=lambda: [0.5, 0.1, 0.0, 2.0, 1.0])
        found.append((*values(list(model.parameters())), np.array(readings.read()["loss"])))
        assert (runner.program.why_not == "") == (way is WAYS[0])
    for got, want in zip(*found, strict=True):
        assert_allclose(got, want, rtol=1e-10)


def test_a_constant_gradient_has_no_variance(place: Place) -> None:
    held = parameters(place, "float32")
    optimizer = gn.RMSprop(held, 1e-6, beta=0.5, centered=True, epsilon=0.1)
    for _ in range(200):
        update(place, optimizer, gradients(0))
    assert all(np.isfinite(value).all() for value in values(held))


class TestStatesOfRMSprop:
    def test_kinds_come_and_go_and_others_stay(self, place: Place) -> None:
        held = parameters(place)
        optimizer = gn.RMSprop(held, 0.01, momentum=0.5)
        update(place, optimizer, gradients(0))
        square, velocity = ([gn.to_numpy(x) for x in kind] for kind in optimizer._states)
        optimizer.centered = True
        kinds = [[gn.to_numpy(x) for x in kind] for kind in optimizer._states]
        assert len(kinds) == 3
        for i in range(3):
            assert_array_equal(kinds[0][i], square[i])
            assert not kinds[1][i].any()
            assert_array_equal(kinds[2][i], velocity[i])
        update(place, optimizer, gradients(1))
        mean = gn.to_numpy(optimizer._states[1][0])
        optimizer.momentum = 0.0
        assert len(optimizer._states) == 2
        assert_array_equal(gn.to_numpy(optimizer._states[1][0]), mean)
        optimizer.centered = False
        assert len(optimizer._states) == 1
        update(place, optimizer, gradients(2))

    def test_no_change_moves_nothing(self, place: Place) -> None:
        held = parameters(place)
        optimizer = gn.RMSprop(held, momentum=0.5)
        before = [parameter.value for parameter in held]
        optimizer.momentum, optimizer.centered = 0.9, False
        assert all(p.value is value for p, value in zip(held, before, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_a_reset_starts_anew(place: Place, name: str) -> None:
    make, _, chosen = RULES[name]
    held = parameters(place)
    optimizer = make(held, 0.05, **chosen)
    for t in range(3):
        update(place, optimizer, gradients(t))
    optimizer.reset()
    fresh = [gn.Parameter(place.backend.asarray(value)) for value in values(held)]
    other = make(fresh, 0.05, **chosen)
    for t in range(2):
        for each in (optimizer, other):
            update(place, each, [g if i != 1 else None for i, g in enumerate(gradients(t))])
    for got, want in zip(values(held), values(fresh), strict=True):
        assert_array_equal(got, want)


@pytest.mark.parametrize("name", RULES)
def test_a_pickle_goes_on_where_it_was(place: Place, name: str) -> None:
    make, _, chosen = RULES[name]
    optimizer = make(parameters(place), 0.05, weight_decay=0.1, **chosen)
    for t in range(3):
        update(place, optimizer, gradients(t))
    other = pickle.loads(pickle.dumps(optimizer))  # noqa: S301
    for each in (optimizer, other):
        update(place, each, gradients(3))
    assert repr(other) == repr(optimizer)
    for got, want in zip(values(other.parameters), values(optimizer.parameters), strict=True):
        assert_array_equal(got, want)


def test_the_repr_shows_what_was_set() -> None:
    held = parameters(get_place("numpy"))
    assert repr(gn.AdamW(held)) == "AdamW(learning_rate=0.001)"
    assert repr(gn.AdamW(held, weight_decay=0.1)) == "AdamW(learning_rate=0.001, weight_decay=0.1)"
    assert repr(gn.Lion(held, beta_2=0.9)) == "Lion(learning_rate=0.0001, beta_2=0.9)"
    assert repr(gn.Adagrad(held, 0.1)) == "Adagrad(learning_rate=0.1)"
    shown = "RMSprop(learning_rate=0.01, momentum=0.5, centered=True)"
    assert repr(gn.RMSprop(held, momentum=0.5, centered=True)) == shown


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (gn.AdamW, {"learning_rate": 0.0}, "AdamW: learning_rate must be a number above 0"),
        (gn.AdamW, {"beta_1": 1.0}, r"AdamW: beta_1 must be a number in \[0, 1\), got 1\.0"),
        (gn.AdamW, {"epsilon": 0.0}, "AdamW: epsilon must be a number above 0"),
        (gn.AdamW, {"weight_decay": -1.0}, "AdamW: weight_decay must be a number of at least 0"),
        (gn.RMSprop, {"beta": 1.0}, r"RMSprop: beta must be a number in \[0, 1\)"),
        (gn.RMSprop, {"momentum": -0.1}, r"RMSprop: momentum must be a number in \[0, 1\)"),
        (gn.RMSprop, {"centered": 1}, "RMSprop: centered must be True or False"),
        (gn.RMSprop, {"epsilon": math.inf}, "RMSprop: epsilon must be a number above 0"),
        (gn.Adagrad, {"initial_sum": -1.0}, "Adagrad: initial_sum must be a number in "),
        (gn.Adagrad, {"epsilon": 0.0}, "Adagrad: epsilon must be a number above 0"),
        (gn.Lion, {"beta_2": 1.0}, r"Lion: beta_2 must be a number in \[0, 1\)"),
        (gn.Lion, {"clip_norm": 0.0}, "Lion: clip_norm must be None or a number above 0"),
    ],
)
def test_settings_that_make_no_sense(make: Any, settings: dict[str, Any], message: str) -> None:
    held = parameters(get_place("numpy"))
    with pytest.raises(SettingError, match=message):
        make(held, **settings)
    optimizer = make(held)
    ((name, value),) = settings.items()
    with pytest.raises(SettingError, match=message):
        setattr(optimizer, name, value)
