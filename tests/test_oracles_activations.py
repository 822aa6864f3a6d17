"""Activations against PyTorch's, over random inputs and settings: values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import gpunn as gn

#: Relative to the largest entry, or to 1.
CLOSE = {"float32": 1e-5, "float64": 1e-10}
#: In float64, too, PyTorch's derivative is 1/6 as float32 has it.
ROUNDED_BY_PYTORCH = {"Hardsigmoid": 1e-7}

#: From a positive number to a layer and its like in `torch.nn`.
PAIRS: dict[str, Callable[[Any, float], tuple[gn.Layer, Any]]] = {
    "Sigmoid": lambda nn, _: (gn.Sigmoid(), nn.Sigmoid()),
    "Tanh": lambda nn, _: (gn.Tanh(), nn.Tanh()),
    "ReLU": lambda nn, _: (gn.ReLU(), nn.ReLU()),
    "LeakyReLU": lambda nn, p: (gn.LeakyReLU(p / 4), nn.LeakyReLU(p / 4)),
    "ELU": lambda nn, p: (gn.ELU(p), nn.ELU(p)),
    "SiLU": lambda nn, _: (gn.SiLU(), nn.SiLU()),
    "GELU": lambda nn, _: (gn.GELU(), nn.GELU()),
    "GELU, tanh": lambda nn, _: (gn.GELU(approximate=True), nn.GELU("tanh")),
    # From a threshold of 20 on, PyTorch's is the identity, which is 2e-9 off.
    "Softplus": lambda nn, _: (gn.Softplus(), nn.Softplus(threshold=1e3)),
    "Softmax": lambda nn, _: (gn.Softmax(), nn.Softmax(-1)),
    "LogSoftmax": lambda nn, _: (gn.LogSoftmax(), nn.LogSoftmax(-1)),
    "SELU": lambda nn, _: (gn.SELU(), nn.SELU()),
    "CELU": lambda nn, p: (gn.CELU(p), nn.CELU(p)),
    "Mish": lambda nn, _: (gn.Mish(), nn.Mish()),
    "Softsign": lambda nn, _: (gn.Softsign(), nn.Softsign()),
    "LogSigmoid": lambda nn, _: (gn.LogSigmoid(), nn.LogSigmoid()),
    "Hardtanh": lambda nn, p: (gn.Hardtanh(p), nn.Hardtanh(-p, p)),
    "ReLU6": lambda nn, _: (gn.ReLU6(), nn.ReLU6()),
    "Hardsigmoid": lambda nn, _: (gn.Hardsigmoid(), nn.Hardsigmoid()),
    "Hardswish": lambda nn, _: (gn.Hardswish(), nn.Hardswish()),
    "Softshrink": lambda nn, p: (gn.Softshrink(p), nn.Softshrink(p)),
    "PReLU": lambda nn, p: (gn.PReLU(1, p), nn.PReLU(1, p)),
    "PReLU, of channels": lambda nn, p: (gn.PReLU(6, p), nn.PReLU(6, p)),
}


def test_every_activation_is_compared() -> None:
    named = {name.split(",")[0] for name in PAIRS}
    classes = {type(make()).__name__ for make in gn.ACTIVATIONS.values()}
    assert named == (classes - {"Identity"}) | {"PReLU"}


@pytest.mark.parametrize("name", PAIRS)
@given(
    n=st.integers(1, 9),
    parameter=st.sampled_from([0.25, 0.5, 1.0, 2.5]),
    size=st.sampled_from([0.1, 1.0, 10.0]),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=100)
def test_values_and_gradients(
    torch: Any, name: str, n: int, parameter: float, size: float, dtype: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = (size * rng.standard_normal((n, 6))).astype(dtype)
    grad = rng.standard_normal((n, 6)).astype(dtype)
    layer, other = PAIRS[name](torch.nn, parameter)
    layer, other, tape = layer.to(dtype=dtype), other.to(getattr(torch, dtype)), gn.Tape()
    given_x = torch.tensor(x, requires_grad=True)
    y, other_y = layer(x, tape), other(given_x)
    pairs = [(y, other_y.detach()), (layer.backward(grad, tape), given_x)]
    other_y.backward(torch.tensor(grad))
    pairs[1] = pairs[1][0], given_x.grad
    if isinstance(layer, gn.PReLU):
        pairs.append((layer.slope.grad, other.weight.grad))
    close = max(CLOSE[dtype], ROUNDED_BY_PYTORCH.get(name, 0.0))
    for got, tensor in pairs:
        wanted = tensor.numpy()
        assert got.dtype == wanted.dtype == dtype
        assert_allclose(got, wanted, rtol=0, atol=close * max(1.0, abs(wanted).max()))
