"""What layers for sequences ask of their input."""

from __future__ import annotations

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of, device_mismatch
from gpunn.errors import DTypeError, ShapeError
from gpunn.nn.layer import Layer


def check_sequence(layer: Layer, x: Array, like: Array, features: int) -> None:
    """Check that x is (N, T, features), of the dtype and on the device of a layer's weights."""
    place, home = backend_of(x), backend_of(like)
    if place is None:
        raise DTypeError(f"{layer!r}: expected an array, got {type(x).__name__}")
    if place != home:
        raise device_mismatch(repr(layer), home, place)
    if x.ndim != 3 or x.shape[2] != features:
        raise ShapeError(f"{layer!r}: expected x of shape (N, T, {features}), got {tuple(x.shape)}")
    if not x.shape[1]:
        raise ShapeError(f"{layer!r}: expected at least one position, got {tuple(x.shape)}")
    if x.dtype != like.dtype:
        raise DTypeError(f"{layer!r}: the weights are {like.dtype} and x is {x.dtype}")
