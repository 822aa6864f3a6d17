"""Optimizers against their formulas in NumPy and against other libraries."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer

import gpunn as gn
from tests.by_hand import (
    SHAPES,
    STEPS,
    adam_by_hand,
    as_in_torch,
    assert_near,
    give,
    gradients,
    parameters,
    rate,
    sgd_by_hand,
    update,
    values,
)
from tests.conftest import Place, get_place
from tests.waiting import check_that_nothing_waits

rates = st.floats(1e-6, 1e3)
steps = st.integers(0, 10_000)


REGULARISED = [
    {"weight_decay": weight_decay, "clip_norm": clip_norm, "clip_value": clip_value}
    for weight_decay, clip_norm, clip_value in itertools.product((0.0, 0.3), (None, 4.0), (None, 2))
]
MOMENTA = [(0.0, False), (0.9, False), (0.9, True)]
SETTINGS = [
    {"momentum": momentum, "nesterov": nesterov} | regularised
    for (momentum, nesterov), regularised in itertools.product(MOMENTA, REGULARISED)
]
OPTIMIZERS = {
    "SGD": gn.SGD,
    "momentum": partial(gn.SGD, momentum=0.9),
    "Adam": gn.Adam,
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def shown(settings: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in settings.items() if value)


@pytest.fixture(params=SETTINGS, ids=shown)
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture(params=REGULARISED, ids=shown)
def limits(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return what is asked for of g."""
    return request.param


class TestSGD:
    @pytest.mark.parametrize("in_buffers", [False, True], ids=["new arrays", "in buffers"])
    def test_the_formulas(self, place: Place, settings: dict[str, Any], in_buffers: bool) -> None:
        held = parameters(place)
        rest = {name: value for name, value in settings.items() if name != "weight_decay"}
        wanted = sgd_by_hand(values(held), [settings["weight_decay"]] * STEPS, **rest)
        optimizer = gn.SGD(held, rate, **settings)
        for step in range(STEPS):
            update(place, optimizer, gradients(step), in_buffers)
        assert_near(held, wanted)

    def test_as_in_torch(self, torch: Any, settings: dict[str, Any]) -> None:
        as_in_torch(torch, gn.SGD, "SGD", ("momentum", "nesterov"), 0.05, settings)

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
    @example(63, 2.0, "float32")
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

    def test_a_limit_below_all_numbers_of_the_dtype_is_a_limit(self, place: Place) -> None:
        held = parameters(place, "float32")
        before = values(held)
        update(place, gn.SGD(held, 1.0, clip_value=1e-50), gradients(0))
        for now, then in zip(values(held), before, strict=True):
            assert_array_equal(now, then)

    @pytest.mark.parametrize("in_buffers", [True, False])
    def test_decay_is_as_it_was_when_built(self, place: Place, in_buffers: bool) -> None:
        held = parameters(place)
        before, optimizer = values(held), gn.SGD(held, 0.1, weight_decay=1.0)
        decays = [parameter.decay for parameter in held]
        for parameter in held:
            parameter.decay = not parameter.decay
        update(place, optimizer, [0 * g for g in gradients(0)], in_buffers)
        moved = [(now != then).any() for now, then in zip(values(held), before, strict=True)]
        assert moved == decays

    @pytest.mark.parametrize("kind", [gn.SGD, gn.Adam])
    def test_reset_leaves_no_nan_between_the_arrays(self, place: Place, kind: Any) -> None:
        held = parameters(place)
        before, optimizer = values(held), kind(held, 0.1, weight_decay=0.1, clip_norm=1.0)
        update(place, optimizer, [g * np.nan for g in gradients(0)], True)
        for parameter, value in zip(held, before, strict=True):
            parameter.value[...] = place.array(value)
        optimizer.reset()
        assert np.isfinite(float(optimizer.penalty()))

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
    @every_optimizer
    def test_the_host_waits_for_nothing(self, make: Any) -> None:
        place = get_place("cupy")
        held = parameters(place, "float32")
        optimizer = make(held, 0.1, weight_decay=0.1, clip_norm=1.0, clip_value=2.0)
        update(place, optimizer, gradients(0))  # compiles the kernels
        grads = [place.backend.asarray(grad, "float32") for grad in gradients(1)]

        def step() -> None:
            for parameter, grad in zip(held, grads, strict=True):
                parameter.add_grad(grad)
            optimizer.step()

        check_that_nothing_waits(step)

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
            ({"momentum": 1.0}, r"momentum must be a number in \[0, 1\)"),
            ({"nesterov": True}, "needs momentum"),
            ({"weight_decay": -0.1}, "weight_decay must be a number of at least 0"),
            ({"clip_norm": 0.0}, "clip_norm must be None or a number above 0"),
            ({"clip_value": math.inf}, "clip_value must be None or a number above 0"),
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
        adam = gn.Adam(held, beta_1=0.9, beta_2=0.9, weight_decay=0.1, clip_norm=1)
        settings = "learning_rate=0.001, beta_2=0.9, weight_decay=0.1, clip_norm=1.0"
        assert repr(adam) == f"Adam({settings})"


