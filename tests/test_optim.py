"""SGD against its formulas written out in NumPy, and against PyTorch; schedules against tables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from tests.conftest import Place, get_place
from tests.waiting import host_never_waits

SHAPES = [(3, 4), (4,), (2, 2, 2)]
STEPS = 5
rates = st.floats(1e-6, 1e3)
steps = st.integers(0, 10_000)


def gradients(step: int) -> list[Any]:
    """Return a gradient an array, some entries of which are large."""
    rng = np.random.default_rng(step)
    return [rng.standard_normal(shape) * 3 for shape in SHAPES]


def parameters(place: Place, dtype: str = "float64") -> list[gn.Parameter]:
    """Return a weight, a bias, which does not decay, and another weight."""
    rng = np.random.default_rng(99)
    values = [rng.standard_normal(shape).astype(dtype) for shape in SHAPES]
    return [
        gn.Parameter(place.backend.asarray(value), decay=i != 1) for i, value in enumerate(values)
    ]


def update(place: Place, optimizer: gn.Optimizer, grads: list[Any], in_rooms: bool = False) -> None:
    """Do a step with gradients in new arrays, or where the optimizer wants them."""
    for parameter, grad in zip(optimizer.parameters, grads, strict=True):
        if grad is not None:
            dtype = gn.to_numpy(parameter.value).dtype
            new = place.backend.asarray(np.array(grad, dtype=dtype))
            if in_rooms:
                with place.backend.scope():
                    parameter.room[...] = new
                new = parameter.room
            parameter.add_grad(new)
    optimizer.step()


def values(held: list[gn.Parameter]) -> list[Any]:
    return [np.array(gn.to_numpy(parameter.value)) for parameter in held]


def by_hand(
    theta: list[Any],
    learning_rate: Callable[[int], float],
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    clip_norm: float | None,
    clip_value: float | None,
) -> list[Any]:
    """Return the parameters after `STEPS` updates, by the formulas in the docstring of `SGD`."""
    velocity = [np.zeros_like(t) for t in theta]
    for step in range(STEPS):
        alpha, g = learning_rate(step), gradients(step)
        if clip_value is not None:
            g = [np.minimum(np.maximum(x, -clip_value), clip_value) for x in g]
        if clip_norm is not None:
            norm = np.linalg.norm(np.concatenate([x.ravel() for x in g]))
            g = [x * min(1.0, clip_norm / norm) for x in g]
        g = [x + (0.0 if i == 1 else weight_decay) * theta[i] for i, x in enumerate(g)]
        velocity = [momentum * v - alpha * x for v, x in zip(velocity, g, strict=True)]
        moves = velocity
        if nesterov:
            moves = [momentum * v - alpha * x for v, x in zip(velocity, g, strict=True)]
        theta = [t + move for t, move in zip(theta, moves, strict=True)]
    return theta


SETTINGS = [
    {
        "momentum": momentum,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
        "clip_norm": clip_norm,
        "clip_value": clip_value,
    }
    for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True))
    for weight_decay, clip_norm, clip_value in itertools.product((0.0, 0.3), (None, 4.0), (None, 2))
]


@pytest.fixture(params=SETTINGS, ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items() if v))
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


class TestSGD:
    @pytest.mark.parametrize("in_rooms", [False, True], ids=["new arrays", "in rooms"])
    def test_the_formulas(self, place: Place, settings: dict[str, Any], in_rooms: bool) -> None:
        def rate(step: int) -> float:
            return 0.1 / (1 + step)

        held = parameters(place)
        wanted = by_hand(values(held), rate, **settings)
        optimizer = gn.SGD(held, rate, **settings)
        for step in range(STEPS):
            update(place, optimizer, gradients(step), in_rooms)
        for got, want in zip(values(held), wanted, strict=True):
            assert_allclose(got, want, rtol=1e-12, atol=1e-14)

    def test_as_in_torch(self, settings: dict[str, Any]) -> None:
        torch = pytest.importorskip("torch")
        place, limits = get_place("numpy"), {k: v for k, v in settings.items() if "clip" in k}
        held = parameters(place)
        theirs = [torch.nn.Parameter(torch.tensor(p.value)) for p in held]
        decay = settings["weight_decay"]
        optimizer = torch.optim.SGD(
            [
                {"params": [p], "weight_decay": 0.0 if i == 1 else decay}
                for i, p in enumerate(theirs)
            ],
            lr=0.05,
            **{k: v for k, v in settings.items() if k in ("momentum", "nesterov")},
        )
        ours = gn.SGD(held, 0.05, **settings)
        for step in range(STEPS):
            update(place, ours, gradients(step))
            for parameter, grad in zip(theirs, gradients(step), strict=True):
                parameter.grad = torch.tensor(grad)
            if limits["clip_value"]:
                torch.nn.utils.clip_grad_value_(theirs, limits["clip_value"])
            if limits["clip_norm"]:
                torch.nn.utils.clip_grad_norm_(theirs, limits["clip_norm"])
            optimizer.step()
        for got, want in zip(held, theirs, strict=True):
            # torch adds 1e-6 to the norm
            assert_allclose(got.value, want.detach().numpy(), rtol=1e-5, atol=1e-7)

    def test_a_step_clears_the_gradients_and_counts(self, place: Place) -> None:
        optimizer = gn.SGD(parameters(place), gn.StepDecay(0.8, every=1, factor=0.5))
        assert (optimizer.steps, optimizer.learning_rate) == (0, 0.8)
        update(place, optimizer, gradients(0))
        assert (optimizer.steps, optimizer.learning_rate) == (1, 0.4)
        assert [p.grad for p in optimizer.parameters] == [None] * 3

    def test_gradients_of_two_passes_add_up(self, place: Place) -> None:
        one, two = parameters(place), parameters(place)
        update(
            place, gn.SGD(one, 0.1), [g + h for g, h in zip(*map(gradients, (0, 1)), strict=True)]
        )
        for parameter, grad in zip(two, gradients(0), strict=True):
            parameter.add_grad(place.backend.asarray(grad))
        update(place, gn.SGD(two, 0.1), gradients(1))
        for got, want in zip(values(one), values(two), strict=True):
            assert_allclose(got, want, rtol=1e-14)

    def test_what_has_no_gradient_stays(self, place: Place) -> None:
        both, alone = parameters(place), parameters(place)
        before = values(both)
        settings = {"momentum": 0.9, "weight_decay": 0.5, "clip_norm": 1.0}
        optimizer = gn.SGD(both, 0.1, **settings)
        one = gn.SGD(alone[2:], 0.1, **settings)
        update(place, optimizer, [None, None, None])
        for first, step in ((gradients(9)[0], 0), (None, 1)):  # velocities stay with their arrays
            update(place, optimizer, [first, None, gradients(step)[2]])
            update(place, one, gradients(step)[2:])
        changed = [(a != b).any() for a, b in zip(values(both), before, strict=True)]
        assert changed == [True, False, True]

    @given(st.integers(0, 2**32), st.floats(0.01, 10.0), st.sampled_from(["float32", "float64"]))
    def test_clipping_by_norm(self, seed: int, share: float, dtype: str) -> None:
        place, grads = get_place("numpy"), gradients(seed)
        norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
        moves = []
        for clip_norm in (None, share * norm):
            held = parameters(place, dtype)
            for parameter in held:
                parameter.value[...] = 0
            update(place, gn.SGD(held, 1.0, clip_norm=clip_norm), grads)
            moves.append(np.concatenate([v.ravel() for v in values(held)]))
        if share > 1.001:
            assert_array_equal(*moves)  # small gradients are left alone, to the bit
        assert_allclose(
            moves[1], moves[0] * min(1.0, share), rtol=2e-5 if dtype == "float32" else 1e-12
        )

    @pytest.mark.parametrize("name", ["clip_norm", "clip_value"])
    def test_a_limit_from_numpy_keeps_the_dtype(self, place: Place, name: str) -> None:
        held = parameters(place, "float32")
        optimizer = gn.SGD(held, np.float32(0.5), **{name: np.float64(0.5)})
        update(place, optimizer, gradients(0))
        assert {v.dtype for v in values(held)} == {np.dtype("float32")}
        other = parameters(place, "float32")
        update(place, gn.SGD(other, 0.5, **{name: 0.5}), gradients(0))
        for got, want in zip(values(held), values(other), strict=True):
            assert_array_equal(got, want)

    @pytest.mark.gpu
    def test_the_host_waits_for_nothing(self) -> None:
        place = get_place("cupy")
        held = parameters(place, "float32")
        optimizer = gn.SGD(
            held, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1, clip_norm=1.0, clip_value=2.0
        )
        update(place, optimizer, gradients(0))  # compiles the kernels
        for parameter, grad in zip(held, gradients(1), strict=True):
            parameter.add_grad(place.backend.asarray(grad, "float32"))
        with host_never_waits():
            optimizer.step()

    def test_a_model_that_moved_is_an_error(self) -> None:
        model = gn.Dense(2, 2, rng=0)
        optimizer = gn.SGD(model.parameters())
        model.to("array-api-strict")
        with pytest.raises(gn.errors.DeviceError, match=r"build the optimizer after model\.to"):
            optimizer.step()

    def test_a_parameter_may_get_a_new_array_in_its_place(self) -> None:
        held = parameters(get_place("numpy"))
        optimizer = gn.SGD(held, 1.0)
        held[1].value = np.zeros(4)
        update(get_place("numpy"), optimizer, gradients(0))
        assert_array_equal(held[1].value, -gradients(0)[1])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"learning_rate": 0.0}, "learning_rate must be a number above 0"),
            ({"learning_rate": math.nan}, "learning_rate must be a number above 0"),
            ({"learning_rate": "fast"}, "learning_rate must be a number above 0"),
            ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
            ({"nesterov": True}, "needs momentum"),
            ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
            ({"clip_norm": 0.0}, "clip_norm must be above 0"),
            ({"clip_value": math.inf}, "clip_value must be above 0"),
        ],
    )
    def test_settings_that_make_no_sense(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(gn.errors.SettingError, match=message):
            gn.SGD(parameters(get_place("numpy")), **settings)

    @pytest.mark.parametrize("wrong", [[], [np.zeros(3)], [gn.Parameter(np.zeros(3))] * 2])
    def test_what_it_cannot_train(self, wrong: list[Any]) -> None:
        with pytest.raises(gn.errors.SettingError):
            gn.SGD(wrong)

    def test_the_repr_shows_what_was_set(self) -> None:
        held = parameters(get_place("numpy"))
        assert repr(gn.SGD(held, momentum=0.9)) == "SGD(learning_rate=0.01, momentum=0.9)"
        schedule = gn.WarmUp(2, gn.Cosine(0.1, steps=3))
        assert repr(gn.SGD(held, schedule)) == f"SGD(learning_rate={schedule!r})"
        assert "Cosine" in repr(gn.SGD(held, gn.Cosine(0.1, steps=3)))


class TestSchedules:
    @pytest.mark.parametrize(
        ("schedule", "table"),
        [
            (gn.Constant(0.1), [0.1, 0.1, 0.1]),
            (gn.StepDecay(0.8, every=2, factor=0.5), [0.8, 0.8, 0.4, 0.4, 0.2]),
            (gn.ExponentialDecay(1.0, factor=0.25, steps=2), [1.0, 0.5, 0.25, 0.125]),
            (
                gn.Cosine(1.0, steps=4, final=0.2),
                [1.0, 0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.6 - 0.4 * math.sqrt(0.5), 0.2, 0.2],
            ),
            (gn.WarmUp(2, 0.5), [0.25, 0.5, 0.5, 0.5]),
            (
                gn.WarmUp(4, gn.StepDecay(0.8, every=2, factor=0.5)),
                [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.4, 0.4, 0.2],
            ),
        ],
        ids=repr,
    )
    def test_by_hand(self, schedule: gn.Schedule, table: list[float]) -> None:
        assert_allclose([schedule(step) for step in range(len(table))], table, rtol=1e-12)
        assert repr(eval(repr(schedule), vars(gn))) == repr(schedule)  # noqa: S307

    @given(
        st.one_of(
            st.builds(gn.Constant, rates),
            st.builds(gn.StepDecay, rates, every=st.integers(1, 99), factor=st.floats(0.01, 1)),
            st.builds(
                gn.ExponentialDecay, rates, factor=st.floats(0.01, 1), steps=st.integers(1, 99)
            ),
            st.builds(gn.Cosine, rates, steps=st.integers(1, 9999)),
        ),
        steps,
    )
    def test_decay_never_rises_and_stays_in_range(self, schedule: gn.Constant, step: int) -> None:
        alpha = schedule.learning_rate
        now, then = schedule(step), schedule(step + 1)
        assert schedule(0) == pytest.approx(alpha)
        assert 0 <= then <= now * (1 + 1e-12) <= alpha * (1 + 1e-11)

    @given(st.integers(1, 500), rates, steps)
    def test_warm_up_rises_to_what_follows(self, length: int, alpha: float, step: int) -> None:
        after = gn.Cosine(alpha, steps=100)
        schedule = gn.WarmUp(length, after)
        assert schedule(0) > 0
        assert schedule(length - 1) == pytest.approx(alpha)
        assert schedule(length + step) == after(step)
        assert step + 1 >= length or schedule(step) < schedule(step + 1)

    def test_reduce_on_plateau(self) -> None:
        schedule = gn.ReduceOnPlateau(1.0, factor=0.5, patience=2, tolerance=0.1, minimum=0.3)
        rates = []
        for loss in [1.0, 0.95, 0.92, 0.85, 0.8, math.nan, 0.7, 0.7, 0.7]:
            schedule.observe(loss)
            rates.append(schedule(7))
        assert rates == [1.0, 1.0, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3, 0.3]

    def test_warm_up_passes_losses_on(self) -> None:
        schedule = gn.WarmUp(2, gn.ReduceOnPlateau(1.0, patience=1))
        for loss in (1.0, 1.0):
            gn.schedules.observe(schedule, loss)
        assert [schedule(step) for step in (0, 1, 5)] == [0.25, 0.5, 0.5]
        gn.schedules.observe(gn.WarmUp(2, 0.1), 1.0)  # one that does not listen

    @pytest.mark.parametrize(
        "make",
        [
            lambda: gn.StepDecay(1.0, every=0),
            lambda: gn.StepDecay(1.0, every=1, factor=0.0),
            lambda: gn.ExponentialDecay(1.0, factor=1.5),
            lambda: gn.Cosine(1.0, steps=3, final=2.0),
            lambda: gn.WarmUp(0, 1.0),
            lambda: gn.ReduceOnPlateau(1.0, patience=0),
            lambda: gn.ReduceOnPlateau(1.0, minimum=2.0),
            lambda: gn.ReduceOnPlateau(1.0, tolerance=-1.0),
        ],
    )
    def test_settings_that_make_no_sense(self, make: Callable[[], object]) -> None:
        with pytest.raises(gn.errors.SettingError, match="must be"):
            make()
