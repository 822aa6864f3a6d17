"""Random training runs, two ways to train, and what both must leave alike."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from gpunn.training import epoch
from tests.networks import BLOCKS, IMAGES, NORMS, Block, OverImages, made

#: How close the two ways come: sums are added up in another order.
CLOSE: dict[str, dict[str, float]] = {
    "float64": {"rtol": 1e-8, "atol": 1e-11},
    "float32": {"rtol": 2e-3, "atol": 5e-5},
}

#: Optimizers, and settings. Those that divide have a large epsilon: no gradient is so small as to
#: be noise.
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (gn.SGD, {}),
    "momentum": (gn.SGD, {"momentum": 0.9}),
    "nesterov": (gn.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (gn.Adam, {"epsilon": 1e-2}),
    "adamw": (gn.AdamW, {"epsilon": 1e-2}),
    "rmsprop": (gn.RMSprop, {"epsilon": 1e-2, "momentum": 0.5}),
    "centered rmsprop": (gn.RMSprop, {"epsilon": 1e-2, "beta": 0.9, "centered": True}),
    "adagrad": (gn.Adagrad, {"epsilon": 1e-2, "initial_sum": 0.01}),
    "lion": (gn.Lion, {}),
}


@contextmanager
def one_by_one() -> Iterator[None]:
    """Train in the readable loop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch, "feed_of", lambda *_: None)
        yield


#: The two ways to train: recorded, and readable.
WAYS = (nullcontext, one_by_one)


def state(trainer: gn.Trainer) -> list[Any]:
    """Return the weights, and what the optimizer keeps beside them, on the host."""
    model = trainer.model
    arrays = [held.value for held in (*model.parameters(), *model.buffers())]
    return [gn.to_numpy(x) for x in [*arrays, *(x for s in trainer.optimizer._states for x in s)]]


# Networks

TOKENS = 4  # for models that take tokens


class MeanSoftsign(gn.Metric):
    """A smooth metric: where samples tie, numbers of hits depend on rounding."""

    def measure(self, prediction: Any, target: Any) -> tuple[Any, ...]:
        return ((prediction / (1 + abs(prediction))).mean(),)


# Runs

#: Losses of outputs that are numbers.
REGRESSION: dict[str, Callable[..., gn.Loss]] = {
    "squared": gn.MeanSquaredError,
    "absolute": gn.MeanAbsoluteError,
    "huber": partial(gn.Huber, 0.7),
    "cosine": gn.CosineDistance,
}

#: Losses of distributions, of counts, and of yes and no.
OTHERS: dict[str, Callable[..., gn.Loss]] = {
    "divergence": gn.KLDivergence,
    "logarithms": partial(gn.KLDivergence, from_logits=False),
    "poisson": gn.Poisson,
    "deviance": partial(gn.Poisson, deviance=True),
    "hinge": gn.Hinge,
    "squared hinge": partial(gn.Hinge, squared=True),
}
PLAIN_LOSSES = REGRESSION | OTHERS


class Scaling:
    """A transform that is another for each batch, and writes to what it is given."""

    keeps_shape = True

    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)

    def __call__(self, x: Any) -> Any:
        x *= self.rng.uniform(0.5, 2.0)
        return x


