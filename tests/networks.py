"""Networks drawn at random: layers that fit together, whatever the samples are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

import gpunn as gn


@dataclass(frozen=True)
class Block:
    """A layer of a network, whatever the width of what comes before it."""

    kind: str
    width: int = 3
    activation: str = "identity"
    bias: bool = True
    rate: float = 0.3
    inner: tuple[Block, ...] = ()

    def make(self, inputs: int, rng: np.random.Generator, dtype: str) -> tuple[list[gn.Layer], int]:
        """Return the layers, and how many outputs they have."""

        def dense(outputs: int) -> gn.Dense:
            settings: Any = {"bias": self.bias, "rng": rng, "dtype": dtype}
            return gn.Dense(inputs, outputs, self.activation, **settings)

        if self.kind == "dense":
            return [dense(self.width)], self.width
        alone: dict[str, Callable[[], gn.Layer]] = {
            "activation": gn.ACTIVATIONS[self.activation],
            "dropout": lambda: gn.Dropout(self.rate),
            "flatten": gn.Flatten,
            "reshape": lambda: gn.Sequential(gn.Reshape((1, inputs)), gn.Flatten()),
            "layer_norm": lambda: gn.LayerNorm(inputs, dtype=dtype),
            "prelu": lambda: gn.PReLU(inputs if self.bias else 1, dtype=dtype),
            "rms_norm": lambda: gn.RMSNorm(inputs, dtype=dtype),
            # A large epsilon: of two samples that are nearly alike, the rest is noise.
            "batch_norm": lambda: gn.BatchNorm(inputs, 0.3, 0.1, dtype=dtype),
            "group_norm": lambda: gn.GroupNorm(2 - inputs % 2, inputs, dtype=dtype),
        }
        if self.kind in alone:
            return [alone[self.kind]()], inputs
        if self.kind == "twice":
            layer = dense(inputs)
            return [layer, gn.Tanh(), layer], inputs
        layers, width = made(self.inner, inputs, rng, dtype)
        if self.kind in ("concatenate", "add"):
            other = gn.Dense(inputs, width, "tanh", rng=rng, dtype=dtype)
            both = gn.Parallel(gn.Sequential(*layers), other, join=self.kind)
            return [both], 2 * width if self.kind == "concatenate" else width
        if self.kind == "residual":
            if width != inputs or len(layers) != 1:
                layers.append(gn.Dense(width, inputs, rng=rng, dtype=dtype))
            return [gn.Residual(layers[0] if len(layers) == 1 else gn.Sequential(*layers))], inputs
        return [gn.Sequential(*layers)], width


def made(
    blocks: tuple[Block, ...], width: int, rng: np.random.Generator, dtype: str
) -> tuple[list[gn.Layer], int]:
    layers: list[gn.Layer] = []
    for block in blocks:
        more, width = block.make(width, rng, dtype)
        layers += more
    return layers, width


@dataclass(frozen=True)
class OverImages:
    """A layer with a window, on images or sequences of any size."""

    kind: str
    size: int = 2
    stride: int = 1
    dilation: int = 1
    padding: Any = "same"
    outputs: int = 1
    groups: int = 1
    activation: str = "relu"
    bias: bool = True

    def make(self, shape: tuple[int, ...], rng: np.random.Generator, dtype: str) -> gn.Layer:
        """Return the layer, on samples of that shape."""
        axes, channels = len(shape) - 1, shape[-1]
        reach = 1 + (self.size - 1) * (self.dilation if self.kind == "conv" else 1)
        padding = self.padding if min(shape[:-1]) >= reach else "same"
        if self.kind == "conv":
            groups = self.groups if channels % self.groups == 0 else 1
            settings: Any = {"stride": self.stride, "dilation": self.dilation, "padding": padding}
            settings |= {"groups": groups, "bias": self.bias, "rng": rng, "dtype": dtype}
            kind: Any = gn.Conv2d if axes == 2 else gn.Conv1d
            outputs = groups * self.outputs
            return kind(channels, outputs, self.size, self.activation, **settings)
        if self.kind == "max":
            pool: Any = gn.MaxPool2d if axes == 2 else gn.MaxPool1d
            return pool(self.size, self.stride, padding=padding)
        average: Any = gn.AveragePool2d if axes == 2 else gn.AveragePool1d
        return average(self.size, self.stride, padding=padding, count_include_pad=self.bias)


IMAGES = st.builds(
    OverImages,
    kind=st.sampled_from(["conv", "conv", "max", "average"]),
    size=st.integers(1, 3),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["same", "valid", 0]),
    outputs=st.integers(1, 9),
    groups=st.integers(1, 2),
    activation=st.sampled_from(sorted(set(gn.ACTIVATIONS) - {"log_softmax"})),
    bias=st.booleans(),
)

NORMS = ["layer_norm", "rms_norm", "group_norm", "batch_norm", "prelu"]
KINDS = ["dense", "dense", "activation", "dropout", "flatten", "reshape", "twice", *NORMS]
PLAIN = st.builds(
    Block,
    kind=st.sampled_from(KINDS),
    width=st.integers(1, 7),
    activation=st.sampled_from(sorted(gn.ACTIVATIONS)),
    bias=st.booleans(),
    rate=st.sampled_from([0.0, 0.3, 0.6]),
)
NESTED = st.builds(
    Block,
    kind=st.sampled_from(["residual", "sequential", "concatenate", "add"]),
    inner=st.lists(PLAIN, max_size=3).map(tuple),
)
BLOCKS = st.lists(st.one_of(PLAIN, PLAIN, NESTED), max_size=4).map(tuple)
