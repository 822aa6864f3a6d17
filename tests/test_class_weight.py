"""Class weights: by position, by class, and what is neither."""

from __future__ import annotations

import math
from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from conftest import Place
from numpy.testing import assert_allclose

import gpunn as gn
from gpunn.errors import SettingError
from tests.labels import label

N, K = 6, 3
LOGITS = np.random.default_rng(0).standard_normal((N, K))
LABELS = np.array([0, 1, 2, 0, 1, 1])
SOFT = np.eye(K)[LABELS] * 0.8 + 0.2 / K
KINDS = [gn.SoftmaxCrossEntropy, gn.CrossEntropy]
both = pytest.mark.parametrize("kind", KINDS)


def prediction(kind: Any) -> Any:
    exponentials = np.exp(LOGITS)
    return LOGITS if kind is gn.SoftmaxCrossEntropy else exponentials / exponentials.sum(1)[:, None]


def cost_and_grad(loss: gn.Loss, place: Place, target: Any) -> tuple[float, Any]:
    tape = gn.Tape()
    cost = loss(place.array(prediction(type(loss))), place.array(target), tape)
    return float(cost), gn.to_numpy(loss.backward(tape))


class TestByClass:
    @both
    @pytest.mark.parametrize("target", [LABELS, SOFT], ids=["labels", "soft"])
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize(
        ("given", "table"),
        [
            ({0: 1.0, 1: 5.0, 2: 1.0}, [1.0, 5.0, 1.0]),
            ({2: 3, 0: 0.5}, [0.5, 1.0, 3.0]),
            ({1: 0}, [1.0, 0.0, 1.0]),
            ({}, [1.0, 1.0, 1.0]),
            ({np.int64(1): np.float32(0.25)}, [1.0, 0.25, 1.0]),
            (OrderedDict([(2, 2.0), (1, 4.0)]), [1.0, 4.0, 2.0]),
            (MappingProxyType({2: 2.0}), [1.0, 1.0, 2.0]),
        ],
        ids=repr,
    )
    def test_as_the_sequence(
        self, place: Place, kind: Any, target: Any, reduction: Any, given: Any, table: Any
    ) -> None:
        by_class = kind(class_weight=given, reduction=reduction)
        in_order = kind(class_weight=table, reduction=reduction)
        for found, wanted in zip(
            cost_and_grad(by_class, place, target),
            cost_and_grad(in_order, place, target),
            strict=True,
        ):
            assert_allclose(found, wanted, rtol=1e-6)

    def test_by_hand(self) -> None:
        loss = gn.SoftmaxCrossEntropy(class_weight={0: 1.0, 1: 5.0, 2: 1.0})
        shifted = LOGITS - np.log(np.exp(LOGITS).sum(1))[:, None]
        weights = np.array([1.0, 5.0, 1.0, 1.0, 5.0, 5.0])
        wanted = -(weights * shifted[range(N), LABELS]).sum() / weights.sum()
        assert_allclose(float(loss(LOGITS, LABELS)), wanted, rtol=1e-12)

    @both
    def test_the_repr_shows_it_as_given(self, kind: Any) -> None:
        loss = kind(class_weight={1: 5, np.int64(0): 2.0})
        assert repr(loss) == f"{kind.__name__}(class_weight={{1: 5.0, 0: 2.0}})"
        assert repr(kind(class_weight=[1, 2])) == f"{kind.__name__}(class_weight=(1.0, 2.0))"

    @both
    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({1.0: 2.0}, "class_weight has the key 1.0; keys are classes, whole numbers from 0"),
            ({"1": 2.0}, "class_weight has the key '1'"),
            ({-1: 2.0}, "class_weight has the key -1"),
            ({True: 2.0}, "class_weight has the key True"),
            ({None: 2.0}, "class_weight has the key None"),
            ({0: -1.0}, "class_weight[0] must be a number of at least 0, got -1.0"),
            ({0: "1"}, "class_weight[0] must be a number of at least 0, got '1'"),
            ({0: math.nan}, "class_weight[0] must be a number of at least 0, got nan"),
        ],
        ids=repr,
    )
    def test_a_wrong_one_is_told(self, kind: Any, given: Any, told: str) -> None:
        with pytest.raises(SettingError) as caught:
            kind(class_weight=given)
        assert str(caught.value).startswith(f"{kind.__name__}: {told}")

    @both
    @pytest.mark.parametrize("target", [LABELS, SOFT], ids=["labels", "soft"])
    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    def test_a_class_that_there_is_not(
        self, place: Place, kind: Any, target: Any, reduction: Any
    ) -> None:
        loss = kind(class_weight={3: 2.0}, reduction=reduction)
        told = r"class_weight names class 3, and the model outputs 3 classes, 0\.\.2"
        logits, there = place.array(LOGITS), place.array(target)
        for call in (
            lambda: loss.check_target(there, (K,)),
            lambda: loss(logits, there),
            lambda: loss.forward(logits, there),
        ):
            with pytest.raises(SettingError, match=told):
                call()


