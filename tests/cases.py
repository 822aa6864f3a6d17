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
    alone: bool = True  # whether it trains on a single sample
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
    _activation(gn.SELU),
    _activation(gn.CELU),
    _activation(gn.CELU, 0.4),
    _activation(gn.Mish),
    _activation(gn.Softsign),
    _activation(gn.LogSigmoid),
    _activation(gn.Hardtanh),
    _activation(gn.Hardtanh, 0.75),
    _activation(gn.ReLU6),
    _activation(gn.Hardsigmoid),
    _activation(gn.Hardswish),
    _activation(gn.Softshrink),
    _activation(gn.Softshrink, 1.3),
]


def _over(
    kind: type[gn.Layer], *arguments: Any, sample: tuple[int, ...] = (5, 4, 2), **settings: Any
) -> LayerCase:
    """Return a case of a layer with a window; one with weights takes two channels."""
    keeps = settings.pop("keeps_shape", False)
    shown = ", ".join([*map(str, arguments), *(f"{k}={v}" for k, v in settings.items())])

    def make(dtype: str) -> gn.Layer:
        more = {"rng": 1, "dtype": dtype} if kind.has_parameters else {}
        return kind(*arguments, **settings, **more)

    return LayerCase(f"{kind.__name__}({shown})", make, sample, keeps, kinds=(kind,))


CONVOLUTIONS = [
    _over(gn.Conv2d, 2, 3, 3),
    _over(gn.Conv2d, 2, 2, 3, "tanh", padding="same", keeps_shape=True),
    _over(gn.Conv2d, 2, 3, (2, 3), "silu", stride=(2, 1), padding=(2, 1), bias=False),
    _over(gn.Conv2d, 2, 4, 2, "relu", stride=2, dilation=(2, 1), padding="same", groups=2),
    _over(gn.Conv2d, 2, 3, 1, "sigmoid"),
    _over(gn.Conv2d, 2, 3, 1, stride=2),
    _over(gn.ConvTranspose2d, 2, 3, 3),
    _over(gn.ConvTranspose2d, 2, 2, 3, "tanh", padding="same", keeps_shape=True),
    _over(gn.ConvTranspose2d, 2, 3, (3, 2), "silu", stride=2, padding=1, output_padding=1),
    _over(gn.ConvTranspose2d, 2, 4, 2, stride=3, dilation=2, padding="same", groups=2, bias=False),
    _over(gn.Conv1d, 2, 3, 3, "tanh", sample=(7, 2)),
    _over(gn.Conv1d, 2, 2, 4, "gelu", padding="same", sample=(6, 2), keeps_shape=True),
    _over(gn.Conv1d, 2, 4, 2, stride=3, dilation=2, padding=1, groups=2, sample=(7, 2)),
]

POOLS = [
    _over(gn.MaxPool2d, 2),
    _over(gn.MaxPool2d, 3, 1, padding="same", keeps_shape=True),
    _over(gn.MaxPool2d, (3, 2), (1, 2), padding=1),
    _over(gn.MaxPool1d, 2, sample=(7, 2)),
    _over(gn.MaxPool1d, 3, 2, padding="same", sample=(7, 2)),
    _over(gn.AveragePool2d, 2),
    _over(gn.AveragePool2d, 3, 1, padding="same", keeps_shape=True),
    _over(gn.AveragePool2d, (3, 2), 2, padding=1, count_include_pad=False),
    _over(gn.AveragePool1d, 2, sample=(7, 2)),
    _over(gn.AveragePool1d, 3, 2, padding="same", count_include_pad=False, sample=(7, 2)),
    _over(gn.GlobalAveragePool),
    _over(gn.GlobalAveragePool, sample=(7, 2)),
    _over(gn.GlobalMaxPool),
    _over(gn.GlobalMaxPool, sample=(7, 2)),
]


def _cnn(dtype: str) -> gn.Layer:
    settings: Any = {"rng": 1, "dtype": dtype}
    return gn.Sequential(
        gn.Conv2d(1, 3, 3, "relu", padding="same", **settings),
        gn.Residual(gn.Conv2d(3, 3, 3, padding="same", **settings)),
        gn.MaxPool2d(2),
        gn.Flatten(),
        gn.Dense(12, 3, **settings),
    )


