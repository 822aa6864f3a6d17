"""The one table of layers and losses that the laws run over.

A public layer or loss that is not in it fails a test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import gpunn as gn


@dataclass(frozen=True)
class LayerCase:
    """A layer, and the shape of one sample that it takes."""

    name: str
    make: Callable[[str], gn.Layer]  # from a dtype
    sample: tuple[int, ...] = (4,)
    keeps_shape: bool = True
    random: bool = False  # whether training differs from inference
    kinds: tuple[type, ...] = field(default=())  # public classes that it covers
    tokens: int = 0  # how many there are, for a layer that takes integers

    def dtype(self, dtype: str) -> str:
        """Return the dtype of the inputs of a layer of this one."""
        return "int64" if self.tokens else dtype

    def x(self, n: int = 5, seed: int = 0) -> Any:
        """Return inputs in float64, away from the kinks at zero; or integers."""
        rng = np.random.default_rng(seed)
        shape = (n, *self.sample)
        if self.tokens:
            return rng.integers(0, self.tokens, shape)
        return rng.choice([-1.0, 1.0], shape) * rng.uniform(0.1, 2.0, shape)


def _activation(kind: type[gn.Activation], *arguments: float, **settings: Any) -> LayerCase:
    name = kind.__name__ + ("" if not (arguments or settings) else f"{arguments or settings}")
    return LayerCase(name, lambda _: kind(*arguments, **settings), kinds=(kind,))


def _shared(dtype: str) -> gn.Layer:
    layer = gn.Dense(4, 4, "tanh", rng=3, dtype=dtype)
    return gn.Sequential(layer, gn.Sigmoid(), layer)


def _deep(dtype: str) -> gn.Layer:
    return gn.Sequential(
        gn.Flatten(),
        gn.Dense(6, 5, "relu", rng=1, dtype=dtype),
        gn.Residual(gn.Sequential(gn.Dense(5, 5, "tanh", rng=2, dtype=dtype), gn.Dropout(0.3))),
        gn.Dense(5, 3, rng=3, dtype=dtype),
    )


ACTIVATIONS = [
    _activation(gn.Identity),
    _activation(gn.Sigmoid),
    _activation(gn.Tanh),
    _activation(gn.ReLU),
    _activation(gn.LeakyReLU),
    _activation(gn.LeakyReLU, 0.0),
    _activation(gn.LeakyReLU, 0.3),
    _activation(gn.ELU),
    _activation(gn.ELU, 0.4),
    _activation(gn.ELU, 2.5),
    _activation(gn.SiLU),
    _activation(gn.GELU),
    _activation(gn.GELU, approximate=True),
    _activation(gn.Softplus),
    _activation(gn.Softmax),
    _activation(gn.LogSoftmax),
]

LAYERS = [
    *ACTIVATIONS,
    *(
        LayerCase(
            f"Dense({activation})",
            lambda dtype, activation=activation: gn.Dense(4, 3, activation, rng=1, dtype=dtype),
            keeps_shape=False,
            kinds=(gn.Dense,),
        )
        for activation in (None, *gn.ACTIVATIONS)
    ),
    LayerCase(
        "Dense(bias=False)",
        lambda dtype: gn.Dense(4, 4, "tanh", bias=False, rng=1, dtype=dtype),
        kinds=(gn.Dense,),
    ),
    LayerCase(
        "Dense(sequences)",
        lambda dtype: gn.Dense(4, 3, "gelu", rng=1, dtype=dtype),
        (2, 4),
        keeps_shape=False,
        kinds=(gn.Dense,),
    ),
    LayerCase(
        "Embedding",
        lambda dtype: gn.Embedding(6, 3, rng=1, dtype=dtype),
        (4,),
        keeps_shape=False,
        kinds=(gn.Embedding,),
        tokens=6,
    ),
    LayerCase(
        "Position",
        lambda dtype: gn.Position(3, 4, rng=1, dtype=dtype),
        (3, 4),
        kinds=(gn.Position,),
    ),
    LayerCase(
        "Position(shorter)",
        lambda dtype: gn.Position(5, 4, rng=1, dtype=dtype),
        (3, 4),
        kinds=(gn.Position,),
    ),
    *(
        LayerCase(
            f"MultiHeadAttention({heads}, {settings})",
            lambda dtype, heads=heads, settings=settings: gn.MultiHeadAttention(
                4, heads, rng=1, dtype=dtype, **settings
            ),
            (3, 4),
            kinds=(gn.MultiHeadAttention,),
        )
        for heads, settings in ((2, {}), (1, {"causal": True}), (4, {"bias": False}))
    ),
    LayerCase("Flatten", lambda _: gn.Flatten(), (2, 3), keeps_shape=False, kinds=(gn.Flatten,)),
    LayerCase("Dropout", lambda _: gn.Dropout(0.4), random=True, kinds=(gn.Dropout,)),
    LayerCase("Dropout(0)", lambda _: gn.Dropout(0.0), kinds=(gn.Dropout,)),
    LayerCase(
        "Residual",
        lambda dtype: gn.Residual(gn.Dense(4, 4, "sigmoid", rng=1, dtype=dtype)),
        kinds=(gn.Residual,),
    ),
    LayerCase("Residual(ReLU)", lambda _: gn.Residual(gn.ReLU()), kinds=(gn.Residual,)),
    LayerCase("Sequential()", lambda _: gn.Sequential(), kinds=(gn.Sequential,)),
    LayerCase("Sequential(shared)", _shared, kinds=(gn.Sequential,)),
    LayerCase(
        "Sequential(deep)", _deep, (2, 3), keeps_shape=False, random=True, kinds=(gn.Sequential,)
    ),
]


@dataclass(frozen=True)
class LossCase:
    """A loss, and the kind of predictions and targets that it takes."""

    name: str
    make: Callable[..., gn.Loss]  # from keywords such as reduction
    outputs: int
    target: str  # one of `_TARGETS`
    probabilities: bool = False

    def data(self, n: int = 6, seed: int = 0) -> tuple[Any, Any]:
        """Return a prediction in float64 and a target."""
        rng = np.random.default_rng(seed)
        prediction = rng.standard_normal((n, self.outputs))
        if self.probabilities:
            prediction = 0.05 + 0.9 / (1.0 + np.exp(-prediction))
        return prediction, _TARGETS[self.target](rng, n, self.outputs)


#: Targets by their kind: from a generator, the number of samples, and that of outputs.
_TARGETS: dict[str, Callable[..., Any]] = {
    "real": lambda rng, n, p: rng.standard_normal((n, p)),
    "labels": lambda rng, n, p: rng.integers(0, p, n),
    "soft": lambda rng, n, p: rng.dirichlet(np.ones(p), n),
    "binary": lambda rng, n, p: rng.uniform(0.0, 1.0, (n, p)),
    "binary labels": lambda rng, n, p: rng.integers(0, 2, n),
    "counts": lambda rng, n, p: rng.poisson(1.0, (n, p)),
    "signs": lambda rng, n, p: rng.choice([-1.0, 1.0], (n, p)),
}


def _cross_entropies(kind: type[gn.Loss], probabilities: bool) -> list[LossCase]:
    weight = [0.5, 2.0, 1.0, 0.25]
    variants: list[tuple[str, dict[str, Any]]] = [
        ("", {}),
        ("class_weight", {"class_weight": weight}),
        ("smoothing", {"label_smoothing": 0.1}),
        ("both", {"label_smoothing": 0.2, "class_weight": weight}),
    ]
    return [
        LossCase(
            f"{kind.__name__}({', '.join(filter(None, (target, name)))})",
            lambda kind=kind, settings=settings, **others: kind(**settings, **others),
            4,
            target,
            probabilities,
        )
        for target in ("labels", "soft")
        for name, settings in variants
    ]


LOSSES = [
    LossCase("MeanSquaredError", gn.MeanSquaredError, 3, "real"),
    LossCase("MeanAbsoluteError", gn.MeanAbsoluteError, 3, "real"),
    LossCase("Huber", gn.Huber, 3, "real"),
    LossCase("Huber(0.3)", lambda **others: gn.Huber(0.3, **others), 1, "real"),
    LossCase("Poisson", gn.Poisson, 3, "counts"),
    LossCase("Poisson(one)", gn.Poisson, 1, "binary labels"),
    *(
        LossCase(
            f"Hinge(squared={squared}, {target})",
            lambda squared=squared, **settings: gn.Hinge(squared=squared, **settings),
            outputs,
            target,
        )
        for squared in (False, True)
        for target, outputs in (("signs", 3), ("binary labels", 1))
    ),
    LossCase("CosineDistance", gn.CosineDistance, 3, "real"),
    LossCase("KLDivergence", gn.KLDivergence, 4, "soft"),
    LossCase(
        "KLDivergence(logarithms)",
        lambda **settings: gn.KLDivergence(from_logits=False, **settings),
        4,
        "soft",
    ),
    LossCase("MeanSquaredError(one)", gn.MeanSquaredError, 1, "binary labels"),
    *_cross_entropies(gn.SoftmaxCrossEntropy, probabilities=False),
    *_cross_entropies(gn.CrossEntropy, probabilities=True),
    LossCase("BinaryCrossEntropy", gn.BinaryCrossEntropy, 3, "binary"),
    LossCase("BinaryCrossEntropy(labels)", gn.BinaryCrossEntropy, 1, "binary labels"),
    *(
        LossCase(
            f"BinaryCrossEntropy(probabilities, {target})",
            lambda **settings: gn.BinaryCrossEntropy(from_logits=False, **settings),
            outputs,
            target,
            probabilities=True,
        )
        for target, outputs in (("binary", 3), ("binary labels", 1))
    ),
]
