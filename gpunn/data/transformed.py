"""A loader's transform: what it promises, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, backend_of
from gpunn.errors import ShapeError

Transform: TypeAlias = Callable[[Array], Array]


def keeps_shape(transform: Transform | None) -> bool:
    """Return whether batches have the shape and dtype of the data: a transform must say so."""
    return transform is None or getattr(transform, "keeps_shape", False) is True


def transformed(transform: Transform, x: Array, backend: Backend) -> Array:
    """Return a batch's features after the transform, which may write to them.

    Raises
    ------
    ShapeError
        If it returns anything but as many rows there, or breaks its promise to keep the shape.
    """
    shape, dtype = tuple(x.shape), x.dtype
    result: Any = transform(x)
    if backend_of(result) != backend or result.shape[:1] != shape[:1]:
        raise ShapeError(
            f"Loader: transform must return an array on {backend} with {shape[0]} rows, got "
            f"{type(result).__name__} of shape {getattr(result, 'shape', None)}"
        )
    if keeps_shape(transform) and (tuple(result.shape), result.dtype) != (shape, dtype):
        raise ShapeError(
            f"Loader: transform says keeps_shape, so it must return {dtype} of shape {shape}, "
            f"got {result.dtype} of shape {tuple(result.shape)}"
        )
    return result


def transformed_group(transform: Transform, x: Array, batch_size: int, backend: Backend) -> Array:
    """Return the features of several batches on the host after the transform of each by itself."""
    starts = range(0, x.shape[0], batch_size)
    parts = [transformed(transform, np.array(x[i : i + batch_size]), backend) for i in starts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
