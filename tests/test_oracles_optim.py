"""Optimizers against PyTorch's: long ways with random settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import gpunn as gn

SHAPES = [(3, 4), (4,)]
STEPS = 200
#: Of the largest number on the way: each of the steps is rounded where it has come to.
CLOSE = {"float32": 1e-5, "float64": 1e-10}

RATES = st.floats(1e-5, 0.1)
DECAYS = st.one_of(st.just(0.0), st.floats(1e-4, 0.3))
EPSILONS = st.floats(1e-8, 1e-2)
BETAS = st.floats(0.0, 0.999)
FORMULAS: dict[str, tuple[Any, dict[str, Any]]] = {
    "AdamW": (gn.AdamW, {"beta_1": BETAS, "beta_2": BETAS, "epsilon": EPSILONS}),
}
#: What PyTorch calls some settings.
NAMES = {"epsilon": "eps"}


def as_theirs(chosen: dict[str, Any]) -> dict[str, Any]:
    """Return settings under PyTorch's names."""
    renamed = {NAMES.get(name, name): value for name, value in chosen.items()}
    if "beta_1" in renamed:
        renamed["betas"] = renamed.pop("beta_1"), renamed.pop("beta_2")
    return renamed


def start_and_gradients(seed: int, dtype: str) -> tuple[list[Any], list[list[Any]]]:
    """Return values, and gradients for each step."""
    rng = np.random.default_rng(seed)
    start, *gradients = (
        [rng.standard_normal(shape).astype(dtype) for shape in SHAPES] for _ in range(1 + STEPS)
    )
    return start, gradients


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
        wanted = theirs(
            torch, getattr(torch.optim, name), start, gradients, lr=rate, **as_theirs(chosen)
        )
        for one, other in zip(got, wanted, strict=True):
            assert_allclose(one, other, rtol=0, atol=CLOSE[dtype] * largest)

    compare()


@pytest.mark.parametrize("name", FORMULAS)
def test_the_defaults(torch: Any, name: str) -> None:
    start, gradients = start_and_gradients(1, "float64")
    wanted = theirs(torch, getattr(torch.optim, name), start, gradients)
    got, largest = ours(FORMULAS[name][0], start, gradients)
    for one, other in zip(got, wanted, strict=True):
        assert_allclose(one, other, rtol=0, atol=CLOSE["float64"] * largest)
