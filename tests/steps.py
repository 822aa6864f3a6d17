"""Training runs of plain networks: dense layers with or without activations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import gpunn as gn
from tests.runs import assert_alike, both

#: How close the two ways come: sums are added up in another order.
CLOSE: dict[str, dict[str, float]] = {
    "float64": {"rtol": 1e-9, "atol": 1e-12},
    "float32": {"rtol": 2e-3, "atol": 2e-5},
}

LOSSES: dict[str, Callable[..., gn.Loss]] = {
    "softmax": gn.SoftmaxCrossEntropy,
    "binary": gn.BinaryCrossEntropy,
    "squared": gn.MeanSquaredError,
}
OPTIMIZERS: dict[str, Callable[..., gn.Optimizer]] = {
    "sgd": gn.SGD,
    "momentum": lambda *a, **k: gn.SGD(*a, momentum=0.9, **k),
    "nesterov": lambda *a, **k: gn.SGD(*a, momentum=0.9, nesterov=True, **k),
    "adam": gn.Adam,
}
#: Low enough that no case diverges.
SCHEDULES = {"constant": 3e-4, "falling": gn.ExponentialDecay(5e-4, factor=0.9)}


@dataclass(frozen=True)
class Case:
    """A training run."""

    n: int = 50
    batch_size: int = 16
    sizes: tuple[int, ...] = (5, 7, 3)
    activation: str | None = "relu"
    apart: bool = False
    bias: bool = True
    loss: str = "softmax"
    reduction: Any = "mean"
    weights: str | None = None
    optimizer: str = "sgd"
    schedule: str = "constant"
    weight_decay: float = 0.0
    shuffle: bool = True
    drop_last: bool = False
    dtype: str = "float64"
    metrics: tuple[str, ...] = ()
    epochs: int = 3

    def loader(self) -> gn.Loader:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.n, self.sizes[0])).astype(self.dtype)
        weight = None
        dropping = self.drop_last and self.n >= self.batch_size
        if self.weights is not None:
            weight = rng.uniform(0, 2, self.n)
            if self.weights == "zero":
                weight[self.batch_size if dropping else 1 :] = 0.0  # not all that are trained on
        if self.loss == "softmax":
            y: Any = rng.integers(0, self.sizes[-1], self.n)
        else:
            y = rng.integers(0, 2, (self.n, self.sizes[-1]))
            y = y if self.loss == "binary" else y + rng.standard_normal(y.shape)
        return gn.Loader(
            x,
            y,
            sample_weight=weight,
            batch_size=min(self.batch_size, self.n),
            shuffle=self.shuffle,
            drop_last=dropping,
            dtype=self.dtype,
            backend="numpy",
            rng=1,
        )

    def model(self) -> gn.Sequential:
        rng = np.random.default_rng(2)
        layers: list[gn.Layer] = []
        last = len(self.sizes) - 2
        for i, (a, b) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            name = self.activation if i < last else None
            settings: Any = {"bias": self.bias, "rng": rng, "dtype": self.dtype}
            layers.append(gn.Dense(a, b, None if self.apart else name, **settings))
            if self.apart and name is not None:
                layers.append({"relu": gn.ReLU, "tanh": gn.Tanh, "sigmoid": gn.Sigmoid}[name]())
        return gn.Sequential(*layers)

    def trainer(self) -> gn.Trainer:
        model = self.model()
        optimizer = OPTIMIZERS[self.optimizer](
            model.parameters(), SCHEDULES[self.schedule], weight_decay=self.weight_decay
        )
        loss = LOSSES[self.loss](reduction=self.reduction)
        return gn.Trainer(model, loss, optimizer, metrics=self.metrics, rng=3)

    def run(self) -> tuple[gn.Trainer, gn.History, gn.Loader]:
        trainer, loader = self.trainer(), self.loader()
        return trainer, trainer.fit(loader, self.epochs, progress=False), loader


CASES = st.builds(
    Case,
    n=st.integers(1, 70),
    batch_size=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5).map(tuple),
    activation=st.sampled_from([None, "relu", "tanh", "sigmoid"]),
    apart=st.booleans(),
    bias=st.booleans(),
    loss=st.sampled_from(sorted(LOSSES)),
    reduction=st.sampled_from(["mean", "sum"]),
    weights=st.sampled_from([None, "zero", "some"]),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    weight_decay=st.sampled_from([0.0, 0.1]),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)


def assert_the_same(case: Case) -> None:
    """Train both ways and compare all that is left."""
    many, few = both(case)
    assert_alike(many, few, case.dtype, CLOSE)
    assert_array_equal(many[2].draw_order(), few[2].draw_order())
