"""Whatever array comes, a call keeps the laws or raises an error that says what is wrong."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from gpunn.errors import GpunnError
from tests.cases import LAYERS, LOSSES
from tests.odd_arrays import NOT_FINITE, OTHER, SAME

#: What may be raised: what gpunn raises on purpose, and what a caller of Python expects.
ERRORS = (GpunnError, TypeError, ValueError)


def attempt(kind: str, call: Any, *arguments: Any) -> Any:
    """Return a result, or the error; nothing else may happen, and no warning but NumPy's."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if kind in NOT_FINITE:
            warnings.simplefilter("ignore", RuntimeWarning)
        try:
            return call(*arguments)
        except ERRORS as error:
            result = error
    assert len(str(result)) > 10, f"{result!r} says nothing"
    return result


def unchanged(given: Any, before: Any) -> None:
    if isinstance(given, np.ndarray):
        assert_array_equal(np.asarray(given), np.asarray(before))


@pytest.mark.parametrize("kind", [*SAME, *OTHER])
@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_a_layer(case: Any, kind: str) -> None:
    x = case.x(3)
    x = x if case.tokens else x.astype("float32")
    given = {**SAME, **OTHER}[kind](x)
    before = copy.deepcopy(given) if isinstance(given, np.ndarray) else None
    layer = case.make("float32")
    result = attempt(kind, layer, given)
    unchanged(given, before)
    if isinstance(result, Exception):
        return
    assert isinstance(result, np.ndarray)
    assert not isinstance(result, (np.ma.MaskedArray, np.matrix))
    assert result.dtype.kind == "f"
    if kind in SAME:
        plain = np.array(np.asarray(given), x.dtype)
        assert_allclose(result, layer(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", ["prediction", "target", "weight"])
@pytest.mark.parametrize("kind", [*SAME, *OTHER])
@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.name)
def test_a_loss(case: Any, kind: str, part: str) -> None:
    prediction, target = case.data(3)
    parts = {
        "prediction": np.asarray(prediction, "float32"),
        "target": np.asarray(target),
        "weight": np.array([1.0, 2.0, 0.5], "float32"),
    }
    given = parts | {part: {**SAME, **OTHER}[kind](parts[part])}
    before = copy.deepcopy(given[part]) if isinstance(given[part], np.ndarray) else None

    def call(given: Any) -> Any:
        weight = given["weight"]
        return case.make()(given["prediction"], given["target"], sample_weight=weight)

    result = attempt(kind, call, given)
    unchanged(given[part], before)
    if isinstance(result, Exception) or kind not in SAME:
        return
    plain = parts | {part: np.array(np.asarray(given[part]), parts[part].dtype)}
    assert_allclose(result, call(plain), rtol=1e-5, atol=1e-6)


X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = np.arange(8) % 3


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("part", ["x", "y", "sample_weight"])
@pytest.mark.parametrize("kind", [*SAME, *OTHER])
def test_training(kind: str, part: str, *, resident: bool) -> None:
    """What is trained on is what was given; an error comes before anything has changed."""
    parts = {"x": X, "y": Y, "sample_weight": np.linspace(0.5, 2.0, 8).astype("float32")}
    given = parts | {part: {**SAME, **OTHER}[kind](parts[part])}

    def fit(given: Any) -> Any:
        model = gn.Sequential(gn.Dense(4, 5, "tanh", rng=0), gn.Dense(5, 3, rng=1))
        first = model.parameters()[0].value.copy()
        trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters(), 0.1))
        try:
            loader = gn.Loader(**given, batch_size=4, resident=resident, rng=2)
            trainer.fit(loader, 2, validation=tuple(given.values()), progress=False)
        except GpunnError as error:
            if not isinstance(error, gn.errors.DivergenceError):
                assert_array_equal(model.parameters()[0].value, first)
            raise
        return model.parameters()[0].value, trainer.predict(given["x"])

    result = attempt(kind, fit, given)
    if isinstance(result, Exception) or kind not in SAME:
        return
    plain = parts | {part: np.array(np.asarray(given[part]), parts[part].dtype)}
    for a, b in zip(result, fit(plain), strict=True):
        assert_allclose(a, b, rtol=1e-5, atol=1e-6)