LAYERS = [
    *ACTIVATIONS,
    *CONVOLUTIONS,
    *POOLS,
    LayerCase("Sequential(CNN)", _cnn, (4, 5, 1), keeps_shape=False, kinds=(gn.Sequential,)),
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
    LayerCase(
        "Reshape", lambda _: gn.Reshape((3, 2, 1)), (6,), keeps_shape=False, kinds=(gn.Reshape,)
    ),
    LayerCase("Dropout", lambda _: gn.Dropout(0.4), random=True, kinds=(gn.Dropout,)),
    LayerCase("Dropout(0)", lambda _: gn.Dropout(0.0), kinds=(gn.Dropout,)),
    LayerCase(
        "Residual",
        lambda dtype: gn.Residual(gn.Dense(4, 4, "sigmoid", rng=1, dtype=dtype)),
        kinds=(gn.Residual,),
    ),
    LayerCase("Residual(ReLU)", lambda _: gn.Residual(gn.ReLU()), kinds=(gn.Residual,)),
    *(
        LayerCase(
            f"Parallel({join})",
            lambda dtype, join=join: gn.Parallel(
                gn.Dense(4, 3, "tanh", rng=1, dtype=dtype),
                gn.Sequential(gn.Dense(4, 3, rng=2, dtype=dtype), gn.Dropout(0.3)),
                join=join,
            ),
            keeps_shape=False,
            random=True,
            kinds=(gn.Parallel,),
        )
        for join in ("concatenate", "add")
    ),
    LayerCase(
        "Parallel(tokens)",
        lambda dtype: gn.Parallel(
            gn.Embedding(6, 3, rng=1, dtype=dtype), gn.Embedding(6, 2, rng=2, dtype=dtype)
        ),
        keeps_shape=False,
        kinds=(gn.Parallel,),
        tokens=6,
    ),
    LayerCase("Sequential()", lambda _: gn.Sequential(), kinds=(gn.Sequential,)),
    LayerCase("Sequential(shared)", _shared, kinds=(gn.Sequential,)),
    LayerCase(
        "Sequential(deep)", _deep, (2, 3), keeps_shape=False, random=True, kinds=(gn.Sequential,)
    ),
]


def _norm(make: Callable[[str], gn.Layer], *sample: int) -> LayerCase:
    layer = make("float32")
    over_batch = isinstance(layer, gn.BatchNorm)
    alone = not over_batch or len(sample) > 1
    name = f"{layer!r}, {sample}"
    return LayerCase(name, make, sample, random=over_batch, alone=alone, kinds=(type(layer),))


NORMS = [
    _norm(lambda dtype: gn.PReLU(dtype=dtype), 2, 4),
    _norm(lambda dtype: gn.PReLU(4, -0.5, dtype=dtype), 4),
    _norm(lambda dtype: gn.LayerNorm(4, dtype=dtype), 4),
    _norm(lambda dtype: gn.LayerNorm(5, 0.1, dtype=dtype), 2, 3, 5),
    _norm(lambda dtype: gn.LayerNorm(1, dtype=dtype), 1),
    _norm(lambda dtype: gn.RMSNorm(4, dtype=dtype), 4),
    _norm(lambda dtype: gn.RMSNorm(5, 0.1, dtype=dtype), 3, 5),
    _norm(lambda dtype: gn.GroupNorm(2, 6, dtype=dtype), 6),
    _norm(lambda dtype: gn.GroupNorm(3, 6, 0.1, dtype=dtype), 2, 3, 6),
    _norm(lambda dtype: gn.GroupNorm(1, 4, dtype=dtype), 5, 4),
    _norm(lambda dtype: gn.GroupNorm(4, 4, dtype=dtype), 5, 4),
    _norm(lambda dtype: gn.BatchNorm(4, dtype=dtype), 4),
    _norm(lambda dtype: gn.BatchNorm(3, 0.2, 0.1, dtype=dtype), 2, 2, 3),
]
LAYERS += NORMS


@dataclass(frozen=True)
class LossCase:
    """A loss, and the kind of predictions and targets that it takes."""

    name: str
    make: Callable[..., gn.Loss]  # from keywords such as reduction
    outputs: int | tuple[int, int]  # or positions and classes
    target: str  # one of `_TARGETS`
    probabilities: bool = False

    def data(self, n: int = 6, seed: int = 0) -> tuple[Any, Any]:
        """Return a prediction in float64 and a target."""
        rng = np.random.default_rng(seed)
        outputs = self.outputs if isinstance(self.outputs, tuple) else (self.outputs,)
        prediction = rng.standard_normal((n, *outputs))
        if self.probabilities:
            prediction = 0.05 + 0.9 / (1.0 + np.exp(-prediction))
        return prediction, _TARGETS[self.target](rng, n, *outputs)


#: Targets by their kind: from a generator, the number of samples, and that of outputs.
_TARGETS: dict[str, Callable[..., Any]] = {
    "real": lambda rng, n, p: rng.standard_normal((n, p)),
    "labels": lambda rng, n, p: rng.integers(0, p, n),
    "soft": lambda rng, n, p: rng.dirichlet(np.ones(p), n),
    "binary": lambda rng, n, p: rng.uniform(0.0, 1.0, (n, p)),
    "binary labels": lambda rng, n, p: rng.integers(0, 2, n),
    "positions": lambda rng, n, t, k: rng.choice([-100, *range(k)], (n, t)),
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
    LossCase(
        "Poisson(deviance)", lambda **others: gn.Poisson(deviance=True, **others), 3, "counts"
    ),
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
    *(
        LossCase(
            f"SequenceCrossEntropy({smoothing})",
            lambda smoothing=smoothing, **settings: gn.SequenceCrossEntropy(
                label_smoothing=smoothing, **settings
            ),
            (3, 4),
            "positions",
        )
        for smoothing in (0.0, 0.1)
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
