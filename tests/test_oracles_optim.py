"""Optimizers against PyTorch's: long ways with random settings."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import gpunn as gn

SHAPES = [(3, 4), (4,)]
STEPS = 200
#: Of the largest number on the way.
CLOSE = {"float32": 1e-5, "float64": 1e-10}

RATES = st.floats(1e-5, 0.1)
DECAYS = st.one_of(st.just(0.0), st.floats(1e-4, 0.3))
EPSILONS = st.floats(1e-8, 1e-2)
BETAS = st.floats(0.0, 0.999)
FORMULAS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (gn.SGD, {"momentum": st.one_of(st.just(0.0), BETAS)}),
    "AdamW": (gn.AdamW, {"beta_1": BETAS, "beta_2": BETAS, "epsilon": EPSILONS}),
    "RMSprop": (
        gn.RMSprop,
        {"beta": BETAS, "momentum": st.one_of(st.just(0.0), BETAS), "epsilon": EPSILONS},
    ),
    # With a smaller beta, or epsilon, the variance of few numbers would be of rounding errors.
    "centered RMSprop": (
        gn.RMSprop,
        {
            "beta": st.floats(0.5, 0.99),
            "momentum": st.one_of(st.just(0.0), BETAS),
            "centered": st.just(True),
            "epsilon": st.floats(1e-3, 1e-1),
        },
    ),
    "Adagrad": (gn.Adagrad, {"initial_sum": st.floats(0.0, 1.0), "epsilon": EPSILONS}),
}
#: What PyTorch calls some settings.
NAMES = {"epsilon": "eps", "beta": "alpha", "initial_sum": "initial_accumulator_value"}


def as_theirs(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return settings under PyTorch's names."""
    renamed = {NAMES.get(name, name): value for name, value in chosen.items()}
    if "beta_1" in renamed:
        renamed["betas"] = renamed.pop("beta_1"), renamed.pop("beta_2")
    return renamed


def their(torch: Any, name: str) -> Any:
    """Return PyTorch's class."""
    return getattr(torch.optim, name.rsplit(maxsplit=1)[-1])


def start_and_gradients(seed: int, dtype: str) -> tuple[list[Any], list[list[Any]]]:
    """Return values, and gradients for each step."""
    rng = np.random.default_rng(seed)
    start, *gradients = (
        [rng.standard_normal(shape).astype(dtype) for shape in SHAPES] for _ in range(1 + STEPS)
    )
    return start, gradients


def assert_near(one: Any, other: Any, largest: float) -> None:
    """Compare two ends; each step of both is rounded, by half an ulp of where it has come to.

    Where steps are small, these roundings all go the same way.
    """
    rounding = STEPS * np.finfo(one.dtype).eps
    assert_allclose(one, other, rtol=0, atol=(CLOSE[one.dtype.name] + rounding) * largest)


def ours(
    make: Any, start: list[Any], gradients: list[list[Any]], **chosen: Any
) -> tuple[list[Any], float]:
    """Return the values after all steps, and the largest number on the way."""
    largest = 1.0
    held = [gn.Parameter(value.copy()) for value in start]
    optimizer = make(held, **chosen)
    for grads in gradients:
        for parameter, grad in zip(held, grads, strict=True):
            parameter.add_grad(grad.copy())
        optimizer.step()
        largest = max(largest, *(float(abs(parameter.value).max()) for parameter in held))
    return [parameter.value for parameter in held], largest


def theirs(torch: Any, make: Any, start: list[Any], gradients: Any, **chosen: Any) -> list[Any]:
    """Return the values after all of PyTorch's steps."""
    held = [torch.nn.Parameter(torch.tensor(value)) for value in start]
    optimizer = make(held, **chosen)
    for grads in gradients:
        for parameter, grad in zip(held, grads, strict=True):
            parameter.grad = torch.tensor(grad)
        optimizer.step()
    return [parameter.detach().numpy() for parameter in held]


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", FORMULAS)
def test_a_long_way(torch: Any, name: str, dtype: str) -> None:
    make, drawn = FORMULAS[name]

    @settings(max_examples=100)
    @given(
        st.integers(0, 2**32),
        st.fixed_dictionaries({"weight_decay": DECAYS} | drawn),
        RATES,
    )
    def compare(seed: int, chosen: dict[str, Any], rate: float) -> None:
        start, gradients = start_and_gradients(seed, dtype)
        got, largest = ours(make, start, gradients, learning_rate=rate, **chosen)
        wanted = theirs(torch, their(torch, name), start, gradients, lr=rate, **as_theirs(chosen))
        for one, other in zip(got, wanted, strict=True):
            assert_near(one, other, largest)

    compare()


class PaperLion:
    """Lion in PyTorch's functions, after the program in the appendix of Chen et al. (2023)."""

    def __init__(self, held: Any, *, torch: Any, lr: float, betas: Any, weight_decay: float):
        self.held, self.lr, self.betas, self.decay = held, lr, betas, weight_decay
        self.torch, self.means = torch, [torch.zeros_like(p) for p in held]

    def step(self) -> None:
        beta_1, beta_2 = self.betas
        with self.torch.no_grad():
            for p, m in zip(self.held, self.means, strict=True):
                update = self.torch.sign(beta_1 * m + (1 - beta_1) * p.grad)
                m.mul_(beta_2).add_((1 - beta_2) * p.grad)
                p.sub_(self.lr * (update + self.decay * p))


def test_lion(torch: Any) -> None:
    """In float64 alone: in float32, one sign in millions is that of a rounding error."""

    @settings(max_examples=100)
    @given(
        st.integers(0, 2**32),
        st.fixed_dictionaries({"weight_decay": DECAYS, "beta_1": BETAS, "beta_2": BETAS}),
        RATES,
    )
    def compare(seed: int, chosen: dict[str, Any], rate: float) -> None:
        start, gradients = start_and_gradients(seed, "float64")
        got, largest = ours(gn.Lion, start, gradients, learning_rate=rate, **chosen)
        make = partial(PaperLion, torch=torch)
        wanted = theirs(torch, make, start, gradients, lr=rate, **as_theirs(chosen))
        for one, other in zip(got, wanted, strict=True):
            assert_near(one, other, largest)

    compare()


@pytest.mark.parametrize("name", ["AdamW", "RMSprop", "Adagrad"])
def test_the_defaults(torch: Any, name: str) -> None:
    start, gradients = start_and_gradients(1, "float64")
    wanted = theirs(torch, their(torch, name), start, gradients)
    got, largest = ours(FORMULAS[name][0], start, gradients)
    for one, other in zip(got, wanted, strict=True):
        assert_near(one, other, largest)
