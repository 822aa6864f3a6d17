"""The optimizer's blocks of memory: whatever happens to parameters, training goes on rightly."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import gpunn as gn
from tests.conftest import Place

STEPS = 4
X = np.random.default_rng(0).standard_normal((8, 3)).astype("float32")
Y = np.random.default_rng(1).standard_normal((8, 2)).astype("float32")
SETTINGS = {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01}
OPTIMIZERS = {"SGD": partial(gn.SGD, **SETTINGS), "Adam": partial(gn.Adam, weight_decay=0.01)}


class Twice(gn.Layer):
    """A layer that returns its gradient in a new array, and uses no buffer."""

    def __init__(self) -> None:
        self.scale = gn.Parameter(np.full(4, 2.0, "float32"))

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        if tape is not None:
            tape.push(self, x)
        return x * self.scale.value

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        (x,) = tape.pop(self)
        self.scale.add_grad((grad * x).sum(axis=0))
        return grad * self.scale.value


def network(*between: gn.Layer) -> gn.Sequential:
    return gn.Sequential(gn.Dense(3, 4, "tanh", rng=0), *between, gn.Dense(4, 2, rng=1))


def backward(model: gn.Layer) -> None:
    tape, loss = gn.Tape(), gn.MeanSquaredError()
    loss(model(X, tape), Y, tape)
    model.backward(loss.backward(tape), tape)


def train(model: gn.Layer, optimizer: gn.Optimizer, steps: int = STEPS) -> list[Any]:
    for _ in range(steps):
        backward(model)
        optimizer.step()
    return weights(model)


def weights(model: gn.Layer) -> list[Any]:
    return [parameter.value.copy() for parameter in model.parameters()]


def assert_same(got: list[Any], want: list[Any]) -> None:
    for a, b in zip(got, want, strict=True):
        assert_array_equal(a, b, strict=True)


def test_values_and_gradient_buffers_are_neighbours() -> None:
    model = network()
    gn.SGD(model.parameters())
    for arrays in (
        [p.value for p in model.parameters()],
        [p.grad_buffer for p in model.parameters()],
    ):
        assert len({id(array.base) for array in arrays}) == 1
        assert not any(np.shares_memory(a, b) for a in arrays for b in arrays if a is not b)
        assert all(array.ctypes.data % 4 == 0 and array.flags.c_contiguous for array in arrays)


def test_what_decays_lies_apart() -> None:
    model = network()
    optimizer = gn.SGD(model.parameters(), weight_decay=0.1)
    assert sorted(optimizer._blocks.decays) == [0.0, 0.1]


def test_gradients_are_written_into_the_buffers() -> None:
    model = network()
    gn.SGD(model.parameters())
    buffers = [parameter.grad_buffer for parameter in model.parameters()]
    backward(model)
    for parameter, buffer in zip(model.parameters(), buffers, strict=True):
        assert parameter.grad is buffer
        assert parameter.grad_buffer is None  # taken


def test_two_backward_passes_add_up() -> None:
    model, other = network(), network()
    gn.SGD(model.parameters())
    for each in (model, other):
        backward(each)
        backward(each)
    assert_same([p.grad for p in model.parameters()], [p.grad for p in other.parameters()])


def _reassigned(model: Any, optimizer: Any) -> tuple[Any, Any]:
    for parameter in model.parameters():
        parameter.value = parameter.value.copy()
    return model, optimizer


def _reassigned_after_backward(model: Any, optimizer: Any) -> tuple[Any, Any]:
    backward(model)
    for parameter in model.parameters():
        parameter.grad = None
        parameter.value = parameter.value.copy()
    return model, optimizer


def _pickled(model: Any, optimizer: Any) -> tuple[Any, Any]:
    return pickle.loads(pickle.dumps((model, optimizer)))  # noqa: S301


def _optimizer_first(model: Any, optimizer: Any) -> tuple[Any, Any]:
    optimizer, model = pickle.loads(pickle.dumps((optimizer, model)))  # noqa: S301
    return model, optimizer


def _copied(model: Any, optimizer: Any) -> tuple[Any, Any]:
    return copy.deepcopy((model, optimizer))


def _decay_gone_and_back(model: Any, optimizer: Any) -> tuple[Any, Any]:
    optimizer.weight_decay = 0.0
    model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))  # noqa: S301
    assert optimizer.weight_decay == 0.0
    optimizer.weight_decay = 0.01
    return model, optimizer


def _rival(model: Any, optimizer: Any) -> tuple[Any, Any]:
    gn.SGD(model.parameters(), momentum=0.5)  # takes the values into a block of its own
    return model, optimizer


@pytest.mark.parametrize(
    "event",
    [
        _reassigned,
        _reassigned_after_backward,
        _pickled,
        _optimizer_first,
        _copied,
        _decay_gone_and_back,
        _rival,
    ],
    ids=lambda event: event.__name__.strip("_"),
)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_as_if_nothing_had_happened(
    event: Callable[[Any, Any], tuple[Any, Any]], make: Callable[..., gn.Optimizer]
) -> None:
    model = network()
    wanted = train(model, make(model.parameters()))
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, 2)
    model, optimizer = event(model, optimizer)
    assert_same(train(model, optimizer, STEPS - 2), wanted)


def test_a_copy_is_independent() -> None:
    model = network()
    optimizer = gn.SGD(model.parameters(), **SETTINGS)
    before = weights(model)
    train(*copy.deepcopy((model, optimizer)))
    assert_same(weights(model), before)


def test_a_model_that_changes_its_dtype_takes_the_state_along() -> None:
    model = network()
    optimizer = gn.SGD(model.parameters(), **SETTINGS)
    train(model, optimizer, 1)
    model.to(dtype="float64")
    tape, loss = gn.Tape(), gn.MeanSquaredError()
    loss(model(X.astype("float64"), tape), Y.astype("float64"), tape)
    model.backward(loss.backward(tape), tape)
    optimizer.step()
    assert {p.value.dtype for p in model.parameters()} == {np.dtype("float64")}
    assert all(buffer.dtype == "float64" for buffer in (p.grad_buffer for p in model.parameters()))


def test_a_layer_that_makes_its_own_gradient() -> None:
    model, other = network(Twice()), network(Twice())
    separate = [gn.SGD([p], **SETTINGS) for p in other.parameters()]
    got = train(model, gn.SGD(model.parameters(), **SETTINGS))
    for _ in range(STEPS):
        backward(other)
        for optimizer in separate:
            optimizer.step()
    assert_same(got, weights(other))


def test_a_parameter_without_gradient_stays_and_keeps_its_velocity(place: Place) -> None:
    held = [gn.Parameter(place.backend.asarray(np.full(2, float(i)))) for i in range(3)]
    optimizer = gn.SGD(held, learning_rate=1.0, momentum=0.5)
    for with_middle in (True, False, True):
        for i, parameter in enumerate(held):
            if with_middle or i != 1:
                parameter.add_grad(place.backend.asarray(np.ones(2)))
        optimizer.step()
    # v: -1, -1.5, -1.75 for the outer ones; -1 and -1.5 for the one that missed a step
    assert gn.to_numpy(held[0].value).tolist() == [-4.25] * 2
    assert gn.to_numpy(held[1].value).tolist() == [1 - 2.5] * 2
    assert gn.to_numpy(held[2].value).tolist() == [2 - 4.25] * 2
