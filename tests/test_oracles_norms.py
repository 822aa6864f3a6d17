"""Norms against PyTorch's, over random configurations: values, gradients, running statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import gpunn as gn

#: Relative to the largest entry: single entries of a gradient may cancel.
CLOSE = {"float32": 1e-5, "float64": 1e-10}

SETTINGS = {
    "axes": st.lists(st.integers(1, 5), max_size=2).map(tuple),
    "n": st.integers(2, 9),
    "groups": st.integers(1, 3),
    "width": st.integers(1, 8),
    "epsilon": st.sampled_from([1e-5, 1e-3, 0.1]),
    "momentum": st.sampled_from([0.0, 0.1, 0.4, 1.0]),
    "offset": st.sampled_from([0.0, 3.0]),
    "dtype": st.sampled_from(["float32", "float64"]),
    "seed": st.integers(0, 2**31),
}


def assert_near(got: Any, want: Any, dtype: str, terms: float = 1.0) -> None:
    """Compare with an array of PyTorch's; `terms` is the size of what is added up to it."""
    want = want.detach().numpy()
    assert got.dtype == want.dtype == dtype
    assert_allclose(got, want, rtol=0, atol=CLOSE[dtype] * max(terms, abs(want).max(initial=0.0)))


def ours_and_theirs(
    torch: Any, kind: str, channels: int, s: dict[str, Any]
) -> tuple[gn.Layer, Any, bool]:
    """Return the layer, PyTorch's, and whether that takes channels as the second axis."""
    more: dict[str, Any] = {"epsilon": s["epsilon"], "dtype": s["dtype"]}
    theirs: dict[str, Any] = {"eps": s["epsilon"], "dtype": getattr(torch, s["dtype"])}
    if kind == "layer":
        return gn.LayerNorm(channels, **more), torch.nn.LayerNorm(channels, **theirs), False
    if kind == "rms":
        return gn.RMSNorm(channels, **more), torch.nn.RMSNorm(channels, **theirs), False
    if kind == "group":
        groups = s["groups"]
        return (
            gn.GroupNorm(groups, channels, **more),
            torch.nn.GroupNorm(groups, channels, **theirs),
            True,
        )
    names = {0: "BatchNorm1d", 1: "BatchNorm1d", 2: "BatchNorm2d"}
    theirs["momentum"] = s["momentum"]
    return (
        gn.BatchNorm(channels, s["momentum"], **more),
        getattr(torch.nn, names[len(s["axes"])])(channels, **theirs),
        True,
    )


@pytest.mark.parametrize("kind", ["layer", "rms", "group", "batch"])
@given(s=st.fixed_dictionaries(SETTINGS))
@settings(max_examples=100)
def test_values_and_gradients(torch: Any, kind: str, s: dict[str, Any]) -> None:
    rng, dtype = np.random.default_rng(s["seed"]), s["dtype"]
    channels = s["groups"] * s["width"]
    x = (rng.standard_normal((s["n"], *s["axes"], channels)) + s["offset"]).astype(dtype)
    layer, other, first = ours_and_theirs(torch, kind, channels, s)
    for parameter, theirs in ((layer.gain, other.weight), (layer.bias, getattr(other, "bias", 0))):
        if parameter is not None:
            values = rng.standard_normal(channels).astype(dtype)
            parameter.value[...] = values
            theirs.data = torch.tensor(values)

    def turned(array: Any) -> Any:
        tensor = torch.tensor(np.asarray(array))
        return tensor.movedim(-1, 1) if first else tensor

    grad = rng.standard_normal(x.shape).astype(dtype)
    tape, given_x = gn.Tape(), turned(x).requires_grad_()
    y, other_y = layer(x, tape), other(given_x)
    statistics = tape.entries()[0][1][1]
    scale = statistics[1] if kind == "batch" else statistics[..., 1]
    grad_x = layer.backward(grad, tape)
    tape.commit()
    other_y.backward(turned(grad))
    back = (lambda tensor: tensor.movedim(1, -1)) if first else (lambda tensor: tensor)
    assert_near(y, back(other_y), dtype, float(scale.max() * abs(x).max()))
    # Where entries are nearly alike, their rounding is blown up by as much as 1 / sqrt(epsilon).
    blown_up = float(scale.max() * abs(x).max() * abs(grad).max())
    assert_near(grad_x, back(given_x.grad), dtype, blown_up)
    assert_near(layer.gain.grad, other.weight.grad, dtype, blown_up)
    if layer.bias is not None:
        assert_near(layer.bias.grad, other.bias.grad, dtype)
    if kind == "batch":
        assert_near(layer.running_mean.value, other.running_mean, dtype)
        assert_near(layer.running_variance.value, other.running_var, dtype)
        least = layer.running_variance.value.min() + s["epsilon"]
        blown_up = float(abs(x).max() / np.sqrt(least))
        assert_near(layer(x), back(other.eval()(turned(x))), dtype, blown_up)
