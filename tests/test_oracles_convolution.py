"""Convolutions and pooling against PyTorch's, on random shapes and settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import gpunn as gn

CLOSE = {"float32": 1e-5, "float64": 1e-10}
#: The fixture `torch` is the same module for all examples.
ORACLE = settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
SIDES = st.integers(1, 9)
PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))
DTYPES = st.sampled_from(["float32", "float64"])
SEEDS = st.integers(0, 2**31)


def assert_near(got: Any, want: Any, dtype: str) -> None:
    """Compare relative to the largest entry: sums are added up in another order."""
    want = np.asarray(want)
    assert got.dtype == want.dtype == dtype
    atol = CLOSE[dtype] * max(1.0, float(np.abs(want).max(initial=0.0)))
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def first(x: Any) -> Any:
    """Return images with their channels first."""
    return np.moveaxis(x, -1, 1)


def last(x: Any) -> Any:
    """Return images with their channels last."""
    return np.moveaxis(x.detach().numpy(), 1, -1)


def assert_same_passes(torch: Any, ours: gn.Layer, theirs: Any, x: Any, seed: int) -> list[Any]:
    """Compare outputs and input gradients; return our gradients of the parameters."""
    dtype = str(x.dtype)
    given_x = torch.from_numpy(np.ascontiguousarray(first(x))).requires_grad_(True)
    wanted, tape = theirs(given_x), gn.Tape()
    y = ours(x, tape)
    assert_near(y, last(wanted), dtype)
    grad = np.random.default_rng(seed).standard_normal(y.shape).astype(dtype)
    grad_x = ours.backward(grad, tape)
    wanted.backward(torch.from_numpy(np.ascontiguousarray(first(grad))))
    assert_near(grad_x, last(given_x.grad), dtype)
    return [parameter.grad for parameter in ours.parameters()]


def images(axes: int, sides: tuple[int, int], n: int, channels: int, dtype: str, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, *sides[:axes], channels)).astype(dtype)


def assert_same_convolution(
    torch: Any, ours: gn.Layer, theirs: Any, x: Any, order: tuple[int, ...]
) -> None:
    """Give both the same weights, and compare. `order` is that of our weights' axes in theirs."""
    weight, bias = (ours.named_parameters().get(name) for name in ("weight", "bias"))
    axes = theirs.weight.ndim - 2
    with torch.no_grad():
        turned = weight.value.transpose(order)
        theirs.weight.copy_(torch.from_numpy(turned.reshape(theirs.weight.shape).copy()))
        if bias is not None:
            bias.value[:] = np.linspace(-1, 1, bias.value.size)
            theirs.bias.copy_(torch.from_numpy(bias.value))
    grads = assert_same_passes(torch, ours, theirs, x, 1)
    assert axes in (1, 2)
    wanted = theirs.weight.grad.numpy().reshape(weight.value.transpose(order).shape)
    assert_near(grads[0].transpose(order), wanted, str(x.dtype))
    if bias is not None:
        assert_near(grads[1], theirs.bias.grad.numpy(), str(x.dtype))


@given(
    axes=st.integers(1, 2),
    sides=st.tuples(SIDES, SIDES),
    n=st.integers(1, 3),
    own=st.integers(1, 4),
    out=st.integers(1, 9),
    groups=st.integers(1, 3),
    size=PAIRS,
    stride=PAIRS,
    dilation=PAIRS,
    padding=st.one_of(st.just("same"), st.just("valid"), st.tuples(SIDES, SIDES)),
    bias=st.booleans(),
    dtype=DTYPES,
    seed=SEEDS,
)
@ORACLE
@pytest.mark.filterwarnings("ignore:Using padding=.same.")  # the copy is all right
def test_convolutions(torch: Any, **drawn: Any) -> None:
    axes, dtype, padding = drawn["axes"], drawn["dtype"], drawn["padding"]
    groups, seed = drawn["groups"], drawn["seed"]
    size, stride, dilation = (drawn[name][:axes] for name in ("size", "stride", "dilation"))
    if padding == "same":
        stride = (1,) * axes  # PyTorch has no other
    elif padding != "valid":
        padding = padding[:axes]
    channels, outputs = groups * drawn["own"], groups * drawn["out"]
    around = 2 * np.array(padding) if isinstance(padding, tuple) else 0
    reach = (np.array(size) - 1) * np.array(dilation) + 1
    assume(padding == "same" or (np.array(drawn["sides"][:axes]) + around >= reach).all())
    kinds = {1: (gn.Conv1d, torch.nn.Conv1d), 2: (gn.Conv2d, torch.nn.Conv2d)}[axes]
    alike: Any = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    alike["bias"] = drawn["bias"]
    ours = kinds[0](channels, outputs, size, rng=seed, dtype=dtype, **alike)
    theirs = kinds[1](channels, outputs, size, dtype=getattr(torch, dtype), **alike)
    x = images(axes, drawn["sides"], drawn["n"], channels, dtype, seed)
    assert_same_convolution(torch, ours, theirs, x, (3, 2, 0, 1))


