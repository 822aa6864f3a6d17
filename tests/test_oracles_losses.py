"""Losses against PyTorch's, over random configurations: J, or each sample's L, and the gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import gpunn as gn

#: Relative to the largest entry: single entries may cancel.
CLOSE = {"float32": 1e-5, "float64": 1e-10}


@dataclass(frozen=True)
class Draw:
    """Random data: N samples, P outputs or K classes, T positions."""

    n: int
    p: int
    t: int
    spread: float
    dtype: str
    reduction: str
    weighted: bool
    seed: int
    setting: float  # in [0, 1]: what a loss makes of it is its own affair

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    def normal(self, *shape: int) -> Any:
        return self.spread * self.rng.standard_normal(shape or (self.n, self.p))

    def labels(self, *shape: int) -> Any:
        return self.rng.integers(0, self.p, shape or self.n)

    def shares(self) -> Any:
        y = self.rng.dirichlet(np.ones(self.p), self.n).astype(self.dtype)
        return y if self.setting < 0.5 else np.eye(self.p, dtype=self.dtype)[self.labels()]


DRAWS = st.builds(
    Draw,
    n=st.integers(1, 9),
    p=st.integers(1, 7),
    t=st.integers(1, 5),
    spread=st.sampled_from([0.1, 1.0, 3.0]),
    dtype=st.sampled_from(["float32", "float64"]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    weighted=st.booleans(),
    seed=st.integers(0, 2**31),
    setting=st.floats(0.01, 1.0),
)


@dataclass(frozen=True)
class Pair:
    """A loss here, data for it, and PyTorch's loss of each sample, or of each of its parts.

    `theirs` is given torch's functions, prediction and target, and the loss of ours; `mass` is
    what each sample counts for in the mean.
    """

    name: str
    ours: Callable[..., gn.Loss]  # from a draw and keywords
    data: Callable[[Draw], tuple[Any, Any]]
    theirs: Callable[[Any, Any, Any, Any], Any]
    mass: Callable[[Any, Any], Any] = lambda loss, y: np.ones(len(y))


def _noise(draw: Draw) -> Any:
    return np.random.default_rng(draw.seed + 1).standard_normal((draw.n, draw.p))


def _cross_entropy(f: Any, x: Any, y: Any, loss: Any) -> Any:
    weight = None if loss.class_weight is None else x.new_tensor(loss.class_weight)
    return f.cross_entropy(x, y, weight, label_smoothing=loss.label_smoothing, reduction="none")


def _weights(draw: Draw) -> list[float] | None:
    return np.linspace(0.25, 2.0, draw.p).tolist() if draw.setting < 0.7 else None


def _class_mass(loss: Any, y: Any) -> Any:
    if loss.class_weight is None:
        return np.ones(len(y))
    c = np.asarray(loss.class_weight)
    return c[y] if y.ndim == 1 else y @ c


def _probabilities(draw: Draw) -> Any:
    return 0.05 + 0.9 / (1.0 + np.exp(-draw.normal()))


def _hinge(f: Any, z: Any, y: Any, loss: Any) -> Any:
    margin = (1 - (2 * y - 1) * z).clamp(min=0)
    return margin**2 if loss.squared else margin


def _sequences(draw: Draw) -> tuple[Any, Any]:
    y = draw.labels(draw.n, draw.t)
    ignored = np.random.default_rng(draw.seed + 1).uniform(0, 1, y.shape) < 0.3
    return draw.normal(draw.n, draw.t, draw.p), np.where(ignored, -100, y)


PAIRS = [
    Pair(
        "squared error",
        lambda draw, **more: gn.MeanSquaredError(**more),
        lambda draw: (draw.normal(), _noise(draw)),
        lambda f, x, y, loss: f.mse_loss(x, y, reduction="none") / 2,
    ),
    Pair(
        "absolute error",
        lambda draw, **more: gn.MeanAbsoluteError(**more),
        lambda draw: (draw.normal(), _noise(draw)),
        lambda f, x, y, loss: f.l1_loss(x, y, reduction="none"),
    ),
    Pair(
        "Huber",
        lambda draw, **more: gn.Huber(2 * draw.setting, **more),
        lambda draw: (draw.normal(), _noise(draw)),
        lambda f, x, y, loss: f.huber_loss(x, y, delta=loss.delta, reduction="none"),
    ),
    Pair(
        "Poisson",
        lambda draw, **more: gn.Poisson(**more),
        lambda draw: (draw.normal(), draw.rng.poisson(2.0, (draw.n, draw.p)).astype(draw.dtype)),
        lambda f, x, y, loss: f.poisson_nll_loss(x, y, reduction="none"),
    ),
    Pair(
        "hinge",
        lambda draw, **more: gn.Hinge(squared=draw.setting < 0.5, **more),
        lambda draw: (draw.normal(), draw.rng.integers(0, 2, (draw.n, draw.p))),
        _hinge,
    ),
    Pair(
        "cosine",
        lambda draw, **more: gn.CosineDistance(**more),
        lambda draw: (draw.normal(draw.n, draw.p + 1), np.pad(_noise(draw), ((0, 0), (1, 0)))),
        lambda f, x, y, loss: 1 - f.cosine_similarity(x, y, dim=1, eps=loss.epsilon),
    ),
    Pair(
        "divergence",
        lambda draw, **more: gn.KLDivergence(**more),
        lambda draw: (draw.normal(), draw.shares()),
        lambda f, x, y, loss: f.kl_div(x.log_softmax(1), y, reduction="none"),
    ),
    Pair(
        "divergence of logarithms",
        lambda draw, **more: gn.KLDivergence(from_logits=False, **more),
        lambda draw: (np.log(_probabilities(draw)), draw.shares()),
        lambda f, x, y, loss: f.kl_div(x, y, reduction="none"),
    ),
    Pair(
        "cross-entropy of labels",
        lambda draw, **more: gn.SoftmaxCrossEntropy(
            class_weight=_weights(draw), label_smoothing=draw.setting // 0.5 / 10, **more
        ),
        lambda draw: (draw.normal(), draw.labels()),
        _cross_entropy,
        _class_mass,
    ),
    Pair(
        "cross-entropy of shares",
        lambda draw, **more: gn.SoftmaxCrossEntropy(
            class_weight=_weights(draw), label_smoothing=draw.setting // 0.5 / 10, **more
        ),
        lambda draw: (draw.normal(), draw.shares()),
        _cross_entropy,
        _class_mass,
    ),
    Pair(
        "cross-entropy of probabilities",
        lambda draw, **more: gn.CrossEntropy(**more),
        lambda draw: (_probabilities(draw), draw.labels()),
        lambda f, x, y, loss: f.nll_loss(x.log(), y, reduction="none"),
    ),
    Pair(
        "binary cross-entropy",
        lambda draw, **more: gn.BinaryCrossEntropy(**more),
        lambda draw: (draw.normal(), draw.rng.uniform(0, 1, (draw.n, draw.p))),
        lambda f, x, y, loss: f.binary_cross_entropy_with_logits(x, y, reduction="none"),
    ),
    Pair(
        "binary cross-entropy of probabilities",
        lambda draw, **more: gn.BinaryCrossEntropy(from_logits=False, **more),
        lambda draw: (_probabilities(draw), draw.rng.uniform(0, 1, (draw.n, draw.p))),
        lambda f, x, y, loss: f.binary_cross_entropy(x, y, reduction="none"),
    ),
    Pair(
        "cross-entropy of sequences",
        lambda draw, **more: gn.SequenceCrossEntropy(
            label_smoothing=draw.setting // 0.5 / 10, **more
        ),
        _sequences,
        lambda f, x, y, loss: f.cross_entropy(
            x.movedim(2, 1), y, label_smoothing=loss.label_smoothing, reduction="none"
        ),
        lambda loss, y: (y != -100).sum(axis=1),
    ),
]


def reduced(torch: Any, losses: Any, weight: Any, mass: Any, reduction: str) -> Any:
    """Return J, or the N weighted losses, from PyTorch's losses of samples or of their parts."""
    each = losses.reshape(len(losses), -1).sum(dim=1) * torch.tensor(weight)
    if reduction == "none":
        return each
    divisor = float((weight * mass).sum()) if reduction == "mean" else 1.0
    return each.sum() / (divisor or 1.0)