class TestAdam:
    @pytest.mark.parametrize(
        "betas",
        [{}, {"beta_1": 0.0}, {"beta_2": 0.0}, {"beta_1": 0.5, "beta_2": 0.6, "epsilon": 0.5}],
        ids=shown,
    )
    @pytest.mark.parametrize("in_buffers", [False, True], ids=["new arrays", "in buffers"])
    def test_the_formulas(
        self, place: Place, betas: dict[str, float], limits: dict[str, Any], in_buffers: bool
    ) -> None:
        held = parameters(place)
        chosen = {"beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8} | betas
        rest = {name: value for name, value in limits.items() if name != "weight_decay"}
        decays = [limits["weight_decay"]] * STEPS
        wanted = adam_by_hand(values(held), decays, *chosen.values(), **rest)
        optimizer = gn.Adam(held, rate, **betas, **limits)
        for step in range(STEPS):
            update(place, optimizer, gradients(step), in_buffers)
        assert_near(held, wanted)
        assert optimizer.updates == optimizer.steps == STEPS

    @given(
        st.floats(1e-6, 1.0),
        st.floats(0.0, 0.99),
        st.floats(0.0, 0.9999),
        st.floats(1e-10, 1.0),
        st.integers(0, 2**32),
    )
    @hypothesis_settings(max_examples=20)
    def test_as_in_sklearn(
        self, alpha: float, beta_1: float, beta_2: float, epsilon: float, seed: int
    ) -> None:
        held, rng = parameters(get_place("numpy")), np.random.default_rng(seed)
        theirs = values(held)
        own = gn.Adam(held, alpha, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon)
        reference = AdamOptimizer(theirs, alpha, beta_1, beta_2, epsilon)
        way: list[Any] = []
        for _ in range(100):
            size = 10.0 ** rng.integers(-12, 4)  # tiny ones, too, where epsilon counts
            grads = [size * rng.standard_normal(shape) for shape in SHAPES]
            update(get_place("numpy"), own, grads)
            before = [value.copy() for value in theirs]
            reference.update_params(theirs, grads)
            way += [abs(now - then) for now, then in zip(theirs, before, strict=True)]
        # Rounding is of each step, and steps may cancel: 1e-12 of the way, not of where it ends.
        # And each of the 100 sums is rounded, by half an ulp of the value, in both.
        ulp = np.finfo("float64").eps
        for i, (got, want) in enumerate(zip(held, theirs, strict=True)):
            far = sum(way[i :: len(held)])
            largest = abs(want) + far
            assert (abs(got.value - want) <= 1e-12 * far + 100 * ulp * largest).all()

    def test_as_in_torch(self, torch: Any, limits: dict[str, Any]) -> None:
        as_in_torch(torch, gn.Adam, "Adam", (), 0.05, limits)

    @given(st.floats(1e-3, 1e3), st.sampled_from(["float32", "float64"]))
    def test_the_size_of_the_gradient_does_not_matter(self, size: float, dtype: str) -> None:
        place, moved = get_place("numpy"), []
        for factor in (1.0, size):
            held = parameters(place, dtype)
            optimizer = gn.Adam(held, 0.1, epsilon=1e-30)
            for step in range(STEPS):
                update(place, optimizer, [factor * g for g in gradients(step)])
            moved.append(values(held))
        for got, want in zip(*moved, strict=True):
            assert_allclose(got, want, rtol=0, atol=1e-5 if dtype == "float32" else 1e-13)

    def test_the_first_step_has_the_size_of_the_learning_rate(self, place: Place) -> None:
        held = parameters(place)
        before = values(held)
        update(place, gn.Adam(held, 0.1), gradients(0))
        wanted = [x - 0.1 * np.sign(g) for x, g in zip(before, gradients(0), strict=True)]
        for got, want in zip(values(held), wanted, strict=True):
            assert_allclose(got, want, rtol=0, atol=1e-5)

    def test_a_reset_starts_anew_but_not_the_schedule(self, place: Place) -> None:
        held = parameters(place)
        optimizer = gn.Adam(held, rate)
        for step in range(3):
            update(place, optimizer, gradients(step))
        give(place, optimizer, gradients(7))
        optimizer.reset()
        assert (optimizer.updates, optimizer.steps) == (0, 3)
        fresh = [gn.Parameter(place.backend.asarray(value)) for value in values(held)]
        other = gn.Adam(fresh, lambda step: rate(step + 3))
        for step in range(2):
            for each in (optimizer, other):
                update(place, each, gradients(step))
        for got, want in zip(values(held), values(fresh), strict=True):
            assert_array_equal(got, want)

    def test_a_step_without_gradients_moves_nothing(self, place: Place) -> None:
        held = parameters(place)
        optimizer = gn.Adam(held, rate)
        before = values(held)
        update(place, optimizer, [None] * 3)
        assert (optimizer.updates, optimizer.steps) == (0, 1)
        update(place, optimizer, [None, gradients(0)[1], None])
        changed = [(a != b).any() for a, b in zip(values(held), before, strict=True)]
        assert changed == [False, True, False]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"learning_rate": -1.0}, "learning_rate must be a number above 0"),
            ({"beta_1": 1.0}, r"Adam: beta_1 must be a number in \[0, 1\), got 1\.0"),
            ({"beta_2": -0.1}, r"Adam: beta_2 must be a number in \[0, 1\), got -0\.1"),
            ({"epsilon": 0.0}, r"Adam: epsilon must be a number above 0, got 0\.0"),
            (
                {"weight_decay": math.nan},
                "Adam: weight_decay must be a number of at least 0, got nan",
            ),
            ({"clip_norm": -1}, "Adam: clip_norm must be None or a number above 0, got -1"),
        ],
    )
    def test_settings_that_make_no_sense(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(gn.errors.SettingError, match=message):
            gn.Adam(parameters(get_place("numpy")), **settings)


class TestWeightDecay:
    DECAYS: ClassVar = [0.0, 0.3, 0.1, 0.0, 0.3]

    @every_optimizer
    @pytest.mark.parametrize("first", [0.0, 0.2])
    @pytest.mark.parametrize("in_buffers", [False, True], ids=["new arrays", "in buffers"])
    def test_may_change_between_steps(
        self, place: Place, make: Any, first: float, in_buffers: bool
    ) -> None:
        held = parameters(place)
        if make is gn.Adam:
            wanted = adam_by_hand(values(held), self.DECAYS, 0.9, 0.999, 1e-8)
        else:
            momentum = 0.0 if make is gn.SGD else 0.9
            wanted = sgd_by_hand(values(held), self.DECAYS, momentum, nesterov=False)
        optimizer = make(held, rate, weight_decay=first)
        for step, decay in enumerate(self.DECAYS):
            if step % 2:
                optimizer.weight_decay = decay
            give(place, optimizer, gradients(step), in_buffers)
            optimizer.weight_decay = decay  # after the gradients of the step it is for, too
            assert optimizer.weight_decay == decay
            optimizer.step()
        assert_near(held, wanted)

    def test_may_change_before_some_have_a_gradient(self, place: Place) -> None:
        held = parameters(place)
        before = values(held)
        optimizer = gn.SGD(held, 1.0)
        optimizer.weight_decay = 0.5
        update(place, optimizer, [np.zeros((3, 4)), np.zeros(4), None])
        assert_near(held, [0.5 * before[0], *before[1:]])

    def test_one_that_is_set_already_moves_nothing(self, place: Place) -> None:
        bias = parameters(place)[1]  # which never decays
        optimizer = gn.SGD([bias], weight_decay=0.1)
        before = bias.value
        optimizer.weight_decay = 0.1
        assert bias.value is before

    def test_what_decays_is_laid_out_apart_where_it_matters(self) -> None:
        held = parameters(get_place("numpy"))
        optimizer = gn.SGD(held)
        seen = [optimizer._blocks.decays]
        for decay in (0.1, 0.2, 0.0):
            optimizer.weight_decay = decay
            seen.append(sorted(optimizer._blocks.decays))
        assert seen == [[0.0], [0.0, 0.1], [0.0, 0.2], [0.0, 0.0]]
        for parameter in held:
            assert parameter.grad_buffer is not None

    @pytest.mark.parametrize("wrong", [-0.1, math.inf, math.nan])
    @pytest.mark.parametrize("first", [0.0, 0.2])
    def test_a_wrong_one_is_told(self, wrong: float, first: float) -> None:
        optimizer = gn.Adam(parameters(get_place("numpy")), weight_decay=first)
        with pytest.raises(
            gn.errors.SettingError, match="Adam: weight_decay must be a number of at least 0"
        ):
            optimizer.weight_decay = wrong
        assert optimizer.weight_decay == first

    def test_a_model_that_moved_is_an_error(self) -> None:
        model = gn.Dense(2, 2, rng=0)
        optimizer = gn.SGD(model.parameters())
        model.to("array-api-strict")
        with pytest.raises(gn.errors.DeviceError, match=r"build the optimizer after model\.to"):
            optimizer.weight_decay = 0.1
        assert optimizer.weight_decay == 0.0

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_its_penalty(self, place: Place, dtype: str) -> None:
        held = parameters(place, dtype)
        optimizer = gn.SGD(held, weight_decay=0.5)
        for _ in range(2):
            decaying = [values(held)[i].astype("float64") for i in (0, 2)]
            penalty = optimizer.penalty()
            assert gn.backend_of(penalty) == place.backend
            got = gn.to_numpy(penalty)
            assert (got.shape, got.dtype) == ((), dtype)
            wanted = 0.25 * sum((x**2).sum() for x in decaying)
            assert_allclose(got, wanted, rtol=1e-6 if dtype == "float32" else 1e-14)
            held[2].value = place.backend.asarray(np.full((2, 2, 2), 3.0, dtype))  # and again

    def test_without_it_there_is_no_penalty(self, place: Place) -> None:
        held = parameters(place)
        optimizer = gn.SGD(held)
        assert optimizer.penalty() is None
        optimizer.weight_decay = 2.0
        assert float(optimizer.penalty()) > 0
        optimizer.weight_decay = 0.0
        assert optimizer.penalty() is None
        assert gn.SGD([held[1]], weight_decay=0.1).penalty() is None  # a bias