@given(
    sides=st.tuples(SIDES, SIDES),
    n=st.integers(1, 3),
    own=st.integers(1, 4),
    out=st.integers(1, 9),
    groups=st.integers(1, 3),
    size=PAIRS,
    stride=PAIRS,
    dilation=PAIRS,
    padding=st.one_of(st.just(0), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    more=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    bias=st.booleans(),
    dtype=DTYPES,
    seed=SEEDS,
)
@ORACLE
def test_transposed_convolutions(torch: Any, **drawn: Any) -> None:
    groups, dtype, seed = drawn["groups"], drawn["dtype"], drawn["seed"]
    channels, outputs = groups * drawn["own"], groups * drawn["out"]
    more = tuple(min(m, s - 1) for m, s in zip(drawn["more"], drawn["stride"], strict=True))
    alike: Any = {name: drawn[name] for name in ("stride", "padding", "dilation", "bias", "groups")}
    alike["output_padding"] = more
    x = images(2, drawn["sides"], drawn["n"], channels, dtype, seed)
    ours = gn.ConvTranspose2d(channels, outputs, drawn["size"], rng=seed, dtype=dtype, **alike)
    assume(min(ours._side(axis, side) for axis, side in enumerate(x.shape[1:3])) > 0)
    theirs = torch.nn.ConvTranspose2d(
        channels, outputs, drawn["size"], dtype=getattr(torch, dtype), **alike
    )
    assert_same_convolution(torch, ours, theirs, x, (3, 2, 0, 1))


@given(
    axes=st.integers(1, 2),
    sides=st.tuples(SIDES, SIDES),
    n=st.integers(1, 3),
    channels=st.integers(1, 20),
    size=PAIRS,
    stride=PAIRS,
    padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    kind=st.sampled_from(["max", "ties", "average", "average of pixels"]),
    dtype=DTYPES,
    seed=SEEDS,
)
@ORACLE
def test_pools(torch: Any, **drawn: Any) -> None:
    axes, dtype, kind, seed = drawn["axes"], drawn["dtype"], drawn["kind"], drawn["seed"]
    size, stride = drawn["size"][:axes], drawn["stride"][:axes]
    # PyTorch pads at most half a window.
    padding = tuple(min(p, s // 2) for p, s in zip(drawn["padding"][:axes], size, strict=True))
    sides = np.array(drawn["sides"][:axes])
    assume((sides + 2 * np.array(padding) >= np.array(size)).all())
    x = images(axes, drawn["sides"], drawn["n"], drawn["channels"], dtype, seed)
    if kind == "ties":
        x = np.sign(x)
    ours: gn.Layer
    if kind in ("max", "ties"):
        mine = gn.MaxPool1d if axes == 1 else gn.MaxPool2d
        ours = mine(size, stride, padding=padding)
        yours = torch.nn.MaxPool1d if axes == 1 else torch.nn.MaxPool2d
        theirs = yours(size, stride, padding)
    else:
        counted = kind == "average"
        means = gn.AveragePool1d if axes == 1 else gn.AveragePool2d
        ours = means(size, stride, padding=padding, count_include_pad=counted)
        yours = torch.nn.AvgPool1d if axes == 1 else torch.nn.AvgPool2d
        theirs = yours(size, stride, padding, count_include_pad=counted)
    assert_same_passes(torch, ours, theirs, x, seed)


@given(sides=st.tuples(SIDES, SIDES), channels=st.integers(1, 5), dtype=DTYPES, seed=SEEDS)
@ORACLE
def test_global_pools(torch: Any, **drawn: Any) -> None:
    dtype, seed = drawn["dtype"], drawn["seed"]
    x = images(2, drawn["sides"], 2, drawn["channels"], dtype, seed)
    pairs = (
        (gn.GlobalAveragePool(), lambda x: x.mean((2, 3))),
        (gn.GlobalMaxPool(), lambda x: torch.nn.functional.adaptive_max_pool2d(x, 1)[:, :, 0, 0]),
    )
    for ours, theirs in pairs:
        assert_same_passes(torch, ours, theirs, x, seed)