def assert_near(got: Any, want: Any, dtype: str) -> None:
    want = want.detach().numpy()
    assert got.dtype == dtype
    scale = max(1.0, abs(want).max(initial=0.0))
    assert_allclose(got, want, rtol=0, atol=CLOSE[dtype] * scale)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
@given(draw=DRAWS)
@settings(max_examples=100)
def test_values_and_gradients(torch: Any, pair: Pair, draw: Draw) -> None:
    prediction, target = pair.data(draw)
    prediction = prediction.astype(draw.dtype)
    target = target.astype(draw.dtype) if target.dtype.kind == "f" else target
    weight = np.ones(draw.n, draw.dtype)
    if draw.weighted:
        weight = draw.rng.uniform(0, 2, draw.n).astype(draw.dtype)
    loss, tape = pair.ours(draw, reduction=draw.reduction), gn.Tape()
    found = loss(prediction, target, tape, weight if draw.weighted else None)

    x = torch.tensor(prediction, requires_grad=True)
    losses = pair.theirs(torch.nn.functional, x, torch.tensor(target), loss)
    mass = np.asarray(pair.mass(loss, target), draw.dtype)
    wanted = reduced(torch, losses, weight, mass, draw.reduction)
    wanted.sum().backward()
    assert_near(found, wanted, draw.dtype)
    assert_near(loss.backward(tape), x.grad, draw.dtype)


def test_the_mean_of_sequences_is_theirs(torch: Any) -> None:
    z, y = np.random.default_rng(0).standard_normal((6, 5, 4)), np.arange(30).reshape(6, 5) % 4
    y[1:4, 2:] = -100
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    wanted = theirs(torch.tensor(z).movedim(2, 1), torch.tensor(y))
    assert_allclose(gn.SequenceCrossEntropy(label_smoothing=0.1)(z, y), wanted, rtol=1e-12)
