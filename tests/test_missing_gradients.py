"""Layers whose backward pass leaves out a gradient that training needs: an error, not a silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn.errors import GradientError
from tests.faults import Fault

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 4)).astype("float32"), RNG.integers(0, 3, 12)


class Scale(gn.Layer):
    """Scale each feature; leave out what it is told to."""

    def __init__(self, *, returns: bool = True, adds: bool = True) -> None:
        self.scale = gn.Parameter(np.ones(4, "float32"))
        self.returns, self.adds = returns, adds

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        if tape is not None:
            tape.push(self, x)
        return x * self.scale.value

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        (x,) = tape.pop(self)
        if self.adds:
            self.scale.add_grad((x * grad).sum(axis=0))
        return grad * self.scale.value if self.returns else None


def wrapped(layer: gn.Layer) -> list[gn.Layer]:
    return [layer, gn.Residual(layer), gn.Parallel(gn.Identity(), layer, join="add")]


def fit(model: gn.Layer, parameters: Any = None) -> gn.History:
    optimizer = gn.SGD(model.parameters() if parameters is None else parameters, 0.1)
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer)
    return trainer.fit(gn.Loader(X, Y, rng=0), 2, progress=False)


def by_step(model: gn.Layer) -> None:
    gn.train_step(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters()), X, Y)


@pytest.mark.parametrize("train", [fit, by_step])
@pytest.mark.parametrize("how", range(3))
@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ({"returns": False}, r"Scale\(\): backward returned None; it must return dJ/dx"),
        ({"adds": False}, r"Scale\(\): backward left scale\.grad unset"),
    ],
    ids=["dJ/dx", "dJ/dscale"],
)
def test_training_refuses_it(
    left_out: dict[str, bool], said: str, how: int, train: Callable[[Any], Any]
) -> None:
    layer = wrapped(Scale(**left_out))[how]
    model = gn.Sequential(gn.Dense(4, 4, rng=0), layer, gn.Dense(4, 3, rng=1))
    before = [parameter.value.copy() for parameter in model.parameters()]
    with pytest.raises(GradientError, match=said):
        train(model)
    for parameter, value in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.value, value)


def test_what_nobody_needs_may_be_left_out() -> None:
    first = gn.Sequential(Scale(returns=False), gn.Dense(4, 3, rng=0))
    frozen = gn.Sequential(gn.Dense(4, 4, rng=0), Scale(returns=False), gn.Dense(4, 3, rng=1))
    unset = gn.Sequential(Scale(adds=False), gn.Dense(4, 3, rng=0))
    assert len(fit(first)) == 2
    assert len(fit(frozen, frozen[-1].parameters())) == 2
    assert len(fit(unset, unset[-1].parameters())) == 2


class Recorded(Fault):
    """A layer that can be recorded, and gives its parameter no gradient."""

    records = True
    forward, backward = Fault.forward, Fault.backward

    def __init__(self) -> None:
        self.scale = gn.Parameter(np.ones(4, "float32"))


def test_recorded_steps_do_not_hide_it() -> None:
    model = gn.Sequential(gn.Dense(4, 4, rng=0), Recorded(), gn.Dense(4, 3, rng=1))
    with pytest.raises(GradientError, match=r"backward left scale\.grad unset"):
        fit(model)
