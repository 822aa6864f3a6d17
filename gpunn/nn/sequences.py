"""Check the input of layers for sequences."""

from __future__ import annotations

from gpunn._typing import Array
from gpunn.errors import ShapeError
from gpunn.nn.channels import check_channels
from gpunn.nn.layer import Layer


def check_sequence(layer: Layer, x: Array, like: Array, features: int) -> None:
    """Check that x is (N, T, features), of the dtype and on the device of a layer's weights."""
    check_channels(layer, x, like, features, between="T")
    if not x.shape[1]:
        raise ShapeError(f"{layer!r}: expected at least one position, got {tuple(x.shape)}")