class TestInOrder:
    @both
    def test_an_array_of_any_library(self, place: Place, kind: Any) -> None:
        wanted = kind(class_weight=[1.0, 5.0, 2.0])
        for given in (
            place.array(np.array([1.0, 5.0, 2.0])),
            place.array(np.array([1, 5, 2])),
            np.array([1, 5, 2], "uint8"),
            (1, 5, 2),
        ):
            loss = kind(class_weight=given)
            assert repr(loss) == repr(wanted)

    @both
    @pytest.mark.parametrize(
        "given",
        [
            "125",
            b"125",
            {1.0, 5.0, 2.0},
            frozenset({1.0}),
            (c for c in (1.0, 5.0, 2.0)),
            map(float, (1, 5, 2)),
            np.ones((3, 1)),
            np.ones(()),
            np.float64(2.0),
            np.array([True, False, True]),
            np.array(["1", "2"]),
            np.array([1.0, 2.0], object),
            np.array([1j, 2j]),
            True,
            2,
            2.5,
            "balanced",
            {1: 2.0}.values(),
            {1: 2.0}.keys(),
            object(),
        ],
        ids=lambda given: label(given)[:20],
    )
    def test_what_is_neither_is_told(self, kind: Any, given: Any) -> None:
        told = (
            rf"^{kind.__name__}: class_weight must be K numbers \(a list, a tuple or an array of "
            r"one axis\) or a dict from class to number, got "
        )
        with pytest.raises(SettingError, match=told):
            kind(class_weight=given)

    @both
    @pytest.mark.parametrize("wrong", [-2.0, math.inf, math.nan, "1", None, True, [1.0]])
    def test_each_is_a_number(self, kind: Any, wrong: Any) -> None:
        told = rf"^{kind.__name__}: class_weight\[1\] must be a number of at least 0, got "
        with pytest.raises(SettingError, match=told):
            kind(class_weight=[1.0, wrong])

    @both
    @pytest.mark.parametrize("target", [LABELS, SOFT], ids=["labels", "soft"])
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    @pytest.mark.parametrize("weights", [[], [1.0, 2.0], [1.0] * 4])
    def test_too_few_or_too_many(
        self, place: Place, kind: Any, target: Any, reduction: Any, weights: list[float]
    ) -> None:
        loss = kind(class_weight=weights, reduction=reduction)
        told = f"class_weight has {len(weights)} entries, and the model outputs 3 classes"
        with pytest.raises(SettingError, match=told):
            loss.forward(place.array(LOGITS), place.array(target))


class TestLater:
    @both
    def test_it_may_change(self, place: Place, kind: Any) -> None:
        loss = kind(class_weight=[1.0, 2.0, 3.0])
        first = cost_and_grad(loss, place, LABELS)
        for given in ([3.0, 2.0, 1.0], {0: 9.0}, None, [1.0, 2.0, 3.0]):
            loss.class_weight = given
            found = cost_and_grad(loss, place, LABELS)
            assert found[0] == cost_and_grad(kind(class_weight=given), place, LABELS)[0]
        assert found[0] == first[0]

    def test_within_the_dict(self) -> None:
        loss = gn.SoftmaxCrossEntropy(class_weight={0: 1.0, 1: 2.0})
        loss(LOGITS, LABELS)
        loss.class_weight[1] = 7.0
        wanted = gn.SoftmaxCrossEntropy(class_weight={1: 7.0})(LOGITS, LABELS)
        assert float(loss(LOGITS, LABELS)) == float(wanted)
        loss.class_weight["1"] = 7.0
        with pytest.raises(SettingError, match="has the key '1'"):
            loss(LOGITS, LABELS)

    def test_the_dict_of_the_caller_is_left_alone(self) -> None:
        given = {0: 1, 1: 2}
        loss = gn.SoftmaxCrossEntropy(class_weight=given)
        given[1] = 100
        assert loss.class_weight == {0: 1.0, 1: 2.0}

    @both
    def test_models_of_different_sizes(self, kind: Any) -> None:
        loss = kind(class_weight={0: 2.0})
        for k in (2, 3, 2, 5):
            labels = np.zeros(4, int)
            cost = loss(np.full((4, k), 1 / k), labels)
            assert float(cost) == pytest.approx(math.log(k))


@pytest.mark.filterwarnings("error")
def test_trained_by_the_trainer() -> None:
    results = []
    for weight in ({1: 5.0}, [1.0, 5.0, 1.0]):
        model = gn.Dense(K, K, rng=0, dtype="float64")
        loss = gn.SoftmaxCrossEntropy(class_weight=weight)
        trainer = gn.Trainer(model, loss, gn.SGD(model.parameters(), 0.1))
        trainer.fit(
            gn.Loader(LOGITS, LABELS, batch_size=2, rng=0, dtype="float64"), 3, progress=False
        )
        results.append(model.weight.value)
    assert_allclose(*results, rtol=1e-12)
