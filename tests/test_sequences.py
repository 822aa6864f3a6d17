"""Labels of positions: the loss of sequences, its metrics, and steps that are recorded."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import gpunn as gn
from tests.conftest import Place
from tests.runs import Run, assert_alike, assert_same_bits, both
from tests.turns import taking_turns


@dataclass(frozen=True)
class SequenceRun(Run):
    """A training run on labels of positions, some of which do not count."""

    sample: tuple[int, ...] = (4, 3)  # positions and features
    classes: int = 4
    ignored: int = -100
    share: float = 0.3  # of labels to ignore

    @property
    def width(self) -> int:
        return self.classes

    def _targets(self, rng: np.random.Generator) -> Any:
        shape = (self.n, self.sample[0])
        labels = rng.integers(0, self.classes, shape)
        labels = np.where(rng.uniform(0, 1, shape) < self.share, self.ignored, labels)
        labels[-1, -1] = 1  # an epoch in which nothing counts has no mean
        return labels.astype("int16" if self.targets == "small labels" else "int64")

    def model(self) -> gn.Sequential:
        rng = np.random.default_rng(2)
        first = gn.Dense(self.sample[1], 5, "tanh", rng=rng, dtype=self.dtype)
        last = gn.Dense(5, self.classes, rng=rng, dtype=self.dtype)
        return gn.Sequential(first, last).to(self.backend)

    def make_loss(self) -> gn.Loss:
        return gn.SequenceCrossEntropy(
            ignore_label=self.ignored,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )

    def trainer(self) -> gn.Trainer:
        model = self.model()
        metrics = ("accuracy", "perplexity") if self.metrics else ()
        return gn.Trainer(
            model, self.make_loss(), self.make_optimizer(model), metrics=metrics, rng=3
        )


RUNS = st.builds(
    SequenceRun,
    sample=st.sampled_from([(1, 2), (4, 3), (7, 1)]),
    classes=st.integers(2, 5),
    ignored=st.sampled_from([-100, -1, 0]),
    share=st.sampled_from([0.0, 0.3]),
    n=st.integers(3, 60),
    batch_size=st.integers(2, 30),
    targets=st.sampled_from(["labels", "small labels"]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    reduction=st.sampled_from(["mean", "sum"]),
    weights=st.booleans(),
    optimizer=st.sampled_from(["momentum", "adam"]),
    data=st.sampled_from(["resident", "streamed"]),
    dtype=st.sampled_from(["float64", "float32"]),
    metrics=st.booleans(),
)


class TestRecordedSteps:
    @pytest.mark.skipif(
        os.environ.get("GPUNN_COMPILED") == "0", reason="GPUNN_COMPILED=0: nothing is compiled"
    )
    @given(run=RUNS, threads=st.integers(1, 3), seed=st.integers(0, 100))
    @settings(max_examples=60)
    def test_on_a_processor(self, run: SequenceRun, threads: int, seed: int) -> None:
        pytest.importorskip("numba", reason="steps are compiled by numba")
        with taking_turns(threads, seed):
            many, few = both(run)
        assert many[0].why_not_recorded == ""
        assert_alike(many, few, run.dtype)

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("weights", [False, True])
    def test_on_a_gpu(self, weights: bool, dtype: str) -> None:
        settings: Any = {"n": 64, "batch_size": 4, "metrics": True, "label_smoothing": 0.1}
        run = SequenceRun(backend="cupy", weights=weights, dtype=dtype, **settings)
        many, few = both(run)
        assert many[0].why_not_recorded == ""
        assert_alike(many, few, dtype)
        assert_same_bits(many, few)


def drawn(n: int = 6, t: int = 5, k: int = 4, ignored: int = -100) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, k, (n, t))
    labels[:, 1] = ignored
    labels[2] = ignored
    return rng.standard_normal((n, t, k)), labels


class TestLoss:
    def test_it_is_the_mean_over_the_positions_that_count(self, place: Place) -> None:
        z, y = drawn()
        chosen = y != -100
        wanted = gn.SoftmaxCrossEntropy(label_smoothing=0.1)(z[chosen], y[chosen])
        loss, tape = gn.SequenceCrossEntropy(label_smoothing=0.1), gn.Tape()
        assert_allclose(gn.to_numpy(loss(place.array(z), place.array(y), tape)), wanted, rtol=1e-12)
        grad = gn.to_numpy(loss.backward(tape))
        assert not grad[~chosen].any()
        assert grad[chosen].all()

    def test_positions_count_by_the_weights_of_their_samples(self, place: Place) -> None:
        z, y = drawn()
        weight = np.linspace(0.0, 2.0, len(z))
        chosen = y != -100
        rows = np.repeat(weight, y.shape[1])[chosen.ravel()]
        wanted = gn.SoftmaxCrossEntropy()(z[chosen], y[chosen], sample_weight=rows)
        got = gn.SequenceCrossEntropy()(*map(place.array, (z, y)), None, place.array(weight))
        assert_allclose(gn.to_numpy(got), wanted, rtol=1e-12)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_what_is_ignored_may_be_impossible(self, place: Place, dtype: str) -> None:
        z, y = drawn(ignored=0)
        z[..., 0] = -np.inf  # a class that is masked, which no label names
        z[:, 3] *= 1e4
        loss, tape = gn.SequenceCrossEntropy(ignore_label=0), gn.Tape()
        cost = loss(place.array(z, dtype), place.array(y), tape)
        assert math.isfinite(float(cost))
        assert np.isfinite(gn.to_numpy(loss.backward(tape))).all()

    def test_nothing_counts(self, place: Place) -> None:
        z, y = drawn()
        loss, tape = gn.SequenceCrossEntropy(), gn.Tape()
        assert float(loss(place.array(z), place.array(np.full_like(y, -100)), tape)) == 0.0
        assert not gn.to_numpy(loss.backward(tape)).any()

    @pytest.mark.parametrize("label", [-1, 4, 10**6])
    def test_a_label_out_of_range(self, place: Place, label: int) -> None:
        z, y = drawn()
        y[1, 2] = label
        loss, arrays = gn.SequenceCrossEntropy(), [place.array(z), place.array(y)]
        with pytest.raises(gn.errors.LabelError, match=rf"0\.\.3, or -100 to be ign.*{label}"):
            loss(*arrays)
        tape = gn.Tape()
        assert math.isnan(float(loss.forward(*arrays, tape)))
        bad = np.isnan(gn.to_numpy(loss.backward(tape))).any(axis=2)
        assert np.argwhere(bad).tolist() == [[1, 2]]

    @pytest.mark.parametrize(
        ("z", "y", "told"),
        [
            ((6, 4), (6,), r"\(N, positions, classes\), got \(N, 4\)"),
            ((6, 5, 4), (6,), r"shape \(N, 5\), one for each position, got \(6,\)"),
            ((6, 5, 4), (6, 4), r"shape \(N, 5\)"),
        ],
    )
    def test_shapes_that_do_not_fit(self, z: Any, y: Any, told: str) -> None:
        with pytest.raises(gn.errors.ShapeError, match=told):
            gn.SequenceCrossEntropy()(np.zeros(z), np.zeros(y, int))

    def test_labels_are_integers(self) -> None:
        with pytest.raises(gn.errors.DTypeError, match="labels must be integers"):
            gn.SequenceCrossEntropy()(np.zeros((2, 3, 4)), np.zeros((2, 3)))

    @pytest.mark.parametrize("value", [1.0, None, True])
    def test_the_label_to_ignore_is_a_whole_number(self, value: Any) -> None:
        with pytest.raises(gn.errors.SettingError, match="ignore_label must be a whole number"):
            gn.SequenceCrossEntropy(ignore_label=value)


class TestMetrics:
    def test_they_ignore_what_the_loss_ignores(self, place: Place) -> None:
        z, y = drawn(ignored=-7)
        chosen = y != -7
        identity = gn.Sequential()
        loss = gn.SequenceCrossEntropy(ignore_label=-7)
        parameter = gn.Dense(1, 1, backend=place.backend)  # an optimizer has something to hold
        trainer = gn.Trainer(
            gn.Sequential(identity, _Beside(parameter)),
            loss,
            gn.SGD(parameter.parameters()),
            metrics=["accuracy", "perplexity"],
        )
        loader = gn.Loader(z, y, batch_size=4, shuffle=False, dtype="float64", backend=str(place))
        found = trainer.evaluate(loader)
        assert_allclose(found["accuracy"], (z.argmax(axis=2) == y)[chosen].mean(), rtol=1e-12)
        assert_allclose(found["perplexity"], math.exp(found["loss"]), rtol=1e-12)

    def test_perplexity_of_samples(self, place: Place) -> None:
        z, y = drawn()
        z, y = z[:, 0], np.arange(len(z)) % 4
        metric = gn.Perplexity()
        rows = [[float(x) for x in metric.measure(place.array(z), place.array(y))]]
        wanted = math.exp(float(gn.SoftmaxCrossEntropy()(z, y)))
        assert metric.combine(rows, [len(z)]) == pytest.approx(wanted, rel=1e-12)

    def test_nothing_counts(self) -> None:
        z, y = drawn()
        for metric in (gn.SequenceAccuracy(), gn.Perplexity()):
            rows = [[float(x) for x in metric.measure(z, np.full_like(y, -100))]]
            assert math.isnan(metric.combine(rows, [len(z)]))

    def test_shapes_that_do_not_fit(self) -> None:
        z, y = drawn()
        with pytest.raises(gn.errors.ShapeError, match=r"SequenceAccuracy\(\): expected labels"):
            gn.SequenceAccuracy().measure(z, y[:, :2])


class _Beside(gn.Layer):
    """The identity, with a parameter that has nothing to do."""

    def __init__(self, layer: gn.Layer) -> None:
        self.layer = layer

    def forward(self, x: Any, tape: Any = None) -> Any:
        return x

    def backward(self, grad: Any, tape: Any) -> Any:
        return grad


def test_what_is_ignored_does_no_harm(place: Place) -> None:
    """Whatever the network puts out there: padding may be anything."""
    logits = np.zeros((2, 3, 4), "float32")
    logits[0, 2] = np.nan, np.inf, -np.inf, 1.0
    labels, loss, tape = (
        np.array([[0, 1, -100], [2, 3, -100]]),
        gn.SequenceCrossEntropy(),
        gn.Tape(),
    )
    cost = loss.forward(place.array(logits), place.array(labels), tape)
    grad = gn.to_numpy(loss.backward(tape))
    assert float(cost) == pytest.approx(np.log(4.0), rel=1e-6)
    assert np.isfinite(grad).all()
    assert not grad[labels == -100].any()
