"""Models to save, and what a file should hold of them."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpunn as gn
import gpunn.files.weights

SPECIAL = b"\x01\0\xa0\x7f\0\0\xc0\xff\0\0\0\x80\x01\0\0\0"  # two NaNs, -0 and a subnormal


class Counted(gn.Layer):
    """A layer with state that is not trained, of several kinds."""

    def __init__(self, inner: gn.Layer, start: int = 0) -> None:
        self.inner = inner
        self.mean = gn.Buffer(np.full((2, 3), float(start)))
        self.seen = gn.Buffer(np.asarray(start))
        self.extra = {"mask": [gn.Buffer(np.asarray([bool(start), False]))]}


class Held(gn.Layer):
    """Parameters by name; whole numbers are buffers."""

    def __init__(self, **values: Any) -> None:
        for name, x in values.items():
            kind = gn.Buffer if "int" in str(x.dtype) else gn.Parameter
            setattr(self, name, kind(x))


def make(seed: int = 0, backend: gn.Backend | str = "numpy") -> gn.Sequential:
    """Return a model with nested layers, shared ones and buffers."""
    shared = gn.Dense(3, 3, "tanh", rng=seed)
    deep = Counted(gn.Residual(gn.Dense(3, 3, bias=False, dtype="float64", rng=seed)), seed)
    return gn.Sequential(shared, deep, shared, gn.ReLU()).to(backend)


NAMES = {
    "layers.0.weight", "layers.0.bias", "layers.1.inner.layer.weight",
    "layers.1.mean", "layers.1.seen", "layers.1.extra.mask.0",
}  # fmt: skip


def bits(model: gn.Layer) -> dict[str, Any]:
    """Return all that a file should hold of a model."""
    held = {**model.named_parameters(), **model.named_buffers()}
    arrays = {name: gn.to_numpy(item.value) for name, item in held.items()}
    return {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in arrays.items()}
