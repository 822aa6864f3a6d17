"""Initial weights: their distributions, shapes, draws and errors."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from gpunn.errors import SettingError, ShapeError
from gpunn.nn.init import draw, fans

MATRIX, FILTER, ROW_FILTER = (400, 300), (3, 5, 40, 60), (7, 120, 90)
SHAPES = [MATRIX, FILTER, ROW_FILTER]

#: The variances, from the numbers of inputs and of outputs.
VARIANCES = {
    "glorot_uniform": lambda n, m: 2 / (n + m),
    "glorot_normal": lambda n, m: 2 / (n + m),
    "he_uniform": lambda n, m: 2 / n,
    "he_normal": lambda n, m: 2 / n,
    "lecun_uniform": lambda n, m: 1 / n,
    "lecun_normal": lambda n, m: 1 / n,
    # The entries of an orthonormal column of n numbers have the mean square 1 / n.
    "orthogonal": lambda n, m: None,
    # 1 - 4 phi(2) / (2 Phi(2) - 1), of a normal distribution without what is beyond 2.
    "truncated_normal": lambda n, m: 0.02**2 * 0.7737413,
    "zeros": lambda n, m: 0.0,
}


def drawn_by(name: str, *shape: int, seed: int = 0) -> Any:
    return gn.init.INITIALIZERS[name](np.random.default_rng(seed), *shape)


def test_every_initializer_is_tested() -> None:
    assert set(gn.init.INITIALIZERS) == set(VARIANCES)


def test_the_numbers_of_inputs_and_outputs() -> None:
    assert fans((4, 3)) == (4, 3)
    assert fans((3, 3, 16, 32)) == (9 * 16, 9 * 32)
    assert fans((5, 8, 1)) == (40, 5)
    assert fans((0, 2)) == (1, 2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", VARIANCES)
def test_variance(name: str, shape: tuple[int, ...]) -> None:
    n, m = math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]
    drawn = drawn_by(name, *shape)
    assert drawn.shape == shape
    assert drawn.dtype == np.float64
    variance = 1 / max(n, shape[-1]) if name == "orthogonal" else VARIANCES[name](n, m)
    # At least 36,000 entries: the variance is known to 0.8 %, the mean to 1/190 of a deviation.
    assert_allclose(drawn.var(), variance, rtol=0.03)
    assert abs(drawn.mean()) <= 4 * math.sqrt(variance / drawn.size)
    if "uniform" in name:
        assert 0.99 * math.sqrt(3 * variance) < np.abs(drawn).max() <= math.sqrt(3 * variance)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5), (3, 3, 2, 7), (2, 2, 1, 9)], ids=str)
def test_orthogonal_weights(shape: tuple[int, ...]) -> None:
    drawn = gn.init.orthogonal(np.random.default_rng(1), *shape, gain=3.0)
    matrix = drawn.reshape(-1, shape[-1])
    small = matrix.T @ matrix if len(matrix) >= shape[-1] else matrix @ matrix.T
    assert_allclose(small, 9.0 * np.eye(len(small)), atol=1e-12)


def test_orthogonal_matrices_are_spread_evenly() -> None:
    rng = np.random.default_rng(2)
    turns = np.array([gn.init.orthogonal(rng, 2, 2) for _ in range(4000)])
    # Without the correction of signs, LAPACK's first entry is never positive.
    assert abs(np.mean(turns[:, 0, 0] > 0) - 0.5) < 0.04
    assert abs(np.mean(np.linalg.det(turns) > 0) - 0.5) < 0.04


def test_a_truncated_normal_has_no_tails() -> None:
    drawn = gn.init.truncated_normal(np.random.default_rng(3), 300, 200, deviation=0.5)
    assert 0.99 < np.abs(drawn).max() <= 1.0
    assert_allclose(drawn.std(), 0.5 * 0.8796, rtol=0.01)


@pytest.mark.parametrize("name", VARIANCES)
def test_one_seed_gives_the_same_draws(name: str) -> None:
    for shape in SHAPES:
        assert_array_equal(drawn_by(name, *shape, seed=5), drawn_by(name, *shape, seed=5))


def test_an_initializer_with_a_setting() -> None:
    init = partial(gn.init.orthogonal, gain=2.0)
    weight = gn.Dense(4, 4, init=init, rng=0, dtype="float64").weight.value
    assert_allclose(weight @ weight.T, 4 * np.eye(4), atol=1e-12)


def test_an_activation_says_what_suits_it() -> None:
    class Steep(gn.ReLU):
        preferred_init = "lecun_normal"

    wanted = drawn_by("lecun_normal", 6, 4, seed=1)
    assert_array_equal(gn.Dense(6, 4, Steep(), rng=1, dtype="float64").weight.value, wanted)
    assert {gn.ACTIVATIONS[name]().preferred_init for name in gn.ACTIVATIONS} <= set(VARIANCES)


def test_functions_of_the_user_draw_filters() -> None:
    rng = np.random.default_rng(0)
    array = np.ones((3, 3, 2, 4))
    for init in (lambda _, *shape: np.ones(shape), lambda *_: array):
        assert_array_equal(draw("Conv2d", init, rng, (3, 3, 2, 4)), array)


def test_what_a_function_must_take_and_return() -> None:
    def for_matrices(rng: Any, n: int, m: int) -> Any:
        return np.zeros((n, m))

    rng = np.random.default_rng(0)
    with pytest.raises(
        SettingError,
        match=r"Conv2d: init is called as init\(rng, 3, 3, 2, 4\), .*"
        r"for_matrices.* does not take; define it as init\(rng, \*shape\)",
    ):
        draw("Conv2d", for_matrices, rng, (3, 3, 2, 4))
    with pytest.raises(ShapeError, match=r"Conv2d: init must return shape \(3, 3, 2, 4\), got"):
        draw("Conv2d", lambda *_: np.zeros((3, 4)), rng, (3, 3, 2, 4))
    for name, setting in (("orthogonal", "gain"), ("truncated_normal", "deviation")):
        for bad in (0.0, -1.0, math.inf, math.nan, "1"):
            with pytest.raises(SettingError, match=f"{name}: {setting} must be"):
                gn.init.INITIALIZERS[name](rng, 3, 3, **{setting: bad})
