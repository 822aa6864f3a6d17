"""Convert an array between the model's layout and that of another library's file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gpunn._typing import Shape


class Rearranged(NamedTuple):
    """A conversion between two layouts: split axes, permute them, and join them again.

    Attributes
    ----------
    ours, theirs : tuple of int
        The shapes in the model and in the file.
    split : tuple of int
        The shape in the model after splitting some axes.
    axes : tuple of int
        Axis i of the file's array, before axes are joined, is axis ``axes[i]`` of the split array.
    """

    ours: Shape
    theirs: Shape
    split: Shape
    axes: tuple[int, ...]

    def to_theirs(self, x: Any) -> Any:
        """Convert a NumPy array from the model's layout to the file's."""
        return x.reshape(self.split).transpose(self.axes).reshape(self.theirs)

    def to_ours(self, x: Any) -> Any:
        """Convert a NumPy array from the file's layout to the model's."""
        permuted = x.reshape([self.split[axis] for axis in self.axes])
        back = [self.axes.index(axis) for axis in range(len(self.axes))]
        return permuted.transpose(back).reshape(self.ours)


def permuted(ours: Shape, axes: Sequence[int], split: Shape | None = None) -> Rearranged:
    """Return the conversion that splits some axes, and permutes all without joining any."""
    split = ours if split is None else split
    return Rearranged(ours, tuple(split[axis] for axis in axes), split, tuple(axes))


def unchanged(shape: Shape) -> Rearranged:
    """Return the conversion of an array that has the same layout in both."""
    return permuted(shape, range(len(shape)))


def matrix(shape: Shape, rows: int = 1, columns: int = 1) -> Rearranged:
    """Return the conversion of dense weights: (inputs, outputs) to (outputs, inputs).

    Parameters
    ----------
    shape : tuple of int
        The number of inputs, and of outputs.
    rows, columns : int
        The channels of the images that the inputs, or outputs, stand for: flattened from
        (H, W, channels) in the model and from (channels, H, W) in the file. 1 for other features.
    """
    inputs, outputs = shape
    split = (inputs // rows, rows, outputs // columns, columns)
    return Rearranged(shape, (outputs, inputs), split, (3, 2, 1, 0))


def vector(shape: Shape, channels: int = 1) -> Rearranged:
    """Return the conversion of an array with one number per feature; `channels` as in `matrix`."""
    return Rearranged(shape, shape, (math.prod(shape) // channels, channels), (1, 0))


def filters(shape: Shape, axes: int) -> Rearranged:
    """Return the conversion of convolution weights: (k, l, C, K) to (K, C, k, l) or (K, C, l).

    For a transposed convolution: (k, l, K, C) to (C, K, k, l).
    """
    if axes == 2:
        return permuted(shape, (3, 2, 0, 1))
    return permuted(shape, (2, 1, 0), shape[1:])