@dataclass(frozen=True)
class Run:
    """A training run; all of it is made anew each time."""

    blocks: tuple[Block, ...] = (Block("dense", 7, "relu"),)
    images: tuple[OverImages, ...] = ()
    head: str = "flatten"
    sample: tuple[int, ...] = (5,)
    first: str = ""  # a norm of the samples as they are
    outputs: int = 3
    n: int = 50
    batch_size: int = 16
    loss: str = "softmax"
    targets: str = "labels"
    class_weight: Any = None
    label_smoothing: float = 0.0
    reduction: Any = "mean"
    weights: bool = False
    optimizer: str = "sgd"
    schedule: str = "constant"
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None
    frozen: int = 0
    shuffle: Any = True
    drop_last: bool = False
    data: str = "resident"
    scaled: bool = False
    dtype: str = "float64"
    metrics: bool = False
    epochs: int = 2
    backend: str = "numpy"
    #: What comes first: nothing, or attention, of vectors or of tokens.
    sequence: str = ""

    @property
    def width(self) -> int:
        """How many outputs the network has."""
        return max(2, self.outputs) if self.loss in ("softmax", "cross_entropy") else self.outputs

    def arrays(self) -> tuple[Any, Any, Any]:
        rng = np.random.default_rng(0)
        shape = (self.n, *self.sample)
        x: Any = rng.standard_normal(shape)
        if self.sequence == "tokens":
            x = rng.integers(0, TOKENS, shape)
            x = x.astype(
                {"streamed uint8": "uint8", "other float": "int32"}.get(self.data, "int64")
            )
        elif "uint8" in self.data:
            x = rng.integers(0, 4, shape, dtype=np.uint8)
        elif self.data == "other float":
            x = x.astype("float32" if self.dtype == "float64" else "float64")
        else:
            x = x.astype(self.dtype)
        if self.data == "memmap":
            with tempfile.TemporaryFile() as file:  # it stays mapped
                stored = np.memmap(file, x.dtype, "w+", shape=shape)
            stored[...] = x
            x = stored
        weight = None
        if self.weights:
            weight = rng.uniform(0.1, 2, self.n)
            weight[: self.n // 3] = 0.0
        return x, self._targets(rng), weight

    def _targets(self, rng: np.random.Generator) -> Any:
        shape = (self.n, self.width)
        if self.loss in ("divergence", "logarithms"):
            return rng.dirichlet(np.ones(self.width), self.n)
        if self.loss in ("softmax", "cross_entropy"):
            labels = rng.integers(0, self.width, self.n)
            if self.targets == "labels":
                return labels
            if self.targets == "small labels":
                return labels.astype("uint8")
            if self.targets in ("one-hot", "flags"):
                chosen = np.eye(self.width, dtype="int64")[labels]
                return chosen if self.targets == "one-hot" else chosen.astype(bool)
            return rng.dirichlet(np.ones(self.width), self.n)
        if self.loss in REGRESSION and self.targets != "one-hot":
            y: Any = rng.standard_normal(shape)
        elif self.targets == "soft" and "hinge" not in self.loss:
            y = rng.uniform(0, 1, shape)
        else:
            y = rng.integers(0, 2, shape)
            y = y.astype({"flags": "bool", "small labels": "uint8"}.get(self.targets, "int64"))
        return y[:, 0] if self.width == 1 and self.targets in ("labels", "flags") else y

    def loader(self) -> gn.Loader:
        x, y, weight = self.arrays()
        streamed = self.data in ("streamed", "memmap", "streamed uint8", "other float")
        return gn.Loader(
            x,
            y,
            sample_weight=weight,
            batch_size=min(self.batch_size, self.n),
            shuffle=self.shuffle,
            block_size=4,
            window=2,
            drop_last=self.drop_last,
            dtype=self.dtype,
            keep_integers=self.sequence == "tokens",
            resident=not streamed,
            backend=self.backend,
            transform=Scaling() if self.scaled and self.sequence != "tokens" else None,
            rng=1,
        )

    def model(self) -> gn.Sequential:
        rng = np.random.default_rng(2)
        normed = self.first and not self.is_sequence
        first = Block(self.first).make(self.sample[-1], rng, self.dtype)[0] if normed else []
        before = self._over_sequences if self.is_sequence else self._over_images
        flat, sample = before(rng)
        flat = [*first, *flat]
        layers, width = made(self.blocks, int(np.prod(sample)), rng, self.dtype)
        layers.append(gn.Dense(width, self.width, rng=rng, dtype=self.dtype))
        heads: dict[str, Callable[[], gn.Layer]] = {
            "cross_entropy": gn.Softmax,
            "probabilities": gn.Sigmoid,
            "logarithms": gn.LogSoftmax,
        }
        head = heads.get(self.loss)
        return gn.Sequential(*flat, *layers, *([] if head is None else [head()])).to(self.backend)

    def _over_images(self, rng: np.random.Generator) -> tuple[list[gn.Layer], tuple[int, ...]]:
        """Return the layers before the first that takes rows, and the shape of their outputs."""
        layers: list[gn.Layer] = []
        sample = self.sample
        if len(sample) == 1:
            return layers, sample
        for each in self.images:
            layers.append(each.make(sample, rng, self.dtype))
            sample = layers[-1].output_shape(sample)
        heads = {"flatten": gn.Flatten, "mean": gn.GlobalAveragePool, "max": gn.GlobalMaxPool}
        layers.append(heads[self.head if self.images else "flatten"]())
        return layers, layers[-1].output_shape(sample)

    @property
    def is_sequence(self) -> bool:
        """Whether samples are sequences, of tokens or of vectors."""
        return self.sequence == "tokens" or (self.sequence == "vectors" and len(self.sample) == 2)

    def _over_sequences(self, rng: np.random.Generator) -> tuple[list[gn.Layer], tuple[int, ...]]:
        """Return the layers before the first that takes rows, and the shape of their outputs."""
        given: Any = {"rng": rng, "dtype": self.dtype}
        layers: list[gn.Layer] = []
        sample = self.sample
        if self.sequence == "tokens":
            layers.append(gn.Embedding(TOKENS, 4, **given))
            sample = (*sample, 4)
        if len(sample) == 2:
            t, c = sample
            attention = gn.MultiHeadAttention(c, c, causal=self.n % 2 == 0, **given)
            inner = gn.Sequential(attention, gn.Dense(c, c, "tanh", **given))
            layers += [gn.Position(t, c, **given), gn.Residual(inner)]
        layers.append(gn.Flatten())
        return layers, layers[-1].output_shape(sample)

    def make_loss(self) -> gn.Loss:
        settings: Any = {"reduction": self.reduction}
        if self.loss in ("softmax", "cross_entropy"):
            kind = gn.SoftmaxCrossEntropy if self.loss == "softmax" else gn.CrossEntropy
            given = self.class_weight
            if given == "tuple":
                given = tuple(1.0 + 0.5 * i for i in range(self.width))
            elif given == "dict":
                given = {0: 2.5}
            settings |= {"class_weight": given, "label_smoothing": self.label_smoothing}
            return kind(**settings)
        if self.loss in PLAIN_LOSSES:
            return PLAIN_LOSSES[self.loss](**settings)
        return gn.BinaryCrossEntropy(from_logits=self.loss == "binary", **settings)

    def make_optimizer(self, model: gn.Layer) -> gn.Optimizer:
        schedule: Any = {
            "constant": 3e-3,
            "falling": gn.ExponentialDecay(5e-3, factor=0.9),
            "warm": gn.WarmUp(5, gn.Constant(3e-3)),
            "own": lambda step: 0.01 / (3 + step),
        }[self.schedule]
        every = list(model.parameters())
        settings: Any = {
            "weight_decay": self.weight_decay,
            "clip_norm": self.clip_norm,
            "clip_value": self.clip_value,
        }
        trained = every[min(self.frozen, len(every) - 1) :]
        kind, own = OPTIMIZERS[self.optimizer]
        return kind(trained, schedule, **own, **settings)

    def trainer(self) -> gn.Trainer:
        model = self.model()
        metrics: Any = ()
        if self.metrics:
            of_numbers = ("mae", "r2") if self.n > 1 else ("mae",)
            metrics = of_numbers if self.loss in REGRESSION else (MeanSoftsign(),)
        loss = self.make_loss()
        return gn.Trainer(model, loss, self.make_optimizer(model), metrics=metrics, rng=3)

    def run(self) -> tuple[gn.Trainer, gn.History, gn.Loader]:
        trainer, loader = self.trainer(), self.loader()
        try:
            return trainer, trainer.fit(loader, self.epochs, progress=False), loader
        except gn.errors.DivergenceError as error:  # as some of those drawn at random do
            return trainer, error.history, loader  # type: ignore[attr-defined]


def well_conditioned(run: Run) -> Run:
    """Return the run without what makes a result a matter of rounding.

    A norm of one number is 0, and of two numbers 1 and -1: their gradients are what rounding leaves
    of 0, and Adagrad makes whole steps of that. So norms get three features, or samples. The cosine
    of single numbers is 1 or -1, with such a gradient. Small whole numbers are often equal to their
    mean: what is left is 0 or nearly, and a kink at 0 has two slopes.
    """
    if run.loss == "cosine" and run.outputs == 1:
        run = replace(run, outputs=2)
    nested = [inner for block in run.blocks for inner in (block, *block.inner)]
    norms = {run.first, *(block.kind for block in nested)} & {*NORMS}
    if norms:
        sample = (5,) if run.sample == (1,) else run.sample
        first = run.first if sample[-1] > 2 else ""
        blocks = tuple(map(_with_three_features, run.blocks))
        run = replace(run, sample=sample, first=first, blocks=blocks)
    if norms and not run.sequence:
        run = replace(run, data=run.data.replace("streamed uint8", "streamed"))
        run = replace(run, data=run.data.replace("uint8", "resident"))
    if "batch_norm" not in norms:
        return run
    size, n = max(run.batch_size, 3), max(run.n, 3)
    rest = n % size if n > size else 0
    return replace(run, batch_size=size, n=n - rest if rest in (1, 2) else n)


def _with_three_features(block: Block) -> Block:
    """Return a block, and those within it, at least three features wide."""
    inner = tuple(map(_with_three_features, block.inner))
    return replace(block, width=max(block.width, 3), inner=inner)


RUNS = st.builds(
    Run,
    blocks=BLOCKS,
    images=st.lists(IMAGES, max_size=2).map(tuple),
    head=st.sampled_from(["flatten", "mean", "max"]),
    sample=st.sampled_from([(1,), (5,), (2, 3), (2, 1, 2), (5, 4, 2), (7, 2)]),
    first=st.sampled_from(["", "", *NORMS]),
    outputs=st.integers(1, 4),
    n=st.integers(1, 60),
    batch_size=st.integers(1, 30),
    loss=st.sampled_from(["softmax", "cross_entropy", "binary", "probabilities", *PLAIN_LOSSES]),
    targets=st.sampled_from(["labels", "small labels", "one-hot", "flags", "soft"]),
    class_weight=st.sampled_from([None, "tuple", "dict"]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    reduction=st.sampled_from(["mean", "sum"]),
    weights=st.booleans(),
    # Not Lion: where rounding turns a sign, a step goes the other way.
    optimizer=st.sampled_from(sorted(OPTIMIZERS.keys() - {"lion"})),
    schedule=st.sampled_from(["constant", "falling", "warm", "own"]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    clip_norm=st.sampled_from([None, 0.1]),
    clip_value=st.sampled_from([None, 0.02]),
    frozen=st.sampled_from([0, 0, 0, 1, 2, 3]),
    shuffle=st.sampled_from([True, False, "blocks"]),
    drop_last=st.booleans(),
    data=st.sampled_from(
        ["resident", "streamed", "memmap", "uint8", "streamed uint8", "other float"]
    ),
    scaled=st.booleans(),
    dtype=st.sampled_from(["float64", "float64", "float32"]),
    metrics=st.booleans(),
    sequence=st.sampled_from(["", "", "", "vectors", "tokens"]),
).map(well_conditioned)


def both(run: Any) -> list[tuple[gn.Trainer, gn.History, gn.Loader]]:
    """Train both ways."""
    found = []
    for way in WAYS:
        with way():
            found.append(run.run())
    return found


def assume_settled(history: gn.History) -> None:
    """Leave out training that explodes: there, rounding decides what is left."""
    assume(all(abs(loss) < 1e6 for loss in history.loss))


def assert_alike(
    many: Any, few: Any, dtype: str, closeness: dict[str, dict[str, float]] = CLOSE
) -> None:
    """Compare all that two runs have left: (trainer, history, loader)."""
    close = closeness[dtype]
    for a, b in zip(state(many[0]), state(few[0]), strict=True):
        assert_allclose(a, b, **close)
    assert many[1].columns.keys() == few[1].columns.keys()
    for name in many[1].columns.keys() - {"elapsed_s", "samples_per_s"}:
        assert_allclose(many[1][name], few[1][name], **close, err_msg=name)
    for name in ("steps", "updates", "weight_decay", "learning_rate"):
        values = [getattr(run[0].optimizer, name, None) for run in (many, few)]
        assert values[0] == values[1], name
    for a, b in ((many[0], few[0]), (many[2], few[2])):
        assert a._rng.bit_generator.state == b._rng.bit_generator.state
    for a, b in zip(*(run[0].model.parameters() for run in (many, few)), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:  # of a frozen parameter
            assert_allclose(gn.to_numpy(a.grad), gn.to_numpy(b.grad), **close)


def assert_same_bits(one: Any, other: Any) -> None:
    for a, b in zip(state(one[0]), state(other[0]), strict=True):
        assert_array_equal(a, b)


def fit_until_interrupted(trainer: gn.Trainer, loader: gn.Loader, after_s: float) -> gn.History:
    """Train until a timer does what Control-C does, later if training has not begun by then."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handler, steps = signal.signal(signal.SIGALRM, interrupt), trainer.optimizer.steps
    try:
        signal.setitimer(signal.ITIMER_REAL, after_s)
        history = trainer.fit(loader, 100_000, progress=False)
    except KeyboardInterrupt:
        if trainer.optimizer.steps > steps:
            raise
        return fit_until_interrupted(trainer, loader, 2 * after_s)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert "interrupted" in history.stopped
    return history
